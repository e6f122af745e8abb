"""Micro-batches of labelled images, changed at random where they are to be."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chinchilla.config.run import Images
from chinchilla.data import augment
from chinchilla.data.augment import Floats
from chinchilla.data.batches import IGNORED
from chinchilla.data.packing import Rows
from chinchilla.data.picture_classes import PictureClasses
from chinchilla.data.pictures import Pictures


class Views(NamedTuple):
    """Images, and how each look at them differs; None where it does not."""

    pictures: Pictures
    changes: Images | None = None


class PictureBatches:
    """Micro-batches of images, all of one fixed size: `batch_labels`, or all there are.

    A batch holds `source` (B, channels, height, width) float32, normalised, its channels last in memory; and `labels`
    (B, `positions`) int64, the class at the first position and -100 elsewhere. Each epoch shuffles the images and
    divides them evenly, so that no step has few; a batch is filled up with empty images without a label. Batches `like`
    others have their size.

    Image i of epoch e is the row e * (number of images) + i. How it is changed is a pure function of (seed, e, i). One
    that is mixed with another has the other's class with a chance of the other's share of it: on average that is the
    loss of both classes by their shares (Zhang 2018), and leaves each image one label.
    """

    def __init__(
        self,
        views: Views,
        codec: PictureClasses,
        positions: int,
        batch_labels: int,
        seed: int,
        like: "PictureBatches | None" = None,
    ) -> None:
        self._pictures, self._changes = views
        self._codec, self._positions, self._seed = codec, positions, seed
        self._num_rows: int = like._num_rows if like else min(batch_labels, len(self._pictures))
        self._drawn: tuple[int, Floats] = (-1, np.zeros((0, 0), np.float32))

    @property
    def unique_tokens(self) -> int:
        """Images in one epoch."""
        return len(self._pictures)

    @property
    def padding(self) -> float:
        """The share of an epoch's images that are empty."""
        return 1 - len(self._pictures) / (self._num_rows * self.num_batches(0))

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has: the same in each."""
        return -(-len(self._pictures) // self._num_rows)

    def order(self, epoch: int) -> list[Rows]:
        """The rows of each micro-batch of an epoch."""
        random = np.random.default_rng((self._seed, epoch))
        rows = epoch * len(self._pictures) + random.permutation(len(self._pictures))
        return np.array_split(rows, self.num_batches(epoch))

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows of one epoch (see the class)."""
        places = rows % len(self._pictures)
        chosen = self._pictures.labels[places]
        if self._changes is None:
            x = augment.to_unit(self._pictures.images[places])
        else:
            x, chosen = self._changed(places, self._draws(int(rows[0]) // len(self._pictures)), self._changes)
        source = torch.empty(self._num_rows, *x.shape[1:], memory_format=torch.channels_last).zero_()
        source[: len(x)] = self._codec.normalised(x)
        labels = torch.full((self._num_rows, self._positions), IGNORED)
        labels[: len(x), 0] = torch.from_numpy(chosen)
        return {"source": source, "labels": labels}

    def _changed(self, places: Rows, table: Floats, changes: Images) -> tuple[Tensor, Rows]:
        """The images at these places and their classes, changed as the epoch's table of draws says."""
        pictures, draws = self._pictures, table[places]
        x, labels = augment.changed(pictures.images[places], draws, changes), pictures.labels[places]
        if changes.mix is None:
            return x, labels
        others = (draws[:, augment.PARTNER] * len(pictures)).astype(np.int64)
        other = augment.changed(pictures.images[others], table[others], changes)
        x, share = (augment.mixup if changes.mix == "mixup" else augment.cutmix)(x, other, draws)
        return x, np.where(draws[:, augment.LABEL] < share, pictures.labels[others], labels)

    def _draws(self, epoch: int) -> Floats:
        """Numbers that the changes of each image follow from in this epoch."""
        if self._changes is not None and self._drawn[0] != epoch:
            random = np.random.default_rng((self._seed, epoch, 1))
            size = (len(self._pictures), augment.num_draws(self._changes))
            self._drawn = epoch, random.random(size, dtype=np.float32)
        return self._drawn[1]
