"""Attributions against finite differences and planted causes; the deletion test against the best of all orders."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tasks_fakes import TEXTS, make_model, tokenizer

from chinchilla.config.errors import UsageError
from chinchilla.config.shape import ImageStem, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.columns import CategoryColumn, Columns, NumberColumn
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_boxes import PictureBoxes
from chinchilla.data.picture_classes import Colours, PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.models.attention_maps import attention_maps, rollout
from chinchilla.models.quantized import matrices, replace_
from chinchilla.tasks.classify import probabilities
from chinchilla.tasks.explain import check, class_attention, deletion, explain, integrated_gradients, log_odds
from chinchilla.tasks.subject import Part, Subject, make_subject

CLASSES = Classes(names=("cat", "moon", "other"))
KNOTS = tuple(float(each) for each in range(11))
COLUMNS = Columns(
    numbers=tuple(NumberColumn(column=name, knots=KNOTS, count=100) for name in ("a", "b", "c")),
    categories=(CategoryColumn(column="d", categories=("x", "y")),),
)


def text_case():
    model = make_model(num_decoder_layers=0, num_encoder_layers=2, num_classes=3)
    return model, TextClasses(tokenizer(), CLASSES, 64), TEXTS[0] + " 😀"


def image_case(pooled=True):
    stem = ImageStem(height=8, width=12, channels=3, patch=4, pooled=pooled)
    model = make_model(num_decoder_layers=0, num_classes=3, stem=stem, position="learned")
    codec = PictureClasses(CLASSES, Size(8, 12, 3), Colours(means=(0.5,) * 3, stds=(0.2,) * 3))
    return model, codec, np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def strided_case():
    return image_case(pooled=False)


def row_case():
    stem = TableStem(num_numeric=3, cardinalities=(4,), pieces=8)
    model = make_model(num_decoder_layers=0, num_classes=3, stem=stem, attention="gated")
    return model, TableClasses(COLUMNS, CLASSES), {"a": 9, "b": 1.5, "d": "y"}


CASES = pytest.mark.parametrize("case", [text_case, image_case, strided_case, row_case])


@CASES
def test_the_subject_gives_the_models_own_answers(case):
    model, codec, question = case()
    subject = make_subject(model, codec, question)
    ((_, inputs),) = codec.batches([question])
    states = model.encode(inputs["source"])
    expected = model.logits(states.mean(1) if case is image_case else states[:, 0])
    torch.testing.assert_close(subject.logits(subject.given), expected)
    torch.testing.assert_close(torch.from_numpy(probabilities(model, codec, [question])).float(), expected.softmax(1))


@CASES
def test_attributions_add_up_to_the_difference_of_log_odds(case):
    model, codec, question = case()
    for label in CLASSES.names:
        found = explain(model, codec, question, label)
        chance = found.probabilities[label]
        assert found.odds == pytest.approx(np.log(chance / (1 - chance)), rel=1e-4)
        assert abs(found.gap) < 0.02 * np.abs(found.attribution).sum()
        assert found.attention.sum() == pytest.approx(1) and (found.attention > 0).all()


@CASES
def test_each_attribution_is_the_mean_slope_along_the_way(case):
    """By central differences in double precision, one part at a time."""
    model, codec, question = case()
    subject = make_subject(model.double(), codec, question)
    subject = dataclasses.replace(subject, given=subject.given.double(), baseline=subject.baseline.double())
    way = (subject.given - subject.baseline).detach()
    for part, attributed in enumerate(integrated_gradients(subject, 1, steps=8)):
        own = torch.where(subject.place == part, way, 0)
        with torch.no_grad():
            points = [subject.baseline + (step + 0.5) / 8 * way for step in range(8)]
            odds = [[log_odds(subject.logits(at + sign * own), 1) for sign in (1e-6, -1e-6)] for at in points]
        slope = float(sum(ahead - behind for ahead, behind in odds)) / 8 / 2e-6
        assert attributed == pytest.approx(slope, abs=1e-5)


def test_parts_of_a_text_are_whole_characters_and_make_up_the_text():
    model, codec, text = text_case()
    subject = make_subject(model, codec, text)
    assert "".join(part.name for part in subject.parts) == text
    assert subject.parts[-1].name == "😀"
    assert int((subject.seen == len(subject.parts) - 1).sum()) > 1
    assert int(subject.seen[0]) == len(subject.parts)


def test_a_rows_baseline_is_its_middle_and_its_parts_name_values():
    model, codec, row = row_case()
    subject = make_subject(model, codec, row)
    assert subject.parts == (Part("a", "9"), Part("b", "1.5"), Part("c", "missing"), Part("d", "y"))
    median = make_subject(model, codec, {"a": 5, "b": 5, "c": 5, "d": "x"})
    torch.testing.assert_close(subject.baseline[:, :3], median.given[:, :3], atol=1e-6, rtol=0)
    other = make_subject(model, codec, row | {"d": "x"})
    torch.testing.assert_close(subject.baseline[:, 3], (subject.given[:, 3] + other.given[:, 3]) / 2)


def test_what_decides_the_class_is_found_and_its_removal_tells():
    """A model that learned that column b alone decides."""
    classes = Classes(names=("low", "high"), positive="high")
    torch.manual_seed(0)
    stem = TableStem(num_numeric=3, cardinalities=(4,))
    model, codec = make_model(num_decoder_layers=0, num_classes=2, stem=stem), TableClasses(COLUMNS, classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        source = torch.cat([torch.randn(64, 3), torch.randint(0, 4, (64, 1)).float()], dim=1)
        loss = F.cross_entropy(model.logits(model.encode(source)[:, 0]), (source[:, 1] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = explain(model, codec, {"a": 2, "b": 9, "c": 8, "d": "y"})
    assert found.label == "high"
    assert found.attribution.argmax() == 1
    assert found.attribution[1] > 3 * np.abs(np.delete(found.attribution, 1)).max()
    assert found.areas["attribution"] < found.areas["random"] - 0.1


def additive(weights) -> Subject:
    """A class whose log-odds are a sum over parts: its attributions are known."""
    weights = torch.tensor(weights, dtype=torch.float64)
    place, parts = torch.arange(len(weights)), tuple(Part(str(each)) for each in range(len(weights)))
    given = torch.ones(1, len(weights), dtype=torch.float64)

    def logits(x):
        odds = x @ weights
        return torch.stack([torch.zeros_like(odds), odds], 1)

    return Subject(given, given, torch.zeros_like(given), place, place, parts, logits, "nothing")


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_of_a_sum_the_addends_are_found_and_no_order_has_a_smaller_deletion_area(weights, random):
    subject = additive(weights)
    attribution = integrated_gradients(subject, 1, 4)
    assert attribution == pytest.approx(np.array(weights), abs=1e-9)
    removed, best = deletion(subject, 1, np.argsort(-attribution))
    order = list(range(len(weights)))
    random.shuffle(order)
    _, other = deletion(subject, 1, np.array(order))
    assert (best <= other + 1e-12).all()
    assert removed[0] == 0 and removed[-1] == 1 and len(removed) == min(len(weights), 32) + 1
    assert best[0] == pytest.approx(1 / (1 + np.exp(-sum(weights))))
    assert best[-1] == pytest.approx(0.5)


def test_attention_that_is_even_is_even_over_the_parts():
    model, codec, question = row_case()
    with torch.no_grad():
        model.encoder.layers[0].attention.qkv.weight.zero_()
    assert class_attention(model, make_subject(model, codec, question)) == pytest.approx(np.full(4, 0.25))


@pytest.mark.parametrize("case", [image_case, strided_case])
def test_attention_of_an_image_is_what_reaches_the_state_that_is_read(case):
    model, codec, question = case()
    subject = make_subject(model, codec, question)
    flow = rollout(attention_maps(model, subject.source))[0].numpy()
    drawn = flow.mean(0) if case is image_case else flow[0, 1:]
    assert len(drawn) == len(subject.parts) == 6
    assert class_attention(model, subject) == pytest.approx(drawn / drawn.sum(), abs=1e-6)


def test_what_cannot_be_explained_is_refused():
    model, codec, _ = text_case()
    with pytest.raises(UsageError, match=r"no class 'moo' .did you mean 'moon'"):
        check(model, codec, "moo")
    with pytest.raises(UsageError, match="in classes"):
        check(model, tokenizer(), None)
    finder, pictures, _ = image_case()
    check(finder, pictures, None)
    with pytest.raises(UsageError, match="in classes"):
        check(finder, PictureBoxes(pictures.classes, pictures.size, pictures.colours), None)
    replace_(model, matrices(model))
    with pytest.raises(UsageError, match="int8"):
        check(model, codec, None)
