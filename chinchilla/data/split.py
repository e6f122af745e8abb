"""Train, valid and test: as given, or cut from train by group with a seed; and none of the held-out texts in train.

Only a hash of each row is held, so that a file larger than memory can be split; the parts are read from the files
again each time they are iterated.
"""

import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data, Files
from chinchilla.data.examples import Document, Example, Pair, key
from chinchilla.data.readers import is_plain_text, read_documents, read_pairs, refuse
from chinchilla.data.rows import OnInvalid

HELD_OUT_SHARE = 0.05
MAX_HELD_OUT = 2000

MAX_SKIPPED = 0.1
"""The largest share of a file's rows that `data.invalid=skip` leaves out."""

NAMED_SKIPS = 5

log = logging.getLogger("chinchilla")

Rows = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Part(Generic[Example]):
    """The examples of one part, read from the file anew at each iteration; `len` counts them."""

    name: str
    read: Callable[[OnInvalid], Iterator[Example]]
    rows: Rows
    """Which of the file's valid rows belong to this part."""

    def __len__(self) -> int:
        return int(self.rows.sum())

    def __iter__(self) -> Iterator[Example]:
        """Raises DataError when the file no longer has the rows it had when it was split."""
        count = 0
        for count, example in enumerate(self.read(_ignore), 1):
            if count > len(self.rows):
                break
            if self.rows[count - 1]:
                yield example
        if count != len(self.rows):
            raise DataError(f"{self.name}: the file changed while it was in use; start again")


@dataclass(frozen=True, eq=False)
class Split(Generic[Example]):
    """Three parts; `dropped` counts the train examples left out because their text is also in valid or test."""

    train: Part[Example]
    valid: Part[Example]
    test: Part[Example]
    dropped: int


def split_pairs(data: Data, seed: int) -> Split[Pair]:
    """Split translation pairs: two that have the same source never stand on both sides.

    Raises:
        DataError: bad data (see `read_pairs`), or too few groups to cut valid and test from.
        UsageError: a format that holds no pairs.
    """
    return _split(partial(read_pairs, data=data), data, seed)


def split_documents(data: Data, seed: int) -> Split[Document]:
    """Split texts: the same text never stands on both sides.

    Raises:
        DataError: bad data (see `read_documents`), or too few groups to cut valid and test from.
        UsageError: a format that holds no texts.
    """
    return _split(partial(read_documents, data=data), data, seed)


@dataclass(frozen=True, eq=False)
class _Index:
    """Two hashes a valid row: of its text (what may not leak) and, with the seed, of its group."""

    keys: Hashes
    groups: Hashes


def _split(read: Callable[..., Iterator[Example]], data: Data, seed: int) -> Split[Example]:
    def index(files: Files) -> _Index:
        return _index(partial(read, files), files, data, seed)

    def part(name: str, files: Files, rows: Rows) -> Part[Example]:
        return Part(f"data.{name}", lambda on_invalid: read(files, on_invalid=on_invalid), rows)

    whole = index(data.train)
    train = np.ones(len(whole.keys), dtype=bool)
    held: dict[str, Part[Example]] = {}
    held_keys = np.empty(0, dtype=np.uint64)
    for name, files in (("test", data.test), ("valid", data.valid)):
        if files is not None:
            keys = index(files).keys
            held[name] = part(name, files, np.ones(len(keys), dtype=bool))
        else:
            cut = _cut(whole.groups, train, name)
            train &= ~cut
            cut &= ~np.isin(whole.keys, held_keys)
            if not cut.any():
                raise DataError(f"data.train: nothing is left for data.{name} that is not in test; give a file for it")
            keys = whole.keys[cut]
            held[name] = part(name, data.train, cut)
        held_keys = np.union1d(held_keys, keys)
    leaks = train & np.isin(whole.keys, held_keys)
    if not (train & ~leaks).any():
        raise DataError("data.train: every example is also in valid or test; give other data for those")
    if leaks.any():
        log.info("left out %d of %d training examples that are also in valid or test", leaks.sum(), train.sum())
    return Split(part("train", data.train, train & ~leaks), held["valid"], held["test"], int(leaks.sum()))


def _index(read: Callable[..., Iterator[Example]], files: Files, data: Data, seed: int) -> _Index:
    salt = (seed % 2**64).to_bytes(8, "little")
    keys, groups = array("Q"), array("Q")
    skips = _Skips(by_line=is_plain_text(files, data))
    for example in read(on_invalid=refuse if data.invalid == "refuse" else skips):
        text = key(example)
        keys.append(_hash(text, b""))
        groups.append(_hash(example.group or text, salt))
        skips.keep(example)
    skips.judge(" and ".join(map(str, files if isinstance(files, tuple) else (files,))))
    return _Index(np.array(keys, dtype=np.uint64), np.array(groups, dtype=np.uint64))


@dataclass
class _Skips:
    """Counts malformed rows beside good ones, names the first few at once, and refuses too large a share."""

    by_line: bool
    count: int = 0
    kept: int = 0
    first: str = ""

    def __call__(self, error: DataError) -> None:
        self.count += 1
        self.first = self.first or str(error)
        if self.count <= NAMED_SKIPS:
            log.warning("leaving out a malformed row: %s", error)

    def keep(self, example: Example) -> None:
        """Count the rows that a good example was made of."""
        self.kept += example[0].count("\n") + 1 if self.by_line else 1

    def judge(self, files: str) -> None:
        """Tell how many were left out, or refuse them."""
        if not self.count:
            return
        if self.count > MAX_SKIPPED * (self.count + self.kept):
            raise DataError(
                f"{files}: {self.count} of {self.count + self.kept} rows are malformed, more than a tenth, which is no "
                "slip but another format or a damaged file; set data.format and the columns as the file has them, or "
                f"mend it; the first: {self.first}"
            )
        log.warning("%s: left out %d malformed rows and kept %d", files, self.count, self.kept)


def _hash(text: str, salt: bytes) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8, salt=salt).digest(), "little")


def _ignore(error: DataError) -> None:
    """Leave a row out that was reported when the file was first read (refused rows never get this far)."""


def _cut(groups: Hashes, free: Rows, name: str) -> Rows:
    """Choose whole groups of the `free` rows, up to a share and a number of rows; at random, since hashes are."""
    names, counts = np.unique(groups[free], return_counts=True)
    if len(names) < 2:
        raise DataError(
            f"data.train: {free.sum()} examples of one group are left to cut data.{name} from; give a file for "
            f"data.{name}, or data of several groups"
        )
    quota = min(MAX_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(groups))))
    fitting = counts <= quota
    if not fitting.any():
        fitting = counts == counts.min()
        quota = int(counts.min())
    within = np.cumsum(counts[fitting]) <= quota
    return free & np.isin(groups, names[fitting][within])
