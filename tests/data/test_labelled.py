"""Labelled texts: every format, each bad class named, splits in each class's proportion without leaks, encoding."""

import json
import logging
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data
from chinchilla.data.batches import IGNORED
from chinchilla.data.classes import Classes
from chinchilla.data.examples import LabelledText, key
from chinchilla.data.labelled import encode_labelled, labelled_rows, read_labelled, split_labelled
from chinchilla.data.packed_batches import PackedBatches
from chinchilla.data.tokenizer import Tokenizer

ROWS = [LabelledText("Buy now", "spam", "a"), LabelledText("See you, then", "ham"), LabelledText("屋", "ham", "b")]


def read(path, **chosen) -> list[LabelledText]:
    return list(read_labelled(path, Data(train=path, **chosen)))


def write_tsv(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_gives_the_same(tmp_path):
    write_tsv(tmp_path / "a.tsv", ROWS)
    (tmp_path / "a.csv").write_text('text,label,group\nBuy now,spam,a\n"See you, then",ham,\n屋, ham,b\n')
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row._asdict()) for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row._asdict() for row in ROWS]), tmp_path / "a.parquet")
    for ending in ("tsv", "csv", "jsonl", "parquet"):
        assert read(tmp_path / f"a.{ending}") == ROWS


def test_a_class_may_be_a_number_or_a_truth_value(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": "x", "y": value}) for value in (1, 0.0, True, "1.0", "1.5", " b ")))
    assert [row.label for row in read(path, text="body", label="y")] == ["1", "0", "true", "1", "1.5", "b"]


BAD = {
    '{"text": "a"}': "no column 'label'",
    '{"text": "a", "label": null}': "column label: no class",
    '{"text": "a", "label": " "}': "column label: no class",
    '{"text": "a", "label": NaN}': "column label: no class",
    '{"text": "a", "label": ["x"]}': "column label: list where a class is needed",
    '{"text": " ", "label": "x"}': "column text: empty",
    '{"text": "a", "label": "\\ud800"}': "column label: half a surrogate pair",
    '{"text": "\\ud800", "label": "x"}': "column text: half a surrogate pair",
}


@pytest.mark.parametrize(("row", "message"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_row_is_named(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "label": "x"}\n' + row + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, row 2: {message}"):
        read(path)


def test_files_without_classes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="a text file holds no classes"):
        read(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="stand in one file"):
        list(read_labelled((tmp_path / "a.csv", tmp_path / "b.csv"), Data(train=tmp_path / "a.csv")))


TEXT = st.sampled_from(["a", "A", "b", "b  ", "c", "d", "e f", "E  F", *"ghijklmnopq"])
GROUP = st.sampled_from(["", "p", "q", "r", "s", "t"])


@settings(max_examples=30)
@given(st.lists(st.tuples(TEXT, st.sampled_from("xyz"), GROUP), min_size=4, max_size=60), st.integers(0, 5))
def test_nothing_leaks_and_nothing_is_lost(tmp_path_factory, rows, seed):
    path = write_tsv(tmp_path_factory.mktemp("labelled") / "a.tsv", rows)
    try:
        split = split_labelled(Data(train=path), seed)
    except DataError:
        return  # too few groups or classes; the messages have their own tests
    train, valid, test = (list(part) for part in (split.train, split.valid, split.test))
    assert train and valid and test
    assert not {key(row) for row in train} & {key(row) for row in [*valid, *test]}
    assert not {key(row) for row in valid} & {key(row) for row in test}
    groups = [{row.group for row in part} - {""} for part in (train, valid, test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert {row.label for row in train} == set(split.classes.names) == {row[1] for row in rows}
    assert len(train) + len(valid) + len(test) + split.dropped <= len(rows)


def test_classes_keep_their_proportions(tmp_path):
    rows = [(f"text {n}", "rare" if n % 20 == 0 else "common") for n in range(4000)]
    split = split_labelled(Data(train=write_tsv(tmp_path / "a.tsv", rows)), seed=0)
    for part in (split.valid, split.test):
        assert Counter(row.label for row in part) == {"rare": 10, "common": 190}
    assert (split.classes.names, split.classes.positive) == (("common", "rare"), "rare")
    again, other = (split_labelled(Data(train=tmp_path / "a.tsv"), seed=seed) for seed in (0, 1))
    assert list(again.test) == list(split.test) != list(other.test)


def test_of_few_examples_more_are_held_out(tmp_path):
    rows = [(f"text {n}", "xy"[n % 2]) for n in range(600)]
    split = split_labelled(Data(train=write_tsv(tmp_path / "a.tsv", rows)), seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (420, 90, 90)


def refused(tmp_path, rows, message, kind=DataError, **chosen):
    data = Data(train=write_tsv(tmp_path / "a.tsv", rows), **chosen)
    with pytest.raises(kind, match=message):
        split_labelled(data, seed=0)


def test_classes_that_cannot_be_learned_are_refused_by_name(tmp_path):
    twenty = [(f"text {n}", "xy"[n % 2]) for n in range(20)]
    refused(tmp_path, [(f"text {n}", "x") for n in range(20)], "every example is of the class 'x'")
    refused(tmp_path, [*twenty, ("odd", "z")], "the class 'z' has a single example, too few")
    refused(tmp_path, [*twenty, ("odd", "z"), ("o", "w")], r"the class 'w' has a single example \(and 1 more such")
    held = write_tsv(tmp_path / "held.tsv", [("other", "x"), ("another", "Y")])
    refused(tmp_path, twenty, r"data\.test, column label: the class 'Y' is not in data\.train", test=held)
    same = write_tsv(tmp_path / "held.tsv", [row for row in twenty if row[1] == "x"])
    refused(tmp_path, twenty, "every example of the class 'x' is also in valid or test", test=same)


def test_the_positive_class_is_the_rarer_one_or_the_one_named(tmp_path, caplog):
    path = write_tsv(tmp_path / "a.tsv", [(f"text {n}", "no" if n % 3 else "yes") for n in range(60)])
    with caplog.at_level(logging.INFO, "chinchilla"):
        assert split_labelled(Data(train=path), 0).classes == Classes(names=("no", "yes"), positive="yes")
    assert "scores are for the class 'yes', the rarer one" in caplog.text
    assert split_labelled(Data(train=path, positive="no"), 0).classes.positive == "no"
    rows = [(f"text {n}", str(n % 2)) for n in range(60)]
    refused(tmp_path, rows, r"data\.positive: no class 'yes'; the classes are '0' and '1'", UsageError, positive="yes")
    rows = [(f"text {n}", str(n % 3 + 9)) for n in range(60)]
    refused(tmp_path, rows, "is for two classes, and column label has 3", UsageError, positive="9")
    assert split_labelled(Data(train=write_tsv(tmp_path / "a.tsv", rows)), 0).classes.names == ("9", "10", "11")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(2, 20), st.integers(1, 30))
def test_rows_hold_the_start_of_each_text_with_its_class_first(lengths, max_len, batch_labels):
    tokenizer = Tokenizer.train(["ab"], "bpe", 300)
    examples = [LabelledText("ab"[n % 2] * length, "xy"[n % 2]) for n, length in enumerate(lengths)]
    encoded = encode_labelled(examples, tokenizer, Classes(names=("x", "y")))
    rows = labelled_rows(encoded, max_len)
    batches = PackedBatches(rows, max_len, batch_labels, seed=0, side="source")
    assert batches.left_out == 0
    assert batches.unique_tokens == len(lengths)
    found = []
    for batch in map(batches.batch, batches.order(3)):
        assert batch["source"].shape == batch["labels"].shape == (batches.num_rows, max_len)
        assert ((batch["source_segments"] == 0) <= (batch["labels"] == IGNORED)).all()
        for source, labels, segments in zip(batch["source"], batch["labels"], batch["source_segments"], strict=True):
            for segment in range(1, int(segments.max()) + 1):
                ids, wanted = source[segments == segment].tolist(), labels[segments == segment].tolist()
                assert ids[0] == 1 and wanted[1:] == [IGNORED] * (len(ids) - 1)
                found.append((wanted[0], tokenizer.decode(ids)))
    assert sorted(found) == sorted((n % 2, ("ab"[n % 2] * length)[: max_len - 1]) for n, length in enumerate(lengths))


def test_batches_hold_about_as_many_labels_as_asked_and_validation_is_like_training():
    random = np.random.default_rng(0)
    tokenizer = Tokenizer.train(["ab"], "bpe", 300)
    examples = [LabelledText("ab" * int(length), "x") for length in random.integers(1, 20, 3000)]
    rows = labelled_rows(encode_labelled(examples, tokenizer, Classes(names=("x", "y"))), 64)
    batches = PackedBatches(rows, 64, 100, seed=0, side="source")
    assert batches.unique_tokens / batches.num_batches(0) == pytest.approx(100, rel=0.1)
    assert 0 <= batches.padding < 0.1
    like = PackedBatches(rows, 999, 7, seed=0, side="source", like=batches)
    assert like.batch(like.order(0)[0])["source"].shape == (batches.num_rows, 64)
    few = PackedBatches(labelled_rows(encode_labelled(examples[:3], tokenizer, Classes(names=("x",))), 64), 64, 999, 0)
    assert few.num_batches(0) == 1 and few.num_rows <= 3
