"""Image folders: classes by sub-folder, one size, malformed files named or left out; splits by class without leaks."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_split import read_pictures, split_pictures
from chinchilla.data.pictures import read_folder


def write_folder(folder, classes, count, size=(8, 8), seed=0):
    """`count` different images a class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def test_classes_are_the_sub_folders(tmp_path):
    write_folder(tmp_path, ["dog", "cat"], 3)
    (tmp_path / ".git").mkdir()
    found = read_folder(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.names[0] == "cat/000.png"
    assert found.images.shape == (6, 8, 8, 3) and found.size == Size(8, 8, 3)
    with Image.open(tmp_path / "dog/002.png") as image:
        assert (found.images[5] == np.asarray(image)).all()


def test_images_below_a_class_belong_to_it_and_other_files_are_passed_over(tmp_path, caplog):
    write_folder(tmp_path, ["a", "b/deep"], 2)
    (tmp_path / "a/.hidden.png").write_bytes(b"no image")
    (tmp_path / "a/notes.txt").write_text("no image")
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b") and len(found) == 4
    assert "passed over 1 files that are no images, like" in caplog.text and "notes.txt" in caplog.text


def test_the_size_is_the_images_own_or_the_one_asked_for(tmp_path):
    write_folder(tmp_path, ["a", "b"], 2, (20, 30))
    assert read_folder(tmp_path).size == Size(20, 30, 3)
    assert read_folder(tmp_path, Size(5, 6, 1)).images.shape == (4, 5, 6, 1)
    Image.new("L", (31, 20)).save(tmp_path / "a/odd.png")
    assert read_folder(tmp_path).size == Size(64, 64, 3)
    large = write_folder(tmp_path / "large", ["a", "b"], 1, (300, 300))
    assert read_folder(large).size == Size(64, 64, 3)
    for path in (tmp_path / "grey/a", tmp_path / "grey/b"):
        path.mkdir(parents=True)
        Image.new("L", (9, 9)).save(path / "1.png")
    assert read_folder(tmp_path / "grey").size == Size(9, 9, 1)


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "photo.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"photo\.zip: a file, where a folder is needed; .* unpack it"):
        read_folder(tmp_path / "photo.zip")
    (tmp_path / "photo.zip").unlink()
    with pytest.raises(DataError, match="0 classes; it needs two sub-folders"):
        read_folder(tmp_path)
    write_folder(tmp_path / "one", ["a"], 2)
    with pytest.raises(DataError, match="1 classes"):
        read_folder(tmp_path / "one")
    write_folder(tmp_path / "parts", ["train", "val", "test"], 1)
    with pytest.raises(DataError, match=r"are parts, not classes; name each: data.train="):
        read_folder(tmp_path / "parts")
    write_folder(tmp_path / "stray", ["a", "b"], 1)
    Image.new("L", (9, 9)).save(tmp_path / "stray/c.png")
    with pytest.raises(DataError, match=r"c\.png \(1 images\) is in no class"):
        read_folder(tmp_path / "stray")
    write_folder(tmp_path / "hollow", ["a", "b"], 1)
    (tmp_path / "hollow/c").mkdir()
    with pytest.raises(DataError, match="hollow/c: no image in it"):
        read_folder(tmp_path / "hollow")


def test_a_test_folder_has_the_classes_of_train(tmp_path):
    write_folder(tmp_path, ["b", "c"], 1)
    found = read_folder(tmp_path, classes=("a", "b", "c"))
    assert found.labels.tolist() == [1, 2] and found.classes == ("a", "b", "c")
    with pytest.raises(DataError, match="the training data has no class 'b', but a, c"):
        read_folder(tmp_path, classes=("a", "c"))


def test_a_malformed_image_is_named_or_left_out(tmp_path, caplog):
    write_folder(tmp_path, ["a", "b"], 15)
    whole = (tmp_path / "a/007.png").read_bytes()
    (tmp_path / "a/007.png").write_bytes(whole[:100])  # its header is good
    (tmp_path / "b/003.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"(a/007|b/003)\.png: (a damaged|not an) image .*take it away"):
        read_folder(tmp_path)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        found = read_folder(tmp_path, invalid="skip")
    assert len(found) == 28 and np.bincount(found.labels).tolist() == [14, 14]
    assert "a/007.png" not in found.names and "b/003.png" not in found.names
    assert "left out 2 malformed images of 30" in caplog.text and "b/003.png: not an image" in caplog.text
    for name, pixels in zip(found.names, found.images, strict=True):
        with Image.open(tmp_path / name) as image:
            assert (np.asarray(image) == pixels).all()
    for number in range(4, 7):
        (tmp_path / f"b/{number:03}.png").write_bytes(b"")
    with pytest.raises(DataError, match="4 of 30 images are malformed, more than a tenth"):
        read_folder(tmp_path, invalid="skip")


def test_what_is_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_folder(tmp_path, ["a", "b"], 2)
    monkeypatch.setattr("chinchilla.data.headroom.free_bytes", lambda: 1000)
    monkeypatch.setattr("chinchilla.data.pictures.decode", None)
    with pytest.raises(DataError, match=r"4 images of 8 x 8 .* ask for a smaller size, at most 6 x 6"):
        read_folder(tmp_path)


def test_parts_are_cut_by_class_and_seed(tmp_path):
    write_folder(tmp_path, ["rare"], 20)
    write_folder(tmp_path, ["common"], 180, seed=1)
    data = Data(train=tmp_path)
    first, again, other = (split_pictures(data, seed) for seed in (3, 3, 4))
    assert first.test.names == again.test.names != other.test.names
    for part in (first.valid, first.test):
        rare = part.classes.index("rare")
        assert (part.labels == rare).sum() == pytest.approx(0.1 * len(part), abs=1)
        assert set(part.labels.tolist()) == {0, 1}
    names = [name for part in (first.train, first.valid, first.test) for name in part.names]
    assert sorted(names) == sorted(read_folder(tmp_path).names)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=12, max_size=40), st.integers(0, 3))
