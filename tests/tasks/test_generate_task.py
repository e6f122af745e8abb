"""Scores of running text against plain cross-entropy; prompts that fit."""

import math

import pytest
import torch
import torch.nn.functional as F
from tasks_fakes import TEXTS, make_model, tokenizer

from chinchilla.config.errors import DataError
from chinchilla.models.generate import Sampling, complete
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.generate import SAMPLES, Generate, bits_per_byte, document_nats, prompt_ids

EXAMPLES = [(text,) for text in TEXTS]


def make_decoder(**changes) -> Transformer:
    return make_model(num_encoder_layers=0, **changes)


@torch.no_grad()
def nats_of(model: Transformer, ids: list[int]) -> float:
    """Cross-entropy of ids that fit the model, by hand: each token after those before it."""
    total = 0.0
    for index, token in enumerate(ids):
        hidden = model(target=torch.tensor([[model.shape.bos_id, *ids[:index]]])).hidden
        total += float(F.cross_entropy(model.logits(hidden)[0, -1:], torch.tensor([token]), reduction="sum"))
    return total


def test_a_documents_nats_are_its_cross_entropy():
    model = make_decoder()
    ids = [*tokenizer().encode(TEXTS[0]), model.shape.eos_id]
    assert len(ids) < model.shape.max_len
    assert document_nats(model, ids) == pytest.approx(nats_of(model, ids), rel=1e-5)
    assert document_nats(model, []) == 0


def test_a_document_longer_than_the_model_is_scored_in_pieces_that_start_anew():
    model = make_decoder(max_len=10)
    ids = torch.randint(3, 200, (27,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = sum(nats_of(model, ids[start : start + 10]) for start in (0, 10, 20))
    assert document_nats(model, ids) == pytest.approx(expected, rel=1e-5)


def test_scores_weigh_every_byte_and_every_token_alike():
    model = make_decoder()
    rows = [[*tokenizer().encode(text), model.shape.eos_id] for text in TEXTS]
    nats = sum(nats_of(model, ids) for ids in rows)
    metrics = Generate().score(model, tokenizer(), EXAMPLES).metrics
    size_bytes = len("".join(TEXTS).encode("utf-8"))
    assert size_bytes > len("".join(TEXTS))  # ß has two bytes
    assert metrics["bits_per_byte"] == pytest.approx(nats / size_bytes / 0.6931471805599453, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / sum(map(len, rows))), rel=1e-5)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary():
    model = make_decoder()
    with torch.no_grad():
        model.head.weight.zero_()
    tokens = sum(len(tokenizer().encode(text)) + 1 for text in TEXTS)
    metrics = Generate().score(model, tokenizer(), EXAMPLES).metrics
    assert metrics["perplexity"] == pytest.approx(tokenizer().vocab_size, rel=1e-4)
    bits = tokens * math.log2(tokenizer().vocab_size)
    assert metrics["bits_per_byte"] == pytest.approx(bits / len("".join(TEXTS).encode()), rel=1e-4)
    assert bits_per_byte(math.log(2) * 24, 3) == pytest.approx(8)


def test_samples_continue_the_first_words_of_the_first_documents():
    told = []
    score = Generate().score(make_decoder(), tokenizer(), EXAMPLES * 3, told.append)
    assert [sample.source for sample in score.samples] == [
        " ".join(text.split()[:6]) for (text,) in (EXAMPLES * 3)[:SAMPLES]
    ]
    assert [sample.reference for sample in score.samples] == [text for (text,) in (EXAMPLES * 3)[:SAMPLES]]
    assert told == pytest.approx([(index + 1) / 12 for index in range(12)])
    again = Generate().score(make_decoder(), tokenizer(), EXAMPLES * 3)
    assert again == score
    # The same document twice is continued from two seeds.
    assert score.samples[0].output != score.samples[4].output


@pytest.mark.parametrize("examples", [[], [("",)], [("",), ("",)]])
def test_no_text_cannot_be_scored(examples):
    with pytest.raises(DataError, match=r"no text to score on; name some in data\.test"):
        Generate().score(make_decoder(), tokenizer(), examples)


def test_an_answer_is_the_completion_after_the_start_token():
    model, sampling = make_decoder(), Sampling(9, 1.0, seed=3)
    ids = [model.shape.bos_id, *tokenizer().encode("the cat")]
    expected = complete(model, ids, sampling, frozenset({model.shape.eos_id}))
    assert Generate().answer(model, tokenizer(), "the cat", sampling) == tokenizer().decode(expected)
    assert len(expected) > 2


def test_a_long_prompt_keeps_its_newest_part():
    model, ids = make_decoder(), tokenizer().encode(" ".join(TEXTS))
    assert len(ids) > 64
    text = " ".join(TEXTS)
    assert prompt_ids(model, tokenizer(), text, 20) == [1, *ids[-43:]]
    assert prompt_ids(model, tokenizer(), text, 1) == [1, *ids[-62:]]
    assert prompt_ids(model, tokenizer(), "", 20) == [1]
    short = tokenizer().encode("the cat")
    assert prompt_ids(model, tokenizer(), "the cat", 20) == [1, *short]


@pytest.mark.parametrize("max_new", [40, 64, 5000])
def test_a_prompt_keeps_half_the_model_however_long_the_answer_may_be(max_new):
    model = make_decoder()
    ids = prompt_ids(model, tokenizer(), " ".join(TEXTS), max_new)
    assert len(ids) == 32
    assert len(complete(model, ids, Sampling(max_new, 0), frozenset())) == 32
