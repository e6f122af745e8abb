"""Cells of a table's columns as numbers, instants or names, a whole column at a time.

A column is an Arrow array: texts as a CSV file has them, or the types of a Parquet file.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

Kind = Literal["number", "time", "category"]
Floats = NDArray[np.float64]
Problem = tuple[int, str]
"""The index of a row, and what is wrong with it."""

MISSING = ("", "?", "na", "n/a", "nan", "null")
"""Texts that mean that nothing is known, in whatever case."""

TRUTHS = ("true", "false")
"""Texts that are the same as truth values, in whatever case."""

MISTAKES = 0.05
"""Up to this share of cells that are neither numbers nor dates, a column of such is taken to have mistakes in it."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INFINITE = r"(?i)^[+-]?inf(inity)?$"
_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_COMMA = r"^[+-]?\d+,\d+$"


def column_array(cells: Any) -> Any:
    """A column for what follows: dictionaries as their values, texts trimmed, null for NaN and texts like it."""
    array = cells.combine_chunks() if isinstance(cells, pyarrow.ChunkedArray) else cells
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pyarrow.types.is_floating(array.type):
        return compute.if_else(compute.is_nan(array), None, array)
    if not is_text(array):
        return array
    texts = compute.utf8_trim_whitespace(array.cast(pyarrow.string()))
    lower = compute.utf8_lower(texts)
    missing = compute.is_in(lower, value_set=pyarrow.array(MISSING))
    texts = compute.if_else(compute.is_in(lower, value_set=pyarrow.array(TRUTHS)), lower, texts)
    return compute.if_else(missing, pyarrow.scalar(None, pyarrow.string()), texts)


def is_text(array: Any) -> bool:
    """Whether a column holds texts."""
    kind = array.type
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def decimal_points(texts: Any) -> Any:
    """A column of numbers with decimal commas, some at least, with points instead; any other as it is."""
    commas = compute.match_substring_regex(texts, _COMMA)
    numbers = compute.match_substring_regex(texts, _NUMBER)
    if not compute.any(commas).as_py() or not compute.all(compute.or_(commas, numbers)).as_py():
        return texts
    return compute.replace_substring(texts, ",", ".")


def kind_of(array: Any) -> Kind | None:
    """What the cells of a column are; None where there is no cell, or they are lists, maps, bytes or the like."""
    types, kind = pyarrow.types, array.type
    if types.is_boolean(kind):
        return "category"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "time"
    if not is_text(array):
        return None
    total = len(array) - array.null_count
    if total == 0:
        return None
    patterns: tuple[tuple[Kind, str], ...] = (("number", f"{_NUMBER}|{_INFINITE}"), ("time", _DATE))
    for name, pattern in patterns:
        like = compute.sum(compute.match_substring_regex(array, pattern)).as_py() or 0
        if total - like <= MISTAKES * total:
            return name
    return "category"


def problems(array: Any, kind: Kind) -> Iterator[Problem]:
    """The cells that are not what the column is: texts among numbers, infinite numbers, impossible dates."""
    if kind == "category":
        return
    if is_text(array):
        good = compute.match_substring_regex(array, _NUMBER if kind == "number" else _DATE)
        for row in np.flatnonzero(_flags(compute.invert(good))).tolist():
            yield row, _unlike(array[row].as_py(), kind)
        if kind == "time":
            yield from ((row, _unlike(text, kind)) for row, text in _texts(array, good) if _seconds(text) is None)
            return
    elif kind_of(array) != kind:
        yield from ((row, _unlike(array[row].as_py(), kind)) for row in range(len(array)) if array[row].is_valid)
        return
    if kind == "number":
        for row in np.flatnonzero(np.isinf(numbers(array))).tolist():
            yield row, "an infinite number; write a finite one, or leave the cell empty"


def numbers(array: Any) -> Floats:
    """A column of numbers; NaN where missing, or where a text is none."""
    if is_text(array):
        good = compute.match_substring_regex(array, _NUMBER)
        array = compute.replace_substring_regex(compute.if_else(good, array, None), r"^\+", "")
    return _floats(array)


def seconds(array: Any) -> Floats:
    """A column of dates or instants as seconds since 1970 UTC; those without a zone are taken as UTC. NaN: missing."""
    if not is_text(array):
        return _floats(array.cast(pyarrow.timestamp("us"), safe=False).cast(pyarrow.int64())) / 1e6
    found = np.full(len(array), np.nan)
    good = compute.match_substring_regex(array, _DATE)
    for row, text in _texts(array, good):
        instant = _seconds(text)
        found[row] = np.nan if instant is None else instant
    return found


def names(array: Any) -> Any:
    """A column as texts, null where missing: true and false, numbers without a needless point."""
    if is_text(array):
        return array
    texts = array.cast(pyarrow.string())
    return compute.replace_substring_regex(texts, r"^([+-]?\d+)\.0*$", r"\1")


def _unlike(cell: object, kind: Kind) -> str:
    if kind == "number":
        if isinstance(cell, str) and re.match(_INFINITE, cell):
            return "an infinite number; write a finite one, or leave the cell empty"
        return f"{cell!r} in a column of numbers; write a number with a decimal point, or leave the cell empty"
    return f"{cell!r} in a column of dates; write it like 2024-01-31 or 2024-01-31 08:30:00, or leave the cell empty"


def _floats(array: Any) -> Floats:
    if pyarrow.types.is_decimal(array.type) or pyarrow.types.is_float16(array.type) or array.type == pyarrow.float32():
        array = array.cast(pyarrow.string())  # the same number then as where a row's cells are given as texts
    found = array.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.array(found, dtype=np.float64)


def _flags(array: Any) -> NDArray[np.bool_]:
    """Truth values, false where null."""
    return np.array(compute.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


def _texts(array: Any, wanted: Any) -> Iterator[tuple[int, str]]:
    for row in np.flatnonzero(_flags(wanted)).tolist():
        yield row, array[row].as_py()


def _seconds(text: str) -> float | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
