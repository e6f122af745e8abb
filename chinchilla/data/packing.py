"""Packing pairs of texts in rows of a fixed size (best fit, longest first; Johnson 1973)."""

import math

import numpy as np
from numpy.typing import NDArray

FITTING = 0.99
"""The share of a much shorter side's texts that a row must hold."""

Rows = NDArray[np.int64]

POOL = 8192
"""Pairs that are packed together: enough to fill rows to 97 %, few enough to pack in a tenth of a second."""


def row_lens(lengths: NDArray[np.int64], max_len: int) -> tuple[int, int]:
    """Row lengths of source and target, in the proportion of the pairs that fit.

    The shorter one is `max_len`. Where one side is more than twice as long as the other, as a text is to its summary,
    the longer is `max_len`, and the shorter holds nearly all of its side at least.
    """
    fitting = lengths[:, (lengths <= max_len).all(axis=0)]
    source, target = fitting.sum(axis=1) if fitting.size else (1, 1)
    longer = 4 * math.ceil(max_len * max(source, target) / min(source, target) / 4)
    if longer > 2 * max_len:
        least = float(np.quantile(fitting[1 if source > target else 0], FITTING, method="higher"))
        shorter = 4 * math.ceil(max(least, max_len * min(source, target) / max(source, target)) / 4)
        return (max_len, shorter) if source > target else (shorter, max_len)
    return (max_len, longer) if target >= source else (longer, max_len)


def best_fit(pairs: Rows, lengths: NDArray[np.int64], row_lens: tuple[int, int]) -> list[Rows]:
    """Pack pairs in rows: the longest first, each where it leaves the least room."""
    relative = (lengths[:, pairs] / np.array(row_lens)[:, None]).max(axis=0)
    room = np.empty((2, len(pairs)), dtype=np.int64)
    rows: list[list[int]] = []
    for pair in pairs[np.argsort(-relative, kind="stable")]:
        left = room[:, : len(rows)] - lengths[:, pair, None]
        fits = np.flatnonzero((left >= 0).all(axis=0))
        if len(fits):
            row = fits[left[:, fits].sum(axis=0).argmin()]
            rows[row].append(pair)
        else:
            row = len(rows)
            room[:, row] = row_lens
            rows.append([pair])
        room[:, row] -= lengths[:, pair]
    return [np.array(row) for row in rows]


def joined(rows: list[Rows]) -> Rows:
    """Rows one after the other with -1 between them."""
    separator = np.array([-1])
    return np.concatenate([part for row in rows for part in (separator, row)][1:])


def numbered(rows: Rows, epoch: int, count: int) -> Rows:
    """Joined rows of an epoch's examples, by numbers that tell the epoch too: epoch * `count` + example."""
    return np.where(rows < 0, rows, rows + epoch * count)


def epoch_of(rows: Rows, count: int) -> tuple[int, Rows]:
    """The epoch, and the joined rows as they were before `numbered`."""
    return int(rows.max()) // count, np.where(rows < 0, rows, rows % count)
