"""Free adversarial training against the plain loop of its paper; counted, saved and resumed as other training is."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_fakes import Given, digest, make_shape, make_trainer, overflow_once, weights

from chinchilla.config.attack import Attack
from chinchilla.config.shape import ImageStem, TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.columns import CategoryColumn, Columns, NumberColumn
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_classes import Colours, PictureClasses
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.models.transformer import Transformer
from chinchilla.store import checkpoint
from chinchilla.tasks.attack import DISTURBANCE, FreelyHardened, hardened
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Objective
from chinchilla.training.trainer import Trainer

CLASSES = Classes(names=("no", "yes"))
ENCODER: dict[str, Any] = {"num_decoder_layers": 0, "num_classes": 2, "position": "learned"}
RATE = 0.05


def labelled(source: Tensor, length: int, seed: int) -> dict[str, Tensor]:
    labels = torch.full((len(source), length), -100)
    labels[:, 0] = torch.randint(0, 2, (len(source),), generator=torch.Generator().manual_seed(seed))
    return {"source": source, "labels": labels}


def images(count: int) -> tuple[Any, Any, list[dict[str, Tensor]]]:
    stem = ImageStem(height=8, width=8, channels=1, patch=4)
    codec = PictureClasses(CLASSES, Size(8, 8, 1), Colours(means=(0.4,), stds=(0.25,)))
    drawn = [torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    batches = [labelled((pixels - 0.4) / 0.25, stem.num_positions, seed) for seed, pixels in enumerate(drawn)]
    return make_shape(**ENCODER, stem=stem), codec, batches


def texts(count: int) -> tuple[Any, Any, list[dict[str, Tensor]]]:
    random = torch.Generator().manual_seed(0)
    batches = [labelled(torch.randint(4, 40, (6, 7), generator=random), 7, seed) for seed in range(count)]
    # The codec only says what kind of input it is.
    return make_shape(**ENCODER), TextClasses(None, CLASSES, 7), batches  # type: ignore[arg-type]


def tables(count: int) -> tuple[Any, Any, list[dict[str, Tensor]]]:
    numbers = tuple(NumberColumn(column=name) for name in "ab")
    columns = Columns(numbers=numbers, categories=(CategoryColumn(column="c", categories=("x", "y")),))
    stem = TableStem(num_numeric=2, cardinalities=columns.cardinalities)
    batches = []
    for seed in range(count):
        random = torch.Generator().manual_seed(seed)
        source = torch.cat([torch.randn(6, 2, generator=random), torch.ones(6, 1)], dim=1)
        source[seed % 6, seed % 2] = math.nan
        batches.append(labelled(source, stem.num_positions, seed))
    return make_shape(**ENCODER, stem=stem), TableClasses(columns, CLASSES), batches


CASES = {"images": images, "texts": texts, "tables": tables}


def make(folder: Any, case: str, replays: int = 3, count: int = 3, eps: float = 0.1, **changes: Any) -> Trainer:
    """A trainer that is freely hardened; plain gradient descent in the optimizer's place where `plain`."""
    shape, codec, batches = CASES[case](count)
    task = hardened(Classify(f"classify_{case[:-1]}"), codec, Attack(kind="free", eps=eps, steps=replays))  # type: ignore[arg-type]
    plain = changes.pop("plain", False)
    given = {"batches": Given(*batches), "valid": Given(*batches), "clip_norm": 0.0}
    trainer = make_trainer(folder, shape=shape, **given | {"task": task} | changes)
    if plain:
        trainer.optimizer.step = lambda scale: descend(trainer.model)  # type: ignore[method-assign]
    return trainer


@torch.no_grad()
def descend(model: Transformer) -> None:
    for parameter in model.parameters():
        parameter -= RATE * parameter.grad
        parameter.grad = None


def mean_loss(model: Transformer, batch: dict[str, Tensor], source: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(model(source).hidden[:, 0]), batch["labels"][:, 0])


