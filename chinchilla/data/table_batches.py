"""Micro-batches of a table's rows."""

import numpy as np
import torch
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.data.batches import IGNORED
from chinchilla.data.packing import Rows
from chinchilla.data.table_split import TableRows


class TableBatches:
    """Micro-batches of `batch_size` rows, all of that size, shuffled each epoch.

    A batch holds `source` (B, columns) fp32 and `labels` (B, 1 + columns) int64: the class at position 0, where the
    model's class token stands, and -100 at the columns.

    What is left over, less than a batch, is dropped; it is other rows in each epoch. Batches `like` others have their
    size and hold every row: the last is filled up with empty rows, which have no label.

    Row i of epoch e has the number e * (number of rows) + i. Noise on the cells, where the rows have some, follows from
    the seed and that number of the batch's first row.
    """

    def __init__(self, rows: TableRows, batch_size: int, seed: int, like: "TableBatches | None" = None) -> None:
        if not len(rows):
            raise DataError("there is no row to learn from")
        self._rows, self._seed = rows, seed
        self._whole = like is not None
        self.num_rows: int = like.num_rows if like else max(1, min(batch_size, len(rows)))

    @property
    def unique_tokens(self) -> int:
        """Labels in one epoch: one a row, without those that are dropped."""
        return len(self._rows) if self._whole else self.num_batches(0) * self.num_rows

    @property
    def padding(self) -> float:
        """The share of an epoch's rows that are empty."""
        return 1 - len(self._rows) / (self.num_batches(0) * self.num_rows) if self._whole else 0.0

    def num_batches(self, epoch: int) -> int:
        """How many micro-batches an epoch has: the same in each."""
        return -(-len(self._rows) // self.num_rows) if self._whole else len(self._rows) // self.num_rows

    def order(self, epoch: int) -> list[Rows]:
        """The rows of each micro-batch of an epoch."""
        rows = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows)) + epoch * len(self._rows)
        return [rows[start : start + self.num_rows] for start in range(0, len(rows), self.num_rows)][
            : self.num_batches(epoch)
        ]

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of some rows (see the class)."""
        width = self._rows.source.shape[1]
        source = np.zeros((self.num_rows, width), np.float32)
        labels = np.full((self.num_rows, 1 + width), IGNORED, np.int64)
        places = rows % len(self._rows)
        cells = self._rows.source[places]
        if self._rows.noise is not None:
            cells = self._rows.noise.varied(cells, (self._seed, int(rows[0]), 1))
        source[: len(rows)], labels[: len(rows), 0] = cells, self._rows.labels[places]
        return {"source": torch.from_numpy(source), "labels": torch.from_numpy(labels)}
