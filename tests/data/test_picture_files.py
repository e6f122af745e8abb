"""idx, CIFAR and MedMNIST files, written from arrays, come back as they were; hostile ones are refused by name."""

import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.cifar import read_cifar
from chinchilla.data.idx import read_idx
from chinchilla.data.letterbox import Size
from chinchilla.data.medmnist import read_medmnist
from chinchilla.data.pickles import read_pickle
from chinchilla.data.picture_split import read_pictures, split_pictures
from chinchilla.data.rows import MalformedError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 5, 4), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 4
COLOUR = RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, images=GREY, labels=LABELS, name="train"):
    paths = folder / f"{name}-images-idx3-ubyte", folder / f"{name}-labels-idx1-ubyte"
    for path, array in zip(paths, (images, labels), strict=True):
        path.write_bytes(array if isinstance(array, bytes) else idx(array))
    return paths


def test_idx_files_come_back(tmp_path):
    images, labels = write_idx(tmp_path)
    found = read_idx(images, labels)
    assert (found.images == GREY[..., None]).all() and (found.labels == LABELS).all()
    assert found.classes == ("0", "1", "2", "3")
    assert found.names[6] == "train-images-idx3-ubyte, image 7"
    zipped = tmp_path / "images.gz"
    zipped.write_bytes(gzip.compress(idx(GREY)))
    assert (read_idx(zipped, labels).images == found.images).all()
    colour = write_idx(tmp_path, COLOUR, LABELS, "colour")
    assert (read_idx(*colour).images == COLOUR).all()


def test_idx_labels_are_named_by_their_numbers(tmp_path):
    found = read_idx(*write_idx(tmp_path, labels=LABELS + 7))
    assert found.classes == ("7", "8", "9", "10") and (found.labels == LABELS).all()
    other = write_idx(tmp_path, labels=LABELS[:40] % 2 + 8, name="test")
    assert read_idx(*other, known=found.classes).labels.tolist() == [1, 2] * 20
    with pytest.raises(DataError, match="image 1: class 8 is not among the 2 of the training data"):
        read_idx(*other, known=("7", "9"))