def by_hand_on_images(model: Transformer, batches: list[dict[str, Tensor]], replays: int, steps: int) -> Tensor:
    """Algorithm 1 of Shafahi 2019, with its clipping of the images to the values that pixels have."""
    radius, delta = 0.1 / 0.25, torch.zeros_like(batches[0]["source"])
    for step in range(steps):
        batch = batches[step // replays % len(batches)]
        source = batch["source"]
        start = ((source + delta).clamp(-0.4 / 0.25, 0.6 / 0.25) - source).requires_grad_()
        mean_loss(model, batch, source + start).backward()
        delta = (start.detach() + radius * start.grad.sign()).clamp(-radius, radius)
        delta = (source + delta).clamp(-0.4 / 0.25, 0.6 / 0.25) - source
        descend(model)
    return delta


def by_hand_on_texts(model: Transformer, batches: list[dict[str, Tensor]], replays: int, steps: int) -> Tensor:
    """The same with each token's vector, moved within a ball of a tenth of its own length."""

    def held(delta: Tensor, reach: Tensor) -> Tensor:
        length = delta.norm(dim=-1, keepdim=True)
        return torch.where(length > reach, delta * reach / length, delta)

    delta = torch.zeros(6, 7, model.shape.dim)
    for step in range(steps):
        batch = batches[step // replays % len(batches)]
        reach = 0.1 * model.embed.tokens.weight[batch["source"]].norm(dim=-1, keepdim=True).detach()
        start = held(delta, reach).requires_grad_()
        hook = model.embed.tokens.register_forward_hook(lambda module, given, found, by=start: found + by)
        mean_loss(model, batch, batch["source"]).backward()
        hook.remove()
        delta = held(start.detach() + reach * start.grad / start.grad.norm(dim=-1, keepdim=True), reach)
        descend(model)
    return delta


@pytest.mark.parametrize(("case", "by_hand"), [("images", by_hand_on_images), ("texts", by_hand_on_texts)])
def test_weights_and_disturbance_are_those_of_the_plain_loop(tmp_path, case, by_hand):
    """Seven steps: two batches seen three times each, and a third one once, the disturbance carried on between them."""
    trainer = make(tmp_path, case, steps=7, plain=True)
    model = Transformer(trainer.model.shape)
    model.load_state_dict(trainer.model.state_dict())
    begun = {name: tensor.clone() for name, tensor in weights(model).items()}
    for _ in trainer.steps():
        pass
    delta = by_hand(model, trainer.batches.given, 3, 7)
    (carried,) = trainer.replays.state().values()
    torch.testing.assert_close(carried, delta, rtol=1e-4, atol=1e-5)
    assert delta.abs().max() > 0
    for name, tensor in weights(model).items():
        torch.testing.assert_close(weights(trainer.model)[name], tensor, rtol=1e-4, atol=1e-5)
        assert name == "embed.tokens.weight" or not torch.equal(tensor, begun[name])


@pytest.mark.parametrize("case", CASES)
def test_one_backward_pass_a_step_gives_both_gradients(tmp_path, case, monkeypatch):
    trainer = make(tmp_path, case, steps=4)
    taken: list[int] = []
    grad = torch.autograd.grad

    def counted(total: Tensor, inputs: list[Tensor], **rest: Any) -> Any:
        taken.append(len(inputs))
        return grad(total, inputs, **rest)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for _ in trainer.steps():
        pass
    assert taken == [len(list(trainer.model.parameters())) + 1] * 4


def test_every_replay_is_a_step_and_its_labels_are_counted(tmp_path):
    trainer = make(tmp_path, "images", replays=3, count=2, steps=8, batch_tokens=6)
    fetched: list[int] = []
    batch = trainer.batches.batch
    trainer.batches.batch = lambda rows: fetched.append(int(rows[0])) or batch(rows)  # type: ignore[func-returns-value]
    places = []
    for step in trainer.steps():
        assert step.tokens == 6
        places.append((trainer.progress.position.epoch, trainer.progress.position.index))
    assert trainer.progress.tokens == 48 == trainer.progress.step * 6
    assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (0, 2), (0, 2), (0, 2)]
    assert fetched[:3] == [0, 1, 0]  # and no more than are kept ready
    assert len(fetched) <= 3 + 4


@pytest.mark.parametrize("threads", [1, 2])
def test_each_place_in_a_step_has_a_disturbance_of_its_own(tmp_path, threads):
    trainer = make(tmp_path, "images", count=4, steps=5, accumulation=2, threads=threads)
    for _ in trainer.steps():
        pass
    first, second = trainer.replays.state().values()
    assert first.shape == second.shape and not torch.equal(first, second)


@pytest.mark.parametrize("case", CASES)
def test_disturbances_stay_within_reach_of_inputs_that_change(tmp_path, case):
    trainer = make(tmp_path, case, steps=9, eps=0.3)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    task = trainer.task

    class Watched(FreelyHardened):
        def loss(self, model: Transformer, batch: Any, objective: Objective) -> Any:
            own = model.embed.tokens.weight[batch["source"]].norm(dim=-1) if case == "texts" else torch.zeros(())
            seen.append((batch["source"], batch[DISTURBANCE].detach().clone(), own.detach().clone()))
            return super().loss(model, batch, objective)

    task.__class__ = Watched
    for _ in trainer.steps():
        pass
    assert len(seen) == 9 and any(delta.any() for _, delta, _ in seen)
    for source, delta, own in seen:
        assert delta.isfinite().all()
        if case == "texts":
            assert (delta.norm(dim=-1) <= 0.3 * own * (1 + 1e-5)).all()
        elif case == "images":
            assert (delta.abs() <= 0.3 / 0.25 * (1 + 1e-5)).all()
            pixels = (source + delta) * 0.25 + 0.4
            assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
        else:
            assert (delta[:, :2].abs() <= 0.3 + 1e-6).all() and not delta[:, 2:].any()
            # What is missing in one batch is not so in the next.
            assert torch.equal((source + delta).isnan(), source.isnan())


@pytest.mark.parametrize(("case", "step"), [("images", 4), ("images", 6), ("texts", 4), ("tables", 8)])
def test_going_on_amid_replays_gives_the_same_bits(tmp_path, case, step):
    rest: dict[str, Any] = {"dropout": 0.2, "drop_path": 0.3, "checkpoint_every": 2, "keep_checkpoints": 9}
    rest |= {"accumulation": 2, "count": 5, "threads": 2}
    whole = make(tmp_path / "whole", case, **rest)
    outcome = whole.run()
    other = make(tmp_path / "other", case, model_seed=9, **rest)
    other.resume(checkpoint.load(whole.folder.checkpoints / f"step-{step:06d}"))
    assert other.run().tokens == outcome.tokens
    assert digest(weights(other.model)) == digest(weights(whole.model))
    assert digest(other.replays.state()) == digest(whole.replays.state())


def test_the_promise_rests_on_the_saved_disturbances(tmp_path):
    whole = make(tmp_path / "whole", "images", keep_checkpoints=9)
    whole.run()
    saved = checkpoint.load(whole.folder.checkpoints / "step-000004")
    assert saved.tensors.pop("disturbances")
    other = make(tmp_path / "other", "images", model_seed=9)
    other.resume(saved)
    other.run()
    assert digest(weights(other.model)) != digest(weights(whole.model))


def test_a_return_to_an_earlier_checkpoint_takes_its_disturbances_and_its_batch(tmp_path):
    trainer = make(tmp_path, "images", replays=3, checkpoint_every=4, keep_checkpoints=9)
    overflow_once(trainer, 6)
    trainer.run()
    assert trainer.progress.rollbacks == 1 and trainer.progress.step == 12
    # Four groups of three steps, whatever was done in vain, of three micro-batches an epoch.
    assert (trainer.progress.position.epoch, trainer.progress.position.index) == (1, 1)
    assert all(delta.isfinite().all() for delta in trainer.replays.state().values())


def test_validation_is_of_clean_inputs(tmp_path):
    trainer = make(tmp_path, "images", steps=5)
    for _ in trainer.steps():
        pass
    clean = trainer.valid_loss()
    trainer.task = Classify("classify_image")
    assert trainer.valid_loss() == clean


def test_other_training_sees_each_batch_once_and_keeps_no_disturbance(tmp_path):
    trainer = make_trainer(tmp_path, steps=4)
    trainer.run()
    assert trainer.replays.times == 1 and "disturbances" not in trainer._snapshot(True).tensors
    assert trainer.progress.position.index == 4 or trainer.progress.position.epoch > 0
