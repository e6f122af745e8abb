"""Infer the task that data are for, where nobody says it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.plan import TARGETS, TaskName
from chinchilla.config.run import Data
from chinchilla.data.cells import column_array, kind_of, names, numbers
from chinchilla.data.cifar import cifar_files
from chinchilla.data.column_fit import says_nothing
from chinchilla.data.readers import ENDINGS, built, read_pairs
from chinchilla.data.tables import need_column, read_table

HEAD = 1000
"""Rows that are looked at."""

SUMMARY = 0.5
"""A text of at most this share of its source's characters is a summary of it, and no translation."""

HISTORY = ("user", "item", "time")
"""The columns that say who took what, and when."""

Columns = Mapping[str, Any]
"""The head of each column, as an Arrow array."""


@dataclass(frozen=True)
class Inferred:
    """A task, and why; `columns` are settings that name further columns of the data."""

    task: TaskName
    reason: str
    columns: Mapping[str, str] = field(default_factory=dict)


def infer(path: Path, target: str | None, unread: Collection[str] = ()) -> Inferred:
    """The task that a file or folder is for, by its form and the head of its columns.

    `target` is the column to tell; those that are `unread` tell nothing.

    Raises:
        UsageError: nothing tells which task it is, or there is a target where there are no columns.
        DataError: columns that cannot be read, or without the target; a folder that cannot be looked into.
    """
    ending = path.suffix.lower()
    kind = ENDINGS.get(ending)
    if path.is_dir() or ending == ".npz":
        return _of_images(path, target)
    if kind == "text":
        _need_no_target(path, target, "a plain text")
        return Inferred("generate", f"{path} is plain text")
    if kind == "tsv" and target is None:
        return _of_pairs(path)
    data = Data(train=path)
    if kind == "jsonl":
        records = list(islice(built(path, "jsonl", (), data.group_name, dict, _pass_over), HEAD))
        return _of_columns(path, _columns(records), target, unread, is_table=False)
    columns = read_table(path, data, _pass_over, most=HEAD).columns
    found = _of_columns(path, columns, target, unread, is_table=True)
    if kind == "tsv" and found.task != "classify_table":
        raise UsageError(f"{path}: TSV of texts has no names of columns, but places; leave out --target, or write CSV")
    return found


def _pass_over(error: DataError) -> None:
    """Who reads the data for training tells of malformed rows."""


def _need_no_target(path: Path, target: str | None, what: str) -> None:
    if target is not None:
        raise UsageError(f"--target: {path} is {what}, which has no column {target!r}; leave it out")


