"""Train, valid and test of images: as given, or cut from train by class with a seed; none on both sides."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.boxes import Scenes, read_scenes
from chinchilla.data.cifar import cifar_files, read_cifar
from chinchilla.data.coco import read_coco
from chinchilla.data.divide import Hashes, Index, divide, seed_salt
from chinchilla.data.idx import read_idx
from chinchilla.data.letterbox import Size
from chinchilla.data.medmnist import read_medmnist
from chinchilla.data.picture_files import PartName
from chinchilla.data.pictures import Pictures, read_folder
from chinchilla.data.voc import read_voc

Images = TypeVar("Images", Pictures, Scenes)

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class ImageSplit(Generic[Images]):
    """Three parts of one size; `dropped` counts the training images left out because valid or test has them too."""

    train: Images
    valid: Images
    test: Images
    dropped: int


def split_pictures(data: Data, seed: int, size: Size | None = None) -> ImageSplit[Pictures]:
    """Split labelled images: by class, and two of the same pixels never stand on both sides.

    A part that isn't given is the one that the files themselves hold (CIFAR, MedMNIST), or is cut from train: by class
    (see `divide`). `size` is what all are brought to; `pictures.default_size` when absent.

    Raises:
        DataError: bad data (see `read_pictures`), or too few images to cut valid and test from.
        UsageError: a format that holds no labelled images.
    """
    train = read_pictures(data.train, data, size)
    held = {name: read_pictures(files, data, train.size, name, train.classes) for name, files in _given(data).items()}
    split = _split(train, held, ("",) * len(train), train.labels, seed)
    lost = np.setdiff1d(train.labels, split.train.labels)
    if len(lost):
        raise DataError(f"data.train: every image of {train.classes[lost[0]]!r} is also in valid or test; add others")
    return split


def split_scenes(data: Data, seed: int, size: Size | None = None) -> ImageSplit[Scenes]:
    """Split images with boxes: by group, and two of the same pixels never stand on both sides.

    `size` is the frame that all are letterboxed to; `pictures.default_size` when absent.

    Raises:
        DataError: bad data (see `read_boxes`), or too few groups to cut valid and test from.
        UsageError: a format that holds no boxes.
    """
    train = read_boxes(data.train, data, size)
    held = {name: read_boxes(files, data, train.size, train.classes) for name, files in _given(data).items()}
    return _split(train, held, train.groups, np.zeros(len(train), dtype=np.int64), seed)


def read_pictures(
    files: Files, data: Data, size: Size | None = None, part: PartName = "train", known: Sequence[str] | None = None
) -> Pictures:
    """Read labelled images by format, brought to one size; `known` are the classes of the training data.

    Raises:
        DataError: see `read_folder`, `read_idx`, `read_cifar`, `read_medmnist`.
        UsageError: a format that holds no labelled images.
    """
    match files, _picture_format(files, data):
        case (Path() as images, Path() as labels), "idx":
            return read_idx(images, labels, known).resized(size)
        case Path() as path, "cifar":
            return read_cifar(path, part, known).resized(size)
        case Path() as path, "medmnist":
            return read_medmnist(path, part, known).resized(size)
        case Path() as path, "folder":
            return read_folder(path, size, known, data.invalid)
    raise UsageError(
        f"{_first(files)}: labelled images are a folder with a sub-folder for each class, two idx files "
        f"data.{part}=[images, labels], a folder of CIFAR files, or a MedMNIST .npz file; set data.{part}"
    )


def read_boxes(files: Files, data: Data, size: Size | None = None, known: tuple[str, ...] | None = None) -> Scenes:
    """Read images with boxes by format, letterboxed to one size; `known` are the classes of the training data.

    Raises:
        DataError: see `read_coco`, `read_voc`, `read_scenes`.
        UsageError: a format that holds no boxes.
    """
    notes, images = files if isinstance(files, tuple) and len(files) == 2 else (_first(files), None)
    kind = data.format or ("coco" if notes.suffix.lower() == ".json" else "voc")
    if kind == "coco" and images is not None:
        annotated, classes = read_coco(notes, images, data.group_name)
    elif kind == "voc" and (images is not None or not isinstance(files, tuple)):
        annotated, classes = read_voc(notes, images or notes, data.group_name)
    else:
        raise UsageError(
            f"{notes}: images with boxes are [COCO's JSON file, folder of images] or [folder of VOC XML files, folder "
            "of images]; set the two, and data.format to coco or voc"
        )
    return read_scenes(annotated, known or classes, notes, size, data.invalid)


def _picture_format(files: Files, data: Data) -> str:
    if data.format:
        return data.format
    if isinstance(files, tuple):
        return "idx"
    if files.suffix.lower() == ".npz":
        return "medmnist"
    return "cifar" if cifar_files(files, "train") and (files.is_dir() or files.suffix == ".bin") else "folder"


def _first(files: Files) -> Path:
    return files[0] if isinstance(files, tuple) else files


def _given(data: Data) -> dict[PartName, Files]:
    """The files of test and valid: their own, or those of train where they hold that part too."""
    given: dict[PartName, Files] = {}
    if data.test is not None:
        given["test"] = data.test
    elif _holds(data, "test"):
        given["test"] = data.train
    if data.valid is not None:
        given["valid"] = data.valid
    elif _holds(data, "valid"):
        given["valid"] = data.train
    return given


def _holds(data: Data, part: PartName) -> bool:
    kind = _picture_format(data.train, data)
    if isinstance(data.train, tuple):
        return False
    return kind == "medmnist" or (kind == "cifar" and data.train.is_dir() and bool(cifar_files(data.train, part)))


def _split(
    train: Images, held: dict[PartName, Images], groups: Sequence[str], classes: NDArray[np.int64], seed: int
) -> ImageSplit[Images]:
    """Cut what isn't `held`; images without a group are one with those of the same pixels."""
    keys = _keys(train)
    salt = seed_salt(seed)
    owners = (group.encode() or key.tobytes() for group, key in zip(groups, keys, strict=True))
    whole = Index(keys, _hashes(owners, salt), classes)
    division = divide(whole, {name: _keys(part) for name, part in held.items()})
    if division.dropped:
        log.info("left out %d training images that are also in valid or test", division.dropped)
    parts = dict(held) | {name: train.take(rows) for name, rows in division.held.items()}
    return ImageSplit(
        train if division.train.all() else train.take(division.train), parts["valid"], parts["test"], division.dropped
    )


def _keys(images: Pictures | Scenes) -> Hashes:
    return _hashes((image.tobytes() for image in images.images), b"")


def _hashes(contents: Iterable[bytes], salt: bytes) -> Hashes:
    digests = b"".join(blake2b(each, digest_size=8, salt=salt).digest() for each in contents)
    return np.frombuffer(digests, dtype=np.uint64)
