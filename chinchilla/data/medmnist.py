"""MedMNIST's files: NumPy arrays of train, val and test in one .npz file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.data.picture_files import Batch, PartName, content, labelled, reading
from chinchilla.data.pictures import Pictures
from chinchilla.data.rows import MalformedError


def read_medmnist(path: Path, part: PartName = "train", known: Sequence[str] | None = None) -> Pictures:
    """One part of a file; a class is named by its number.

    Raises:
        DataError: a file that is missing, damaged, or holds volumes or several labels an image; more than memory
            holds; or a class that isn't among the `known` ones.
    """
    stem = "val" if part == "valid" else part
    with reading(path) as file, zipfile.ZipFile(file) as archive:
        pixels = _array(archive, f"{stem}_images", path)
        numbers = _array(archive, f"{stem}_labels", path)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: {stem}_images is {pixels.dtype} {pixels.shape}, not bytes (count, height, width) or (…, 3); "
            "volumes are not read"
        )
    if numbers.size != len(pixels) or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {stem}_labels is {numbers.dtype} {numbers.shape} for {len(pixels)} images; give a set with one "
            "label, a whole number, for each"
        )
    return labelled([Batch(pixels.astype(np.uint8), numbers.reshape(-1).astype(np.int64), path)], None, known)


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[np.generic]:
    """An array as its own header says, and never a pickle."""
    if f"{name}.npy" not in archive.namelist():
        raise MalformedError(f"no array {name!r} in it; give a MedMNIST .npz file")
    with archive.open(f"{name}.npy") as file:
        old = npy.read_magic(file) == (1, 0)
        shape, by_column, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(file)
        if dtype.kind not in "biuf":
            raise MalformedError(f"{name} holds {dtype}, not numbers; give a MedMNIST .npz file")
        data = content(file, (*shape, dtype.itemsize), path)
    return data.reshape(-1).view(dtype).reshape(shape, order="F" if by_column else "C")
