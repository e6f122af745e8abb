"""Disturbances stay within reach, raise the loss, and leave no trace."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks_fakes import TEXTS, make_model, tokenizer

from chinchilla.config.attack import Attack
from chinchilla.config.errors import UsageError
from chinchilla.config.shape import ImageStem, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.corrupt import IMAGES, SEVERITIES, mistyped
from chinchilla.data.text_classes import TextClasses
from chinchilla.tasks.attack import (
    DISTURBANCE,
    Box,
    FreelyHardened,
    Hardened,
    box_of,
    disturbance,
    disturbed,
    disturbed_loss,
    hardened,
)
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Objective

TASK = Classify("classify_text")
CODEC = TextClasses(tokenizer(), Classes(names=("cat", "moon")), 64)
IMAGE = Box(torch.full((1, 1, 1), 0.1), torch.tensor(-0.5), torch.tensor(0.5))
TABLE = Box(torch.tensor([0.2, 0.2, 0.0]), torch.tensor(-math.inf), torch.tensor(math.inf))
ATTACKS = [Attack(kind="fgsm", eps=0.3), Attack(kind="pgd", eps=0.3, steps=5)]


def text_case():
    ((_, batch),) = CODEC.batches(TEXTS)
    labels = torch.full(batch["source"].shape, -100)
    labels[:, 0] = torch.tensor([0, 1, 0, 1])
    model = make_model(num_decoder_layers=0, num_classes=2)
    return model, batch | {"labels": labels}, None


def image_case():
    stem = ImageStem(height=8, width=8, channels=1, patch=4, pooled=True)
    labels = torch.full((6, stem.num_positions), -100)
    labels[:, 0] = torch.arange(6) % 2
    source = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0)) - 0.5
    model = make_model(num_decoder_layers=0, num_classes=2, stem=stem, vocab_size=4, max_len=8, position="learned")
    return model, {"source": source, "labels": labels}, IMAGE


def table_case():
    stem = TableStem(num_numeric=2, cardinalities=(3,))
    source = torch.tensor([[0.1, math.nan, 2.0], [1.0, -1.0, 0.0]])
    labels = torch.tensor([[0, -100, -100, -100], [1, -100, -100, -100]])
    model = make_model(num_decoder_layers=0, num_classes=2, stem=stem, vocab_size=4, max_len=4, position="learned")
    return model, {"source": source, "labels": labels}, TABLE


CASES = [text_case, image_case, table_case]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("case", CASES)
def test_a_disturbance_stays_within_reach_and_raises_the_loss(case, attack):
    model, batch, box = case()
    model.draw_from(torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clean = TASK.loss(model, batch, Objective()).plain
    delta = disturbance(TASK, model, batch, Objective(), attack, box)
    with torch.no_grad(), disturbed(model, batch, delta, box) as moved:
        loss = TASK.loss(model, moved, Objective()).plain
    assert float(loss) > float(clean)
    if box is None:
        own = model.embed.tokens.weight[batch["source"]].norm(dim=-1)
        assert (delta.norm(dim=-1) <= attack.eps * own * (1 + 1e-5)).all()
    else:
        known = ~batch["source"].isnan()
        assert (delta.abs() <= box.radius * (1 + 1e-4) + 1e-6)[known].all()
        moved_to = (batch["source"] + delta)[known]
        assert moved_to.min() >= box.low - 1e-6 and moved_to.max() <= box.high + 1e-6
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(TASK.loss(model, batch, Objective()).plain, clean)  # no hook is left behind
    assert all(parameter.grad is None for parameter in model.parameters())


def test_several_steps_find_more_than_one():
    model, batch, box = image_case()
    losses = []
    for attack in (Attack(kind="fgsm", eps=0.1), Attack(kind="pgd", eps=0.1, steps=20)):
        model.draw_from(torch.Generator().manual_seed(1))
        losses.append(float(disturbed_loss(TASK, model, batch, Objective(), attack, box).plain.detach()))
    assert losses[1] >= losses[0]


def test_a_hardened_task_learns_from_disturbed_inputs_and_is_judged_on_clean_ones():
    model, batch, _ = text_case()
    model.draw_from(torch.Generator().manual_seed(1))
    task = Hardened(TASK, CODEC, Attack(eps=0.5))
    clean = float(TASK.loss(model, batch, Objective()).plain)
    with torch.no_grad():
        assert float(task.loss(model, batch, Objective()).plain) == clean
    loss = task.loss(model.train(), batch, Objective())
    assert float(loss.plain) > clean
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert task.name == "classify_text" and task.show(("a", "cat")) == TASK.show(("a", "cat"))
    assert task.score(model.eval(), CODEC, [("a", "cat")]).metrics == TASK.score(model, CODEC, [("a", "cat")]).metrics


def test_hardened_freely_it_takes_the_disturbance_that_it_is_given():
    model, batch, _ = text_case()
    task = hardened(TASK, CODEC, Attack(kind="free", eps=0.5, steps=4))
    assert isinstance(task, FreelyHardened) and task.replays == 4 and task.name == "classify_text"
    clean = TASK.loss(model.train(), batch, Objective()).plain
    assert torch.equal(task.loss(model, batch, Objective()).plain, clean)
    rest = task.carried(model, batch, None)
    assert rest.shape == (*batch["source"].shape, 16) and not rest.any()
    moved = batch | {DISTURBANCE: rest.requires_grad_()}
    loss = task.loss(model, moved, Objective())
    torch.testing.assert_close(loss.plain, clean)
    loss.total.backward()
    worse = task.loss(model, batch | {DISTURBANCE: task.moved(model, moved)}, Objective())
    assert float(worse.plain) > float(clean)
    assert type(hardened(TASK, CODEC, Attack(eps=0.5))) is Hardened


def test_only_classifiers_can_be_attacked():
    with pytest.raises(UsageError, match="attacks are for models that put"):
        box_of(tokenizer(), 0.1)


@given(st.text(max_size=60), st.sampled_from(SEVERITIES), st.integers(0, 9))
def test_typing_errors_are_small_and_repeatable(text, severity, seed):
    typed = mistyped(text, severity, np.random.default_rng(seed))
    assert typed == mistyped(text, severity, np.random.default_rng(seed))
    assert set(typed) <= set(text) and abs(len(typed) - len(text)) <= len(text)


def test_more_severe_is_further_from_what_it_was():
    random = np.random.default_rng(0)
    image = random.integers(60, 180, (24, 24, 3)).astype(np.uint8)
    for name, corrupt in IMAGES.items():
        away = [np.abs(corrupt(image, s, np.random.default_rng(1)).astype(float) - image).mean() for s in SEVERITIES]
        assert away == sorted(away) and away[0] > 0, name
        assert corrupt(image, 3, random).shape == image.shape and corrupt(image, 3, random).dtype == np.uint8
    text = " ".join(TEXTS) * 10
    kept = [len(set(text.split()) & set(mistyped(text, s, np.random.default_rng(1)).split())) for s in SEVERITIES]
    assert kept == sorted(kept, reverse=True) or kept[-1] < kept[0]
