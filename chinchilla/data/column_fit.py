"""Choose which columns of a table to read and how, and fit them on its training rows."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pyarrow.compute as compute
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.cells import MISTAKES, Floats, Kind, is_text, kind_of, names, numbers
from chinchilla.data.columns import CategoryColumn, Columns, NumberColumn, Part
from chinchilla.data.tables import Table, need_column

KNOTS = 256

MOST_PIECES, ROWS_A_PIECE = 32, 50
"""Pieces that a number's line is bent between at most, and the training rows for each (docs/tables.md: trials)."""

MANY_NUMBERS = 10_000
"""From so many known numbers on the classes choose a column's knots; below that it has not been tried."""

MAX_CATEGORIES = 1000

SEEN, SEEN_SHARE = 5, 0.01
"""A category is known that comes so often, or that makes up this share of the rows, and twice at least."""

COUNTED = 50
"""Whole numbers are taken for the numbers of rows only in a table of so many."""

UNLIKE_OURS = {
    "dates, and are read as names; write them like 2024-01-31": (
        r"^(\d{1,2}[./-]\d{1,2}[./-]\d{4}|\d{4}[./]\d{1,2}[./]\d{1,2}|\d{1,2}/\d{1,2}/\d{2})([ T].*)?$"
    ),
    "numbers, and are read as names; write them like 1234.5": (
        r"^[+-]?[$€£]? ?\d{1,3}([,' ]\d{3})+(\.\d+)?$|^[+-]?\d+([.,]\d+)? ?[%$€£]$|^[$€£] ?\d+([.,]\d+)?$"
    ),
}
"""What people write otherwise than it is read here, and how to tell it."""

log = logging.getLogger("chinchilla")


def choose(table: Table, data: Data) -> dict[str, Kind]:
    """The columns to read, and what each is; those that say nothing are left out, and the log tells why.

    Raises:
        DataError: no label column, no column to read, or one in `data.ignore` or `data.group` that isn't there.
    """
    need_column(data.label, table.columns, table.place, "set data.label to the column of the class")
    passed_over = unread(data)
    for name in passed_over[1:]:
        need_column(name, table.columns, table.place, "check data.ignore and data.group")
    chosen: dict[str, Kind] = {}
    for name, array in table.columns.items():
        if name in passed_over:
            continue
        kind = kind_of(array)
        _warn_of_unlike(table, name, kind)
        reason = says_nothing(array, kind)
        if reason or kind is None:
            log.info("%s: left out the column %r: %s", table.place, name, reason)
        else:
            chosen[name] = kind
    if not chosen:
        raise DataError(f"{table.place}: no column to tell the class from; check data.label and data.ignore")
    return chosen


def unread(data: Data) -> tuple[str, ...]:
    """The columns that by the settings do not tell the class: it itself, the group, and those to ignore."""
    return (data.label, *((data.group,) if data.group else ()), *data.ignore)


def fit_columns(table: Table, kinds: Mapping[str, Kind], unused: tuple[str, ...], labels: NDArray[np.int64]) -> Columns:
    """Fit the chosen columns on training rows, whose classes have the numbers `labels` (rows,)."""
    fitted: list[NumberColumn] = []
    categories: list[CategoryColumn] = []
    for name, kind in kinds.items():
        if kind == "category":
            categories.append(CategoryColumn(column=name, categories=known_categories(table.columns[name])))
        else:
            fitted += _numbers(table, name, kind == "time", labels)
    return Columns(numbers=tuple(fitted), categories=tuple(categories), unused=unused)


def known_categories(array: Any) -> tuple[str, ...]:
    """The categories that come often enough to be learned, by name; at most the 1,000 most frequent."""
    texts = names(array)
    least = max(2, min(SEEN, round(SEEN_SHARE * len(texts))))
    counts = {pair["values"]: pair["counts"] for pair in compute.value_counts(texts).to_pylist()}
    known = [name for name, count in counts.items() if name is not None and count >= least]
    return tuple(sorted(sorted(known, key=lambda name: (-counts[name], name))[:MAX_CATEGORIES]))


