"""CIFAR-10 and CIFAR-100 in the files they are published in: the binary version and the Python version."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chinchilla.config.errors import DataError
from chinchilla.data.headroom import check_fits
from chinchilla.data.letterbox import Size
from chinchilla.data.pickles import read_pickle
from chinchilla.data.picture_files import Batch, PartName, labelled, reading
from chinchilla.data.pictures import Pictures
from chinchilla.data.raster import Pixels
from chinchilla.data.rows import MalformedError

SIZE = Size(32, 32, 3)
PIXELS = SIZE.height * SIZE.width * SIZE.channels
FILES = {"train": ("data_batch_*", "train", "train.bin"), "test": ("test_batch*", "test", "test.bin")}
CLASSES = ("batches.meta.txt", "fine_label_names.txt")
PICKLED_CLASSES = ("batches.meta", "meta")


def read_cifar(path: Path, part: PartName = "train", known: Sequence[str] | None = None) -> Pictures:
    """A part of an unpacked folder, or one file; of CIFAR-100 the 100 fine classes.

    Raises:
        DataError: a file that is missing, damaged, or pickles more than numbers; more than memory holds; or a class
            that isn't among the `known` ones.
    """
    files = cifar_files(path, part)
    if not files:
        raise DataError(f"{path}: no CIFAR files for {part}, like data_batch_1 or train.bin; give the unpacked folder")
    check_fits(sum(file.stat().st_size for file in files) // PIXELS, SIZE, path)
    batches = [_binary(file) if file.suffix == ".bin" else _pickled(file) for file in files]
    return labelled(batches, _classes(files[0].parent), known)


def cifar_files(path: Path, part: PartName) -> list[Path]:
    """The files of a part in an unpacked folder; or the one file."""
    if path.is_dir():
        return sorted(file for name in FILES.get(part, ()) for file in path.glob(name) if file.is_file())
    return [path] if path.is_file() else []


def _binary(file: Path) -> Batch:
    """Rows of a class (in CIFAR-100 after the coarse one) and 3,072 bytes, plane by plane."""
    hundred = file.name in ("train.bin", "test.bin") or (file.parent / CLASSES[1]).exists()
    width = PIXELS + (2 if hundred else 1)
    with reading(file) as opened:
        data = np.frombuffer(opened.read(), dtype=np.uint8)
        if not len(data) or len(data) % width:
            raise MalformedError(f"{len(data):,} bytes, not rows of {width:,}; fetch it anew")
    rows = data.reshape(-1, width)
    return Batch(_images(rows[:, -PIXELS:]), rows[:, -PIXELS - 1].astype(np.int64), file)


def _pickled(file: Path) -> Batch:
    with reading(file) as opened:
        fields = _fields(opened.read())
        pixels = fields.get("data")
        numbers = fields.get("fine_labels", fields.get("labels"))
        if (
            not isinstance(numbers, list)
            or not isinstance(pixels, np.ndarray)
            or pixels.shape != (len(numbers), PIXELS)
        ):
            raise MalformedError("no 'data' of 3,072 bytes a row with as many 'labels'; give CIFAR's Python version")
        if not all(type(number) is int and 0 <= number < 256 for number in numbers):
            raise MalformedError("'labels' that are no class numbers; fetch it anew")
    return Batch(_images(pixels), np.array(numbers, dtype=np.int64), file)


def _classes(folder: Path) -> list[str] | None:
    """The names of the classes, when a file beside the images has them."""
    for name in CLASSES:
        if (folder / name).is_file():
            with reading(folder / name) as opened:
                return opened.read().decode("utf-8").split()
    for name in PICKLED_CLASSES:
        if (folder / name).is_file():
            with reading(folder / name) as opened:
                fields = _fields(opened.read())
                names = fields.get("fine_label_names", fields.get("label_names"))
                if not isinstance(names, list) or not all(isinstance(each, bytes | str) for each in names):
                    raise MalformedError("no list 'label_names'; give CIFAR's Python version")
                return [_text(each) for each in names]
    return None


def _fields(data: bytes) -> dict[str, object]:
    return {_text(key): value for key, value in read_pickle(data).items()}


def _text(value: object) -> str:
    """Python 2 wrote texts as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _images(rows: Pixels) -> Pixels:
    return rows.reshape(-1, SIZE.channels, SIZE.height, SIZE.width).transpose(0, 2, 3, 1)
