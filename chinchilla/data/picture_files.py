"""Files that pack many labelled images: read to the byte, and their class numbers turned into labels."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.data.headroom import check_fits
from chinchilla.data.letterbox import Size
from chinchilla.data.pictures import Pictures
from chinchilla.data.raster import Pixels
from chinchilla.data.rows import MalformedError

PartName = Literal["train", "valid", "test"]

_DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError)


class Readable(Protocol):
    """A file, or a file within another."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""


class Batch(NamedTuple):
    """Images uint8 (count, height, width, channels), the numbers of their classes (count,), and their file."""

    images: Pixels
    numbers: NDArray[np.int64]
    file: Path


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The opened file; what goes wrong with it is a `DataError` that names it."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path (in a recipe it is relative to the recipe)") from None
    except MalformedError as problem:
        raise DataError(f"{path}: {problem}") from None
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged or of another format ({error}); fetch it anew") from None


def content(file: Readable, shape: tuple[int, ...], path: Path) -> Pixels:
    """Exactly as many bytes as `shape` says, never more in memory.

    Raises:
        MalformedError: there are fewer, more, or none.
        DataError: memory doesn't hold so many.
    """
    if min(shape) < 1:
        raise MalformedError("empty; check that it is the right file, and whole")
    size = math.prod(shape)
    height, width = shape[1:3] if len(shape) > 2 else (1, 1)
    check_fits(shape[0], Size(height, width, size // (shape[0] * height * width)), path)
    data = file.read(size + 1)
    if len(data) != size:
        found = f"ends after {len(data):,}" if len(data) < size else "goes on"
        raise MalformedError(f"says that it holds {size:,} bytes and {found}; fetch it anew")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def labelled(batches: Sequence[Batch], named: Sequence[str] | None, known: Sequence[str] | None) -> Pictures:
    """Class numbers as labels: indices into the `known` classes, else the `named` ones, else the numbers there are.

    `named` are the names that the files give their numbers.

    Raises:
        DataError: a number that has no name, or one that isn't known; a single class.
    """
    numbers = np.concatenate([batch.numbers for batch in batches])
    names = tuple(f"{batch.file.name}, image {row}" for batch in batches for row in range(1, len(batch.numbers) + 1))
    found, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    called = {int(number): str(number) for number in found} if named is None else dict(enumerate(named))
    classes = tuple(known or called.values())
    for number, row in zip(found, first, strict=True):
        if called.get(int(number)) not in classes:
            what = "of the training data" if known else "that the file of class names has"
            raise DataError(
                f"{names[row]}: class {called.get(int(number), number)} is not among the {len(classes)} {what}; mend "
                "the label, or give the files that belong together"
            )
    if len(classes) < 2:
        raise DataError(f"{batches[0].file}: all images are of class {classes[0]}; it needs two classes or more")
    index = {name: place for place, name in enumerate(classes)}
    labels = np.array([index[called[int(number)]] for number in found], dtype=np.int64)[inverse]
    images = np.concatenate([batch.images for batch in batches]) if len(batches) > 1 else batches[0].images
    return Pictures(np.ascontiguousarray(images), labels, classes, names)