def test_the_same_pixels_never_stand_on_both_sides(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("pixels")
    for number, (label, shade) in enumerate(rows):
        path = folder / str(label) / f"{number}.pgm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"P5 1 1 255\n" + bytes([shade]))
    try:
        split = split_pictures(Data(train=folder), seed)
    except DataError:
        return  # too few of a class
    parts = [{int(image[0, 0, 0]) for image in part.images} for part in (split.train, split.valid, split.test)]
    assert all(parts)
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(split.train) + len(split.valid) + len(split.test) + split.dropped <= len(rows)
    for part in (split.train, split.valid, split.test):
        for name, label, image in zip(part.names, part.labels, part.images, strict=True):
            wanted = rows[int(name.partition("/")[2].removesuffix(".pgm"))]
            assert (int(part.classes[label]), int(image[0, 0, 0])) == wanted


def test_given_parts_are_kept_and_their_images_leave_train(tmp_path):
    train, test = (write_folder(tmp_path / name, ["a", "b"], 20) for name in ("train", "test"))
    write_folder(train, ["a", "b"], 40, seed=1)
    for number in range(5, 20):
        for name in ("a", "b"):
            (test / name / f"{number:03}.png").unlink()
    (test / "a/shown.png").write_bytes((train / "b/030.png").read_bytes())
    split = split_pictures(Data(train=train, test=test), 0)
    assert len(split.test) == 11
    assert split.dropped == 1  # the other test images are of another seed
    assert "b/030.png" not in split.train.names


def test_a_class_that_is_all_in_test_is_refused(tmp_path):
    train, test = (write_folder(tmp_path / name, ["a", "b"], 9) for name in ("train", "test"))
    write_folder(train, ["a"], 30, seed=1)
    with pytest.raises(DataError, match="every image of 'b' is also in valid or test"):
        split_pictures(Data(train=train, test=test, valid=test), 0)


def test_formats_that_hold_no_labelled_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.json: labelled images are a folder .* data\.train"):
        read_pictures(tmp_path / "a.json", Data(train=tmp_path / "a.json", format="jsonl"))
    with pytest.raises(UsageError, match="labelled images are"):
        read_pictures(tmp_path, Data(train=tmp_path, format="idx"))
