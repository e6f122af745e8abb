"""Boxes from COCO and VOC files: clipped, letterboxed, split by group; wrong ones named."""

import json
import logging
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data
from chinchilla.data.boxes import Object, clip
from chinchilla.data.letterbox import Size, into_frame, letterbox, out_of_frame
from chinchilla.data.picture_split import read_boxes, split_scenes
from chinchilla.data.raster import PADDING
from chinchilla.data.rows import MalformedError

COLOURS = {"cat": (255, 0, 0), "dog": (0, 0, 255)}
SIDES = st.integers(1, 500)


def scene(rng, width=40, height=30, count=2):
    """An image with rectangles in the colours of their classes, one in each half, and their boxes."""
    image = Image.new("RGB", (width, height), (0, int(rng.integers(100, 256)), 0))
    things = []
    for number in range(count):
        kind = ("cat", "dog")[number % 2]
        left = number * width // count + int(rng.integers(1, 5))
        box = (left, int(rng.integers(0, 5)), left + int(rng.integers(8, 12)), int(rng.integers(20, 28)))
        image.paste(COLOURS[kind], box)
        things.append((box, kind))
    return image, things


def write_coco(folder, scenes, **more):
    """One JSON file and a folder of images, as COCO has them; ids don't begin at 0."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ids = {"dog": 18, "cat": 17}
    coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for name, i in ids.items()]}
    for number, (image, things) in enumerate(scenes, 100):
        name = f"{number}.png"
        image.save(folder / "images" / name)
        coco["images"].append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for (x0, y0, x1, y1), kind in things:
            row = {"id": len(coco["annotations"]), "image_id": number, "category_id": ids[kind], "iscrowd": 0}
            coco["annotations"].append(row | {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[1, 2]]})
    (folder / "a.json").write_text(json.dumps(coco | more))
    return folder / "a.json", folder / "images"


def change(files, edit):
    coco = json.loads(files[0].read_text())
    edit(coco)
    files[0].write_text(json.dumps(coco))


def write_voc(folder, scenes):
    for name in ("images", "notes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image, things) in enumerate(scenes, 100):
        image.save(folder / "images" / f"{number}.png")
        objects = "".join(
            f"<object><name>{kind}</name><difficult>1</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><bndbox/></part></object>"
            for (x0, y0, x1, y1), kind in things
        )
        size = f"<size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>"
        text = f"<!-- by hand --><annotation><filename>elsewhere.jpg</filename>{size}{objects}</annotation>"
        (folder / "notes" / f"{number}.xml").write_text(text)
    return folder / "notes", folder / "images"


def test_coco_and_voc_give_the_same_scenes(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [scene(rng, count=count) for count in (2, 1, 0, 3)]
    assert [len(things) for _, things in scenes] == [2, 1, 0, 3]
    coco_files, voc_files = write_coco(tmp_path / "coco", scenes), write_voc(tmp_path / "voc", scenes)
    coco = read_boxes(coco_files, Data(train=coco_files))
    voc = read_boxes(voc_files, Data(train=voc_files))
    assert coco.classes == voc.classes == ("cat", "dog")  # by id, and by name
    assert (coco.images == voc.images).all() and coco.sizes.tolist() == voc.sizes.tolist() == [[30, 40]] * 4
    for one, other, (_, things) in zip(coco.boxes, voc.boxes, scenes, strict=True):
        assert one.tolist() == other.tolist() == [list(box) for box, _ in things]
        assert one.dtype == np.float32 and one.shape == (len(things), 4)
    assert [labels.tolist() for labels in coco.labels] == [labels.tolist() for labels in voc.labels]
    assert coco.labels[3].tolist() == [0, 1, 0]
    assert coco.names == ("100.png", "101.png", "102.png", "103.png")


def test_boxes_lie_where_the_colours_are_in_the_frame(tmp_path):
    rng = np.random.default_rng(1)
    files = write_coco(tmp_path, [scene(rng, 400, 300), scene(rng, 300, 500)])
    found = read_boxes(files, Data(train=files), Size(256, 256, 3))
    for image, shape, boxes, labels in zip(found.images, found.sizes, found.boxes, found.labels, strict=True):
        for box, label in zip(into_frame(boxes, *shape, found.size), labels, strict=True):
            x0, y0, x1, y1 = np.rint(box).astype(int)
            colour = np.array(COLOURS[found.classes[label]])
            rows, columns = np.nonzero(np.abs(image.astype(int) - colour).sum(axis=2) < 128)
            assert np.abs([columns.min() - x0, rows.min() - y0, columns.max() + 1 - x1, rows.max() + 1 - y1]).max() <= 1
    assert (found.images[0][:32] == PADDING).all() and (found.images[1][:, :51] == PADDING).all()


@settings(max_examples=60)
@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_a_box_goes_into_the_frame_and_back(height, width, frame_height, frame_width, draw):
    size = Size(frame_height, frame_width, 3)
    place = letterbox(height, width, size)
    assert place.height == frame_height or place.width == frame_width
    corners = np.array(draw.draw(st.tuples(*[st.floats(0, 1, width=32)] * 4))).reshape(1, 2, 2)
    boxes = (np.sort(corners, axis=1) * [width, height]).reshape(1, 4).astype(np.float32)
    inside = into_frame(boxes, height, width, size)
    edges = [place.left, place.top, place.left + place.width, place.top + place.height]
    assert (inside[:, :2] >= np.array(edges[:2]) - 1e-3).all() and (inside[:, 2:] <= np.array(edges[2:]) + 1e-3).all()
    assert min(edges) >= 0 and edges[2] <= frame_width and edges[3] <= frame_height
    rounding = 1e-5 * max(frame_height, frame_width) * max(width / place.width, height / place.height)
    assert out_of_frame(inside, height, width, size) == pytest.approx(boxes, abs=rounding + 1e-4)


ANY = st.one_of(st.floats(), st.floats(-50, 150))


@settings(max_examples=100)
@given(st.tuples(ANY, ANY, ANY, ANY), st.integers(1, 100), st.integers(1, 100))
def test_a_box_is_cut_at_the_edges_or_refused(box, height, width):
    boxes = np.array([box])
    x0, y0, x1, y1 = box
    seen = np.isfinite(box).all() and max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)
    objects = [Object(box, "cat", "object 7")]
    if not seen:
        with pytest.raises(
            MalformedError, match=r"object 7: its box .* (is not of numbers|has no area|lies outside), and the image"
        ):
            clip(boxes, height, width, objects)
        return
    assume(np.float32(max(x0, 0)) < np.float32(min(x1, width)) and np.float32(max(y0, 0)) < np.float32(min(y1, height)))
    found = clip(boxes, height, width, objects)
    assert found.dtype == np.float32
    assert found[0].tolist() == [np.float32(v) for v in (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))]
    assert (clip(found.astype(np.float64), height, width, objects) == found).all()


def many(rng, count=24):
    return [scene(rng) for _ in range(count)]


BAD_BOXES = {
    "NaN": ([float("nan"), 1, 2, 3], "is not of numbers"),
    "infinite": ([1, 1, float("inf"), 3], "is not of numbers"),
    "flat": ([1, 1, 0, 3], "has no area"),
    "inside out": ([9, 9, -5, 3], "has no area"),
    "outside": ([40, 1, 5, 5], "lies outside"),
}


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_a_bad_box_is_named_or_its_image_left_out(tmp_path, caplog, kind):
    bbox, message = BAD_BOXES[kind]
    files = write_coco(tmp_path, many(np.random.default_rng(0)))
    change(files, lambda coco: coco["annotations"][11].update(bbox=bbox))
    with pytest.raises(
        DataError, match=rf"105\.png: annotation 11: its box .* {message}, and the image has 40 x 30 pixels; mend it"
    ):
        read_boxes(files, Data(train=files))
    found = read_boxes(files, Data(train=files, invalid="skip"))
    assert len(found) == len(found.boxes) == 23 and "105.png" not in found.names
    assert "left out 1 malformed images of 24" in caplog.text


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../a.png", "..\\a.png", "C:\\a.png", "a\0.png"])
def test_a_name_that_leads_out_of_the_folder_is_never_opened(tmp_path, monkeypatch, name):
    files = write_coco(tmp_path / "in", many(np.random.default_rng(0)))
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    change(files, lambda coco: coco["images"][3].update(file_name=name))
    with pytest.raises(DataError, match="leads out of the folder of images"):
        read_boxes(files, Data(train=files))


def twice(coco, part, **changes):
    coco[part].append(coco[part][0] | changes)


WRONG_COCO = {
    "an image twice": (lambda c: twice(c, "images"), "image id 100 is there 2 times"),
    "a category twice": (lambda c: twice(c, "categories", name="x"), "category id 18 is there 2 times"),
    "a name twice": (lambda c: twice(c, "categories", id=9), "category name 'dog' is there 2 times"),
    "an unknown image": (lambda c: c["annotations"][2].update(image_id=5), "annotation 2 is of image 5, which is not"),
    "an unknown category": (
        lambda c: c["annotations"][2].update(category_id=90),
        r"101\.png: annotation 2: 'category id 90' is not among the classes: cat, dog",
    ),
    "a missing image": (lambda c: c["images"][1].update(file_name="gone.png"), r"gone\.png: no such file"),
    "another size": (lambda c: c["images"][1].update(width=80), r"40 x 30 pixels, and annotated as 80 x 30"),
    "a box of three": (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"not COCO's JSON: annotations\.2\.bbox"),
    "no categories": (lambda c: c.update(categories=[]), "no images or no categories"),
    "no images": (lambda c: c.pop("images"), "not COCO's JSON: images: Field required"),
    "a list": (lambda c: c.update(images={"a": 1}), "not COCO's JSON: images"),
}


@pytest.mark.parametrize("kind", WRONG_COCO)
def test_wrong_coco_is_named(tmp_path, kind):
    edit, message = WRONG_COCO[kind]
    files = write_coco(tmp_path, many(np.random.default_rng(0), 3))
    change(files, edit)
    with pytest.raises(DataError, match=message):
        read_boxes(files, Data(train=files))


def test_what_is_no_json_is_named(tmp_path):
    files = write_coco(tmp_path, many(np.random.default_rng(0), 3))
    for text in ("", "[1, 2]", '{"images": [', '{"images": ' + "[" * 100_000, "caf\udce9"):
        files[0].write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(DataError, match=r"a\.json: not COCO's JSON"):
            read_boxes(files, Data(train=files))
    with pytest.raises(DataError, match=r"b\.json: cannot be read"):
        read_boxes((tmp_path / "b.json", files[1]), Data(train=files))


def test_crowds_are_left_out_and_small_excesses_clipped(tmp_path, caplog):
    files = write_coco(tmp_path, many(np.random.default_rng(0), 3))

    def edit(coco):
        coco["annotations"][0]["iscrowd"] = 1
        coco["annotations"][3]["bbox"] = [30, 20, 30, 10]
        del coco["images"][2]["width"]
        del coco["annotations"][5]["id"]

    change(files, edit)
    with caplog.at_level(logging.INFO, "chinchilla"):
        found = read_boxes(files, Data(train=files))
    assert [len(boxes) for boxes in found.boxes] == [1, 2, 2]
    assert found.boxes[1][1].tolist() == [30, 20, 40, 30]
    assert "left out 1 boxes of crowds" in caplog.text and "clipped 1 boxes" in caplog.text


@pytest.mark.parametrize("upright", [True, False])
def test_a_photograph_is_turned_as_it_was_annotated(tmp_path, upright):
    image, things = scene(np.random.default_rng(0))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = write_coco(tmp_path, [(image if upright else turned, things), (image, [])])
    turned.save(files[1] / "100.png", exif=exif)
    if not upright:  # the boxes of the image as it lies in the file
        change(files, lambda coco: coco["annotations"].clear())
    found = read_boxes(files, Data(train=files), Size(40, 40, 3))
    assert found.sizes[0].tolist() == ([30, 40] if upright else [40, 30])
    shown = found.images[0][5:35] if upright else found.images[0][:, 5:35]
    assert (shown == np.asarray(image if upright else turned)).all()


def xml(files, edit):
    path = files[0] / "101.xml"
    path.write_text(edit(path.read_text()))


WRONG_VOC = {
    "no number": (lambda t: t.replace("<ymax>", "<ymax>x"), r"101\.xml: not a VOC annotation \(object 1: ymax is 'x"),
    "no corner": (lambda t: t.replace("<xmin>", "<a>").replace("</xmin>", "</a>"), "object 1 has no bndbox/xmin"),
    "no name": (lambda t: t.replace("cat", " "), "object 1 has no name"),
    "no XML": (lambda t: t[:-5], r"101\.xml: not a VOC annotation"),
    "entities": (lambda t: '<!DOCTYPE a [<!ENTITY b "c">]>' + t, "it declares a document type or entities"),
    "NaN": (lambda t: re.sub(r"<xmax>\d+", "<xmax>nan", t), "object 1: its box .*nan.* is not of numbers"),
    "another size": (lambda t: t.replace("<width>40", "<width>41"), "annotated as 41 x 30"),
    "no end": (lambda t: t.replace("<width>40", "<width>inf"), r"101\.xml: not a VOC annotation"),
}


@pytest.mark.parametrize("kind", WRONG_VOC)
def test_wrong_voc_is_named(tmp_path, kind):
    edit, message = WRONG_VOC[kind]
    files = write_voc(tmp_path, many(np.random.default_rng(0), 12))
    xml(files, edit)
    with pytest.raises(DataError, match=message):
        read_boxes(files, Data(train=files))
    assert len(read_boxes(files, Data(train=files, invalid="skip"))) == 11


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_voc_file_is_read_in_its_encoding_and_may_declare_nothing_in_any(tmp_path, encoding):
    files = write_voc(tmp_path, many(np.random.default_rng(0), 12))
    plain = read_boxes(files, Data(train=files))
    text = (files[0] / "101.xml").read_text().replace("-->", "<! and more -->")
    start = '<?xml version="1.0" encoding="utf-16"?>' if "16" in encoding else ""
    mark = "\N{ZERO WIDTH NO-BREAK SPACE}" if encoding == "utf-16-be" else ""
    (files[0] / "101.xml").write_bytes((mark + start + text).encode(encoding))
    found = read_boxes(files, Data(train=files))
    assert all((one == other).all() for one, other in zip(found.boxes, plain.boxes, strict=True))
    laugh = start + '<!DOCTYPE a [<!ENTITY b "cat">]>' + text.replace("<name>cat", "<name>&b;")
    (files[0] / "101.xml").write_bytes((mark + laugh).encode(encoding))
    with pytest.raises(DataError, match=r"101\.xml: not a VOC annotation \(it declares a document type or entities"):
        read_boxes(files, Data(train=files))


@pytest.mark.parametrize("encoding", ["klingon", "gbk"])
def test_a_voc_file_in_an_encoding_that_is_not_read_is_named(tmp_path, encoding):
    files = write_voc(tmp_path, many(np.random.default_rng(0), 12))
    text = (files[0] / "101.xml").read_text()
    (files[0] / "101.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>{text}')
    with pytest.raises(DataError, match=r"101\.xml: not a VOC annotation \(.*encoding"):
        read_boxes(files, Data(train=files))


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_a_folder_of_images_that_is_none_is_told_for_what_it_is(tmp_path, write):
    notes, images = write(tmp_path, many(np.random.default_rng(0), 3))
    photo = next(images.glob("*.png"))
    with pytest.raises(DataError, match=f"{photo.name}: a file, where a folder is needed; name its folder"):
        read_boxes((notes, photo), Data(train=(notes, photo)))
    with pytest.raises(DataError, match="gone: no such folder; check the path"):
        read_boxes((notes, tmp_path / "gone"), Data(train=(notes, tmp_path / "gone")))


def test_voc_files_and_images_go_together_by_name(tmp_path, caplog):
    files = write_voc(tmp_path, many(np.random.default_rng(0), 3))
    (files[1] / "bare.png").write_bytes((files[1] / "100.png").read_bytes())
    xml(files, lambda text: text.replace("<width>40", "<width>0").replace("</size>", "</size><group>g</group>"))
    with caplog.at_level(logging.INFO, "chinchilla"):
        found = read_boxes(files, Data(train=files))
    assert "passed over 1 images without an XML file" in caplog.text
    assert found.groups == ("", "g", "")
    (files[1] / "100.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"100\.png: 100\.jpg has the same name"):
        read_boxes(files, Data(train=files))
    (files[1] / "100.jpg").unlink()
    (files[1] / "101.png").unlink()
    with pytest.raises(DataError, match=r"no image 101 in .*; add it, or take the XML file away"):
        read_boxes(files, Data(train=files))
    with pytest.raises(DataError, match="no XML file in it"):
        read_boxes((files[1], files[1]), Data(train=files))


def test_voc_files_may_lie_beside_their_images(tmp_path):
    notes, images = write_voc(tmp_path, many(np.random.default_rng(0), 3))
    for path in notes.iterdir():
        path.rename(images / path.name)
    apart, together = read_boxes((images, images), Data(train=images)), read_boxes(images, Data(train=images))
    assert (apart.images == together.images).all() and len(together.boxes[2]) == 2


def test_a_test_set_has_the_classes_of_train(tmp_path):
    rng = np.random.default_rng(0)
    files = write_voc(tmp_path, [scene(rng, count=2)])
    assert read_boxes(files, Data(train=files), known=("bird", "cat", "dog")).labels[0].tolist() == [1, 2]
    with pytest.raises(DataError, match="object 1: 'cat' is not among the classes: bird, dog"):
        read_boxes(files, Data(train=files), known=("bird", "dog"))


def test_scenes_are_split_by_group_and_pixels(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(30)]
    files = write_coco(tmp_path, [*scenes, *scenes[:15]])  # half of them twice

    def edit(coco):
        for number, image in enumerate(coco["images"]):
            image["video"] = number % 15 // 2

    for seed in range(3):
        split = split_scenes(Data(train=files), seed)
        parts = [{image.tobytes() for image in part.images} for part in (split.train, split.valid, split.test)]
        assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    change(files, edit)
    for seed in range(3):
        split = split_scenes(Data(train=files, group="video"), seed)
        parts = [set(part.groups) for part in (split.train, split.valid, split.test)]
        assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        for name, image in zip(split.test.names, split.test.images, strict=True):
            with Image.open(files[1] / name) as picture:
                assert (np.asarray(picture) == image).all()


def test_formats_that_hold_no_boxes_are_refused(tmp_path):
    for files in (tmp_path / "a.json", (tmp_path, tmp_path, tmp_path)):
        with pytest.raises(UsageError, match=r"images with boxes are .*COCO's JSON file, folder of images"):
            read_boxes(files, Data(train=files))
    with pytest.raises(UsageError, match="images with boxes are"):
        read_boxes(tmp_path, Data(train=tmp_path, format="folder"))
