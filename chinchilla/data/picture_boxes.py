"""The codec of detection: images letterboxed into a frame, their classes, and batches of both with boxes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.data.augment import to_unit
from chinchilla.data.batches import IGNORED
from chinchilla.data.boxes import Scenes
from chinchilla.data.codec import Asked
from chinchilla.data.letterbox import Boxes, into_frame, letterbox, out_of_frame
from chinchilla.data.packing import Rows
from chinchilla.data.picture_classes import BATCH_PIXELS, PictureClasses, Question
from chinchilla.data.raster import Pixels, decode, read_header
from chinchilla.data.rows import MalformedError


class Framed(NamedTuple):
    """An image letterboxed into the frame, uint8 (height, width, channels), and its own height and width."""

    image: Pixels
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class PictureBoxes(PictureClasses):
    """Images, letterboxed into one frame, to normalised pixels; boxes out of the frame again."""

    def read_question(self, image: Question | Framed) -> Asked:
        """As a codec: the image in the frame. Pixels are taken to be in it already.

        Raises:
            MalformedError: no image that can be read.
            DataError: the same, of a file; names it.
        """
        if isinstance(image, Framed):
            return Asked(image)
        if isinstance(image, np.ndarray):
            return Asked(Framed(image, *image.shape[:2]))
        try:
            height, width, _ = read_header(image).size
            return Asked(Framed(decode(image, self.size, letterbox), height, width))
        except MalformedError as problem:
            if isinstance(image, Path):
                raise DataError(f"{image}: {problem}") from None
            raise

    def batches(self, questions: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of framed images, in order, and their `source` (batch, channels, height, width)."""
        most = max(1, BATCH_PIXELS // (self.size.height * self.size.width))
        for start in range(0, len(questions), most):
            some = [self.read_question(each).question.image for each in questions[start : start + most]]
            yield list(range(start, start + len(some))), {"source": self.normalised(to_unit(np.stack(some)))}

    def unframed(self, boxes: Boxes, framed: Framed) -> Boxes:
        """Boxes (n, 4) in pixels of the frame, in those of the image."""
        return out_of_frame(boxes, framed.height, framed.width, self.size)


class SceneBatches:
    """Micro-batches of images with boxes, all of one size, which hold about `batch_labels` boxes.

    A batch holds `source` (B, channels, height, width) float32, normalised; `boxes` (B, most, 4) float32, centre x, y,
    width and height as shares of the frame; and `labels` (B, most) int64, -100 where there is no box. Each epoch
    shuffles the images; with `flips`, which look is mirrored is a pure function of (seed, epoch, image). What is left
    over, less than a batch, is dropped; batches `like` others have their size.
    """

    def __init__(
        self,
        scenes: Scenes,
        codec: PictureBoxes,
        batch_labels: int,
        seed: int,
        flips: bool = True,
        like: "SceneBatches | None" = None,
    ) -> None:
        self._scenes, self._codec, self._seed, self._flips = scenes, codec, seed, flips
        counts = [len(boxes) for boxes in scenes.boxes]
        self._boxes = sum(counts)
        self._most: int = max(1, *counts, like._most if like else 1)
        self._num_rows: int = like._num_rows if like else rows_for(batch_labels, self._boxes, len(scenes))
        self._num_rows = min(self._num_rows, len(scenes))

    @property
    def unique_tokens(self) -> int:
        """Boxes in one epoch, as far as images are not dropped: by their share."""
        return round(self._boxes * self.num_batches(0) * self._num_rows / len(self._scenes))

    @property
    def padding(self) -> float:
        """No image is empty filling."""
        return 0.0

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has: the same in each."""
        return len(self._scenes) // self._num_rows

    def order(self, epoch: int) -> list[Rows]:
        """The rows of each micro-batch of an epoch; image i of epoch e is row e * (number of images) + i."""
        rows = np.random.default_rng((self._seed, epoch)).permutation(len(self._scenes)) + epoch * len(self._scenes)
        return [rows[start : start + self._num_rows] for start in range(0, len(rows), self._num_rows)][
            : self.num_batches(epoch)
        ]

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows (see the class)."""
        epochs, places = rows // len(self._scenes), rows % len(self._scenes)
        images = self._scenes.images[places]
        boxes = np.zeros((len(rows), self._most, 4), np.float32)
        labels = np.full((len(rows), self._most), IGNORED, np.int64)
        for row, place in enumerate(places):
            count = len(self._scenes.boxes[place])
            boxes[row, :count], labels[row, :count] = self._shares(int(place)), self._scenes.labels[place]
        if self._flips:
            flipped = np.array([_coin(self._seed, *pair) for pair in zip(epochs, places, strict=True)])
            images[flipped] = images[flipped, :, ::-1]
            boxes[flipped, :, 0] = np.where(labels[flipped] != IGNORED, 1 - boxes[flipped, :, 0], 0)
        source = self._codec.normalised(to_unit(images))
        return {"source": source, "boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}

    def _shares(self, place: int) -> NDArray[np.float32]:
        """An image's boxes as centre and size, as shares of the frame."""
        size = self._scenes.size
        height, width = (int(side) for side in self._scenes.sizes[place])
        framed = into_frame(self._scenes.boxes[place], height, width, size) / np.array([size.width, size.height] * 2)
        low, high = framed[:, :2], framed[:, 2:]
        return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def rows_for(batch_labels: int, boxes: int, images: int) -> int:
    """Images that hold about so many boxes."""
    return max(1, round(batch_labels * images / max(1, boxes)))


def _coin(*numbers: Any) -> bool:
    return bool(np.random.default_rng(tuple(int(number) for number in numbers)).integers(2))
