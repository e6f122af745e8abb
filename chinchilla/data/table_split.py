"""Tables in three parts: read, divided by class and group, encoded by what the training rows say."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data, Files
from chinchilla.data import cells
from chinchilla.data.cells import Kind, Problem, kind_of, names
from chinchilla.data.classes import Classes, class_name, make_classes, unknown_class
from chinchilla.data.column_fit import choose, fit_columns
from chinchilla.data.columns import Columns
from chinchilla.data.divide import Hashes, Index, divide, seed_salt, text_hash
from chinchilla.data.rows import MalformedError
from chinchilla.data.table_noise import TableNoise
from chinchilla.data.tables import (
    Table,
    cell_problems,
    need_column,
    need_names,
    read_table,
    skips_of,
    without_problems,
)

MOST_NUMBERS = 50
"""A label column of more different numbers is a quantity, not a class."""

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows as a model takes them: source fp32 (rows, columns), see `Columns.encode`; labels int64 (rows,)."""

    source: NDArray[np.float32]
    labels: NDArray[np.int64]
    noise: TableNoise | None = None
    """On the cells, each time anew."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TableSplit:
    """Three parts, and what is read of each row; `dropped` counts the training rows that valid or test has too.

    `test_records` are the rows of test as texts by column name (None where missing), and their classes.
    """

    columns: Columns
    classes: Classes
    train: TableRows
    valid: TableRows
    test: TableRows
    test_records: tuple[tuple[dict[str, str | None], str], ...]
    dropped: int


def split_table(data: Data, seed: int) -> TableSplit:
    """Split a table: in each class's proportion, and two rows that are the same never stand on both sides.

    Where `data.group` is set, the rows of a group stay together. Columns are fitted on the rows of train.

    Raises:
        DataError: bad data (see `read_table`, `choose`, `make_classes`); a class that train lacks; too few rows.
        UsageError: a format that holds no table, or `data.positive` is no class.
    """
    kinds: dict[str, Kind] = {}
    tables = {"train": _read(data.train, data, kinds)}
    tables |= {name: _read(files, data, kinds) for name, files in (("valid", data.valid), ("test", data.test)) if files}
    classes, labels = _labels(tables, data)
    indexes = {name: _index(table, labels[name], kinds, data, seed) for name, table in tables.items()}
    division = divide(indexes["train"], {name: index.keys for name, index in indexes.items() if name != "train"})
    if division.dropped:
        log.info("left out %d training rows that are also in valid or test", division.dropped)
    whole, numbers = tables["train"], labels["train"]
    for name, rows in (division.held | {"train": division.train}).items():
        tables[name], labels[name] = whole.take(rows), numbers[rows]
    _refuse_lost(classes, labels["train"])
    unused = tuple(name for name in whole.columns if name not in kinds)
    columns = fit_columns(tables["train"], kinds, unused, labels["train"])
    parts = {name: TableRows(columns.encode(table), labels[name]) for name, table in tables.items()}
    records = tuple(_records(tables["test"], kinds, labels["test"], classes))
    return TableSplit(columns, classes, parts["train"], parts["valid"], parts["test"], records, division.dropped)


def _labels(tables: Mapping[str, Table], data: Data) -> tuple[Classes, dict[str, NDArray[np.int64]]]:
    """The classes of the training data, and the number of each row's class by part."""
    found = {
        part: [class_name(cell, data.label) for cell in names(table.columns[data.label]).to_pylist()]
        for part, table in tables.items()
    }
    classes = make_classes(Counter(found["train"]), data)
    for part, labels in found.items():
        unknown = sorted(set(labels) - set(classes.names))
        if unknown:
            raise unknown_class(unknown[0], classes.names, part, data)
    place = {name: number for number, name in enumerate(classes.names)}
    return classes, {part: np.array([place[label] for label in labels]) for part, labels in found.items()}


def _read(files: Files, data: Data, kinds: dict[str, Kind]) -> Table:
    """Read one file; the first one read fills `kinds`."""
    on_invalid, skips = skips_of(data)
    table = read_table(files, data, on_invalid)
    if not kinds:
        kinds |= choose(table, data)
    for name in (*kinds, data.label):
        need_column(name, table.columns, table.place, "data.train has it; give files of the same columns")
    for named in filter(None, (data.label, data.group)):
        if named in table.columns:
            need_names(table, named)
    _refuse_quantity(table, data)
    found = chain(cell_problems(table, kinds), _label_problems(table, data))
    table = without_problems(table, found, on_invalid)
    skips.kept = len(table)
    skips.judge(table.place)
    if not len(table):
        raise DataError(f"{table.place}: no usable row in it; check that it is the right file, and whole")
    return table


def _refuse_quantity(table: Table, data: Data) -> None:
    label = table.columns[data.label]
    if kind_of(label) not in ("number", "time"):
        return
    different = compute.count_distinct(label).as_py()
    if different > MOST_NUMBERS:
        raise DataError(
            f"{table.place}, column {data.label}: {different} different numbers are a quantity, and only classes are "
            "told; name a column of classes in data.label, or put the numbers in classes"
        )


def _label_problems(table: Table, data: Data) -> Iterator[tuple[str, Problem]]:
    for row, cell in enumerate(names(table.columns[data.label]).to_pylist()):
        try:
            class_name(cell, data.label)
        except MalformedError as problem:
            yield data.label, (row, str(problem).removeprefix(f"column {data.label}: "))


def _index(table: Table, labels: NDArray[np.int64], kinds: Mapping[str, Kind], data: Data, seed: int) -> Index:
    texts = _row_texts(table, kinds)
    groups: list[str | None] = [None] * len(table)
    if data.group is not None and data.group in table.columns:
        groups = names(table.columns[data.group]).to_pylist()
    salt = seed_salt(seed)
    keys: Hashes = np.array([text_hash(text) for text in texts], np.uint64)
    hashed = (text_hash(text if group is None else group, salt) for text, group in zip(texts, groups, strict=True))
    return Index(keys, np.fromiter(hashed, np.uint64, len(table)), labels)


def _row_texts(table: Table, kinds: Mapping[str, Kind]) -> list[str]:
    """What a model is given of each row, as a text."""
    parts: list[Any] = []
    for name, kind in kinds.items():
        array = table.columns[name]
        if kind == "category":
            parts.append(names(array))
        else:
            values = cells.numbers(array) if kind == "number" else cells.seconds(array)
            parts.append(pyarrow.array(values + 0.0, from_pandas=True).cast(pyarrow.string()))
    joined = compute.binary_join_element_wise(*parts, "\x1f", null_handling="replace", null_replacement="\0")
    texts: list[str] = joined.to_pylist()
    return texts


def _refuse_lost(classes: Classes, labels: NDArray[np.int64]) -> None:
    lost = [name for number, name in enumerate(classes.names) if not (labels == number).any()]
    if lost:
        raise DataError(f"data.train: every row of the class {lost[0]!r} is also in valid or test; add others")


def _records(
    table: Table, kinds: Mapping[str, Kind], labels: NDArray[np.int64], classes: Classes
) -> Iterator[tuple[dict[str, str | None], str]]:
    read = Table(table.place, {name: table.columns[name] for name in kinds}, table.rows)
    for record, label in zip(read.records(), labels, strict=True):
        yield record, classes.names[label]
