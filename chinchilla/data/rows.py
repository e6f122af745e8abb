"""Rows of a file, one at a time: lines, CSV, JSON objects, Parquet records. No more than 1 MB of a row is ever held."""

import codecs
import csv
import difflib
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
csv.field_size_limit(
    MAX_ROW_BYTES
)  # the library's own limit of 131,072 is shorter than texts are, and has no other place

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
        encoding = "UTF-16" if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
        raise MalformedError(
            f"not UTF-8 (byte {error.start + 1}); convert the file, for example with iconv -f {encoding} -t UTF-8"
        ) from None


def csv_rows(path: Path, delimiter: str | None = None) -> Iterator[tuple[int, list[str] | MalformedError]]:
    """Numbered rows of a CSV file, its header first, blank lines left out; numbers are those of the lines.

    Quotes go around a cell that holds the delimiter, a quote (doubled) or a line end. The delimiter is found where none
    is given (`csv_delimiter`). A row that cannot be read comes as what is wrong with it.

    Raises:
        DataError: a file that is missing or cannot be read, or a quote that never closes.
    """
    last = 0

    def text(row: tuple[int, bytes]) -> str:
        nonlocal last
        last = row[0]
        return decode(row[1]) + "\n"

    texts = map(text, lines(path, blank=True))
    rows = csv.reader(texts, delimiter=delimiter or csv_delimiter(path), strict=True)
    while True:
        number = last + 1
        try:
            row = next(rows, None)
        except MalformedError as problem:
            yield number, problem
        except csv.Error as error:
            if last > number or "unexpected end" in str(error):
                raise DataError(
                    f"{path}, row {number}: a quote opens there and never closes; close or double it"
                ) from None
            yield number, MalformedError(f"{error}; put quotes around a cell that has one in it, and double that")
        else:
            if row is None:
                return
            if row:
                yield number, row


def csv_delimiter(path: Path) -> str:
    """The one of comma, semicolon and tab that gives the header most cells.

    Raises:
        DataError: a file that is missing, cannot be read, is not UTF-8, or ends its lines in CR alone.
    """
    _, header = next(lines(path, blank=True), (1, b""))
    try:
        text = decode(header)
    except MalformedError as problem:
        raise DataError(f"{path}, row 1: {problem}") from None
    if "\r" in text:
        raise DataError(
            f"{path}, row 1: a carriage return (CR) within the line, which old programs end lines with; convert the "
            "file, for example with tr '\\r' '\\n'"
        )
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([text], delimiter=delimiter), [])))


def csv_header(path: Path, rows: Iterator[tuple[int, list[str] | MalformedError]]) -> list[str]:
    """The names of the columns: the first of `rows`, without spaces around them.

    Raises:
        DataError: there is none, or a name comes twice.
    """
    number, cells = next(rows, (1, []))
    if isinstance(cells, MalformedError):
        raise DataError(f"{path}, row {number}: {cells}")
    names = [cell.strip() for cell in cells]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{path}, row {number}: two columns are called {twice[0]!r}; rename one")
    return names


def csv_records(
    path: Path, needed: Iterable[str]
) -> Iterator[tuple[int, tuple[list[str], list[str] | MalformedError]]]:
    """Numbered rows of a CSV file beside the names of its columns, for `csv_record`.

    Raises:
        DataError: see `csv_rows` and `csv_header`; or a `needed` column is missing.
    """
    rows = csv_rows(path)
    names = csv_header(path, rows)
    missing = [name for name in needed if name not in names]
    if names and missing:
        raise DataError(f"{path}: {no_column(missing[0], names)}")
    for number, cells in rows:
        yield number, (names, cells)


def csv_cells(names: list[str], cells: list[str] | MalformedError) -> list[str]:
    """The cells of a CSV row, one for each of the `names`.

    Raises:
        MalformedError: it cannot be read, or has too few or too many cells.
    """
    if isinstance(cells, MalformedError):
        raise cells
    if len(cells) != len(names):
        raise MalformedError(
            f"{len(cells)} cells where the header has {len(names)}; quote a cell with a delimiter in it"
        )
    return cells


def csv_record(row: tuple[list[str], list[str] | MalformedError]) -> Record:
    """A CSV row as texts by column name.

    Raises:
        MalformedError: see `csv_cells`.
    """
    return dict(zip(row[0], csv_cells(*row), strict=True))


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


def checked_characters(text: str, column: str) -> str:
    """The same text, if it can be written: JSON may hold half of a character that takes two.

    Raises:
        MalformedError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError(f"column {column}: half a surrogate pair is no character; write it whole") from None
    return text


def no_column(name: str, there: Iterable[str]) -> str:
    """The message for a column that isn't there."""
    return f"no column {name!r}, there are: {', '.join(there)}; rename it, or name the right one under [data]"


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """A hint at the nearest name, in brackets after a space; "" where none is near."""
    near = difflib.get_close_matches(name, list(there), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path (in a recipe it is relative to the recipe)") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); name a readable file") from None
