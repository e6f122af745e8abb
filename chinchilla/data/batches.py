"""Micro-batches of token ids. Which rows stand in which batch is a pure function of (seed, epoch, index)."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.data.encode import EncodedDocuments, EncodedPairs
from chinchilla.data.packing import POOL, Rows, best_fit, epoch_of, joined, numbered, row_lens
from chinchilla.data.ragged import Ragged, unless_longer

IGNORED = -100
"""The label of a position that has none."""


class Batches(Protocol):
    """Micro-batches over epochs that never end; rows are numbers that mean the same forever."""

    @property
    def unique_tokens(self) -> int:
        """Label tokens in one epoch."""

    @property
    def padding(self) -> float:
        """The share of an epoch's positions, source and target, that are padding."""

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has."""

    def order(self, epoch: int) -> list[Rows]:
        """The rows of each micro-batch of an epoch, in order."""

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows, named as the model's `forward` names them, and `labels`."""


class PairBatches:
    """Micro-batches of translation pairs, several packed in each row, all of one fixed size.

    Every batch has the same number of rows and the same row lengths: on CPUs a product of a new size costs more to
    prepare than to compute, and a step that is always the same is a step whose time can be planned.

    A batch holds `source` (B, S) int64, each text ended by </s>; `target` (B, T) int64, <s> and then the tokens of
    each; `labels` (B, T) int64, the tokens and then </s>, -100 at padding; `source_segments` (B, S) and
    `target_segments` (B, T) int64, numbering the pairs of a row from 1, 0 at padding.

    Row lengths follow `max_len` and the proportion of the data (`packing.row_lens`). Pairs that fit no
    row are left out; `left_out` counts them. Each epoch shuffles the pairs, packs them anew (best fit, longest first,
    in pools of 8,192) and shuffles the rows; the last batch is filled up with empty rows. Batches `like` others have
    the same row lengths, whatever their own data's proportion.

    Pair i of epoch e has the number e * (number of pairs) + i. Noise on the sources, where the pairs have some, follows
    from the seed and that number; a source that would no longer fit its row stays whole.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        max_len: int,
        batch_tokens: int,
        seed: int,
        like: "PairBatches | None" = None,
    ) -> None:
        self._pairs = pairs
        self._seed = seed
        lengths = np.stack([pairs.source.lengths, pairs.target.lengths]) + 1
        self.row_lens: tuple[int, int] = like.row_lens if like else row_lens(lengths, max_len)
        self._fitting = np.flatnonzero((lengths <= np.array(self.row_lens)[:, None]).all(axis=0))
        if len(self._fitting) == 0:
            raise DataError(f"there is no pair of at most max_len = {max_len} tokens to learn from")
        self.left_out = lengths.shape[1] - len(self._fitting)
        self._lengths = lengths
        filling = 0.95
        self.num_rows = max(1, round(batch_tokens / (filling * self.row_lens[1])))
        self._packed: tuple[int, list[Rows]] = (-1, [])
        self._seen: tuple[int, Ragged] = (-1, pairs.source)

    @property
    def unique_tokens(self) -> int:
        """Label tokens in one epoch, </s> counted."""
        return int(self._lengths[1, self._fitting].sum())

    @property
    def padding(self) -> float:
        """The share of the first epoch's positions, source and target, that are padding."""
        positions = self.num_batches(0) * self.num_rows * sum(self.row_lens)
        return float(1 - self._lengths_in(0)[:, self._fitting].sum() / positions)

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has; it may differ by one or two from epoch to epoch."""
        return -(-len(self._pack(epoch)) // self.num_rows)

    def order(self, epoch: int) -> list[Rows]:
        """The pairs of each micro-batch of an epoch, in order, with -1 between one row of the batch and the next."""
        rows = self._pack(epoch)
        starts = range(0, len(rows), self.num_rows)
        return [
            numbered(joined(rows[start : start + self.num_rows]), epoch, len(self._pairs.source)) for start in starts
        ]

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of one micro-batch as `order` gives it (see the class)."""
        pairs, (source_len, target_len) = self._pairs, self.row_lens
        epoch, rows = epoch_of(rows, len(pairs.source))
        sources = self._sources(epoch)
        source, target = (np.full((self.num_rows, length), pairs.pad_id, np.int64) for length in self.row_lens)
        labels = np.full((self.num_rows, target_len), IGNORED, np.int64)
        source_segments, target_segments = np.zeros((self.num_rows, source_len), np.int64), np.zeros_like(labels)
        for row, members in enumerate(np.split(rows, np.flatnonzero(rows < 0))):
            left = right = 0
            for segment, pair in enumerate(members[members >= 0], start=1):
                given, wanted = sources[pair], pairs.target[pair]
                end, stop = left + len(given), right + len(wanted)
                source[row, left:end], source[row, end] = given, pairs.eos_id
                target[row, right], target[row, right + 1 : stop + 1] = pairs.bos_id, wanted
                labels[row, right:stop], labels[row, stop] = wanted, pairs.eos_id
                source_segments[row, left : end + 1] = target_segments[row, right : stop + 1] = segment
                left, right = end + 1, stop + 1
        if pairs.noise is not None:
            source = pairs.noise.masked(source, (self._seed, epoch, 1, int(rows.max())))
        arrays = {
            "source": source,
            "target": target,
            "labels": labels,
            "source_segments": source_segments,
            "target_segments": target_segments,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _pack(self, epoch: int) -> list[Rows]:
        if self._packed[0] != epoch:
            random = np.random.default_rng((self._seed, epoch))
            pairs, lengths = random.permutation(self._fitting), self._lengths_in(epoch)
            rows: list[Rows] = []
            for start in range(0, len(pairs), POOL):
                rows += best_fit(pairs[start : start + POOL], lengths, self.row_lens)
            self._packed = epoch, [rows[place] for place in random.permutation(len(rows))]
        return self._packed[1]

    def _lengths_in(self, epoch: int) -> Rows:
        return np.stack([self._sources(epoch).lengths + 1, self._lengths[1]])

    def _sources(self, epoch: int) -> Ragged:
        """The sources as this epoch reads them, unmasked."""
        pairs, seen = self._pairs, self._seen
        if pairs.noise is None or not pairs.noise.backoff:
            return pairs.source
        if seen[0] != epoch:
            apart, _ = pairs.noise.apart(pairs.source, (self._seed, epoch, 2))
            seen = self._seen = epoch, unless_longer(apart, pairs.source, self.row_lens[0] - 1)
        return seen[1]


class TextBatches:
    """Micro-batches of running text: rows of `max_len` tokens without padding, about `batch_tokens` in each batch.

    A batch holds `labels` (B, L) int64, a piece of all documents, each ended by </s>, one after the other; and `target`
    (B, L) int64, the token before each label, <s> at the start of a document. So </s> is only ever predicted and <s>
    only ever given, as for a translation.

    Each epoch shuffles the documents, shifts where the rows begin and shuffles the rows. What is left over, less than
    a row or less than a batch, is dropped, so that all batches have one size; it is another piece in each epoch.
    """

    def __init__(self, documents: EncodedDocuments, max_len: int, batch_tokens: int, seed: int) -> None:
        self._documents = documents
        self._seed = seed
        self._sizes = documents.text.lengths + 1
        total = int(self._sizes.sum())
        if total == 0:
            raise DataError("there is no text to learn from")
        self._length = min(max_len, total)
        self._num_rows = total // self._length
        self._batch_rows = min(self._num_rows, max(1, round(batch_tokens / self._length)))
        self._layout = self._lay_out(0)

    @property
    def unique_tokens(self) -> int:
        """Label tokens in one epoch, </s> counted."""
        return self._num_rows * self._length

    @property
    def padding(self) -> float:
        """Nothing is padded."""
        return 0.0

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has: the same in each."""
        return self._num_rows // self._batch_rows

    def order(self, epoch: int) -> list[Rows]:
        """The rows of each micro-batch of an epoch; row r of epoch e has the number e * num_rows + r."""
        random = np.random.default_rng((self._seed, epoch, 1))
        rows = epoch * self._num_rows + random.permutation(self._num_rows)
        whole = self.num_batches(epoch) * self._batch_rows
        return np.split(rows[:whole], self.num_batches(epoch))

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows (see the class), which may be of several epochs."""
        labels = np.empty((len(rows), self._length), dtype=np.int64)
        target = np.empty_like(labels)
        epochs = rows // self._num_rows
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            labels[chosen], target[chosen] = self._read(int(epoch), rows[chosen] % self._num_rows)
        return {"target": torch.from_numpy(target), "labels": torch.from_numpy(labels)}

    def _read(self, epoch: int, rows: Rows) -> tuple[Rows, Rows]:
        text = self._documents.text
        if self._layout[0] != epoch:
            self._layout = self._lay_out(epoch)
        _, documents, ends, shift = self._layout
        places = (shift + rows[:, None] * self._length + np.arange(self._length)) % ends[-1]
        number = np.searchsorted(ends, places, side="right")
        document = documents[number]
        inner = places - (ends - self._sizes[documents])[number]
        index = text.offsets[document] + inner
        labels = np.where(inner == self._sizes[document] - 1, self._documents.eos_id, _take(text, index))
        return labels, np.where(inner == 0, self._documents.bos_id, _take(text, index - 1))

    def _lay_out(self, epoch: int) -> tuple[int, Rows, Rows, int]:
        """An epoch's order of documents, where each ends in it, and the place of its first row."""
        random = np.random.default_rng((self._seed, epoch))
        documents = random.permutation(len(self._sizes))
        return epoch, documents, np.cumsum(self._sizes[documents]), int(random.integers(self._sizes.sum()))


def _take(texts: Ragged, index: Rows) -> Rows:
    # Places past a row's end, or of a row without tokens, are masked afterwards: any token will do there.
    padded = texts.flat if len(texts.flat) else np.zeros(1, dtype=np.int32)
    return padded.take(index, mode="clip").astype(np.int64)
