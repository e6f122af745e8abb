"""The codec of classified images: their classes, the size they are brought to, and the colours of the training data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import FiniteFloat, ValidationError
from torch import Tensor

from chinchilla.config.errors import DataError, FaultError
from chinchilla.config.frozen import Frozen
from chinchilla.data.augment import to_unit
from chinchilla.data.boxes import Scenes
from chinchilla.data.classes import Classes
from chinchilla.data.codec import Asked
from chinchilla.data.letterbox import Size
from chinchilla.data.pictures import Pictures
from chinchilla.data.raster import Pixels, decode, resize
from chinchilla.data.rows import MalformedError
from chinchilla.data.text_classes import open_classes

BATCH_PIXELS = 2**18
"""Pixels that go through a model together when a whole set is classified."""

PIECE_IMAGES = 1024
"""Images whose pixels are counted at one time."""

Question = Pixels | Path | bytes
"""An image: its pixels uint8 (height, width, channels), its file, or what stands in one."""


class Colours(Frozen):
    """Mean and standard deviation of each channel, of values from 0 to 1."""

    means: tuple[FiniteFloat, ...]
    stds: tuple[FiniteFloat, ...]


@dataclass(frozen=True, eq=False)
class PictureClasses:
    """Images, stretched to one size, to normalised pixels."""

    classes: Classes
    size: Size
    colours: Colours

    tokenizer_json: None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"classes": self.classes.model_dump(), "size": list(self.size), **self.colours.model_dump(mode="json")}

    @classmethod
    def open(cls, settings: dict[str, Any], tokenizer_json: str | None, where: str) -> "PictureClasses":
        """The codec of a model folder.

        Raises:
            FaultError: the settings are damaged.
        """
        size = settings.get("size")
        if not (isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
            raise FaultError(f"{where}/config.json: codec.size is {size!r}; get the file anew")
        try:
            colours = Colours(means=settings.get("means"), stds=settings.get("stds"))
        except ValidationError as error:
            raise FaultError(f"{where}/config.json: codec: {error.errors()[0]['msg']}; get the file anew") from None
        for name, values in colours:
            if len(values) != size[2] or (name == "stds" and min(values) <= 0):
                raise FaultError(f"{where}/config.json: codec.{name} is {values}, of {size[2]} channels; get it anew")
        return cls(open_classes(settings, where), Size(*size), colours)

    @property
    def form(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"classes": list(self.classes.names), "size": list(self.size)}

    def read_question(self, image: Question) -> Asked:
        """As a codec: the image's pixels, brought to the model's size.

        Raises:
            MalformedError: no image that can be read.
            DataError: the same, of a file; names it.
        """
        if isinstance(image, np.ndarray):
            return Asked(image if image.shape == tuple(self.size) else resize(image, self.size))
        if not isinstance(image, Path | bytes):
            raise MalformedError(f"no image, but {type(image).__name__}; give an image file")  # a text names no file
        try:
            return Asked(decode(image, self.size))
        except MalformedError as problem:
            if isinstance(image, Path):
                raise DataError(f"{image}: {problem}") from None
            raise

    def batches(self, questions: Sequence[Question]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of images, in order, and their `source` (batch, channels, height, width)."""
        most = max(1, BATCH_PIXELS // (self.size.height * self.size.width))
        for start in range(0, len(questions), most):
            pixels = [self.read_question(image).question for image in questions[start : start + most]]
            places = list(range(start, start + len(pixels)))
            yield places, {"source": self.normalised(to_unit(np.stack(pixels)))}

    def normalised(self, x: Tensor) -> Tensor:
        """Values from 0 to 1 (batch, channels, height, width) less the mean, by the standard deviation, in place."""
        means, stds = (torch.tensor(each)[:, None, None] for each in (self.colours.means, self.colours.stds))
        return x.sub_(means).div_(stds)


def colours_of(pictures: Pictures | Scenes) -> Colours:
    """Of all pixels of all images; a channel that is the same everywhere counts as of deviation 1."""
    counts = np.zeros((pictures.size.channels, 256))
    for start in range(0, len(pictures), PIECE_IMAGES):
        piece = pictures.images[start : start + PIECE_IMAGES]
        for channel, total in enumerate(counts):
            total += np.bincount(piece[..., channel].ravel(), minlength=256)
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    means = shares @ values
    stds = np.sqrt((shares * (values - means[:, None]) ** 2).sum(1))
    return Colours(means=tuple(means.tolist()), stds=tuple(np.where(stds > 0, stds, 1.0).tolist()))
