"""Divide rows into train, valid and test, given two hashes and a class of each: seeded, by group, without leaks."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError

HELD_OUT_SHARE = 0.05
MAX_HELD_OUT = 2000

CLASSIFIED, CLASSIFIED_SHARE = 200, 0.15
"""Examples with a class are held out up to this many at least, as far as that is no more than this share: a figure
from fewer says little."""

Rows = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Index:
    """Of each row a hash of its text (what may not leak), one of its group and the seed, and its class.

    Classes are numbers from 0; where there are none, all are 0.
    """

    keys: Hashes
    groups: Hashes
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Division:
    """Which rows go where; `held` has the parts that were cut. `dropped` counts the leaks left out of train."""

    train: Rows
    held: dict[str, Rows]
    dropped: int


def text_hash(text: str, salt: bytes = b"") -> int:
    """64 bits of BLAKE2b; half a character, as JSON may have it in the name of a group, is as good as a whole one."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).digest(), "little")


def seed_salt(seed: int) -> bytes:
    """What makes the hash of a group depend on the seed."""
    return (seed % 2**64).to_bytes(8, "little")


def divide(whole: Index, given: Mapping[str, Hashes]) -> Division:
    """Cut those of test and valid that aren't `given` from the rows, and drop from train what they hold too.

    Whole groups are cut, from each class in its proportion where there are several.

    Raises:
        DataError: too few groups, or nothing left for a part.
    """
    train = np.ones(len(whole), dtype=bool)
    held: dict[str, Rows] = {}
    held_keys = np.empty(0, dtype=np.uint64)
    for name in sorted(("test", "valid"), key=lambda name: name not in given):
        keys = given.get(name)
        if keys is None:
            cut = _cut(whole, train, name)
            train &= ~cut
            cut &= ~np.isin(whole.keys, held_keys)
            if not cut.any():
                raise DataError(
                    f"data.train: nothing is left for data.{name} that the other part has not; give a file for it"
                )
            held[name] = cut
            keys = whole.keys[cut]
        held_keys = np.union1d(held_keys, keys)
    leaks = train & np.isin(whole.keys, held_keys)
    if not (train & ~leaks).any():
        raise DataError("data.train: every example is also in valid or test; give other data for those")
    return Division(train & ~leaks, held, int(leaks.sum()))


def _cut(whole: Index, free: Rows, name: str) -> Rows:
    """Choose whole groups of the `free` rows."""
    names, first = np.unique(whole.groups[free], return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"data.train: {free.sum()} examples of one group are left to cut data.{name} from; give a file for "
            f"data.{name}, or data of several groups"
        )
    cut = np.zeros(len(whole), dtype=bool)
    classes = _main_classes(first, whole.classes[free])[first]
    for number in np.unique(classes):
        of_class = np.flatnonzero(free)[classes == number]
        share = len(of_class) / free.sum()
        cut[of_class] = _chosen(whole.groups[of_class], max(1, round(_quota(whole) * share)))
    if not cut.any():
        raise DataError(f"data.train: each class left is of a single group, none to cut data.{name} from; give a file")
    return cut


def _quota(whole: Index) -> int:
    """How many rows to hold out for each of valid and test."""
    quota = round(HELD_OUT_SHARE * len(whole))
    if whole.classes.any():
        quota = max(quota, min(CLASSIFIED, round(CLASSIFIED_SHARE * len(whole))))
    return min(MAX_HELD_OUT, max(1, quota))


def _main_classes(groups: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most frequent class of each group, which are numbered from 0."""
    count = int(classes.max()) + 1
    both, rows = np.unique(groups * count + classes, return_counts=True)
    order = np.lexsort((rows, both // count))
    last = np.flatnonzero(np.diff(both[order] // count, append=-1))
    return both[order][last] % count


def _chosen(groups: Hashes, quota: int) -> Rows:
    """Choose rows by whole groups, up to `quota` of them; at random, since hashes are. None of a single group."""
    names, counts = np.unique(groups, return_counts=True)
    if len(names) < 2:
        return np.zeros(len(groups), dtype=bool)
    fitting = counts <= quota
    if not fitting.any():
        fitting = counts == counts.min()
        quota = int(counts.min())
    within = np.cumsum(counts[fitting]) <= quota
    return np.isin(groups, names[fitting][within])
