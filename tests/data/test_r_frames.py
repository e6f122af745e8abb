"""Tables are read out of R's lazy-load database: here out of bytes written by hand after R Internals, section 1.8."""

import bz2
import gzip
import lzma
import struct
import zlib

import pytest

from chinchilla.config.errors import DataError
from chinchilla.data.r_frames import read_frame

SYMBOL, PAIRS, TEXT, LOGICALS, INTEGERS, REALS, TEXTS, LIST, END = 1, 2, 9, 10, 13, 14, 16, 19, 254
NA = struct.pack(">q", 0x7FF00000000007A2)
HEAD = b"X\n" + struct.pack(">3i", 3, 0x40202, 0x30500) + struct.pack(">i", 5) + b"UTF-8"


def word(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}i", *numbers)


def text(value: str | None, latin: bool = False) -> bytes:
    if value is None:
        return word(TEXT, -1)
    raw = value.encode("latin-1" if latin else "utf-8")
    return word(TEXT | (0x4000 if latin else 0x8000), len(raw)) + raw


def attributes(**given: bytes) -> bytes:
    pairs = [word(PAIRS | 0x400, SYMBOL) + text(name.replace("_", ".")) + value for name, value in given.items()]
    return b"".join(pairs) + word(END)


def texts(*values: str | None) -> bytes:
    return word(TEXTS, len(values)) + b"".join(map(text, values))


def integers(*values: int, **extra: bytes) -> bytes:
    return word(INTEGERS | (0x200 if extra else 0), len(values), *values) + (attributes(**extra) if extra else b"")


def listed(*values: bytes, **extra: bytes) -> bytes:
    return word(LIST | 0x200, len(values)) + b"".join(values) + attributes(**extra)


FRAME = listed(
    word(REALS, 3) + struct.pack(">d", 0.1) + NA + struct.pack(">d", 35000.0),
    integers(7, -(2**31), 0),
    integers(2, 1, -(2**31), levels=texts("bad", "good"), **{"class": texts("factor")}),
    word(TEXTS, 3) + text("高い") + text(None) + text("café", latin=True),
    word(LOGICALS, 3, 1, 0, -(2**31)),
    names=texts("rate", "years", "status", "note", "late"),
    row_names=integers(-(2**31), -3),
    **{"class": texts("data.frame")},
)


def package(folder, entries: dict[str, bytes]):
    """An R package with a lazy-load database of these entries."""
    (folder / "data").mkdir(parents=True)
    places, body = [], b""
    for entry in entries.values():
        places.append(integers(len(body), len(entry)))
        body += entry
    variables = listed(*places, names=texts(*entries))
    index = HEAD + listed(variables, integers(3), names=texts("variables", "compressed"))
    (folder / "data/Rdata.rdx").write_bytes(gzip.compress(index))
    (folder / "data/Rdata.rdb").write_bytes(body)
    return folder


def entry(frame: bytes, letter: bytes) -> bytes:
    data = HEAD + frame
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    packed = {
        b"": zlib.compress,
        b"2": bz2.compress,
        b"Z": lambda raw: lzma.compress(raw, lzma.FORMAT_RAW, filters=filters),
    }[letter](data)
    return word(len(data)) + letter + packed


@pytest.mark.parametrize("letter", [b"", b"2", b"Z"])
def test_a_data_frame(tmp_path, letter):
    folder = package(tmp_path / "p", {"other": entry(FRAME, b""), "loans": entry(FRAME, letter)})
    columns, rows = read_frame(folder, "loans")
    assert columns == ["rate", "years", "status", "note", "late"]
    assert rows == [("0.1", "7", "good", "高い", "1"), ("", "", "bad", "", "0"), ("35000", "0", "", "café", "")]


def test_a_symbol_may_be_referred_to(tmp_path):
    """The second time that R writes a name it writes the number of its place among the names instead."""
    inner = word(INTEGERS | 0x200, 1, 1, PAIRS | 0x400, SYMBOL) + text("levels") + texts("x") + word(END)
    again = word(INTEGERS | 0x200, 1, 1, PAIRS | 0x400, 255 | 1 << 8) + texts("y") + word(END)
    folder = package(tmp_path / "p", {"t": entry(listed(inner, again, names=texts("a", "b")), b"")})
    assert read_frame(folder, "t") == (["a", "b"], [("x", "y")])


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="p is no R package with tables"):
        read_frame(tmp_path / "p", "loans")
    folder = package(tmp_path / "p", {"loans": entry(FRAME, b"")})
    with pytest.raises(DataError, match="p holds no table 'lones'; there are: loans"):
        read_frame(folder, "lones")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (listed(word(3, 0), names=texts("f")), "kind 3, which no plain table has"),
        (listed(word(END), names=texts("f")), "neither numbers, texts nor classes"),
    ],
)
def test_anything_but_a_plain_table_is_refused(tmp_path, frame, message):
    """Functions (closures are kind 3) are not read, let alone run."""
    with pytest.raises(DataError, match=message):
        read_frame(package(tmp_path / "p", {"t": entry(frame, b"")}), "t")


def test_another_form_than_the_binary_one_is_refused(tmp_path):
    folder = package(tmp_path / "p", {"t": word(2) + zlib.compress(b"A\n3\n")})
    with pytest.raises(DataError, match="not in R's binary form"):
        read_frame(folder, "t")
