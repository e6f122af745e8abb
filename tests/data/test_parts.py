"""Examples and tables are written in three parts that share nothing and each resemble the whole."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.errors import DataError
from chinchilla.data.examples import Chat, LabelledText, Message, Pair
from chinchilla.data.parts import PARTS, Shares, write_csv, write_parts, write_table

COLUMNS = ("age", "class", "home")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)


def read(path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def records(folder) -> list[object]:
    return [json.loads(row) for part in PARTS for row in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()]


def test_a_large_group_stays_in_train(tmp_path):
    pairs = [Pair(f"text {n}", "t", "large" if n % 2 else f"group {n}") for n in range(400)]
    for name in ("large", *(f"other {n}" for n in range(50))):
        if Shares(valid=0.3, test=0.3).part(name) != "train":
            break
    pairs = [pair._replace(group=name) if pair.group == "large" else pair for pair in pairs]
    write_parts(tmp_path, pairs, Shares(valid=0.3, test=0.3), largest=100)
    parts = {part: (tmp_path / f"{part}.tsv").read_text() for part in PARTS}
    assert parts["train"].count(name) == 200
    assert name not in parts["valid"] + parts["test"]


def test_chats_and_classes_are_written_as_their_readers_take_them(tmp_path):
    chats = [Chat((Message("user", f"q {n}\n"), Message("assistant", "高い")), f"g{n}") for n in range(60)]
    texts = [LabelledText(f"text\t{n}", "a" if n % 2 else "b", f"g{n}") for n in range(60)]
    for name, examples in (("chats", chats), ("texts", texts)):
        (tmp_path / name).mkdir()
        write_parts(tmp_path / name, examples, Shares(valid=0.3, test=0.3))
    wanted = [{"role": "user", "content": "q 7\n"}, {"role": "assistant", "content": "高い"}]
    assert {"messages": wanted, "group": "g7"} in records(tmp_path / "chats")
    assert {"text": "text\t7", "label": "a", "group": "g7"} in records(tmp_path / "texts")
    assert len(records(tmp_path / "chats")) == len(records(tmp_path / "texts")) == 60


def test_every_part_of_a_table_has_the_share_of_each_class(tmp_path):
    rows = [(str(n), "rare" if n % 10 == 0 else "usual", "own") for n in range(1000)]
    counts = write_table(tmp_path, COLUMNS, rows, "class", Shares(valid=0.1, test=0.2))
    assert counts == {"train": 700, "valid": 100, "test": 200}
    parts = {name: read(tmp_path / f"{name}.csv") for name in PARTS}
    assert [header for header, *_ in parts.values()] == [list(COLUMNS)] * 3
    assert [sum(row[1] == "rare" for row in part) for part in parts.values()] == [70, 10, 20]
    assert sorted(tuple(row) for part in parts.values() for row in part[1:]) == sorted(rows)
    first = [row[1] for row in parts["train"][1:101]]
    assert 2 <= first.count("rare") <= 25  # a scattered order: the classes do not stand in blocks


def test_the_parts_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = [(str(n), "ab"[n % 2], "own") for n in range(100)]
    for name, given_rows in (("one", rows), ("other", rows[::-1])):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name, COLUMNS, given_rows, "class", Shares(valid=0.1, test=0.2))
    for part in PARTS:
        assert (tmp_path / f"one/{part}.csv").read_text() == (tmp_path / f"other/{part}.csv").read_text()


def test_rows_alike_in_all_but_the_class_stay_together(tmp_path):
    rows = [(str(n % 37), "ab"[n % 2], "own") for n in range(400)]
    counts = write_table(tmp_path, COLUMNS, rows, "class", Shares(valid=0.2, test=0.2))
    assert sum(counts.values()) == 400
    ages = [{row[0] for row in read(tmp_path / f"{name}.csv")[1:]} for name in PARTS]
    assert sum(map(len, ages)) == 37


def test_a_table_too_small_for_three_parts_is_an_error(tmp_path):
    with pytest.raises(DataError, match="too few examples"):
        write_table(tmp_path, COLUMNS, [("1", "a", "x"), ("2", "b", "x")], "class", Shares(valid=0.1, test=0.1))
    assert list(tmp_path.iterdir()) == []


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=5))
def test_a_table_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    assert write_csv(path, COLUMNS, rows) == len(rows)
    assert read(path) == [list(COLUMNS), *map(list, rows)]
