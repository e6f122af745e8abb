"""Which examples belong together, so that no part of a split holds a near copy of what another part holds."""

import hashlib
import zlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

BANDS = 20
ROWS = 4
_PRIME = 2**31 - 1


def families(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """The first member of each item's family; two items that share a key are of one family, and so on through others.

    Args:
        keys: those of each item.
    """
    parents = list(range(len(keys)))

    def eldest(item: int) -> int:
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    first: dict[Hashable, int] = {}
    for item, own in enumerate(keys):
        for key in own:
            one, other = eldest(first.setdefault(key, item)), eldest(item)
            parents[max(one, other)] = min(one, other)
    return [eldest(item) for item in range(len(keys))]


def sketch(shingles: Iterable[str]) -> list[tuple[int, ...]]:
    """Keys that two texts share when most of their `shingles` (runs of words or characters) are the same.

    MinHash in 20 bands of 4 rows (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4): two texts
    that have a share s of all their shingles in common share a key with a probability of 1 - (1 - s^4)^20, which is
    0.15 at s = 0.3, 0.72 at 0.5 and 0.996 at 0.7. A text without shingles has no keys.
    """
    codes = np.array([zlib.crc32(shingle.encode()) for shingle in set(shingles)], dtype=np.uint64) % _PRIME
    if not codes.size:
        return []
    smallest = ((_FACTORS * codes + _OFFSETS) % _PRIME).min(axis=1).reshape(BANDS, ROWS)
    return [(band, *row) for band, row in enumerate(smallest.tolist())]


def runs(parts: Sequence[str], length: int, join: str = " ") -> set[str]:
    """The runs of `length` neighbours among the parts of a text; all of them where there are fewer."""
    return {join.join(parts[at : at + length]) for at in range(max(1, len(parts) - length + 1))} - {""}


def _constants(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """Numbers below 2^31, one a row of each band: the same on every machine and in every version."""
    digests = (hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(BANDS * ROWS))
    return np.array([[int.from_bytes(digest[:4], "big") >> 1 | 1] for digest in digests], dtype=np.uint64)


_FACTORS = _constants("factor")
_OFFSETS = _constants("offset")
