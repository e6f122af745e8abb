"""Splits are seeded, by group, bounded, and leak nothing."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.divide import MAX_HELD_OUT
from chinchilla.data.examples import key
from chinchilla.data.split import split_documents, split_pairs


def write_rows(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def keys(part) -> set[str]:
    return {key(example) for example in part}


def test_two_hundred_rows_give_ten_each(tmp_path):
    path = write_rows(tmp_path / "a.tsv", [(f"source {n}", f"target {n}") for n in range(200)])
    split = split_pairs(Data(train=path), seed=0)
    assert (len(split.train), len(split.valid), len(split.test), split.dropped) == (180, 10, 10, 0)
    assert [len(list(part)) for part in (split.train, split.valid, split.test)] == [180, 10, 10]


def test_a_large_file_holds_out_no_more_than_the_bound(tmp_path):
    path = write_rows(tmp_path / "a.tsv", [(f"source {n}", "target") for n in range(50_000)])
    split = split_pairs(Data(train=path), seed=0)
    assert len(split.valid) == len(split.test) == MAX_HELD_OUT


def test_the_seed_decides_and_nothing_else(tmp_path):
    path = write_rows(tmp_path / "a.tsv", [(f"source {n}", "target") for n in range(300)])
    first, again, other = (split_pairs(Data(train=path), seed=seed) for seed in (7, 7, 8))
    assert list(first.test) == list(again.test)
    assert keys(first.test) != keys(other.test)
    assert list(first.test) == list(first.test)


TEXT = st.sampled_from(["a", "A", "b", "b  ", "c", "d", "e f", "E  F", "g", "h", "i", "j", "k", "l"])
GROUP = st.sampled_from(["", "p", "q", "r", "s", "t"])


@settings(max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT, GROUP), min_size=1, max_size=60), st.integers(0, 5), st.data())
def test_nothing_leaks_and_nothing_is_lost(tmp_path_factory, rows, seed, draw):
    folder = tmp_path_factory.mktemp("split")
    files = {"train": write_rows(folder / "train.tsv", rows)}
    for name in ("valid", "test"):
        if draw.draw(st.booleans()):
            given_rows = draw.draw(st.lists(st.tuples(TEXT, TEXT, GROUP), min_size=1, max_size=5))
            files[name] = write_rows(folder / f"{name}.tsv", given_rows)
    try:
        split = split_pairs(Data(**files), seed)
    except DataError:
        return  # too few groups; the messages have their own tests
    train, valid, test = (list(part) for part in (split.train, split.valid, split.test))
    assert train and valid and test
    assert not keys(train) & (keys(valid) | keys(test))
    if not {"valid", "test"} <= set(files):
        assert not keys(valid) & keys(test)
    for name, part in (("valid", valid), ("test", test)):
        if name in files:
            assert len(part) == len(files[name].read_text().splitlines())
        else:
            shared = {example.group for example in part} & {example.group for example in train}
            assert shared <= {""}
    # Cut parts and dropped rows make up the whole, but for rows of a cut part that the other holds too.
    cut = sum(len(part) for name, part in (("valid", valid), ("test", test)) if name not in files)
    assert len(train) + split.dropped + cut <= len(rows)
    if len({"valid", "test"} & set(files)) == 2:
        assert len(train) + split.dropped == len(rows)


def test_rows_that_are_also_in_given_files_are_dropped_and_counted(tmp_path, caplog):
    train = write_rows(tmp_path / "train.tsv", [("One", "x"), ("two", "y"), ("three", "z"), ("TWO ", "y")])
    valid = write_rows(tmp_path / "valid.tsv", [("one", "other")])
    test = write_rows(tmp_path / "test.tsv", [("Two", "y")])
    with caplog.at_level(logging.INFO, "chinchilla"):
        split = split_pairs(Data(train=train, valid=valid, test=test), seed=0)
    assert [pair.source for pair in split.train] == ["three"]
    assert split.dropped == 3
    assert "left out 3 of 4 training examples" in caplog.text


def test_one_group_cannot_be_split(tmp_path):
    path = write_rows(tmp_path / "a.tsv", [(f"source {n}", "target", "book") for n in range(50)])
    with pytest.raises(DataError, match=r"50 examples of one group.*data\.test"):
        split_pairs(Data(train=path), seed=0)


def test_groups_larger_than_the_share_still_split(tmp_path):
    rows = [(f"source {book} {n}", "target", f"book {book}") for book in range(4) for n in range(50 + book)]
    split = split_pairs(Data(train=write_rows(tmp_path / "a.tsv", rows)), seed=0)
    assert {pair.group for pair in split.test} == {"book 0"}
    assert {pair.group for pair in split.valid} == {"book 1"}


def test_training_data_that_is_all_held_out_is_refused(tmp_path):
    rows = write_rows(tmp_path / "a.tsv", [("one", "eins")])
    with pytest.raises(DataError, match="every example is also in valid or test"):
        split_pairs(Data(train=rows, valid=rows, test=rows), seed=0)


def test_malformed_rows_are_skipped_counted_and_reported_once(tmp_path, caplog):
    good = [(f"source {n}", f"target {n}") for n in range(40)]
    path = write_rows(tmp_path / "a.tsv", [*good[:20], ("bad",), ("worse",), *good[20:]])
    with pytest.raises(DataError, match="row 21"):
        split_pairs(Data(train=path), seed=0)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split = split_pairs(Data(train=path, invalid="skip"), seed=0)
        found = [pair for part in (split.train, split.valid, split.test) for pair in part]
    assert sorted(found) == sorted((source, target, "") for source, target in good)
    assert caplog.text.count("row 21: 1 column") == 1
    assert "left out 2 malformed rows and kept 40" in caplog.text


def test_a_file_that_changes_while_in_use_is_noticed(tmp_path):
    rows = [(f"source {n}", "target") for n in range(40)]
    path = write_rows(tmp_path / "a.tsv", rows)
    split = split_pairs(Data(train=path), seed=0)
    for changed in (rows[:-1], [*rows, ("more", "mehr")]):
        write_rows(path, changed)
        with pytest.raises(DataError, match=r"data\.train: the file changed"):
            list(split.train)


def test_documents_split_like_pairs(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join([*(f"document {n}" for n in range(60)), "Document 1"]))
    split = split_documents(Data(train=path), seed=3)
    assert len(split.valid) == len(split.test) == 3
    assert not keys(split.train) & (keys(split.valid) | keys(split.test))


def test_half_a_character_in_the_name_of_a_group_is_a_group_like_others(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {number}", "group": "\ud800" if number % 2 else f"g{number}"} for number in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    split = split_documents(Data(train=path), seed=0)
    holders = [part for part in (split.train, split.valid, split.test) if any(e.group == "\ud800" for e in part)]
    assert len(holders) == 1
