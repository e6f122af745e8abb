"""The idx format, which MNIST is published in."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chinchilla.config.errors import DataError
from chinchilla.data.picture_files import Batch, Readable, content, labelled, reading
from chinchilla.data.pictures import Pictures
from chinchilla.data.raster import Pixels
from chinchilla.data.rows import MalformedError

IMAGES, LABELS = (3, 4), (1,)
"""Sides of an array of images (with or without channels last) and of labels."""


def read_idx(images: Path, labels: Path, known: Sequence[str] | None = None) -> Pictures:
    """Images and their labels, plain or gzipped; a class is named by its number.

    Raises:
        DataError: a file that is missing, not idx, broken off, or that doesn't go with the other; more than memory
            holds; or a class that isn't among the `known` ones.
    """
    pixels = _array(images, IMAGES)
    numbers = _array(labels, LABELS)
    if len(numbers) != len(pixels):
        raise DataError(
            f"{labels}: {len(numbers)} labels, and {images} has {len(pixels)} images; give the two that belong together"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[3] not in (1, 3):
        raise DataError(f"{images}: {pixels.shape[3]} channels; images have 1 (grey) or 3 (red, green, blue)")
    return labelled([Batch(pixels, numbers.astype(np.int64), images)], None, known)


def _array(path: Path, sides: Sequence[int]) -> Pixels:
    """The content: after two zeros, 8 for bytes, the number of sides, and each side in 4 bytes."""
    with reading(path) as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Readable = gzip.GzipFile(fileobj=raw) if zipped else raw
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08" or head[3] not in sides:
            what = "labels" if sides == LABELS else "images"
            raise MalformedError(
                f"not {what} in idx format (begins with {head.hex()}); give [images, labels], in order"
            )
        lengths = file.read(4 * head[3])
        if len(lengths) < 4 * head[3]:
            raise MalformedError("ends in its header; fetch it anew")
        return content(file, struct.unpack(f">{head[3]}I", lengths), path)
