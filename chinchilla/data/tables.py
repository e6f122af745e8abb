"""Tables out of CSV and Parquet files: typed columns held in memory, bad rows named."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.cells import Kind, Problem, column_array, decimal_points, kind_of, names, problems
from chinchilla.data.readers import refuse
from chinchilla.data.rows import MalformedError, OnInvalid, csv_cells, csv_delimiter, csv_header, csv_rows, did_you_mean
from chinchilla.data.split import Skips

ENDINGS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_CHUNK = 10_000

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns by name (Arrow arrays, see `cells`), and where each row stands in the file."""

    place: str
    columns: Mapping[str, Any]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, kept: NDArray[np.bool_]) -> Self:
        """The rows that are kept."""
        mask = pyarrow.array(kept)
        columns = {name: column.filter(mask) for name, column in self.columns.items()}
        return type(self)(self.place, columns, self.rows[kept])

    def error(self, column: str, problem: Problem) -> DataError:
        """What is wrong with a cell, and where it is."""
        return DataError(f"{self.place}, row {self.rows[problem[0]]}: column {column}: {problem[1]}")

    def records(self) -> Iterator[dict[str, str | None]]:
        """The rows as texts by column name, None where missing."""
        texts = [names(column).to_pylist() for column in self.columns.values()]
        for row in zip(*texts, strict=True):
            yield dict(zip(self.columns, row, strict=True))


def read_table(
    files: Files, data: Data, on_invalid: OnInvalid = refuse, only: Sequence[str] = (), most: int | None = None
) -> Table:
    """Read a table, or `only` some of its columns, or at `most` so many rows.

    A CSV or TSV file begins with the names of its columns; cells stand between commas, semicolons (numbers may then
    have decimal commas) or tabs. A column without a name is left out.

    Raises:
        DataError: a file that is missing, not of its format, without rows, or without one of the columns; or (by
            `on_invalid`) a malformed row.
        UsageError: a format that holds no table, or several files.
    """
    if isinstance(files, tuple):
        raise UsageError(f"{files[0]}: a table stands in one file; give one of {len(files)}")
    kind = {"tsv": "csv"}.get(data.format or "", data.format) or ENDINGS.get(files.suffix.lower())
    if kind not in ("csv", "parquet"):
        raise UsageError(f"{files}: not a table by its ending; give CSV, TSV or Parquet, or set data.format")
    table = (_read_csv if kind == "csv" else _read_parquet)(files, on_invalid, most)
    if not len(table):
        raise DataError(f"{files}: no row below the names of its columns; check that it is the right file, and whole")
    for name in only:
        need_column(name, table.columns, str(files), "rename it, or name the right one under [data]")
    columns = {name: table.columns[name] for name in only or table.columns if name}
    return Table(table.place, columns, table.rows)


def need_column(name: str, there: Iterable[str], place: str, mend: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: it does; names the nearest column.
    """
    known = [column for column in there if column]
    if name not in known:
        hint = did_you_mean(name, known)
        raise DataError(f"{place}: no column {name!r}{hint}, there are: {', '.join(known)}; {mend}")


def need_names(table: Table, name: str) -> None:
    """Refuse a column whose cells name nothing.

    Raises:
        DataError: they are lists, bytes or the like.
    """
    array = table.columns[name]
    if array.null_count < len(array) and kind_of(array) is None:
        raise DataError(
            f"{table.place}, column {name}: cells of the type {array.type}, which name nothing; write texts"
        )


def without_problems(table: Table, found: Iterable[tuple[str, Problem]], on_invalid: OnInvalid) -> Table:
    """The table without the rows that have a problem; each such row goes to `on_invalid` once."""
    first: dict[int, tuple[str, Problem]] = {}
    for column, problem in found:
        first.setdefault(problem[0], (column, problem))
    for _, (column, problem) in sorted(first.items()):
        on_invalid(table.error(column, problem))
    if not first:
        return table
    kept = np.ones(len(table), dtype=bool)
    kept[list(first)] = False
    return table.take(kept)


def cell_problems(table: Table, kinds: Mapping[str, Kind]) -> Iterator[tuple[str, Problem]]:
    """Cells that are not what their column is, column by column."""
    for name, kind in kinds.items():
        for problem in problems(table.columns[name], kind):
            yield name, problem


def skips_of(data: Data) -> tuple[OnInvalid, Skips]:
    """What to do with malformed rows of a file, and the count of those that are left out."""
    skips = Skips()
    return (refuse if data.invalid == "refuse" else skips), skips


def _read_csv(path: Path, on_invalid: OnInvalid, most: int | None) -> Table:
    delimiter = csv_delimiter(path)
    rows = csv_rows(path, delimiter)
    header = csv_header(path, rows)
    _check_header(path, header)
    good = islice(_good_rows(path, header, rows, on_invalid), most)
    numbers: list[int] = []
    chunks: list[list[Any]] = [[] for _ in header]
    while chunk := list(islice(good, _CHUNK)):
        numbers += [number for number, _ in chunk]
        for cells, column in zip(zip(*(row for _, row in chunk), strict=True), chunks, strict=True):
            column.append(pyarrow.array(cells, pyarrow.string()))
    columns = {}
    for name, column in zip(header, chunks, strict=True):
        cells = column_array(pyarrow.chunked_array(column, pyarrow.string()))
        columns[name] = decimal_points(cells) if delimiter == ";" else cells
    return Table(str(path), columns, np.array(numbers, dtype=np.int64))


def _good_rows(
    path: Path, header: list[str], rows: Iterator[tuple[int, list[str] | MalformedError]], on_invalid: OnInvalid
) -> Iterator[tuple[int, list[str]]]:
    for number, cells in rows:
        try:
            yield number, csv_cells(header, cells)
        except MalformedError as problem:
            on_invalid(DataError(f"{path}, row {number}: {problem}"))


def _check_header(path: Path, header: list[str]) -> None:
    if header and all(name.replace(".", "", 1).lstrip("+-").isdigit() for name in header):
        raise DataError(f"{path}, row 1: numbers where the names of the columns belong; put a line with those on top")
    if "" in header:
        log.info("%s: left out a column without a name", path)


def _read_parquet(path: Path, on_invalid: OnInvalid, most: int | None) -> Table:
    try:
        table = pyarrow.parquet.read_table(path).slice(0, most)
        table.validate(full=True)
        twice = [name for name in table.column_names if table.column_names.count(name) > 1]
        if twice:
            raise DataError(f"{path}: two columns are called {twice[0]!r}; rename one")
        columns = {name: column_array(table.column(name)) for name in table.column_names}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path (in a recipe it is relative to the recipe)") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); write it anew") from None
    return Table(str(path), columns, np.arange(1, table.num_rows + 1))
