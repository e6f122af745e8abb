"""Rows of a file, one at a time: lines, JSON objects, Parquet records. No more than 1 MB of a row is ever held."""

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow
import pyarrow.parquet

from chinchilla.config.errors import DataError

MAX_ROW_BYTES = 1_000_000

OnInvalid = Callable[[DataError], None]
Record = Mapping[str, Any]
Row = TypeVar("Row")
Read = TypeVar("Read")


class MalformedError(Exception):
    """What is wrong with one row; `parsed` adds the place."""


def parsed(
    rows: Iterable[tuple[int, Row]], parse: Callable[[Row], Read], place: object, on_invalid: OnInvalid
) -> Iterator[Read]:
    """Parse numbered rows; one that `parse` finds malformed becomes a `DataError` and goes to `on_invalid`."""
    for number, row in rows:
        try:
            read = parse(row)
        except MalformedError as problem:
            on_invalid(DataError(f"{place}, row {number}: {problem}"))
        else:
            yield read


def lines(path: Path, blank: bool) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends, with or without `blank` ones; one too long is cut a byte past the limit.

    Raises:
        DataError: a file that is missing or cannot be read.
    """
    with _opened(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            end = line
            while end and not end.endswith(b"\n"):
                end = file.readline(MAX_ROW_BYTES)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.endswith(b"\n"):
                line = line[:-1].removesuffix(b"\r")
            if line or blank:
                yield number, line


def decode(line: bytes) -> str:
    """A line as text.

    Raises:
        MalformedError: it is too long or not UTF-8.
    """
    if len(line) > MAX_ROW_BYTES:
        raise MalformedError("longer than 1 MB; break it into shorter rows")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8 (byte {error.start + 1}); convert the file, for example with iconv") from None


def json_record(line: bytes) -> Record:
    """A line as a JSON object.

    Raises:
        MalformedError: it is not one.
    """
    try:
        record = json.loads(decode(line))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not valid JSON ({error}); write one object a line") from None
    if not isinstance(record, dict):
        raise MalformedError(f'a JSON {type(record).__name__}, not an object; write one like {{"text": "…"}} a line')
    return record


def parquet_rows(path: Path, needed: Iterable[str], optional: str) -> Iterator[tuple[int, Record]]:
    """Numbered rows of a Parquet file: Arrow scalars by column name.

    Raises:
        DataError: a file that is missing, not Parquet, or without a `needed` column.
    """
    with _opened(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            there = table.schema_arrow.names
            missing = [name for name in needed if name not in there]
            if missing:
                raise DataError(f"{path}: {no_column(missing[0], there)}")
            names = [name for name in (*needed, optional) if name in there]
            numbers = itertools.count(1)
            for batch in table.iter_batches(batch_size=256, columns=names):
                columns = [batch.column(name) for name in names]
                for row in zip(*columns, strict=True):
                    yield next(numbers), dict(zip(names, row, strict=True))
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not a readable Parquet file ({error}); write it anew") from None


def parquet_record(row: Record) -> Record:
    """Arrow scalars as Python values.

    Raises:
        MalformedError: a text is not UTF-8.
    """
    try:
        return {name: scalar.as_py() for name, scalar in row.items()}
    except UnicodeDecodeError:
        raise MalformedError("not UTF-8; write the file anew from UTF-8 text") from None


def no_column(name: str, there: Iterable[str]) -> str:
    """The message for a column that isn't there."""
    return f"no column {name!r}, there are: {', '.join(there)}; rename it, or name the right one under [data]"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path (in a recipe it is relative to the recipe)") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); name a readable file") from None
