"""Translating sets of texts: in order, whatever the batch; scores are sacrebleu's."""

import logging

import pytest
import sacrebleu
from tasks_fakes import TEXTS, make_model, tokenizer

from chinchilla.config.errors import DataError
from chinchilla.tasks import translate as module
from chinchilla.tasks.task import Sample
from chinchilla.tasks.translate import Translate, max_new

SOURCES = [
    "the cat",
    "",
    "a moon is a stone that circles a larger stone",
    "moon",
    "the mat and the moon",
    "",
    "Die Katze sah den Mond",
    "the cat sat on the mat and looked",
]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_batches_change_no_answer_and_order_is_kept(monkeypatch, batch_tokens, beam_size):
    task, model = Translate(beam_size), make_model()
    alone = [task.answer(model, tokenizer(), [source])[0] for source in SOURCES]
    monkeypatch.setattr(module, "BATCH_TOKENS", batch_tokens)
    assert task.answer(model, tokenizer(), SOURCES) == alone
    assert task.answer(model, tokenizer(), SOURCES[::-1]) == alone[::-1]
    assert len({answer for answer in alone if answer}) == 6


def test_an_empty_text_gives_an_empty_text():
    task, model = Translate(), make_model()
    assert task.answer(model, tokenizer(), ["", ""]) == ["", ""]
    assert task.answer(model, tokenizer(), []) == []
    assert task.answer(model, tokenizer(), ["", "moon"])[0] == ""


def test_the_beam_asked_for_is_the_one_searched_with(monkeypatch):
    widths = []

    def search(model, source, segments, limits, beam_size, penalty):
        widths.append((beam_size, penalty, limits))
        return [[] for _ in limits]

    monkeypatch.setattr(module, "translate", search)
    task, model = Translate(3, 0.7), make_model()
    task.answer(model, tokenizer(), ["moon"])
    task.answer(model, tokenizer(), ["moon"], beam_size=9)
    length = len(tokenizer().encode("moon")) + 1
    assert widths == [(3, 0.7, [2 * length + 10]), (9, 0.7, [2 * length + 10])]


def test_an_answer_is_at_most_twice_as_long_and_ten_and_fits_the_model():
    assert [max_new(length, 64) for length in (1, 20, 26, 27, 63)] == [12, 50, 62, 63, 63]


def test_of_a_text_longer_than_the_model_the_beginning_is_translated(caplog):
    task, model = Translate(2), make_model(max_len=24)
    long = " ".join(TEXTS)
    begin = tokenizer().decode(tokenizer().encode(long)[:23])
    assert tokenizer().encode(begin) == tokenizer().encode(long)[:23]
    with caplog.at_level(logging.WARNING, "chinchilla"):
        answers = task.answer(model, tokenizer(), [long, "moon"])
    assert answers == [task.answer(model, tokenizer(), [text])[0] for text in (begin, "moon")]
    assert "cut 1 of 2 texts to their first 23 tokens" in caplog.text


def test_progress_is_told_and_ends_at_one(monkeypatch):
    told = []
    monkeypatch.setattr(module, "BATCH_TOKENS", 20)
    Translate(1).answer(make_model(), tokenizer(), SOURCES, on_progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 2


class Canned(Translate):
    """A translator whose answers are given."""

    def __init__(self, outputs: list[str]) -> None:
        super().__init__()
        self.outputs = outputs

    def answer(self, model, tokenizer, sources, beam_size=None, on_progress=lambda done: None) -> list[str]:
        return self.outputs


REFERENCES = ["The cat sat on the mat, and looked.", "It's the moon (a stone)!", "Der Mond ist aufgegangen."]


@pytest.mark.parametrize(
    "outputs",
    [
        REFERENCES,
        ["The cat sat on a mat and looked.", "It's a moon (the stone)!", "Der Mond ist gegangen."],
        ["", "It's the moon", "ganz anders"],
    ],
)
def test_scores_are_sacrebleus(outputs):
    examples = [("source", reference) for reference in REFERENCES]
    score = Canned(outputs).score(make_model(), tokenizer(), examples)
    assert score.metrics["bleu"] == sacrebleu.corpus_bleu(outputs, [REFERENCES]).score
    assert score.metrics["chrf"] == sacrebleu.corpus_chrf(outputs, [REFERENCES]).score
    assert (score.metrics["bleu"] == pytest.approx(100)) == (outputs is REFERENCES)
    expected = zip(REFERENCES, outputs, strict=True)
    assert score.samples == tuple(Sample("source", reference, output) for reference, output in expected)


def test_no_pairs_cannot_be_scored():
    with pytest.raises(DataError, match=r"no pair to score on; name some in data\.test"):
        Translate().score(make_model(), tokenizer(), [])
