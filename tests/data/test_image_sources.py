"""Sets of images: whole, split by emoji and photograph, and boxes exact to the pixel."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from chinchilla.config.errors import FaultError
from chinchilla.config.run import Data
from chinchilla.data import collage, image_sources
from chinchilla.data.collage import GLYPH_SIDE, MAX_OVERLAP, SIDE, compose
from chinchilla.data.picture_split import read_boxes, read_pictures, split_pictures
from chinchilla.verbs.data import get


def glyph(shape: str) -> Image.Image:
    """A white shape with a soft edge."""
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    alpha = Image.new("L", (256, 256))
    getattr(ImageDraw.Draw(alpha), shape)((20, 60, 200, 230), fill=255)
    image.putalpha(alpha.resize((64, 64), Image.Resampling.BOX))
    return image


@pytest.fixture
def dark(monkeypatch):
    """Scenes on plain black, with the photograph given to `compose`."""
    black = Image.new("RGB", (300, 200))
    monkeypatch.setattr(collage, "_drawn", lambda rng: Image.new("RGB", (SIDE, SIDE)))
    return black


def test_a_box_is_what_is_seen_of_its_glyph(dark, monkeypatch):
    monkeypatch.setattr(collage, "GLYPHS", (1, 1))
    glyphs = {"disc": [glyph("ellipse")], "block": [glyph("rectangle")]}
    kinds = Counter()
    for number in range(60):
        scene, pasted = compose(glyphs, [dark], np.random.default_rng(number))
        (found,) = pasted
        rows, columns = np.nonzero(np.asarray(scene)[..., 0] >= 128)  # white by half
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == found[1:]
        kinds[found.kind] += 1
    assert kinds["disc"] > 15 and kinds["block"] > 15


def test_glyphs_lie_inside_and_hardly_overlap(dark):
    glyphs = {"disc": [glyph("ellipse")], "block": [glyph("rectangle")]}
    counts = Counter()
    for number in range(60):
        _, pasted = compose(glyphs, [dark], np.random.default_rng(number))
        counts[len(pasted)] += 1
        for place, one in enumerate(pasted):
            assert 0 <= one.x0 < one.x1 <= SIDE and 0 <= one.y0 < one.y1 <= SIDE
            assert max(one.x1 - one.x0, one.y1 - one.y0) <= 1.5 * GLYPH_SIDE[1]
            for other in pasted[:place]:
                width = max(0, min(one.x1, other.x1) - max(one.x0, other.x0))
                height = max(0, min(one.y1, other.y1) - max(one.y0, other.y0))
                areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (one, other)]
                assert width * height <= MAX_OVERLAP * min(areas)
    assert set(counts) >= {1, 2, 3, 4, 5}


def test_a_scene_depends_on_its_seed_alone():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    glyphs = {"disc": [glyph("ellipse")]}
    first, again, other = (compose(glyphs, [photograph], np.random.default_rng([5, n])) for n in (1, 1, 2))
    assert first[0].tobytes() == again[0].tobytes() and first[1] == again[1]
    assert first[0].tobytes() != other[0].tobytes()


def emoji_package(folder, entries):
    """A package of (unified, category, shade) entries."""
    pictures = folder / "img/twitter/64"
    pictures.mkdir(parents=True)
    rows = []
    for number, (unified, category, shade) in enumerate(entries):
        Image.new("RGBA", (4, 4), (shade % 256, shade // 256, 0, 255)).save(pictures / f"{number}.png")
        rows.append(
            {"unified": unified, "category": category, "image": f"{number}.png", "short_name": f"e{number}"}
            | {"has_img_twitter": True, "skin_variations": {"1F3FB": {"image": "absent.png"}}}
        )
    (folder / "emoji.json").write_text(json.dumps(rows))
    return folder


def test_one_emoji_in_every_person_is_one_group(tmp_path):
    persons = ["1F9D1", "1F468", "1F469"]
    tools = [f"1F5{number:02X}" for number in range(60)]
    entries = [(f"{person}-200D-{tool}", "People", 0) for tool in tools for person in persons]
    entries = [(unified, category, shade) for shade, (unified, category, _) in enumerate(entries)]
    entries += [("1F1F3-1F1F4", "Flags", 900), ("1F1E7-1F1FB", "Flags", 900), ("1F3FB", "Component", 901)]
    parts = image_sources._emoji_parts(emoji_package(tmp_path, entries))
    groups = [{emoji.group for emoji in part} for part in parts.values()]
    assert sum(map(len, groups)) == 61 and sum(map(len, parts.values())) == 181  # one of the two equal flags
    assert set(groups[0]) | set(groups[1]) | set(groups[2]) == {*tools, "1F1F3-1F1F4"}


def fetched(name: str):
    try:
        return get(name)
    except FaultError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")


def test_the_real_digits_are_whole():
    folder = fetched("mnist")
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    assert hashlib.md5(images.read_bytes()).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    test = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    found = read_pictures(test, Data(train=test))
    assert found.images.shape == (10_000, 28, 28, 1) and found.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (found.images.reshape(-1) == np.fromfile(test[0], np.uint8)[16:]).all()
    assert images.stat().st_size == 16 + 60_000 * 784 and labels.stat().st_size == 8 + 60_000


@pytest.mark.slow
def test_the_real_trees_lie_in_their_tiles():
    folder = fetched("deepforest")
    meta = json.loads((folder / "meta.json").read_text())
    for name, count in meta["examples"].items():
        files = folder / name / "annotations", folder / name / "images"
        found = read_boxes(files, Data(train=files))
        assert len(found) == count and sum(map(len, found.boxes)) == meta["boxes"][name]
        assert found.images.shape[1:] == (400, 400, 3) and found.classes == ("Tree",)
        assert all(boxes.min() >= 0 and boxes.max() <= 400 for boxes in found.boxes)
    assert meta["boxes"] == {"train": 463, "valid": 94, "test": 211}


@pytest.mark.slow
def test_the_real_emoji_leak_nothing():
    folder = fetched("emoji")
    meta = json.loads((folder / "meta.json").read_text())
    data = Data(train=folder / "train", valid=folder / "valid", test=folder / "test")
    split = split_pictures(data, 0)
    assert split.dropped == 0
    assert {"train": len(split.train), "valid": len(split.valid), "test": len(split.test)} == meta["examples"]
    assert len(split.train.classes) == 9 and split.train.images.shape[1:] == (64, 64, 3)
    assert np.bincount(split.test.labels).min() >= 10


@pytest.mark.slow
def test_the_real_scenes_are_as_described():
    folder = fetched("emoji-scenes")
    meta = json.loads((folder / "meta.json").read_text())
    files = folder / "valid.json", folder / "valid"
    found = read_boxes(files, Data(train=files))
    assert len(found) == meta["examples"]["valid"] == 500
    assert found.images.shape == (500, 128, 128, 3) and len(found.classes) == 9
    assert sum(map(len, found.boxes)) == meta["boxes"]["valid"]
    counts = np.bincount(np.concatenate(found.labels))
    assert counts.min() > 0.6 * counts.max()
