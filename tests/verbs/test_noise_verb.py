"""Noise that a recipe asks for reaches the training batches and nothing else."""

import contract_data
import pytest
import torch
from test_prepare import make_training

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.verbs.prepare import prepare


def prepared_for(task, folder, *noise):
    folder.mkdir()
    files = contract_data.write(task, folder)
    return prepare(load_run(None, [f"task={task}", "budget.time=1m", *files, *noise]).run)


def batches_of(batches, epoch):
    found = [batches.batch(rows) for rows in batches.order(epoch)]
    return [{name: tensor.nan_to_num(-9) for name, tensor in batch.items()} for batch in found]


def equal(left, right, names):
    return all(torch.equal(one[name], other[name]) for one, other in zip(left, right, strict=True) for name in names)


@pytest.mark.parametrize(
    ("task", "noise"),
    [
        ("translate", "noise.drop=0.3"),
        ("classify_text", "noise.drop=0.3"),
        ("classify_table", "noise.swap=0.5"),
        ("classify_table", "noise.numbers=0.2"),
    ],
)
def test_training_sources_are_varied_anew_and_nothing_else_is(tmp_path, task, noise):
    training = make_training(batch_tokens=64)
    plain, varied = prepared_for(task, tmp_path / "a"), prepared_for(task, tmp_path / "b", noise)
    assert varied.facts == plain.facts
    train = [batches_of(each.batches(training), 1) for each in (plain, varied)]
    same = train[0][0].keys() - {"source"}
    assert equal(*train, same) and not equal(*train, ["source"])
    assert equal(train[1], batches_of(varied.batches(training), 1), train[1][0])
    valid = [batches_of(each.valid_batches(training), 0) for each in (plain, varied)]
    assert equal(*valid, valid[0][0]) and varied.test == plain.test


@pytest.mark.parametrize("task", ["translate", "classify_text"])
def test_pieces_make_longer_sources_of_the_same_labels(tmp_path, task):
    training = make_training(batch_tokens=64)
    plain, varied = prepared_for(task, tmp_path / "a"), prepared_for(task, tmp_path / "b", "noise.backoff=0.4")
    assert varied.facts.unique_tokens == plain.facts.unique_tokens and varied.facts.max_len == plain.facts.max_len
    read, answered = [], []
    for each in (plain, varied):
        found = batches_of(each.batches(training), 1)
        read.append(sum(int((batch["source_segments"] > 0).sum()) for batch in found))
        answered.append(sorted(torch.cat([batch["labels"][batch["labels"] >= 0] for batch in found]).tolist()))
    assert read[1] > 1.2 * read[0] and answered[1] == answered[0]


def test_a_tokenizer_that_cannot_back_off_is_told_before_encoding(tmp_path, monkeypatch):
    def refuse(noise, tokenizer):
        raise UsageError("noise.backoff: no")

    monkeypatch.setattr("chinchilla.verbs.labelled_texts.text_noise", refuse)
    monkeypatch.setattr("chinchilla.verbs.labelled_texts.encode_labelled", lambda *given: pytest.fail("encoded"))
    with pytest.raises(UsageError, match=r"noise\.backoff: no"):
        prepared_for("classify_text", tmp_path / "a", "noise.backoff=0.4")