def _of_images(path: Path, target: str | None) -> Inferred:
    _need_no_target(path, target, "a set of images")
    try:
        of_classes = path.is_file() or any(each.is_dir() and not each.name.startswith(".") for each in path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: cannot be looked into ({error.strerror or error}); name a readable folder") from None
    if not of_classes and not cifar_files(path, "train"):
        raise UsageError(
            f"{path}: a folder without a folder of images for each class; say task=… and data.train=… (docs/data.md)"
        )
    return Inferred("classify_image", f"{path} holds images by class")


def _of_pairs(path: Path) -> Inferred:
    """Of a TSV file without names of columns: a text, and a text or a class."""
    pairs = list(islice(read_pairs(path, Data(train=path), _pass_over), HEAD))
    columns = _columns([pair._asdict() for pair in pairs])
    if _is_prose(columns["target"]):
        return _text_to_text(path, columns, "source", "target")
    return Inferred("classify_text", f"{path} has a text and a name a row")


def _of_columns(path: Path, columns: Columns, target: str | None, unread: Collection[str], is_table: bool) -> Inferred:
    if target is None:
        if "messages" in columns:
            return Inferred("dialogue", f"{path} has messages")
        if set(HISTORY) <= columns.keys():
            return Inferred("recommend", f"{path} has the columns {', '.join(HISTORY)}")
        target = next((name for name in ("target", "label") if name in columns), None)
        if target is None:
            return _without_target(path, columns)
    need_column(target, columns, str(path), "name the one to be told in --target")
    others = [name for name in columns if name != target and name not in unread]
    proses = [name for name in others if _is_prose(columns[name])]
    telling = [name for name in others if name not in proses and _tells(columns[name])]
    if proses:  # the number of a text says nothing of it
        telling = [name for name in telling if not _numbers_rows(columns[name])]
    if proses and _is_prose(columns[target]):
        return _text_to_text(path, columns, _main(columns, proses, "source"), target)
    if is_table and telling:
        beside = f"; texts, as in {', '.join(proses)}, are not read word by word" if proses else ""
        reason = f"{path} has {len(telling)} columns to tell {target!r} by{beside}"
        return _telling("classify_table", reason, target)
    if proses:
        text = _main(columns, proses, "text")
        reason = f"{path} has texts in {text!r} to tell {target!r} by"
        return _telling("classify_text", reason, target, {"data.text": text})
    mend = "" if is_table else "; tables are read from CSV, TSV and Parquet"
    raise UsageError(f"{path}: no column to tell {target!r} by{mend}; say task=… (docs/tasks.md)")


def _without_target(path: Path, columns: Columns) -> Inferred:
    if "text" in columns:
        return Inferred("generate", f"{path} has texts, and no label")
    raise UsageError(
        f"{path}: which column is to be told? Name it in data.label, or say task=… (docs/tasks.md); there are: "
        f"{', '.join(columns)}"
    )


def _telling(task: TaskName, reason: str, target: str, columns: Mapping[str, str] | None = None) -> Inferred:
    return Inferred(task, reason, {TARGETS[task]: target, **(columns or {})})


def _text_to_text(path: Path, columns: Columns, source: str, target: str) -> Inferred:
    share = _mean_length(columns[target]) / _mean_length(columns[source])
    shorter = share <= SUMMARY and _is_of_letters(columns[target], columns[source])
    task: TaskName = "summarise" if shorter else "translate"
    return _telling(task, f"{path} has texts with others {share:.0%} as long", target, {"data.source": source})


def _is_of_letters(array: Any, other: Any) -> bool:
    """Whether most letters of some texts are among others': Chinese is no summary of English, however short."""
    known = set("".join(names(other).drop_null().to_pylist()))
    letters = [letter for letter in "".join(names(array).drop_null().to_pylist()) if letter.isalpha()]
    return sum(letter in known for letter in letters) > len(letters) / 2


def _main(columns: Columns, proses: Sequence[str], usual: str) -> str:
    """The column of the usual name, or that of the longest texts."""
    return usual if usual in proses else max(proses, key=lambda name: _mean_length(columns[name]))


def _columns(records: Sequence[Mapping[str, object]]) -> Columns:
    """Values by name, as texts; those of lists and the like as what nothing is told by."""
    keys = dict.fromkeys(name for record in records for name in record)
    return {
        name: column_array(pyarrow.array([_text(record.get(name)) for record in records], pyarrow.string()))
        for name in keys
    }


def _text(value: object) -> str | None:
    if isinstance(value, list | dict | None):
        return None
    return str(value).encode("utf-8", "replace").decode()  # half a character is told of by who reads the data


def _is_prose(array: Any) -> bool:
    """Whether cells are texts to be read: mostly different, as names of classes are not."""
    return kind_of(array) == "category" and compute.count_distinct(array).as_py() > (len(array) - array.null_count) / 2


def _mean_length(array: Any) -> float:
    return fmean(map(len, names(array).drop_null().to_pylist()))


def _numbers_rows(array: Any) -> bool:
    """Whether cells are whole numbers, all different."""
    if kind_of(array) != "number":
        return False
    values = numbers(array)
    return len(np.unique(values)) == len(values) and bool((values == np.floor(values)).all())


def _tells(array: Any) -> bool:
    kind = kind_of(array)
    return kind is not None and not says_nothing(array, kind)
