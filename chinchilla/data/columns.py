"""The columns that a classifier of tables reads, as fitted on training data; they are kept with the model."""

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.compute as compute
import torch
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.frozen import Frozen
from chinchilla.data.cells import Floats, Kind, column_array, names, numbers, seconds
from chinchilla.data.readers import refuse
from chinchilla.data.rows import did_you_mean
from chinchilla.data.tables import Table, cell_problems, need_column, without_problems

Part = Literal["value", "year", "month", "weekday", "hour"]
UNKNOWN = 1
"""The code of a category that training data has not, or too seldom; 0 is a missing one."""


class NumberColumn(Frozen):
    """A number brought to N(0, 1) by its quantiles in the training data, where one that comes n times weighs √n.

    `knots` are those quantiles, evenly spaced from 0 to 1, or of many rows numbers that the classes chose (see
    `telling_knots`), which share the range equally; `count` is how many numbers they come from. Of a column of
    dates, `part` is taken: "value" the seconds since 1970, "year" how much of the year is over, "month" from 1,
    "weekday" from 0 for Monday, "hour" with its fraction.
    """

    column: str
    time: bool = False
    part: Part = "value"
    knots: tuple[float, ...] = ()
    count: int = 0

    @property
    def name(self) -> str:
        """What it is called to users."""
        return self.column if self.part == "value" else f"{self.column}: {self.part}"

    def values(self, table: Table) -> Floats:
        """The column's numbers, NaN where missing (rows,)."""
        array = table.columns[self.column]
        return time_part(seconds(array), self.part) if self.time else numbers(array)

    def encode(self, values: Floats) -> Floats:
        """Numbers as N(0, 1), NaN where missing.

        Between knots the rank goes in a line, and numbers that come often have the middle of their ranks. No number
        is further out than the middle of the first or last of `count` ranks.
        """
        if not self.knots:
            return np.full_like(values, np.nan)
        knots, ranks = np.array(self.knots), np.linspace(0, 1, len(self.knots))
        rank = (np.interp(values, knots, ranks) - np.interp(-values, -knots[::-1], -ranks[::-1])) / 2
        edge = max(0.5 / self.count, 1e-7)
        normal = torch.special.ndtri(torch.from_numpy(np.clip(rank, edge, 1 - edge))).numpy()
        return np.where(np.isnan(values), np.nan, normal)


class CategoryColumn(Frozen):
    """A category as a code: 0 missing, 1 unknown or rare, then those of `categories` in order."""

    column: str
    categories: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called to users."""
        return self.column

    @property
    def cardinality(self) -> int:
        """How many codes there are."""
        return len(self.categories) + UNKNOWN + 1

    def encode(self, table: Table) -> Floats:
        """The column's codes (rows,)."""
        texts = names(table.columns[self.column])
        known = compute.index_in(texts, value_set=pyarrow.array(self.categories, pyarrow.string()))
        codes = compute.add(compute.fill_null(known, -1), UNKNOWN + 1)
        codes = compute.if_else(compute.is_null(texts), pyarrow.scalar(0, codes.type), codes)
        return np.array(codes.to_numpy(zero_copy_only=False), dtype=np.float64)


class Columns(Frozen):
    """The columns that a model reads, numbers first; `unused` names others that the training data has."""

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]
    unused: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the model's positions are called, in order."""
        return (*(number.name for number in self.numbers), *(category.name for category in self.categories))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each category has."""
        return tuple(column.cardinality for column in self.categories)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The table's columns that are read, and what they are."""
        kinds: dict[str, Kind] = {number.column: "time" if number.time else "number" for number in self.numbers}
        return kinds | {category.column: "category" for category in self.categories}

    def encode(self, table: Table) -> NDArray[np.float32]:
        """Rows as a model takes them (rows, columns): numbers as N(0, 1) with NaN where missing, then codes.

        Raises:
            DataError: a column is missing.
        """
        for name in self.kinds:
            need_column(name, table.columns, table.place, "the model was trained with it")
        columns = [number.encode(number.values(table)) for number in self.numbers]
        columns += [category.encode(table) for category in self.categories]
        return np.stack(columns, axis=1).astype(np.float32)

    def encode_records(self, records: Sequence[Mapping[str, object]]) -> NDArray[np.float32]:
        """Rows given as values by column name, as `encode` gives them; a column that is left out is missing.

        Raises:
            DataError: a column that training data had not, a value that is not of its column's kind, or no value at
                all; names row (from 1) and column.
        """
        for number, record in enumerate(records, 1):
            self._check(record, f"row {number}")
        columns = {
            name: column_array(pyarrow.array([_cell(record.get(name)) for record in records], pyarrow.string()))
            for name in self.kinds
        }
        table = Table("input", columns, np.arange(1, len(records) + 1))
        return self.encode(without_problems(table, cell_problems(table, self.kinds), refuse))

    def _check(self, record: Mapping[str, object], place: str) -> None:
        known = (*self.kinds, *self.unused)
        for name in record:
            if name not in known:
                hint = did_you_mean(name, known)
                raise DataError(f"input, {place}: no column {name!r}{hint}, there are: {', '.join(self.kinds)}")
        if not any(name in self.kinds for name in record):
            raise DataError(f"input, {place}: no value of any column; there are: {', '.join(self.kinds)}")


def time_part(values: Floats, part: Part) -> Floats:
    """A part of instants that are given as seconds since 1970, UTC (see `NumberColumn`); NaN where missing."""
    if part == "value":
        return values
    known = np.flatnonzero(~np.isnan(values))
    instants = np.floor(values[known]).astype("datetime64[s]")
    if part == "year":
        year = instants.astype("datetime64[Y]")
        of_year = (instants - year) / ((year + 1).astype("datetime64[s]") - year)
    elif part == "month":
        of_year = instants.astype("datetime64[M]").astype(np.int64) % 12 + 1
    elif part == "weekday":
        of_year = (instants.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970 began on a Thursday
    else:
        of_year = values[known] % 86_400 / 3600
    found = np.full_like(values, np.nan)
    found[known] = of_year
    return found


def _cell(value: object) -> str | None:
    """A value as a CSV file would have it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
