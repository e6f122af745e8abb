"""What a plan settles before it knows the shape: rates, batch and attention of each task."""

import dataclasses
import json

import contract_data
import pytest

from chinchilla.config.load import load_run
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.hub import write_llama, write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import flops_per_token
from chinchilla.planning.search import build
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.table_rows import pieces


@pytest.fixture
def texts(numbers, tmp_path):
    """The same numbers as running text."""
    file = tmp_path / "train.jsonl"
    pairs = (line.split("\t")[:2] for line in (numbers / "train.tsv").read_text("utf-8").splitlines())
    lines = (json.dumps({"text": ", ".join(pair)}) + "\n" for pair in pairs)
    file.write_text("".join(lines), "utf-8")
    return file


def drafted(file, small_machine, task, *words):
    settings = (f"task={task}", f"data.train={file}", "budget.time=60s", "train.threads=1", *words)
    run = load_run(None, settings).run
    prepared = prepare(run)
    shape = build(prepared.facts, run.model, 64, 0 if task == "generate" else 1, 1)
    return draft_training(run, small_machine, prepared, 60.0), shape


def test_tables_of_tokens_learn_at_a_higher_rate_than_matrices(texts, numbers, small_machine):
    training, shape = drafted(texts, small_machine, "generate")
    assert (training.learning_rate, training.embedding_learning_rate) == (7e-3, 2e-2)
    assert (training.batch_tokens, shape.attention) == (4096, "gated")
    training, shape = drafted(numbers / "train.tsv", small_machine, "translate")
    assert (training.learning_rate, training.embedding_learning_rate) == (5e-3, 1.5e-2)
    assert (training.batch_tokens, shape.attention) == (2048, "full")


def started(texts, tmp_path, write):
    """A model to start from, in the layout of `write`, with a tokenizer of the same texts."""
    tokenizer = Tokenizer.train(
        [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()], "bpe", 300
    )
    sizes = {"dim": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "ffn_dim": 64, "max_len": 256}
    shape = Shape(vocab_size=tokenizer.vocab_size, num_decoder_layers=2, activation="swiglu", **sizes)
    write(tmp_path / "start", Transformer(shape), tokenizer.to_json())
    return f"model.start={tmp_path / 'start'}"


@pytest.mark.parametrize(
    ("write", "words", "optimizer", "rate", "dropout"),
    [
        (write_model, (), "muon", 5e-4, 0.1),
        (write_llama, (), "adamw", 5e-5, 0.0),
        (write_llama, ("train.optimizer=muon",), "muon", 5e-5, 0.0),
        (write_llama, ("adapter.kind=lora",), "adamw", 2e-3, 0.0),
    ],
)
def test_a_model_from_elsewhere_is_changed_gently(
    texts, small_machine, tmp_path, write, words, optimizer, rate, dropout
):
    settings = (f"data.train={texts}", "task=generate", "budget.time=60s", "train.threads=1")
    run = load_run(None, (*settings, started(texts, tmp_path, write), *words)).run
    training = draft_training(run, small_machine, prepare(run), 1e6)
    assert (training.optimizer, training.learning_rate, training.embedding_learning_rate) == (optimizer, rate, rate)
    assert training.dropout == dropout


def test_a_large_start_takes_few_labels_a_step(texts, small_machine, tmp_path):
    start = started(texts, tmp_path, write_model)
    settings = (f"data.train={texts}", "task=generate", "budget.time=60s", "train.threads=1", start)
    run = load_run(None, settings).run
    prepared = prepare(run)
    shape = prepared.start.shape_for(prepared.facts, run.model)
    label = flops_per_token(shape, prepared.facts.batch(4096))
    rate = small_machine.flops_per_s(small_machine.fastest_precision())
    sizes = {steps: draft_training(run, small_machine, prepared, steps * 4096 * label / rate) for steps in (200, 25, 2)}
    assert sizes[200].batch_tokens == 4096
    assert sizes[25].batch_tokens == pytest.approx(1024, rel=0.01)
    assert sizes[2].batch_tokens == 256
    said = load_run(None, (*settings, "train.steps=2")).run
    assert draft_training(said, small_machine, prepared, 2 * 4096 * label / rate).batch_tokens == 4096


def test_what_is_asked_for_counts(texts, small_machine):
    training, shape = drafted(texts, small_machine, "generate", "train.learning_rate=3.5e-3", "model.attention=full")
    assert (training.learning_rate, training.embedding_learning_rate) == (3.5e-3, pytest.approx(1e-2))
    assert shape.attention == "full"
    training, _ = drafted(texts, small_machine, "generate", "train.optimizer=adamw")
    assert (training.learning_rate, training.embedding_learning_rate) == (5e-3, 5e-3)


def test_few_rows_of_a_table_are_learned_in_small_steps_at_a_low_rate(tmp_path, small_machine):
    words = contract_data.write("classify_table", tmp_path)
    run = load_run(None, ["task=classify_table", "budget.time=60s", "train.threads=1", *words]).run
    prepared = prepare(run)
    training = draft_training(run, small_machine, prepared, 60.0)
    assert (training.batch_tokens, training.learning_rate, training.embedding_learning_rate) == (64, 3e-4, 3e-4)
    many = dataclasses.replace(prepared, facts=prepared.facts.model_copy(update={"unique_tokens": 30_000}))
    assert draft_training(run, small_machine, many, 60.0).batch_tokens == 100
    run = run.model_copy(update={"train": run.train.model_copy(update={"optimizer": "adamw"})})
    assert draft_training(run, small_machine, prepared, 60.0).learning_rate == 3e-4


def test_few_rows_bend_a_number_in_few_places(tmp_path):
    words = contract_data.write("classify_table", tmp_path)
    facts = prepare(load_run(None, ["task=classify_table", "budget.time=60s", *words]).run).facts
    assert facts.stem.pieces == pieces(facts.num_examples) < 32
    assert [pieces(rows) for rows in (30, 399, 700, 5_000)] == [1, 7, 14, 32]
