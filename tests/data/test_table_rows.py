"""Tables: typed columns out of CSV and Parquet files as people have them, each bad cell named, splits without leaks."""

import json
import logging
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.load import load_run, to_toml
from chinchilla.config.run import Data
from chinchilla.data.batches import IGNORED
from chinchilla.data.column_fit import choose
from chinchilla.data.table_batches import TableBatches
from chinchilla.data.table_split import TableRows, split_table
from chinchilla.data.tables import read_table


def rows_of(count: int = 200) -> list[dict]:
    """A table with one column of each kind."""
    random = np.random.default_rng(0)
    return [
        {
            "age": int(random.integers(20, 70)) if n % 10 else None,
            "income": round(float(random.lognormal(8)), 2),
            "city": str(random.choice(["Bonn", "Graz", "Łódź; a town"])) if n % 7 else None,
            "owner": bool(random.integers(2)),
            "signed": f"20{random.integers(10, 24)}-0{random.integers(1, 9)}-1{random.integers(9)}",
            "note": f"customer {n}",
            "same": "x",
            "default": "yes" if n % 4 == 0 else "no",
        }
        for n in range(count)
    ]


def write_csv(path, rows, delimiter=",", missing=""):
    def cell(value) -> str:
        text = missing if value is None else str(value)
        return f'"{text}"' if delimiter in text else text

    lines = [delimiter.join(rows[0]), *(delimiter.join(map(cell, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def data_of(path, **chosen) -> Data:
    return Data(**({"train": path, "label": "default"} | chosen))


def test_every_format_gives_the_same_numbers(tmp_path):
    rows = rows_of()
    paths = [
        write_csv(tmp_path / f"{n}.csv", rows, *how) for n, how in enumerate([(",", "NA"), (";", "?"), ("\t", " nan ")])
    ]
    paths.append(write_csv(tmp_path / "a.tsv", rows, "\t"))
    for row in rows:
        row["signed"] = np.datetime64(row["signed"]).astype(object)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [split_table(data_of(path), seed=0) for path in [*paths, tmp_path / "a.parquet"]]
    for other in found[1:]:
        for part in ("train", "valid", "test"):
            assert np.array_equal(getattr(other, part).source, getattr(found[0], part).source, equal_nan=True)
            assert np.array_equal(getattr(other, part).labels, getattr(found[0], part).labels)
        assert other.columns.model_copy(update={"unused": ()}) == found[0].columns.model_copy(update={"unused": ()})


def test_columns_are_what_they_look_like_and_useless_ones_are_left_out_with_the_reason(tmp_path, caplog):
    rows = [{"": n, "number": n, **row, "none": None} for n, row in enumerate(rows_of())]
    path = write_csv(tmp_path / "a.csv", rows)
    with caplog.at_level(logging.INFO, "chinchilla"):
        kinds = choose(read_table(path, data_of(path)), data_of(path))
    assert kinds == {"age": "number", "income": "number", "city": "category", "owner": "category", "signed": "time"}
    for name, reason in {
        "'note'": "its texts are as good as all different",
        "'same'": "all its cells are the same",
        "'none'": "all its cells are empty",
        "'number'": "whole numbers, all different and close together",
        "without a name": "",
    }.items():
        assert any(name in line and reason in line for line in caplog.messages)
    split = split_table(data_of(path), seed=0)
    assert split.columns.names[:4] == ("age", "income", "signed", "signed: year")
    assert split.columns.names[4:] == ("signed: month", "signed: weekday", "city", "owner")
    assert split.columns.cardinalities == (5, 4)
    assert split.train.source.dtype == np.float32
    assert split.train.source.shape == (len(split.train), 8)


def test_ignored_and_group_columns_are_not_read(tmp_path):
    path = write_csv(tmp_path / "a.csv", rows_of())
    split = split_table(data_of(path, ignore=("income",), group="city"), seed=0)
    assert "income" not in split.columns.names and "city" not in split.columns.names
    assert {"income", "city", "default", "note"} <= set(split.columns.unused)
    with pytest.raises(DataError, match=r"no column 'incom' \(did you mean 'income'\?\).*check data\.ignore"):
        split_table(data_of(path, ignore=("incom",)), seed=0)
    with pytest.raises(DataError, match=r"no column 'town'.*data\.group"):
        split_table(data_of(path, group="town"), seed=0)


def test_a_run_file_keeps_the_columns_that_its_settings_meant(tmp_path):
    """A column called `group` is read as any other, unless the settings name it; also once they are written out."""
    path = write_csv(tmp_path / "a.csv", [{"group": row["city"]} | row for row in rows_of()])
    settings = ["task=classify_table", f"data.train={path}", "data.label=default", "budget.time=1m"]
    for more, is_read in (([], True), (["data.group=group"], False)):
        loaded = load_run(None, settings + more)
        (tmp_path / "run.toml").write_text(to_toml(loaded))
        first, second = (split_table(run.data, 0) for run in (loaded.run, load_run(tmp_path / "run.toml").run))
        assert first.columns == second.columns and ("group" in first.columns.names) == is_read
        assert np.array_equal(first.train.source, second.train.source, equal_nan=True)


def test_decimal_commas_are_read_where_semicolons_part_the_cells(tmp_path):
    lines = [f"{n},{n % 9};{n};{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x;n;default", *lines]))
    table = read_table(tmp_path / "a.csv", data_of(tmp_path / "a.csv"))
    assert table.columns["x"].to_pylist()[:3] == ["0.0", "1.1", "2.2"]
    (tmp_path / "b.csv").write_text('x,default\n"1,234",a\n"2,345",b\n')
    table = read_table(tmp_path / "b.csv", data_of(tmp_path / "b.csv"))
    assert table.columns["x"].to_pylist() == ["1,234", "2,345"]


BAD = {
    "a text among numbers": ({"age": "old"}, "column age: 'old' in a column of numbers"),
    "infinite": ({"income": "-inf"}, "column income: an infinite number"),
    "too large": ({"income": "1e999"}, "column income: an infinite number"),
    "no such day": ({"signed": "2023-02-30"}, "column signed: '2023-02-30' in a column of dates"),
    "another calendar": ({"signed": "12/31/2023"}, "column signed: '12/31/2023' in a column of dates"),
    "no class": ({"default": None}, "column default: no class; fill it in"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_cell_is_named_and_its_row_may_be_left_out(tmp_path, caplog, kind):
    change, message = BAD[kind]
    rows = rows_of()
    rows[50] |= change
    path = write_csv(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=rf"a\.csv, row 52: {message}"):
        split_table(data_of(path), seed=0)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split = split_table(data_of(path, invalid="skip"), seed=0)
    assert len(split.train) + len(split.valid) + len(split.test) == 199
    assert "row 52: " in caplog.text and "left out 1 malformed rows and kept 199" in caplog.text


def test_ragged_rows_are_named_and_too_many_bad_ones_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", rows_of(60))
    path.write_text(path.read_text() + "1,2\n")
    with pytest.raises(DataError, match=r"a\.csv, row 62: 2 cells where the header has 8"):
        split_table(data_of(path), seed=0)
    assert len(split_table(data_of(path, invalid="skip"), seed=0).train)
    path.write_text(path.read_text() + "1,2\n" * 10)
    with pytest.raises(DataError, match="11 of 71 rows are malformed, more than a tenth"):
        split_table(data_of(path, invalid="skip"), seed=0)


def refused(path, content: str | bytes, message: str, kind=DataError, **chosen):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind, match=message):
        split_table(data_of(path, **chosen), seed=0)


def test_files_that_are_no_table_to_learn_from_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    refused(path, "", r"a\.csv: no row below the names of its columns")
    refused(path, "x,default\n", r"a\.csv: no row below the names of its columns")
    refused(path, "x,x,default\n1,2,a\n", "two columns are called 'x'")
    refused(path, "5,3.1,-1\n1,2,0\n", "row 1: numbers where the names of the columns belong")
    refused(path, "x,defualt\n1,a\n2,b\n", r"no column 'default' \(did you mean 'defualt'\?\).*set data\.label")
    refused(path, "x,default\n" + "1,a\n2,a\n" * 9, "every example is of the class 'a'")
    refused(path, "x,default\n" + "1,a\n2,a\n" * 9 + "3,b\n", "the class 'b' has a single example")
    refused(path, "x,default\n" + "1,a\n1,b\n" * 9, "no column to tell the class from")
    refused(path, "x,default\n" + "1,a\n2,b\n" * 12 + "café,a\n", "row 26: column x: 'café' in a column of numbers")
    refused(path, b"x,default\n1,a\ncaf\xe9,b\n", r"row 3: not UTF-8 \(byte 4\); .*iconv -f LATIN1 -t UTF-8")
    numbers = "".join(f"{n % 7},{n / 8}\n" for n in range(400))
    refused(path, "x,default\n" + numbers, "column default: 400 different numbers are a quantity")
    refused(tmp_path / "a.parquet", "x,default\n1,a\n", r"a\.parquet: not a readable Parquet file")
    refused(tmp_path / "a.txt", "x,default\n1,a\n", "not a table by its ending", UsageError)
    with pytest.raises(DataError, match=r"b\.parquet: no such file"):
        split_table(data_of(tmp_path / "b.parquet"), seed=0)


def test_cells_of_parquet_that_are_lists_are_left_out_with_the_reason(tmp_path, caplog):
    rows = [{"x": n % 5, "l": [n], "default": n % 2 == 0} for n in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with caplog.at_level(logging.INFO, "chinchilla"):
        split = split_table(data_of(tmp_path / "a.parquet"), seed=0)
    assert "left out the column 'l': cells of the type list" in caplog.text
    assert split.classes.names == ("false", "true")


WRITTEN = {
    "01/31/2024": "dates",
    "31.1.2024 08:30": "dates",
    "2024/1/31": "dates",
    "1,234.50": "numbers",
    "12.5 %": "numbers",
    "$7": "numbers",
    "10.0.0.1": "",
    "1.2.3": "",
    "B-12": "",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_dates_and_numbers_that_are_written_otherwise_are_told(tmp_path, caplog, text):
    path = tmp_path / "a.csv"
    path.write_text("x,d,default\n" + "".join(f'{n / 8},"{text if n % 3 else ""}",{n % 2}\n' for n in range(60)))
    split_table(data_of(path), seed=0)
    told = [record.message for record in caplog.records if "look like" in record.message]
    assert [
        f"column d: texts like {text!r} look like {WRITTEN[text]}, and are read as names" in each for each in told
    ] == ([True] if WRITTEN[text] else [])


ODD = {
    "lists": ([["a"], ["b"]], None, "cells of the type list"),
    "bytes": ([b"\xff", b"a"], None, "cells of the type binary"),
    "nothing": ([None, None], pyarrow.null(), "row 1: column default: no class"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_class_or_group_that_parquet_holds_as_no_name_is_refused(tmp_path, kind):
    values, stored, message = ODD[kind]
    odd, path = pyarrow.array(values * 30, stored), tmp_path / "a.parquet"
    numbers = pyarrow.array([number / 8 for number in range(60)])
    pyarrow.parquet.write_table(pyarrow.table({"x": numbers, "default": odd}), path)
    with pytest.raises(DataError, match=message):
        split_table(data_of(path), seed=0)
    if kind != "nothing":
        sides = pyarrow.array([number % 2 for number in range(60)])
        pyarrow.parquet.write_table(pyarrow.table({"x": numbers, "of": odd, "default": sides}), path)
        with pytest.raises(DataError, match=f"column of: {message}"):
            split_table(data_of(path, group="of"), seed=0)


def test_given_parts_are_read_by_the_training_datas_columns(tmp_path):
    rows = rows_of(300)
    train = write_csv(tmp_path / "train.csv", rows[:200])
    shuffled = [dict(reversed(row.items())) | {"extra": 1} for row in rows[200:]]
    shuffled[0]["city"] = "Rome"
    held = write_csv(tmp_path / "held.csv", shuffled)
    split = split_table(data_of(train, test=held), seed=0)
    assert len(split.test) == len(split.test_records) == 100
    place = split.columns.names.index("city")
    assert split.test.source[0, place] == 1
    assert split.test_records[0][0]["city"] == "Rome"
    with pytest.raises(DataError, match=r"held\.csv: no column 'owner'.*data\.train has it"):
        write_csv(held, [{name: cell for name, cell in row.items() if name != "owner"} for row in shuffled])
        split_table(data_of(train, test=held), seed=0)
    with pytest.raises(DataError, match=r"data\.test, column default: the class 'maybe' is not in data\.train"):
        write_csv(held, [row | {"default": "maybe"} for row in shuffled])
        split_table(data_of(train, test=held), seed=0)
    with pytest.raises(DataError, match=r"held\.csv, row 2: column age: 'old' in a column of numbers"):
        write_csv(held, [row | {"age": "old"} for row in shuffled])
        split_table(data_of(train, test=held), seed=0)


CELLS = st.tuples(st.integers(0, 9), st.sampled_from(["p", "q", ""]), st.sampled_from("ab"))


@settings(max_examples=40)
@given(st.lists(CELLS, min_size=8, max_size=80), st.integers(0, 3), st.booleans())
def test_rows_that_are_the_same_stay_together(tmp_path_factory, cells, seed, grouped):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    path.write_text("x,y,g,default\n" + "".join(f"{x},{y},{x % 4},{label}\n" for x, y, label in cells))
    try:
        split = split_table(data_of(path, group="g") if grouped else data_of(path, ignore=("g",)), seed)
    except DataError:
        return  # too few rows, groups or classes; the messages have their own tests
    assert len(split.train) and len(split.valid) and len(split.test)
    assert set(split.train.labels) == {0, 1}
    assert len(split.train) + len(split.valid) + len(split.test) + split.dropped <= len(cells)
    read = split.columns.kinds
    whole = Counter(tuple(str(row[name]) for name in read) for row in ({"x": x, "y": y or None} for x, y, _ in cells))
    test = Counter(tuple(str(record[name]) for name in read) for record, _ in split.test_records)
    if not grouped:
        assert split.dropped == 0
        assert test == {row: whole[row] for row in test}
        assert len(split.train) + len(split.valid) + len(split.test) == len(cells)


def test_a_real_table_keeps_its_classes_proportions(tmp_path):
    cancer = load_breast_cancer(as_frame=False)
    rows = [
        {name: float(cell) for name, cell in zip(cancer.feature_names, row, strict=True)}
        | {"default": str(cancer.target_names[label])}
        for row, label in zip(cancer.data, cancer.target, strict=True)
    ]
    split = split_table(data_of(write_csv(tmp_path / "a.csv", rows)), seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (399, 85, 85)
    assert (split.classes.names, split.classes.positive) == (("benign", "malignant"), "malignant")
    for part in (split.valid, split.test):
        assert Counter(part.labels.tolist()) == {0: 53, 1: 32}
    for column in split.train.source.T:
        # N(0, 1) where a number that comes n times weighs √n, so that each of its rows weighs 1/√n.
        _, which, counts = np.unique(column, return_inverse=True, return_counts=True)
        weights = counts[which] ** -0.5
        mean = np.average(column, weights=weights)
        assert abs(mean) < 0.02
        assert abs(np.average((column - mean) ** 2, weights=weights) ** 0.5 - 1) < 0.05
    again, other = (split_table(data_of(tmp_path / "a.csv"), seed=seed) for seed in (0, 1))
    assert np.array_equal(again.test.source, split.test.source)
    assert not np.array_equal(other.test.source, split.test.source)
    assert json.loads(split.columns.model_dump_json()) == split.columns.model_dump(mode="json")


def rows(count: int) -> TableRows:
    return TableRows(np.arange(2 * count, dtype=np.float32).reshape(count, 2), np.arange(count) % 3)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_batches_have_one_size_and_drop_less_than_one(count, batch_size, seed, epoch):
    batches = TableBatches(rows(count), batch_size, seed)
    order = batches.order(epoch)
    assert len(order) == batches.num_batches(epoch) >= 1
    assert batches.padding == 0
    seen = []
    for batch in map(batches.batch, order):
        assert batch["source"].shape == (batches.num_rows, 2)
        assert batch["labels"].shape == (batches.num_rows, 3)
        assert (batch["labels"][:, 1:] == IGNORED).all()
        numbers = batch["source"][:, 0].long() // 2
        assert (batch["labels"][:, 0] == numbers % 3).all()
        seen += numbers.tolist()
    assert len(set(seen)) == len(seen) == batches.unique_tokens > count - batches.num_rows
    again = TableBatches(rows(count), batch_size, seed).order(epoch)
    assert all(np.array_equal(one, other) for one, other in zip(order, again, strict=True))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12))
def test_batches_like_others_hold_every_row_once(count, batch_size):
    like = TableBatches(rows(30), batch_size, 0)
    batches = TableBatches(rows(count), 999, 0, like)
    labelled = [batch["labels"][:, 0] != IGNORED for batch in map(batches.batch, batches.order(0))]
    assert {len(mask) for mask in labelled} == {like.num_rows}
    assert sum(int(mask.sum()) for mask in labelled) == count
    assert batches.padding == pytest.approx(1 - count / (len(labelled) * like.num_rows))


def test_what_is_dropped_differs_from_epoch_to_epoch():
    batches = TableBatches(rows(10), 4, 0)
    seen = [set((np.concatenate(batches.order(epoch)) % 10).tolist()) for epoch in range(20)]
    assert all(len(epoch) == 8 for epoch in seen)
    assert set.union(*seen) == set(range(10))
