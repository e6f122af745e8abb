"""From a recipe and files to batches and the planner's facts."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla.config.plan import Training
from chinchilla.config.run import Run
from chinchilla.data.batches import PairBatches, TextBatches
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.translate import Translate
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.texts import TEXT_LEN

WORDS = ["stone", "moon", "cat", "mat", "river", "green", "seven", "under", "over", "house", "light", "paper"]


def sentence(draws: random.Random, most: int) -> str:
    return " ".join(draws.choices(WORDS, k=draws.randint(1, most)))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """400 pairs, each in its own group; targets are about twice as long as sources. Valid ones are the other way."""
    draws = random.Random(0)
    for name, count in (("train", 400), ("valid", 40), ("test", 30)):
        rows = []
        for number in range(count):
            short, long = (f"{name} {number} {sentence(draws, 12)}", f"{sentence(draws, 12)} {sentence(draws, 12)}")
            rows.append("\t".join((long, short) if name == "valid" else (short, long)))
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draws = random.Random(0)
    documents = [f"{number}: " + "\n".join(sentence(draws, 30) for _ in range(5)) for number in range(200)]
    (tmp_path / "train.txt").write_text("\n\n".join(documents) + "\n")
    return tmp_path


def make_run(task: str, data: dict[str, Any], **changes: Any) -> Run:
    tree = {"task": task, "data": data, "budget": {"time": 60}, "tokenizer": {"vocab_size": 400}}
    return Run.model_validate(tree | changes)


def translate_run(folder: Path, **changes: Any) -> Run:
    return make_run("translate", {name: folder / f"{name}.tsv" for name in ("train", "valid", "test")}, **changes)


def make_training(batch_tokens: int, accumulation: int = 1, seed: int = 0) -> Training:
    """Only these settings matter here."""
    rest = dict.fromkeys(Training.model_fields, 0) | {"class_weights": ()}
    kinds = {"optimizer": "adamw", "schedule": "wsd", "precision": "fp32", "compile": False}
    return Training(
        **rest | kinds | {"batch_tokens": batch_tokens, "accumulation": accumulation, "seed": seed, "steps": 9}
    )


def labels_of(batches: PairBatches | TextBatches) -> int:
    return sum(int((batches.batch(rows)["labels"] != -100).sum()) for rows in batches.order(0))


def test_facts_of_pairs(pairs):
    told: list[str] = []
    prepared = prepare(translate_run(pairs), told.append)
    facts, tokenizer = prepared.facts, prepared.codec
    rows = [line.split("\t") for line in (pairs / "train.tsv").read_text().splitlines()]
    targets = [tokenizer.encode(target) for _, target in rows]
    assert isinstance(prepared.task, Translate)
    assert (facts.task, facts.vocab_size, facts.num_examples) == ("translate", tokenizer.vocab_size, 400)
    assert facts.unique_tokens == sum(len(ids) + 1 for ids in targets)
    size_bytes = sum(len(target.encode()) for _, target in rows)
    assert facts.bytes_per_token == pytest.approx(size_bytes / facts.unique_tokens)
    batches = prepared.batches(make_training(batch_tokens=1024))
    assert labels_of(batches) == facts.unique_tokens
    batch = batches.batch(batches.order(0)[0])
    assert (facts.mean_source_len, facts.mean_target_len) == (batch["source"].shape[1], batch["target"].shape[1])
    assert facts.max_len == max(facts.mean_source_len, facts.mean_target_len)
    assert "400 training, 40 validation and 30 test examples" in told[1]


def test_the_row_holds_nearly_every_pair(pairs):
    prepared = prepare(translate_run(pairs))
    longest = max(prepared.train.source.lengths.max(), prepared.train.target.lengths.max()) + 1
    assert prepared.row_len in (64, 96, 128) and longest <= prepared.row_len
    assert prepare(translate_run(pairs, model={"max_len": 70})).row_len == 70


@pytest.mark.parametrize("accumulation", [1, 2])
def test_validation_batches_have_the_training_batches_size(pairs, accumulation):
    prepared = prepare(translate_run(pairs))
    training = make_training(batch_tokens=1024, accumulation=accumulation)
    train, valid = prepared.batches(training), prepared.valid_batches(training)
    one, other = (each.batch(each.order(0)[0]) for each in (train, valid))
    assert {name: tensor.shape for name, tensor in one.items()} == {
        name: tensor.shape for name, tensor in other.items()
    }
    tokens = train.unique_tokens / train.num_batches(0)
    assert tokens == pytest.approx(1024 / accumulation, rel=0.25)
    # What it is about: by their own proportion, validation rows would be of other lengths.
    alone = PairBatches(prepared.valid, prepared.row_len, 1024, 0)
    assert alone.row_lens != train.row_lens


def test_validation_batches_do_not_follow_the_runs_seed(pairs):
    prepared = prepare(translate_run(pairs))
    first, second = (prepared.valid_batches(make_training(seed=seed, batch_tokens=512)) for seed in (1, 2))
    for one, other in zip(first.order(0), second.order(0), strict=True):
        assert torch.equal(first.batch(one)["labels"], second.batch(other)["labels"])
    trains = [prepared.batches(make_training(seed=seed, batch_tokens=512)) for seed in (1, 2)]
    labels = [each.batch(each.order(0)[0])["labels"] for each in trains]
    assert labels[0].shape != labels[1].shape or not torch.equal(*labels)


def test_facts_of_texts(texts):
    prepared = prepare(make_run("generate", {"train": texts / "train.txt"}))
    facts, tokenizer = prepared.facts, prepared.codec
    assert isinstance(prepared.task, Generate)
    assert (facts.task, facts.mean_source_len) == ("generate", 0)
    assert facts.mean_target_len == facts.max_len == prepared.row_len == TEXT_LEN
    documents = (texts / "train.txt").read_text().split("\n\n")
    held_out = {text for (text,) in prepared.test}
    assert 0 < len(held_out) < 20 and facts.num_examples + 2 * len(held_out) == pytest.approx(len(documents), abs=3)
    assert held_out <= {document.strip() for document in documents}
    tokens = int(prepared.train.text.lengths.sum()) + facts.num_examples
    # Only whole rows are seen.
    assert facts.unique_tokens == tokens // TEXT_LEN * TEXT_LEN
    kept = [document.strip() for document in documents]
    size_bytes = sum(len(document.encode()) for document in kept) / len(kept)
    mean_tokens = sum(len(tokenizer.encode(document)) + 1 for document in kept) / len(kept)
    assert facts.bytes_per_token == pytest.approx(size_bytes / mean_tokens, rel=0.02)
    batch = prepared.valid_batches(make_training(batch_tokens=1024)).batch
    assert batch(prepared.valid_batches(make_training(batch_tokens=1024)).order(0)[0])["target"].shape[1] <= TEXT_LEN


def test_a_tokenizer_file_is_used_as_it_is(pairs, monkeypatch):
    first = prepare(translate_run(pairs))
    file = pairs / "tokenizer.json"
    file.write_text(first.codec.to_json(), encoding="utf-8")

    def refuse(*given: object) -> Tokenizer:
        raise AssertionError("a tokenizer was trained")

    monkeypatch.setattr(Tokenizer, "train", refuse)
    second = prepare(translate_run(pairs, tokenizer={"file": file}))
    assert second.codec.to_json() == first.codec.to_json()
    assert second.facts == first.facts
    assert (second.train.target.flat == first.train.target.flat).all()


def test_the_tokenizer_learns_from_training_data_only(pairs):
    valid = pairs / "valid.tsv"
    before = prepare(translate_run(pairs)).codec.to_json()
    valid.write_text("\n".join(f"zzzz{number}\tqqqq qqqq qqqq" for number in range(500)) + "\n")
    assert prepare(translate_run(pairs)).codec.to_json() == before


def test_only_so_many_test_examples_are_scored(pairs):
    every = prepare(translate_run(pairs)).test
    few = prepare(translate_run(pairs, evaluate={"max_examples": 7})).test
    assert len(every) == 30 and few == tuple(every[place] for place in (0, 4, 8, 12, 17, 21, 25))
    assert every[0] == tuple((pairs / "test.tsv").read_text().splitlines()[0].split("\t"))
