"""Rows of token ids of different length, held flat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length, one after the other: row i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of each row (num_rows,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each of `flat`."""
        return np.repeat(np.arange(len(self)), self.lengths)


def unless_longer(changed: Ragged, original: Ragged, room: int) -> Ragged:
    """The changed rows; where one is longer than `room`, the original."""
    stays = changed.lengths > room
    new, old = ~stays[changed.rows], stays[original.rows]
    # A row is from one of the two, so that sorting by row keeps each in order.
    order = np.argsort(np.concatenate([changed.rows[new], original.rows[old]]), kind="stable")
    flat = np.concatenate([changed.flat[new], original.flat[old]])[order]
    lengths = np.where(stays, original.lengths, changed.lengths)
    return Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]))


def starts(ragged: Ragged, room: int) -> NDArray[np.bool_]:
    """Which of `flat` are among the first `room` of their rows."""
    return np.arange(len(ragged.flat)) - ragged.offsets[ragged.rows] < room
