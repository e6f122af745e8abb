"""Scores of classes against independent ones; packed rows against each text alone; stems."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from tasks_fakes import TEXTS, make_model, tokenizer

from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.shape import ImageStem, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.examples import LabelledText
from chinchilla.data.labelled import encode_labelled, labelled_rows
from chinchilla.data.packed_batches import PackedBatches
from chinchilla.data.text_classes import TextClasses
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.classify import Classify, calibration, class_metrics, probabilities
from chinchilla.tasks.task import Objective

CLASSES = Classes(names=("cat", "moon", "other"))
PAIR = Classes(names=("bad", "good"), positive="bad")


def codec(max_len: int = 64, classes: Classes = CLASSES) -> TextClasses:
    return TextClasses(tokenizer(), classes, max_len)


def encoder(**changes) -> Transformer:
    return make_model(**{"num_decoder_layers": 0, "num_classes": 3} | changes)


def alone(model: Transformer, text: str, max_len: int = 64) -> torch.Tensor:
    """Logits (classes,) of one text, without padding or neighbours."""
    ids = [model.shape.bos_id, *tokenizer().encode(text)][:max_len]
    return model.logits(model.encode(torch.tensor([ids]))[0, 0])


@torch.no_grad()
def test_answers_do_not_depend_on_what_else_is_asked():
    model, texts = encoder(), [*TEXTS, "a", TEXTS[0] * 9]
    found = probabilities(model, codec(), texts)
    for text, row in zip(texts, found, strict=True):
        assert row == pytest.approx(alone(model, text).softmax(0).numpy(), rel=1e-4)
    verdict = Classify("classify_text").answer(model, codec(), texts)[1]
    assert verdict.label == CLASSES.names[int(found[1].argmax())]
    assert list(verdict.probabilities.values()) == pytest.approx(found[1])
    assert Classify("classify_text").reply(model, codec(), texts[1]) == verdict.label


@torch.no_grad()
def test_the_loss_of_packed_rows_is_that_of_each_text_alone():
    model = encoder()
    examples = [LabelledText(text, CLASSES.names[index % 3]) for index, text in enumerate(TEXTS * 2)]
    rows = labelled_rows(encode_labelled(examples, tokenizer(), CLASSES), 64)
    batches = PackedBatches(rows, 64, 8, seed=0, side="source")
    found = [Classify("classify_text").loss(model, batches.batch(each), Objective()) for each in batches.order(0)]
    expected = sum(
        float(F.cross_entropy(alone(model, example.text)[None], torch.tensor([CLASSES.number(example.label)])))
        for example in examples
    )
    assert sum(float(loss.plain) for loss in found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"reconstruct": True}, {"attention": "gated"}])
def test_every_weight_learns(changes):
    model = encoder(**changes).train()
    rows = labelled_rows(encode_labelled([LabelledText(text, "moon") for text in TEXTS], tokenizer(), CLASSES), 64)
    batch = PackedBatches(rows, 64, 8, seed=0, side="source").batch(np.array([0, 1, -1, 2, 3]))
    objective = Objective(reconstruct_weight=float("reconstruct" in changes), mask_rate=0.5)
    loss = Classify("classify_text").loss(model, batch, objective)
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


STEMS = [
    (ImageStem(height=8, width=12, channels=3, patch=4), torch.randn(5, 3, 8, 12)),
    (ImageStem(height=8, width=12, channels=3, patch=4, pooled=True), torch.randn(5, 3, 8, 12)),
    (TableStem(num_numeric=2, cardinalities=(3, 4)), torch.tensor([[0.5, math.nan, 2, 3], [1.0, 2, 0, 0]])),
    (TableStem(num_numeric=0, cardinalities=(3,)), torch.tensor([[2.0], [0.0]])),
    (TableStem(num_numeric=3), torch.randn(4, 3)),
    (TableStem(num_numeric=3, pieces=8), torch.randn(4, 3)),
]


@pytest.mark.parametrize(("stem", "source"), STEMS)
def test_a_stem_makes_a_sequence_that_a_class_is_read_from(stem, source):
    model = encoder(stem=stem, vocab_size=4, max_len=stem.num_positions, position="learned", num_classes=3)
    states = model.encode(source)
    assert states.shape == (len(source), stem.num_positions, 16)
    labels = torch.full(states.shape[:2], -100)
    labels[:, 0] = 1
    loss = Classify("classify_image").loss(model, {"source": source, "labels": labels}, Objective())
    read = states[:, 0] if stem.class_token else states.mean(1)
    expected = F.cross_entropy(model.logits(read), labels[:, 0], reduction="sum").detach()
    assert float(loss.plain.detach()) == pytest.approx(float(expected), rel=1e-5)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_table_row_says_what_is_missing_and_which_category():
    stem = TableStem(num_numeric=1, cardinalities=(3,))
    model = encoder(stem=stem, vocab_size=4, max_len=3, position="learned")
    rows = torch.tensor([[0.0, 1], [math.nan, 1], [0.0, 2], [0.0, 1]])
    first, missing, other, again = model.encode(rows)[:, 0]
    assert torch.equal(first, again)
    assert not torch.allclose(first, missing) and not torch.allclose(first, other)


def scored(chances: list[list[float]], truth: list[int], classes: Classes = PAIR) -> dict[str, float]:
    return class_metrics(np.array(truth), np.array(chances), classes)


def test_scores_of_two_classes_are_for_the_positive_one():
    bad = [0.9, 0.8, 0.35, 0.3, 0.1]
    found = scored([[p, 1 - p] for p in bad], [0, 1, 0, 1, 1])
    # Of the 6 pairs of a bad and a good one, 5 have the bad one ahead.
    assert found["roc_auc"] == pytest.approx(5 / 6)
    assert found["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["ks"] == pytest.approx(ks_2samp([0.9, 0.35], [0.8, 0.3, 0.1]).statistic)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["brier"] == pytest.approx(np.mean([0.1**2, 0.8**2, 0.65**2, 0.3**2, 0.1**2]))
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.2, 0.35, 0.7, 0.9]).mean())


def test_the_distance_of_two_distributions_counts_also_where_the_model_is_wrong_about_them():
    bad, good = [0.1, 0.2, 0.35], [0.3, 0.6, 0.9, 0.95]
    found = scored([[p, 1 - p] for p in (*bad, *good)], [0] * 3 + [1] * 4)
    assert found["ks"] == pytest.approx(ks_2samp(bad, good).statistic) and found["roc_auc"] < 0.1


def test_without_both_classes_there_are_no_curves():
    assert "roc_auc" not in scored([[0.9, 0.1], [0.2, 0.8]], [0, 0])


def test_more_classes_are_scored_one_against_the_rest():
    chances = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.4, 0.5, 0.1]]
    found = scored(chances, [0, 1, 2, 0], CLASSES)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 1.0]))
    assert found["roc_auc"] == pytest.approx(np.mean([1.0, 1.0, 1.0]))
    assert "ks" not in found


@given(st.lists(st.tuples(st.floats(0.5, 1), st.booleans()), min_size=1, max_size=60))
def test_a_calibration_curve_keeps_every_answer(answers):
    chances = np.array([[p, 1 - p] for p, _ in answers])
    truth = np.array([0 if right else 1 for _, right in answers])
    bins = calibration(truth, chances)
    assert sum(count for _, _, count in bins) == len(answers)
    right = (chances.argmax(1) == truth).mean()
    assert sum(share * count for _, share, count in bins) / len(answers) == pytest.approx(right)
    assert sum(sure * count for sure, _, count in bins) / len(answers) == pytest.approx(chances.max(1).mean())


def test_a_score_shows_what_was_confused():
    model = encoder()
    score = Classify("classify_text").score(model, codec(), [(text, "cat") for text in TEXTS])
    counts = np.array(score.details["confusion"]["counts"])
    assert counts[0].sum() == len(TEXTS) and counts[1:].sum() == 0
    assert counts[0, 0] == round(score.metrics["accuracy"] * len(TEXTS))
    assert [sample.reference for sample in score.samples] == ["cat"] * len(TEXTS)
    assert {sample.source for sample in score.samples} == set(TEXTS)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(DataError, match=r"no example to score on; name some in data\.test"):
        Classify("classify_text").score(encoder(), codec(), [])
    with pytest.raises(DataError, match="the class 'dog', which the training data has not"):
        Classify("classify_text").score(encoder(), codec(), [("a", "cat"), ("b", "dog")])


def test_a_codec_comes_back_from_its_folder():
    kept = codec(20)
    again = TextClasses.open(kept.settings, kept.tokenizer_json, "model")
    (places, inputs), (_, same) = next(kept.batches(TEXTS)), next(again.batches(TEXTS))
    assert torch.equal(inputs["source"], same["source"]) and sorted(places) == [0, 1, 2, 3]
    assert inputs["source"].shape[1] <= 20 and again.classes == CLASSES
    with pytest.raises(UsageError, match=r"tokenizer\.json is missing"):
        TextClasses.open(kept.settings, None, "model")
    for damaged in ({}, kept.settings | {"max_len": "long"}, kept.settings | {"classes": {"names": 3}}):
        with pytest.raises(FaultError, match="get the file anew"):
            TextClasses.open(damaged, kept.tokenizer_json, "model")
