"""Train, valid and test: as given, or cut from train by group with a seed; and none of the held-out texts in train.

Only a hash of each row is held, so that a file larger than memory can be split; the parts are read from the files
again each time they are iterated.
"""

import logging
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic

import numpy as np

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data, Files
from chinchilla.data.divide import Index, Rows, divide, seed_salt, text_hash
from chinchilla.data.examples import Document, Example, Pair, key
from chinchilla.data.readers import is_plain_text, read_documents, read_pairs, refuse
from chinchilla.data.rows import OnInvalid

MAX_SKIPPED = 0.1
"""The largest share of a file's rows that `data.invalid=skip` leaves out."""

NAMED_SKIPS = 5

PARTS = ("train", "test", "valid")

log = logging.getLogger("chinchilla")


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
    return split(partial(read_pairs, data=data), data, seed)


def split_documents(data: Data, seed: int) -> Split[Document]:
    """Split texts: the same text never stands on both sides.

    Raises:
        DataError: bad data (see `read_documents`), or too few groups to cut valid and test from.
        UsageError: a format that holds no texts.
    """
    return split(partial(read_documents, data=data), data, seed)


def split(read: Callable[..., Iterator[Example]], data: Data, seed: int) -> Split[Example]:
    """Split what `read(files, on_invalid=…)` gives.

    Raises:
        DataError: bad data, or too few groups to cut valid and test from.
    """
    return parts(read, data, index_parts(read, data, seed))


def index_parts(
    read: Callable[..., Iterator[Example]],
    data: Data,
    seed: int,
    class_of: Callable[[str, Example], int] = lambda part, example: 0,
) -> dict[str, Index]:
    """Read each part that is given, train first, and index it; `class_of(part, example)` numbers the classes.

    Raises:
        DataError: bad data.
    """
    given = {name: files for name in PARTS if (files := getattr(data, name)) is not None}
    return {
        name: _index(partial(read, files), files, data, seed, partial(class_of, name)) for name, files in given.items()
    }


def parts(read: Callable[..., Iterator[Example]], data: Data, indexes: Mapping[str, Index]) -> Split[Example]:
    """The three parts of indexed data; those without an index are cut from train.

    Raises:
        DataError: too few groups to cut them from.
    """

    def part(name: str, files: Files, rows: Rows) -> Part[Example]:
        return Part(f"data.{name}", lambda on_invalid: read(files, on_invalid=on_invalid), rows)

    division = divide(indexes["train"], {name: index.keys for name, index in indexes.items() if name != "train"})
    held: dict[str, Part[Example]] = {}
    for name, files in (("valid", data.valid), ("test", data.test)):
        if files is None:
            held[name] = part(name, data.train, division.held[name])
        else:
            held[name] = part(name, files, np.ones(len(indexes[name]), dtype=bool))
    if division.dropped:
        total = division.dropped + int(division.train.sum())
        log.info("left out %d of %d training examples that are also in valid or test", division.dropped, total)
    return Split(part("train", data.train, division.train), held["valid"], held["test"], division.dropped)


def _index(
    read: Callable[..., Iterator[Example]], files: Files, data: Data, seed: int, class_of: Callable[[Example], int]
) -> Index:
    keys, groups, classes = array("Q"), array("Q"), array("q")
    skips = Skips()
    by_line = is_plain_text(files, data)
    for example in read(on_invalid=refuse if data.invalid == "refuse" else skips):
        text = key(example)
        keys.append(text_hash(text))
        groups.append(text_hash(example.group or text, seed_salt(seed)))
        classes.append(class_of(example))
        skips.kept += example[0].count("\n") + 1 if by_line else 1
    skips.judge(" and ".join(map(str, files if isinstance(files, tuple) else (files,))))
    return Index(np.array(keys, np.uint64), np.array(groups, np.uint64), np.array(classes, np.int64))


@dataclass
class Skips:
    """Counts malformed rows beside good ones, names the first few at once, and refuses too large a share."""

    count: int = 0
    kept: int = 0
    first: str = ""

    def __call__(self, error: DataError) -> None:
        self.count += 1
        self.first = self.first or str(error)
        if self.count <= NAMED_SKIPS:
            log.warning("leaving out a malformed row: %s", error)

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


def _ignore(error: DataError) -> None:
    """Leave a row out that was reported when the file was first read (refused rows never get this far)."""
