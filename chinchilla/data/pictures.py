"""Labelled images, and how they are read from a folder with one sub-folder a class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.data.headroom import check_fits
from chinchilla.data.letterbox import Size
from chinchilla.data.raster import ENDINGS, Invalid, Pixels, decode, read_all, read_header, resize

OWN_SIDE = 256
"""Images that are all alike keep their size up to this many pixels a side, where none is asked for."""

DEFAULT_SIDE = 64
_PARTS = frozenset(("train", "training", "valid", "validation", "val", "test", "testing", "dev"))

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Labelled images of one size: images uint8 (count, height, width, channels), labels int64 (count,).

    A label is an index into `classes`; `names` says where each image came from.
    """

    images: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> Size:
        """Height, width and channels of every image."""
        return Size(*self.images.shape[1:])

    def take(self, rows: NDArray[np.bool_]) -> Self:
        """The images of the chosen rows, copied."""
        names = tuple(name for name, chosen in zip(self.names, rows, strict=True) if chosen)
        return replace(self, images=self.images[rows], labels=self.labels[rows], names=names)

    def resized(self, size: Size | None) -> Self:
        """Stretched to `size`, or by default to `default_size`.

        Raises:
            DataError: more than memory holds.
        """
        size = size or default_size([self.size], OWN_SIDE, DEFAULT_SIDE)
        if size == self.size:
            return self
        check_fits(len(self), size, self.names[0])
        return replace(self, images=np.stack([resize(image, size) for image in self.images]))


def default_size(sizes: Sequence[Size], own_side: int, side: int) -> Size:
    """The images' own size where they are all alike and none is longer than `own_side`, else a square of `side`.

    Grey where all are grey.
    """
    first, channels = sizes[0], max(size.channels for size in sizes)
    if max(first.height, first.width) <= own_side and all(size[:2] == first[:2] for size in sizes):
        return Size(first.height, first.width, channels)
    return Size(side, side, channels)


def read_folder(
    folder: Path, size: Size | None = None, classes: Sequence[str] | None = None, invalid: Invalid = "refuse"
) -> Pictures:
    """Images below `folder`, whose sub-folders are the classes, stretched to one size.

    `classes` are those of the training data, for a folder to test on. Hidden files are passed over, and so, with a
    warning, are files without an image's ending.

    Raises:
        DataError: a folder that is missing, holds parts or stray images instead of classes, an empty or unknown
            class; a malformed image (under "skip": more than a tenth); or more than memory holds.
    """
    names = _classes(folder, classes)
    paths, labels = _files(folder, names, may_be_empty=classes is not None)
    images, rows, _ = read_all(
        paths,
        lambda row: read_header(paths[row]).size,
        lambda sizes: size or default_size(sizes, OWN_SIDE, DEFAULT_SIDE),
        lambda row, _, chosen: decode(paths[row], chosen),
        folder,
        invalid,
    )
    return Pictures(
        images,
        np.array([labels[row] for row in rows], dtype=np.int64),
        names,
        tuple(paths[row].relative_to(folder).as_posix() for row in rows),
    )


def need_folder(path: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: nothing is there, or a file.
    """
    if path.is_dir():
        return
    if path.exists():
        raise DataError(f"{path}: a file, where a folder is needed; name its folder, or unpack it if it is an archive")
    raise DataError(f"{path}: no such folder; check the path (in a recipe it is relative to the recipe)")


def _classes(folder: Path, known: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the sub-folders, or the `known` ones when all of them are among those."""
    need_folder(folder)
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    stray = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() in ENDINGS]
    if stray:
        raise DataError(
            f"{folder}: {stray[0]} ({len(stray)} images) is in no class; put every image in the sub-folder of its class"
        )
    names = tuple(entry.name for entry in entries if entry.is_dir())
    if known is not None:
        strange = [name for name in names if name not in known]
        if strange:
            raise DataError(f"{folder}: the training data has no class {strange[0]!r}, but {', '.join(known)}")
        return tuple(known)
    if len(names) > 1 and _PARTS.issuperset(name.lower() for name in names):
        raise DataError(
            f"{folder}: {', '.join(names)} are parts, not classes; name each: data.train={folder / names[0]} …"
        )
    if len(names) < 2:
        raise DataError(f"{folder}: {len(names)} classes; it needs two sub-folders of images or more, one a class")
    return names


def _files(folder: Path, classes: Sequence[str], may_be_empty: bool) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(classes):
        files = [path for path in sorted((folder / name).rglob("*")) if path.is_file() and path.name[0] != "."]
        found = [path for path in files if path.suffix.lower() in ENDINGS]
        others += [path for path in files if path.suffix.lower() not in ENDINGS]
        if not found and not may_be_empty:
            raise DataError(f"{folder / name}: no image in it; put the images of that class there, or remove it")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder}: no image in it; check that it is the right folder")
    if others:
        log.warning("%s: passed over %d files that are no images, like %s", folder, len(others), others[0])
    return paths, labels
