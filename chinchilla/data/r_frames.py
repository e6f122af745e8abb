"""Tables out of installed R packages. Their lazy-load database holds data and no code: nothing in it is run.

The format: R Internals, section 1.8; the database: `makeLazyLoadDB` of R's `tools` package. Only what data frames are
made of is read: numbers, texts, classes (factors), and lists of them.
"""

import bz2
import gzip
import lzma
import math
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from chinchilla.config.errors import DataError

_NA_INTEGER = -(2**31)
_HAS_ATTRIBUTES, _HAS_TAG, _LATIN1 = 0x200, 0x400, 0x4000
"""Bits of the flags of an object; the last is a text's."""


class _Kind(IntEnum):
    SYMBOL = 1
    PAIRS = 2
    TEXT = 9
    LOGICALS = 10
    INTEGERS = 13
    REALS = 14
    TEXTS = 16
    LIST = 19
    NOTHING = 254
    REFERENCE = 255


def read_frame(package: Path, name: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """The columns' names and the rows of a data frame of an installed R package; a missing value is "".

    Raises:
        DataError: the package holds no such data frame, or one with columns of another kind.
    """
    stem = package / "data" / "Rdata"
    if not stem.with_suffix(".rdx").is_file():
        raise DataError(f"{package.name} is no R package with tables in it")
    index = _Reader(gzip.decompress(stem.with_suffix(".rdx").read_bytes())).read()
    places = index.named()["variables"].named()
    if name not in places:
        raise DataError(f"{package.name} holds no table {name!r}; there are: {', '.join(places)}")
    offset, size = places[name].values
    with stem.with_suffix(".rdb").open("rb") as file:
        file.seek(offset)
        frame = _Reader(_inflated(file.read(size))).read()
    return list(frame.named()), list(zip(*map(_cells, frame.values), strict=True))


@dataclass(frozen=True)
class _Vector:
    """Values of one kind, None where R has NA, and their attributes."""

    values: list[Any]
    attributes: dict[str, "_Vector"] = field(default_factory=dict)

    def named(self) -> dict[str, Any]:
        """The values by their names."""
        return dict(zip(self.attributes["names"].values, self.values, strict=True))


def _inflated(entry: bytes) -> bytes:
    """An entry of the database: the size of what it holds, a letter for any compression but zlib, and that."""
    letter, body = entry[4:5], entry[5:]
    if letter == b"Z":
        return lzma.decompress(body, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    return bz2.decompress(body) if letter == b"2" else zlib.decompress(entry[4:])


def _cells(column: Any) -> list[str]:
    if not isinstance(column, _Vector):
        raise DataError("an R table has a column that is neither numbers, texts nor classes")
    levels = column.attributes.get("levels")
    if levels:
        return ["" if code is None else levels.values[code - 1] for code in column.values]
    return ["" if value is None else value if isinstance(value, str) else f"{value:.15g}" for value in column.values]


class _Reader:
    """Reads a serialized object, in R's binary form."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self._symbols: list[str] = []
        if self._take(2) != b"X\n":
            raise DataError("an R object that is not in R's binary form")
        version, _, _ = self._numbers("i", 3)
        if version >= 3:
            self._take(self._number())  # the name of the native encoding

    def read(self) -> Any:
        """The next object: a vector, a text, (name, value) pairs, or None."""
        flags = self._number()
        match flags & 0xFF:
            case _Kind.NOTHING:
                return None
            case _Kind.SYMBOL:
                self._symbols.append(self.read())
                return self._symbols[-1]
            case _Kind.REFERENCE:
                return self._symbols[(flags >> 8 or self._number()) - 1]
            case _Kind.TEXT:
                size = self._number()
                return None if size == -1 else self._take(size).decode("latin-1" if flags & _LATIN1 else "utf-8")
            case _Kind.PAIRS:
                return self._pairs(flags)
            case kind:
                values = self._values(kind)
                return _Vector(values, dict(self.read()) if flags & _HAS_ATTRIBUTES else {})

    def _values(self, kind: int) -> list[Any]:
        count = self._number()
        match kind:
            case _Kind.LOGICALS | _Kind.INTEGERS:
                return [None if number == _NA_INTEGER else number for number in self._numbers("i", count)]
            case _Kind.REALS:
                return [None if math.isnan(number) else number for number in self._numbers("d", count)]
            case _Kind.TEXTS | _Kind.LIST:
                return [self.read() for _ in range(count)]
        raise DataError(f"an R object of the kind {kind}, which no plain table has")

    def _pairs(self, flags: int) -> list[tuple[str, Any]]:
        found = []
        while flags & 0xFF == _Kind.PAIRS:
            if flags & _HAS_ATTRIBUTES:
                self.read()
            name = self.read() if flags & _HAS_TAG else ""
            found.append((name, self.read()))
            flags = self._number()
        return found

    def _number(self) -> int:
        return int(self._numbers("i", 1)[0])

    def _numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        form = f">{count}{kind}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, size: int) -> bytes:
        self._place += size
        return self._data[self._place - size : self._place]
