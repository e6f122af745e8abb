"""Walk through a GGUF file's header before the `gguf` package does, which trusts every count and length in it.

A count of 2^60 keeps that package busy for ever; tensors that lie on one another let a small file ask for any amount
of memory. Nothing here allocates by what the file says.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Number of a kind of value in the format → its bytes."""

UINT32 = 4
MAX_ENTRIES = 1 << 17
MAX_VALUES = 1 << 21
"""Entries of all arrays together, of which the package makes one object each; the largest tokenizers have 1.4 M."""

MAX_NAME_BYTES = 1 << 16
MAX_DIMS = 4
ALIGNMENT = "general.alignment"


class Span(NamedTuple):
    """Where a tensor lies, from the start of the data."""

    start: int
    stop: int
    name: str


class Walk:
    """Reads a header from front to back; `values` counts the entries of all its arrays."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self.file, self.left, self.values = file, size_bytes, 0
        self.size_bytes = size_bytes

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        self._spend(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self._spend(count)
        self.file.seek(count, 1)

    def number(self, form: str) -> int:
        """A whole number: `I` of four bytes, `Q` of eight."""
        (value,) = struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))
        return int(value)

    def name(self) -> str:
        """A short text."""
        length = self.number("Q")
        if length > MAX_NAME_BYTES:
            raise ValueError(f"a name of {length:,} bytes")
        return self.bytes(length).decode("utf-8")

    def value(self, kind: int) -> None:
        """Pass over a value."""
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            self._array(self.number("I"), self.number("Q"))
        elif kind in SCALARS:
            self.skip(SCALARS[kind])
        else:
            raise ValueError(f"a value of unknown kind {kind}")

    def _array(self, kind: int, count: int) -> None:
        self.values += count
        if kind == ARRAY:
            raise ValueError("an array of arrays")
        if self.values > MAX_VALUES:
            raise ValueError(f"arrays of more than {MAX_VALUES:,} values")
        if kind in SCALARS:
            self.skip(count * SCALARS[kind])
            return
        for _ in range(count):
            self.value(kind)

    def _spend(self, count: int) -> None:
        if count > self.left:
            raise ValueError(f"{count:,} bytes are said to follow where {self.left:,} do")
        self.left -= count


def check_header(path: Path, quant_sizes: Mapping[int, tuple[int, int]]) -> None:
    """Read through the header of the file at `path`; `quant_sizes` gives (numbers, bytes) a block by number format.

    Raises:
        ValueError: a count, length, kind or offset that cannot be; it says which.
        OSError: the file cannot be read.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        walk = Walk(file, size_bytes)
        if walk.bytes(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := walk.number("I")) not in VERSIONS:
            raise ValueError(f"version {version}, or numbers of another byte order")
        num_tensors, num_fields = walk.number("Q"), walk.number("Q")
        if max(num_tensors, num_fields) > MAX_ENTRIES:
            raise ValueError(f"{num_tensors:,} tensors and {num_fields:,} settings are announced")
        alignment = _pass_fields(walk, num_fields)
        spans = list(_spans(walk, num_tensors, quant_sizes))
        _check_spans(spans, walk.left, -(size_bytes - walk.left) % alignment)


def _pass_fields(walk: Walk, count: int) -> int:
    """Pass over the settings; the alignment that they name, or the usual one."""
    alignment = 32
    for _ in range(count):
        name, kind = walk.name(), walk.number("I")
        if name == ALIGNMENT and kind == UINT32:
            alignment = walk.number("I")
        else:
            walk.value(kind)
    if alignment == 0 or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment}")
    return alignment


def _spans(walk: Walk, count: int, quant_sizes: Mapping[int, tuple[int, int]]) -> Iterator[Span]:
    for _ in range(count):
        name, num_dims = walk.name(), walk.number("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"tensor {name} has {num_dims:,} dimensions")
        numbers = 1
        for _ in range(num_dims):
            numbers *= walk.number("Q")
        kind, start = walk.number("I"), walk.number("Q")
        if kind not in quant_sizes:
            raise ValueError(f"tensor {name} is of an unknown number format, {kind}")
        block, block_bytes = quant_sizes[kind]
        yield Span(start, start + numbers * block_bytes // block, name)


def _check_spans(spans: list[Span], left: int, padding: int) -> None:
    """Every tensor lies within the rest of the file, and none on another."""
    end = 0
    for span in sorted(spans):
        if span.stop > left - padding:
            raise ValueError(f"tensor {span.name} ends {span.stop - left + padding:,} bytes past the end")
        if span.start < end:
            raise ValueError(f"tensor {span.name} lies on another one")
        end = span.stop
