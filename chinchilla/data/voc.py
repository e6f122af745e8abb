"""Boxes as Pascal VOC has them: a folder of XML files, and a folder of images with the same names."""

import logging
from pathlib import Path
from xml.etree import ElementTree

from chinchilla.config.errors import DataError
from chinchilla.data.boxes import Annotated, Object
from chinchilla.data.pictures import need_folder
from chinchilla.data.raster import ENDINGS

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MAX_XML_BYTES = 10_000_000

log = logging.getLogger("chinchilla")


def read_voc(folder: Path, images: Path, group: str = "group") -> tuple[list[Annotated], tuple[str, ...]]:
    """The images that have an XML file of the same name, and the names of their classes, sorted.

    Corners count pixels from 1 and are inside the box, as VOC's are: 1 to the width is the whole image. Difficult
    objects are kept. `group` names the element that says what an image belongs to. What the XML says the image is
    called is passed over: it is often what it was called on another machine.

    Raises:
        DataError: a folder that is missing or a file, no annotations, or two images of one name.
    """
    files = sorted(_listed(folder, {".xml"}).items())
    pictures = _listed(images, ENDINGS)
    if not files:
        raise DataError(f"{folder}: no XML file in it; give [folder of annotations, folder of images]")
    bare = len(set(pictures) - {stem for stem, _ in files})
    if bare:
        log.info("%s: passed over %d images without an XML file in %s", images, bare, folder)
    found = [_annotated(path, pictures.get(stem), images, group) for stem, path in files]
    return found, tuple(sorted({thing.kind for each in found for thing in each.objects}))


def _listed(folder: Path, endings: frozenset[str] | set[str]) -> dict[str, Path]:
    """The files with one of the endings, by their path below `folder` without its ending."""
    need_folder(folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in endings and path.name[0] != "." and path.is_file():
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise DataError(
                    f"{path}: {found[stem].name} has the same name; which belongs to {stem}.xml? Remove one"
                )
            found[stem] = path
    return found


def _annotated(path: Path, image: Path | None, images: Path, group: str) -> Annotated:
    """What the XML file says; what is wrong with it or the image becomes the image's `problem`."""
    name = path.stem if image is None else image.relative_to(images).as_posix()
    if image is None:
        return Annotated(
            path, name, None, (), problem=f"no image {name} in {images}; add it, or take the XML file away"
        )
    try:
        root = _parse(path)
        sides = [_whole(root.findtext(f"size/{side}")) for side in ("height", "width")]
        objects = tuple(_object(each, number) for number, each in enumerate(root.iterfind("object"), 1))
    except (ElementTree.ParseError, LookupError, ValueError, OverflowError, OSError) as error:
        return Annotated(image, name, None, (), problem=f"{path}: not a VOC annotation ({error}); mend it")
    shape = (sides[0], sides[1]) if all(sides) else None
    return Annotated(image, name, shape, objects, (root.findtext(group) or "").strip())


class _Plain(ElementTree.TreeBuilder):
    """Elements of a document that declares nothing: entities can stand only in a document type.

    The parser itself tells of one, in whatever encoding the file is.
    """

    def doctype(self, *declared: str | None) -> None:
        raise ValueError("it declares a document type or entities, which can be made to fill the memory")


def _parse(path: Path) -> ElementTree.Element:
    if path.stat().st_size > MAX_XML_BYTES:
        raise ValueError("longer than 10 MB")
    return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_Plain()))


def _object(element: ElementTree.Element, number: int) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"object {number} has no name")
    left, top, right, bottom = (_number(element.findtext(f"bndbox/{side}"), number, side) for side in CORNERS)
    return Object((left - 1, top - 1, right, bottom), name, f"object {number}")


def _number(text: str | None, number: int, side: str) -> float:
    if text is None:
        raise ValueError(f"object {number} has no bndbox/{side}")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"object {number}: {side} is {text!r}, not a number") from None


def _whole(text: str | None) -> int:
    """A side of the image; 0 where it isn't said, as some tools write."""
    return int(float(text)) if text and text.strip() else 0