def quantile_knots(values: Floats) -> tuple[float, ...]:
    """Up to 256 quantiles of the known `values`, evenly spaced from 0 to 1.

    A number that comes n times weighs √n: where nearly all are 0 there is room for the others, and a few strays don't
    take the room of what is common. Between weights of one the quantiles go in a line, as numpy's do.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return ()
    different, counts = np.unique(known, return_counts=True)
    weights = np.sqrt(counts)
    ends = np.cumsum(weights)
    places = np.stack([ends - weights, ends - 1], axis=1).ravel()
    asked = np.linspace(0, places[-1], min(KNOTS, len(known)))
    return tuple(np.maximum.accumulate(np.interp(asked, places, np.repeat(different, 2))).tolist())


def telling_knots(values: Floats, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """Numbers between which the known `values` (rows,) tell the classes `labels` (rows,) apart, ends included.

    There are up to 33, the ends of 32 pieces. They are the thresholds of a decision tree of this column alone
    (Gorishniy 2022, arXiv 2203.05556, §3.2.2); where it finds fewer, quantiles are added, evenly chosen.
    Of a number that is always the same there is nothing to tell: it has its quantiles.
    """
    known = ~np.isnan(values)
    quantiles = np.unique(quantile_knots(values))
    if len(quantiles) == 1:
        return quantile_knots(values)
    different, places = np.unique(values[known], return_inverse=True)
    tree = DecisionTreeClassifier(
        criterion="entropy", max_leaf_nodes=MOST_PIECES, min_samples_leaf=ROWS_A_PIECE, random_state=0
    )
    # Of the values' places, since it takes numbers in single precision. A threshold lies in the middle of two places.
    found = tree.fit(places[:, None], labels[known]).tree_
    below = found.threshold[found.feature >= 0].astype(int)
    knots = np.union1d(different[below] / 2 + different[below + 1] / 2, quantiles[[0, -1]])
    others = np.setdiff1d(quantiles, knots)
    added = np.linspace(0, len(others) - 1, min(len(others), MOST_PIECES + 1 - len(knots))).astype(int)
    return tuple(np.union1d(knots, others[added]).tolist())


def _numbers(table: Table, name: str, time: bool, labels: NDArray[np.int64]) -> Iterator[NumberColumn]:
    parts: tuple[Part, ...] = get_args(Part) if time else ("value",)
    for part in parts:
        column = NumberColumn(column=name, time=time, part=part)
        values = column.values(table)
        if part == "value" or len(np.unique(values[~np.isnan(values)])) > 1:
            count = int((~np.isnan(values)).sum())
            knots = telling_knots(values, labels) if count >= MANY_NUMBERS else quantile_knots(values)
            yield column.model_copy(update={"knots": knots, "count": count})


def _warn_of_unlike(table: Table, name: str, kind: Kind | None) -> None:
    """Tell of texts that nearly all look like dates or numbers, written otherwise than those are."""
    array = table.columns[name]
    if kind != "category" or not is_text(array):
        return
    known = array.drop_null()
    for what, pattern in UNLIKE_OURS.items():
        if compute.mean(compute.match_substring_regex(known, pattern)).as_py() > 1 - MISTAKES:
            log.warning("%s, column %s: texts like %r look like %s", table.place, name, known[0].as_py(), what)


def says_nothing(array: Any, kind: Kind | None) -> str:
    """Why a column is of no use; "" when it may be."""
    if array.null_count == len(array):
        return "all its cells are empty"
    if kind is None:
        return f"cells of the type {array.type} are neither numbers, dates nor names"
    if compute.count_distinct(array, mode="all").as_py() == 1:
        return "all its cells are the same"
    if kind == "category" and not known_categories(array):
        return "its texts are as good as all different, so that they name rows or need a reader of texts"
    if kind == "number" and _counts_rows(array):
        return "whole numbers, all different and close together, as the numbers of rows are"
    return ""


def _counts_rows(array: Any) -> bool:
    values = numbers(array)
    if len(values) < COUNTED or np.isnan(values).any() or (values != np.floor(values)).any():
        return False
    return len(np.unique(values)) == len(values) and bool(np.ptp(values) < 1.5 * len(values))
