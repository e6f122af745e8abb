"""Micro-batches of examples of one side, packed: chats, histories of items, texts with a class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.data.batches import IGNORED
from chinchilla.data.packing import POOL, Rows, best_fit, epoch_of, joined, numbered
from chinchilla.data.ragged import Ragged, starts
from chinchilla.data.text_noise import TextNoise

FILLING = 0.95
"""About the share of a row that packing fills."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """Examples to pack: the ids a model is given, and what it should answer at each (-100 where nothing is asked)."""

    ids: Ragged
    labels: NDArray[np.int32]
    """One for each of `ids.flat`."""

    noise: TextNoise | None = None
    """On the ids, each time anew."""

    def apart(self, noise: TextNoise, room: int, place: tuple[int, ...]) -> "Aligned":
        """The same with tokens in pieces: of each the first has its label. What is longer than `room` is cut."""
        ids, origin = noise.apart(self.ids, place)
        first = np.diff(origin, prepend=-1) != 0
        labels = np.where(first, self.labels[origin], IGNORED).astype(np.int32)
        kept = starts(ids, room)
        offsets = np.concatenate([[0], np.cumsum(np.minimum(ids.lengths, room))])
        return Aligned(Ragged(ids.flat[kept], offsets), labels[kept], noise)


class PackedBatches:
    """Micro-batches of examples, several packed in each row, all of one fixed size, with about `batch_labels` labels.

    With the side "target" a batch holds `target` (B, L) int64, ids; `labels` (B, L) int64, -100 where nothing is asked
    and at padding; `target_segments` (B, L) int64, numbering the examples of a row from 1, 0 at padding. The side
    "source" is the same with `source` and `source_segments`.

    Examples longer than `row_len` are left out (`left_out` counts them), and so are those without any label. Each
    epoch shuffles the examples, packs them anew (best fit, longest first, in pools of 8,192) and shuffles the rows; the
    last batch is filled up with empty rows. Batches `like` others have their size.

    Example i of epoch e has the number e * (number of examples) + i. Noise on the ids, where the examples have some,
    follows from the seed and that number.
    """

    def __init__(
        self,
        examples: Aligned,
        row_len: int,
        batch_labels: int,
        seed: int,
        side: Literal["source", "target"] = "target",
        pad_id: int = 0,
        like: "PackedBatches | None" = None,
    ) -> None:
        self._examples, self._seed, self._side, self._pad_id = examples, seed, side, pad_id
        self.row_len: int = like.row_len if like else row_len
        self._lengths = examples.ids.lengths
        counted = np.concatenate([[0], np.cumsum(examples.labels != IGNORED)])
        labels = np.diff(counted[examples.ids.offsets])
        short = self._lengths <= self.row_len
        self.left_out = int((~short).sum())
        self._fitting = np.flatnonzero(short & (labels > 0))
        if len(self._fitting) == 0:
            raise DataError(f"there is no example of at most {self.row_len} positions to learn from")
        self._num_labels = int(labels[self._fitting].sum())
        self._packed: tuple[int, list[Rows]] = (-1, [])
        self._seen: tuple[int, Aligned] = (-1, examples)
        self.num_rows: int = like.num_rows if like else self._rows_for(batch_labels)

    @property
    def unique_tokens(self) -> int:
        """Labels in one epoch."""
        return self._num_labels

    @property
    def padding(self) -> float:
        """The share of the first epoch's positions that are padding."""
        positions = self.num_batches(0) * self.num_rows * self.row_len
        return float(1 - self._read(0).ids.lengths[self._fitting].sum() / positions)

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has; it may differ by one or two from epoch to epoch."""
        return -(-len(self._pack(epoch)) // self.num_rows)

    def order(self, epoch: int) -> list[Rows]:
        """The examples of each micro-batch of an epoch, in order, with -1 between one row of the batch and the next."""
        rows, count = self._pack(epoch), len(self._lengths)
        return [
            numbered(joined(rows[start : start + self.num_rows]), epoch, count)
            for start in range(0, len(rows), self.num_rows)
        ]

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of one micro-batch as `order` gives it (see the class)."""
        size = (self.num_rows, self.row_len)
        ids, labels = np.full(size, self._pad_id, np.int64), np.full(size, IGNORED, np.int64)
        segments = np.zeros(size, np.int64)
        epoch, rows = epoch_of(rows, len(self._lengths))
        examples = self._read(epoch)
        offsets = examples.ids.offsets
        for row, members in enumerate(np.split(rows, np.flatnonzero(rows < 0))):
            start = 0
            for segment, example in enumerate(members[members >= 0], start=1):
                place = slice(offsets[example], offsets[example + 1])
                end = start + int(offsets[example + 1] - offsets[example])
                ids[row, start:end] = examples.ids.flat[place]
                labels[row, start:end] = examples.labels[place]
                segments[row, start:end] = segment
                start = end
        if examples.noise is not None:
            ids = examples.noise.masked(ids, (self._seed, epoch, 1, int(rows.max())))
        arrays = {self._side: ids, "labels": labels, f"{self._side}_segments": segments}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _rows_for(self, batch_labels: int) -> int:
        """Rows that hold about `batch_labels`; no more than an epoch has."""
        rows = self._read(0).ids.lengths[self._fitting].sum() / (FILLING * self.row_len)
        return min(len(self._pack(0)), max(1, round(rows * batch_labels / self._num_labels)))

    def _pack(self, epoch: int) -> list[Rows]:
        if self._packed[0] != epoch:
            random = np.random.default_rng((self._seed, epoch))
            examples = random.permutation(self._fitting)
            lengths = np.stack([self._read(epoch).ids.lengths] * 2)
            rows: list[Rows] = []
            for start in range(0, len(examples), POOL):
                rows += best_fit(examples[start : start + POOL], lengths, (self.row_len, self.row_len))
            self._packed = epoch, [rows[place] for place in random.permutation(len(rows))]
        return self._packed[1]

    def _read(self, epoch: int) -> Aligned:
        """The examples as this epoch reads them, unmasked."""
        examples, seen = self._examples, self._seen
        if examples.noise is None or not examples.noise.backoff:
            return examples
        if seen[0] != epoch:
            seen = self._seen = epoch, examples.apart(examples.noise, self.row_len, (self._seed, epoch, 2))
        return seen[1]
