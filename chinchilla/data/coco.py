"""Boxes as COCO has them: one JSON file of images, annotations and categories, and a folder of images."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import BaseModel, ConfigDict, ValidationError

from chinchilla.config.errors import DataError
from chinchilla.data.boxes import Annotated, Object
from chinchilla.data.pictures import need_folder

Id = int | str

log = logging.getLogger("chinchilla")


class _Image(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(BaseModel):
    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(BaseModel):
    id: Id
    name: str


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(annotations: Path, folder: Path, group: str = "group") -> tuple[list[Annotated], tuple[str, ...]]:
    """The images and their objects, in the file's order, and the names of the categories, by id.

    Boxes of crowds are left out, with a message. `group` names the field of an image that says what it belongs to.

    Raises:
        DataError: a file that is missing or not COCO's JSON; a folder that is missing or a file; ids or category names
            that are there twice; an annotation of an image that isn't there.
    """
    coco = _parse(annotations)
    need_folder(folder)
    _refuse_twice((each.id for each in coco.images), f"{annotations}: image id")
    _refuse_twice((each.id for each in coco.categories), f"{annotations}: category id")
    _refuse_twice((each.name for each in coco.categories), f"{annotations}: category name")
    categories = {each.id: each.name for each in coco.categories}
    objects: dict[Id, list[Object]] = {each.id: [] for each in coco.images}
    crowds = 0
    for row, each in enumerate(coco.annotations, 1):
        mark = f"annotation {each.id}" if each.id is not None else f"annotation in place {row}"
        if each.image_id not in objects:
            raise DataError(
                f"{annotations}: {mark} is of image {each.image_id!r}, which is not there; add it, or take both away"
            )
        crowds += bool(each.iscrowd)
        if not each.iscrowd:
            objects[each.image_id].append(_object(each, categories, mark))
    if crowds:
        log.info("%s: left out %d boxes of crowds, which hold more than one object", annotations, crowds)
    names = tuple(each.name for each in sorted(coco.categories, key=lambda each: (isinstance(each.id, str), each.id)))
    return [_annotated(image, objects[image.id], folder, group) for image in coco.images], names


def _parse(path: Path) -> _Coco:
    try:
        coco = _Coco.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path (in a recipe it is relative to the recipe)"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: not COCO's JSON: {where}: {first['msg']}; write it as COCO's format says") from None
    if not coco.images or not coco.categories:
        raise DataError(f"{path}: no images or no categories in it; check that it is the right file, and whole")
    return coco


def _refuse_twice(values: Iterable[object], what: str) -> None:
    for value, count in Counter(values).most_common(1):
        if count > 1:
            raise DataError(f"{what} {value!r} is there {count} times; give each its own")


def _object(each: _Annotation, categories: dict[Id, str], mark: str) -> Object:
    left, top, width, height = each.bbox
    kind = categories.get(each.category_id, f"category id {each.category_id}")
    return Object((left, top, left + width, top + height), kind, mark)


def _annotated(image: _Image, objects: list[Object], folder: Path, group: str) -> Annotated:
    shape = (image.height, image.width) if image.height and image.width else None
    value = (image.model_extra or {}).get(group)
    problem = ""
    if _leads_out(image.file_name):
        problem = f"file_name {image.file_name!r} leads out of the folder of images; name files below it"
    return Annotated(
        folder / image.file_name, image.file_name, shape, tuple(objects), "" if value is None else str(value), problem
    )


def _leads_out(name: str) -> bool:
    """On any system: a recipe may be written on one and run on another."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return any(path.is_absolute() or path.anchor or ".." in path.parts for path in paths) or "\0" in name
