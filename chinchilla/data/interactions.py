"""Who had to do with what and when: histories of items, each user's last ones held out, encoded for a decoder."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as compute
from numpy.typing import NDArray

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data
from chinchilla.data import cells
from chinchilla.data.batches import IGNORED
from chinchilla.data.cells import Problem
from chinchilla.data.encode import Ragged
from chinchilla.data.items import FIRST_ITEM, Items
from chinchilla.data.packed_batches import Aligned
from chinchilla.data.tables import Table, cell_problems, need_names, read_table, skips_of, without_problems

BOS_ID = 1
HELD_OUT = 2
"""Of each user the last item is for test, the one before it for valid."""

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class ItemSplit:
    """Each user's items in order of time, as ids; the last is for test, the one before it for valid (leave-one-out)."""

    items: Items
    users: tuple[str, ...]
    histories: Ragged
    left_out: int
    """Users with fewer than three items, who are in none of the parts."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def popularity(self) -> NDArray[np.int64]:
        """How often each id comes in the training part (vocab_size,)."""
        lengths = self.histories.lengths
        inner = np.arange(lengths.sum()) - np.repeat(self.histories.offsets[:-1], lengths)
        train = inner < np.repeat(lengths - HELD_OUT, lengths)
        return np.bincount(self.histories.flat[train], minlength=self.items.vocab_size)


def split_interactions(data: Data) -> ItemSplit:
    """Read users, items and times (CSV, TSV or Parquet), and hold out each user's last two items.

    A time is a number or a date; items of the same time keep the order of the file. Other columns aren't read.

    Raises:
        DataError: a file or row that cannot be used (see `read_table`), or no user with three items.
        UsageError: valid or test are given.
    """
    for name, files in (("valid", data.valid), ("test", data.test)):
        if files is not None:
            raise UsageError(f"data.{name}: leave it out; of each user the last two items are held out of data.train")
    table = _read(data)
    users, user_names = _codes(table.columns[data.user])
    items, item_names = _codes(table.columns[data.item])
    counts = np.bincount(users, minlength=len(user_names))
    enough = counts > HELD_OUT
    if not enough.any():
        raise DataError(
            f"{data.train}: no user has three items, of which two are held out; check data.user, {data.user!r}"
        )
    if not enough.all():
        log.info("left out %d of %d users, who have fewer than three items", (~enough).sum(), len(enough))
    rows = np.lexsort((np.arange(len(users)), _times(table.columns[data.time]), users))
    rows = rows[enough[users[rows]]]
    seen, number = np.unique(items[rows], return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(counts[enough])])
    histories = Ragged((number + FIRST_ITEM).astype(np.int32), offsets)
    kept = tuple(name for name, kept in zip(user_names, enough, strict=True) if kept)
    return ItemSplit(Items(names=tuple(item_names[item] for item in seen)), kept, histories, int((~enough).sum()))


def history_ids(items: Sequence[int], max_len: int) -> list[int]:
    """What a model is given: <s>, then the last `max_len` - 1 items."""
    return [BOS_ID, *items[max(0, len(items) - max_len + 1) :]]


def train_rows(split: ItemSplit, max_len: int) -> Aligned:
    """Histories to pack, without what is held out: each of a user's last `max_len` items from those before it."""
    return _aligned(split, max_len, HELD_OUT, every=True)


def valid_rows(split: ItemSplit, max_len: int) -> Aligned:
    """Histories to pack: a label at the last position alone, the item that is held out for valid."""
    return _aligned(split, max_len, HELD_OUT - 1, every=False)


def last_items(split: ItemSplit) -> Iterator[tuple[list[int], int]]:
    """Each user's items but the last, valid's among them, and the last."""
    for user in range(len(split)):
        *history, last = split.histories[user].tolist()
        yield history, last


def _aligned(split: ItemSplit, max_len: int, held_out: int, every: bool) -> Aligned:
    ids: list[int] = []
    labels: list[int] = []
    offsets = [0]
    for user in range(len(split)):
        history = split.histories[user].tolist()
        known = history[: len(history) - held_out]
        given = history_ids(known[:-1], max_len)
        wanted = known[-len(given) :]
        ids += given
        labels += wanted if every else [IGNORED] * (len(wanted) - 1) + wanted[-1:]
        offsets.append(len(ids))
    return Aligned(Ragged(np.array(ids, np.int32), np.array(offsets)), np.array(labels, np.int32))


def _read(data: Data) -> Table:
    on_invalid, skips = skips_of(data)
    columns = (data.user, data.item, data.time)
    table = read_table(data.train, data, on_invalid, columns)
    for name in (data.user, data.item):
        need_names(table, name)
    kind = cells.kind_of(table.columns[data.time])
    if kind not in ("number", "time"):
        raise DataError(
            f"{table.place}, column {data.time}: neither numbers nor dates; set data.time to a column of such"
        )
    found = [(name, problem) for name in columns for problem in _missing(table.columns[name])]
    found += cell_problems(table, {data.time: kind})
    table = without_problems(table, found, on_invalid)
    skips.kept = len(table)
    skips.judge(table.place)
    return table


def _missing(array: Any) -> Iterator[Problem]:
    for row in np.flatnonzero(np.array(compute.is_null(array).to_numpy(zero_copy_only=False))).tolist():
        yield row, "empty; fill it in, leave the row out, or set data.invalid=skip"


def _times(array: Any) -> NDArray[np.float64]:
    return cells.numbers(array) if cells.kind_of(array) == "number" else cells.seconds(array)


def _codes(array: Any) -> tuple[NDArray[np.int64], list[str]]:
    """A column as numbers, and the names that these stand for, in order."""
    codes = cells.names(array).dictionary_encode()
    found: list[str] = codes.dictionary.to_pylist()
    order = sorted(range(len(found)), key=lambda place: found[place])
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    return rank[codes.indices.to_numpy()], [found[place] for place in order]