BAD_IDX = {
    "cut short": (idx(GREY)[:-1], "says that it holds 800 bytes and ends after 799"),
    "too long": (idx(GREY) + b"\0", "says that it holds 800 bytes and goes on"),
    "cut in its header": (idx(GREY)[:9], "ends in its header"),
    "empty": (b"", "not images in idx format"),
    "of no images": (idx(GREY[:0]), "empty"),
    "labels": (idx(LABELS), r"not images in idx format \(begins with 00000801\); give \[images, labels\], in order"),
    "of floats": (b"\0\0\x0d\x03" + idx(GREY)[4:], "not images in idx format"),
    "a gzip bomb": (gzip.compress(idx(GREY) + bytes(10_000_000)), "goes on"),
    "broken gzip": (gzip.compress(idx(GREY))[:-20], "damaged or of another format"),
    "huge": (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "ask for a smaller size"),
    "of two channels": (idx(GREY.reshape(40, 5, 2, 2)), "2 channels"),
    "of fewer images": (idx(GREY[:9]), "40 labels, and .* has 9 images"),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_a_bad_idx_file_is_refused(tmp_path, kind):
    data, message = BAD_IDX[kind]
    with pytest.raises(DataError, match=message):
        read_idx(*write_idx(tmp_path, data))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a: no such file"):
        read_idx(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match=r"a\.npz: no such file"):
        read_medmnist(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"no CIFAR files for train"):
        read_cifar(tmp_path / "a.bin")


def planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_cifar10(folder, binary: bool):
    """40 images in two training files and the first 10, darkened, as test."""
    folder.mkdir()
    names = [b"plane", b"car", b"bird", b"cat"]
    parts = {"data_batch_1": slice(0, 25), "data_batch_2": slice(25, 40), "test_batch": slice(0, 10)}
    for name, rows in parts.items():
        pixels = planes(COLOUR[rows] // (2 if name == "test_batch" else 1))
        if binary:
            (folder / f"{name}.bin").write_bytes(np.hstack([LABELS[rows, None], pixels]).tobytes())
        else:
            fields = {b"batch_label": b"x", b"labels": LABELS[rows].tolist(), b"data": pixels, b"filenames": [b"a"]}
            (folder / name).write_bytes(pickle.dumps(fields, protocol=2))
    if binary:
        (folder / "batches.meta.txt").write_bytes(b"\n".join(names) + b"\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


@pytest.mark.parametrize("binary", [True, False])
def test_cifar10_comes_back_in_both_versions(tmp_path, binary):
    folder = write_cifar10(tmp_path / "cifar", binary)
    found = read_pictures(folder, Data(train=folder))
    assert (found.images == COLOUR).all() and (found.labels == LABELS).all()
    assert found.classes == ("plane", "car", "bird", "cat")
    split = split_pictures(Data(train=folder), 0)
    assert (split.test.images == COLOUR[:10] // 2).all()
    assert len(split.train) + len(split.valid) == 40


@pytest.mark.parametrize("binary", [True, False])
def test_cifar100_gives_its_fine_classes(tmp_path, binary):
    fine, coarse = LABELS * 2, LABELS // 2
    if binary:
        (tmp_path / "train.bin").write_bytes(np.hstack([coarse[:, None], fine[:, None], planes(COLOUR)]).tobytes())
        (tmp_path / "fine_label_names.txt").write_text("\n".join("abcdefg"))
    else:
        fields = {"data": planes(COLOUR), "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
        (tmp_path / "train").write_bytes(pickle.dumps(fields))  # Python 3's protocol, with NumPy's names of today
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": list("abcdefg")}))
    found = read_cifar(tmp_path)
    assert (found.images == COLOUR).all() and (found.labels == fine).all()
    assert found.classes == tuple("abcdefg")
    with pytest.raises(DataError, match="no CIFAR files for valid"):
        read_cifar(tmp_path, "valid")


def test_a_pickle_of_python_2_is_read(tmp_path):
    # As Python 2 wrote it: texts as bytes, NumPy under its old name, dtype 'u1'.
    old = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89U\x06abcdefq\x07tbU\x06labelsq\x08]q\t(K\x01K\x02eu."
    )
    assert pickle.loads(old.replace(b"numpy.core", b"numpy._core"), encoding="bytes")[b"data"].tobytes() == b"abcdef"
    found = read_pickle(old)
    assert found[b"data"].tolist() == [[97, 98, 99], [100, 101, 102]] and found[b"labels"] == [1, 2]


class Command:
    def __init__(self, word: str) -> None:
        self.word = word

    def __reduce__(self):
        return os.system, (self.word,)


HOSTILE = {
    "a command": (pickle.dumps({"data": Command("touch ran")}), "asks for posix.system, which is not run"),
    "a command in protocol 0": (pickle.dumps(Command("touch ran"), protocol=0), "asks for posix.system"),
    "an object": (b"(S'touch ran'\nios\nsystem\n.", "uses INST"),
    "builtins": (pickle.dumps({"a": eval}), "asks for builtins.eval"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"asks for numpy\.ndarray\.tofile"),
    "a memo of 64 GB": (b"\x80\x02}r\xff\xff\xff\x7f.", "made to exhaust the reader"),
    "a bytearray of 8 EB": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "damaged pickle"),
    "tuples of tuples": (b"\x80\x02}" + b")" + b"\x85" * 2000 + b"Ns.", "made to exhaust the reader"),
    "tuples that hold the last one twice": (
        b"\x80\x02}" + b")q\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60)) + b"Ns.",
        "made to exhaust the reader",
    ),
    "an array of objects": (pickle.dumps({"data": np.array([None])}), "an array of 'O8', not of bytes"),
    "an array of floats": (pickle.dumps({"data": np.zeros(3)}), "an array of 'f8', not of bytes"),
    "a list": (pickle.dumps([1, 2]), "a pickled list, not a dictionary"),
    "half": (pickle.dumps({"data": planes(COLOUR)})[:5000], "damaged pickle"),
    "nothing": (b"", "damaged pickle"),
    "an array of another shape": (
        pickle.dumps({"data": np.zeros((2, 3), np.uint8)}).replace(b"K\x02K\x03\x86", b"K\x05K\x03\x86"),
        "damaged pickle",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    data, message = HOSTILE[kind]
    with pytest.raises(MalformedError, match=message):
        read_pickle(data)
    assert not (tmp_path / "ran").exists()
    path = tmp_path / "data_batch_1"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"data_batch_1: .*{message}"):
        read_cifar(path)


def test_bad_cifar_files_are_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(3073 * 2 - 1))
    with pytest.raises(DataError, match=r"a\.bin: 6,145 bytes, not rows of 3,073"):
        read_cifar(tmp_path / "a.bin")
    (tmp_path / "a").write_bytes(pickle.dumps({"data": planes(COLOUR), "labels": [1, 2]}))
    with pytest.raises(DataError, match="no 'data' of 3,072 bytes a row with as many 'labels'"):
        read_cifar(tmp_path / "a")
    (tmp_path / "a").write_bytes(pickle.dumps({"data": planes(COLOUR[:2]), "labels": [1, -2]}))
    with pytest.raises(DataError, match="'labels' that are no class numbers"):
        read_cifar(tmp_path / "a")
    folder = write_cifar10(tmp_path / "cifar", binary=True)
    (folder / "batches.meta.txt").write_text("plane\ncar")
    with pytest.raises(
        DataError, match=r"data_batch_1\.bin, image 3: class 2 is not among the 2 that the file of class"
    ):
        read_cifar(folder)


def write_medmnist(path, images=COLOUR, labels=LABELS, **more):
    arrays = {}
    for part, rows in (("train", slice(0, 24)), ("val", slice(24, 32)), ("test", slice(32, 40))):
        arrays |= {f"{part}_images": images[rows], f"{part}_labels": labels.reshape(len(labels), -1)[rows]}
    np.savez_compressed(path, **(arrays | more))
    return path


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_medmnist_comes_back_with_its_own_parts(tmp_path, images):
    path = write_medmnist(tmp_path / "pathmnist.npz", images)
    split = split_pictures(Data(train=path), 0)
    whole = images[..., None] if images.ndim == 3 else images
    for part, rows in ((split.train, slice(0, 24)), (split.valid, slice(24, 32)), (split.test, slice(32, 40))):
        assert (part.images == whole[rows]).all() and (part.labels == LABELS[rows]).all()
    assert read_pictures(path, Data(train=path), Size(7, 9, 3)).images.shape == (24, 7, 9, 3)


def test_bad_medmnist_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_medmnist(path, labels=np.eye(40, 14, dtype=np.uint8))
    with pytest.raises(DataError, match=r"train_labels is uint8 \(24, 14\) for 24 images; give a set with one label"):
        read_medmnist(path)
    write_medmnist(path, RNG.integers(0, 256, (40, 9, 9, 9), dtype=np.uint8))
    with pytest.raises(DataError, match="volumes are not read"):
        read_medmnist(path)
    write_medmnist(path, train_labels=LABELS[:24] * np.nan)
    with pytest.raises(DataError, match="train_labels is float64"):
        read_medmnist(path)
    write_medmnist(path, train_images=np.array([Command("touch ran")]))
    with pytest.raises(DataError, match="train_images holds object, not numbers"):
        read_medmnist(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or of another format"):
        read_medmnist(path)
    np.savez(path, x=GREY)
    with pytest.raises(DataError, match="no array 'train_images' in it"):
        read_medmnist(path)


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 999, 999, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue())
    with pytest.raises(DataError, match=r"1,000,000,000 images of 999 x 999 .* ask for a smaller size"):
        read_medmnist(tmp_path / "a.npz")


CLAIMS = {"less than none": ((-5, -8, 8), "empty"), "labels for years": ((10**15,), "images of 1 x 1 .* take")}


@pytest.mark.parametrize("kind", CLAIMS)
def test_an_array_that_claims_what_no_file_has_is_refused_before_it_is_read(tmp_path, kind, monkeypatch):
    shape, message = CLAIMS[kind]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(9999))
    read = zipfile.ZipExtFile.read
    asked = []
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=-1: asked.append(n) or read(file, n))
    with pytest.raises(DataError, match=message):
        read_medmnist(tmp_path / "a.npz")
    assert all(0 <= count < 10_000 for count in asked)
