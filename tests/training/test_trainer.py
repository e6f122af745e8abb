"""The loop: right gradients and averages, the best model at the end, one new plan, faults that are told."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_fakes import (
    BOS,
    EOS,
    FIRST,
    PAD,
    Given,
    digest,
    make_shape,
    make_trainer,
    ragged,
    weights,
)

from chinchilla.config.errors import FaultError
from chinchilla.data.batches import PairBatches
from chinchilla.data.encode import EncodedPairs
from chinchilla.store import checkpoint, journal
from chinchilla.tasks.task import Loss
from chinchilla.tasks.translate import Translate
from chinchilla.training.trainer import Trainer, worker_count


def micro_batches(*counts: int) -> list[dict[str, torch.Tensor]]:
    """Batches of one row each, of so many labelled tokens."""
    made = []
    for index, count in enumerate(counts):
        generator = torch.Generator().manual_seed(index)
        labels = torch.randint(FIRST, 40, (1, 12), generator=generator)
        target = torch.cat([torch.full((1, 1), BOS), labels[:, :-1]], dim=1)
        segments = (torch.arange(12) < count).long()[None]
        made.append(
            {
                "source": torch.randint(FIRST, 40, (1, 12), generator=generator),
                "source_segments": torch.ones(1, 12, dtype=torch.int64),
                "target": target.masked_fill(segments == 0, PAD),
                "target_segments": segments,
                "labels": labels.masked_fill(segments == 0, -100),
            }
        )
    return made


def gradients_of_a_step(trainer: Trainer) -> list[torch.Tensor]:
    """What the optimizer is given in the first step."""
    taken: list[torch.Tensor] = []

    def keep(scale: float) -> None:
        taken.extend(parameter.grad.clone() for parameter in trainer.model.parameters())

    trainer.optimizer.step = keep  # type: ignore[method-assign]
    next(trainer.steps())
    return taken


@pytest.mark.parametrize("threads", [1, 2])
def test_two_unequal_halves_give_the_gradients_of_the_whole(tmp_path, threads):
    """The mean is over a step's real tokens, 11 and 2 of them here, not over micro-batches."""
    halves = micro_batches(11, 2)
    whole = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
    rest: dict[str, Any] = {"clip_norm": 0.0, "threads": threads}
    split = gradients_of_a_step(make_trainer(tmp_path / "a", batches=Given(*halves), accumulation=2, **rest))
    once = gradients_of_a_step(make_trainer(tmp_path / "b", batches=Given(whole), **rest))
    for one, other in zip(split, once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_and_a_validation_without_any_label_are_no_fault(tmp_path):
    """As of images in which there is nothing to find; divided by no labels their loss would be no number."""
    labelled, bare = micro_batches(7, 0)
    trainer = make_trainer(tmp_path, batches=Given(labelled, bare), valid=Given(bare), steps=4)
    steps = list(trainer.steps())
    assert [step.tokens for step in steps] == [7, 0, 7, 0]
    assert all(math.isfinite(step.loss) for step in steps) and math.isfinite(trainer.valid_loss())
    assert all(tensor.isfinite().all() for tensor in trainer.model.parameters())


def test_the_gradients_are_those_of_the_mean_cross_entropy(tmp_path):
    (batch,) = micro_batches(7)
    trainer = make_trainer(tmp_path, batches=Given(batch), clip_norm=0.0, label_smoothing=0.1)
    model = trainer.model
    hidden = model(batch["source"], batch["target"], target_segments=batch["target_segments"]).hidden
    labels = batch["labels"].flatten()
    loss = F.cross_entropy(model.logits(hidden).flatten(0, 1), labels, ignore_index=-100, label_smoothing=0.1)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(gradients_of_a_step(trainer), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.0), (0.0, 0.1), (2.0, 0.0)])
def test_a_weighted_step_is_a_mean_over_its_labels_however_they_fall(tmp_path, gamma, smoothing):
    """Weights do not enter the divisor: they are 1 on average over the data, not over a step's few labels."""
    halves = micro_batches(11, 2)
    weights = tuple(0.2 + 0.1 * place for place in range(40))
    settings: dict[str, Any] = {"clip_norm": 0.0, "class_weights": weights, "focal_gamma": gamma}
    trainer = make_trainer(
        tmp_path, batches=Given(*halves), accumulation=2, threads=2, label_smoothing=smoothing, **settings
    )
    model, total = trainer.model, torch.zeros(())
    for half in halves:
        hidden = model(
            half["source"],
            half["target"],
            source_segments=half["source_segments"],
            target_segments=half["target_segments"],
        ).hidden
        labels = half["labels"].flatten()
        logits = model.logits(hidden).flatten(0, 1)
        each = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none", label_smoothing=smoothing)
        focus = (1 - torch.exp(-each)) ** gamma
        total = total + (each * focus * torch.tensor(weights)[labels.clamp_min(0)]).sum()
    expected = torch.autograd.grad(total / 13, list(model.parameters()))
    for one, other in zip(gradients_of_a_step(trainer), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    rest = {"batches": Given(*micro_batches(7))}
    free = gradients_of_a_step(make_trainer(tmp_path / "a", clip_norm=0.0, **rest))
    norm = torch.stack([gradient.norm() for gradient in free]).norm()
    clipped = gradients_of_a_step(make_trainer(tmp_path / "b", clip_norm=float(norm) / 4, **rest))
    for one, other in zip(clipped, free, strict=True):
        torch.testing.assert_close(one, other / 4, rtol=1e-4, atol=1e-8)


def test_the_reported_loss_is_the_plain_one(tmp_path):
    (batch,) = micro_batches(9)
    trainer = make_trainer(tmp_path, batches=Given(batch), label_smoothing=0.3, reconstruct_weight=0.0)
    with torch.no_grad():
        hidden = trainer.model(batch["source"], batch["target"], target_segments=batch["target_segments"]).hidden
        expected = F.cross_entropy(trainer.model.logits(hidden)[0], batch["labels"][0], ignore_index=-100)
    step = next(trainer.steps())
    assert step.loss == pytest.approx(float(expected), rel=1e-5)
    assert step.tokens == trainer.progress.tokens == 9


def test_the_validation_loss_is_the_mean_over_tokens_without_dropout(tmp_path):
    trainer = make_trainer(tmp_path, dropout=0.5, label_smoothing=0.2, valid=Given(*micro_batches(11, 2)))
    model = trainer.model.eval()
    nats = 0.0
    with torch.no_grad():
        for batch in trainer.valid.given:
            logits = model.logits(model(batch["source"], batch["target"]).hidden)
            nats += float(F.cross_entropy(logits[0], batch["labels"][0], ignore_index=-100, reduction="sum"))
    assert trainer.valid_loss() == pytest.approx(nats / 13, rel=1e-5)
    assert model.training


def test_the_average_is_an_exponential_one_with_a_short_memory_at_first(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.8, steps=60)
    average = {name: tensor.double() for name, tensor in weights(trainer.model).items()}
    decays = []
    for number, _ in enumerate(trainer.steps()):
        decays.append(min(0.8, (1 + number) / (10 + number)))
        for name, tensor in weights(trainer.model).items():
            average[name] = decays[-1] * average[name] + (1 - decays[-1]) * tensor.double()
    assert decays[0] == 0.1 and decays[-1] == 0.8
    assert trainer.average is not None
    for name, tensor in trainer.average.items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-6)


class Told(Trainer):
    """A trainer whose validations find what they are told to."""

    finds: tuple[float, ...] = ()

    def valid_loss(self) -> float:
        super().valid_loss()
        loss, *rest = self.finds
        self.finds = tuple(rest)
        return loss


def told(folder: Path, finds: tuple[float, ...], **changes: Any) -> Told:
    plain = make_trainer(folder, **changes)
    trainer = Told(**{name: getattr(plain, name) for name in Trainer.__dataclass_fields__})
    trainer.finds = finds
    return trainer


@pytest.mark.parametrize("ema_decay", [0.0, 0.7])
def test_the_final_model_is_the_one_that_did_best_on_the_validation_data(tmp_path, ema_decay):
    trainer = told(tmp_path, (3.0, 1.5, 1.5), ema_decay=ema_decay, keep_checkpoints=5)
    outcome = trainer.run()
    assert (outcome.valid_loss, outcome.best_step, outcome.steps) == (1.5, 8, 12)
    saved = {step: checkpoint.load(trainer.folder.checkpoints / f"step-{step:06d}") for step in (8, 12)}
    group = "average" if ema_decay else "model"
    assert digest(weights(trainer.model)) == digest(saved[8].tensors[group])
    assert digest(saved[12].tensors["best"]) == digest(saved[8].tensors[group])
    assert digest(saved[12].tensors["model"]) != digest(saved[8].tensors["model"])


def test_a_validation_leaves_the_training_weights_alone(tmp_path):
    trainer, other = make_trainer(tmp_path / "a", ema_decay=0.9), make_trainer(tmp_path / "b", ema_decay=0.9)
    trainer.run()
    for _ in other.steps():
        pass
    last = checkpoint.load(trainer.folder.checkpoints / "step-000012")
    assert digest(last.tensors["model"]) == digest(weights(other.model))


class Breaking(Translate):
    """A task that goes wrong at one step: its loss, or only the loss's gradient, is not a number."""

    def __init__(self, step: int, gradient_only: bool) -> None:
        super().__init__()
        self.step, self.gradient_only, self.seen = step, gradient_only, 0

    def loss(self, model: Any, batch: Any, objective: Any) -> Loss:
        loss = super().loss(model, batch, objective)
        if not model.training:
            return loss
        self.seen += 1
        if self.seen <= self.step:
            return loss
        # The root's slope at 0 is infinite, and 0 · ∞ is not a number.
        wrong = (model.head.weight.sum() * 0).sqrt() if self.gradient_only else loss.total * math.nan
        return Loss(loss.total + wrong, loss.plain + wrong.detach())


@pytest.mark.parametrize(("gradient_only", "what"), [(False, "loss is nan"), (True, "gradient is nan")])
def test_a_loss_that_is_never_a_number_again_is_a_fault_and_spoils_nothing(tmp_path, gradient_only, what):
    trainer = make_trainer(tmp_path, task=Breaking(6, gradient_only))
    with pytest.raises(
        FaultError, match=rf"{what} after 4 steps; 3 returns .*; train anew with a lower train\.learning"
    ) as e:
        trainer.run()
    assert e.value.exit_code == 5
    assert trainer.progress.best_step == 4
    assert all(tensor.isfinite().all() for tensor in (*trainer.best.values(), *trainer.model.parameters()))
    (saved,) = trainer.folder.checkpoints.iterdir()
    assert saved.name == "step-000004"
    *events, last = journal.read(trainer.folder.events)
    assert (last["kind"], last["step"]) == ("fault", 4) and what in last["why"]
    returns = [event for event in events if event["kind"] == "rollback"]
    assert [(event["step"], event["to_step"], event["rate_scale"]) for event in returns] == [
        (6, 4, 0.5),
        (4, 4, 0.25),
        (4, 4, 0.125),
    ]


def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path):
    trainer = told(tmp_path, (3.0, math.nan, 2.0, 2.5))
    outcome = trainer.run()
    assert (outcome.steps, outcome.best_step, outcome.valid_loss) == (12, 8, 2.0)
    (event,) = (event for event in journal.read(trainer.folder.events) if event["kind"] == "rollback")
    assert (event["step"], event["to_step"], event["why"]) == (8, 4, "the validation loss is nan")


def test_the_newest_checkpoints_are_kept(tmp_path):
    trainer = make_trainer(tmp_path, steps=11, checkpoint_every=2, keep_checkpoints=3)
    trainer.run()
    kept = sorted(path.name for path in trainer.folder.checkpoints.iterdir())
    assert kept == ["step-000008", "step-000010", "step-000011"]
    events = [event["step"] for event in journal.read(trainer.folder.events) if event["kind"] == "checkpoint"]
    assert events == [2, 4, 6, 8, 10, 11]


def test_the_journal_has_every_step_and_validation(tmp_path):
    trainer = make_trainer(tmp_path, steps=10, log_every=3)
    outcome = trainer.run()
    lines = journal.read(trainer.folder.metrics)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 10]
    assert [line["step"] for line in lines if "valid_loss" in line] == [4, 8, 10]
    logged = [line for line in lines if "loss" in line]
    assert [line["learning_rate"] for line in logged] == pytest.approx([2e-3, 2e-3, 1e-3, 5e-4])
    for line in logged:
        assert line["peak_fraction"] == pytest.approx(line["tokens_per_s"] * 1e4 / 1e9)
    times = [line["time_s"] for line in lines]
    assert times[0] > 0 and times == sorted(times) and times[-1] <= outcome.train_time_s
    assert lines[-1]["tokens"] == outcome.tokens


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["full", "gated"])
def test_activations_computed_again_change_no_bit(tmp_path, accumulation, kind):
    """With dropout, whose masks must be drawn again, and side by side in two workers."""
    changes = {"dropout": 0.2, "accumulation": accumulation, "threads": 2, "steps": 6}
    shape = make_shape(attention=kind)
    runs = [make_trainer(tmp_path / str(on), shape=shape, recompute=on, **changes) for on in (False, True)]
    for trainer in runs:
        trainer.run()
    assert digest(weights(runs[0].model)) == digest(weights(runs[1].model))
    assert runs[1].model.encoder.recompute and not runs[0].model.encoder.recompute


def copies(count: int, seed: int, words: int, length: int) -> EncodedPairs:
    rows = np.random.default_rng(seed).integers(FIRST, FIRST + words, (count, length)).tolist()
    return EncodedPairs(ragged(rows), ragged(rows), PAD, BOS, EOS)


def test_it_learns_to_copy(tmp_path):
    """Whoever doesn't look at the source pays log(words) for each word and at best nothing for the end."""
    words, length = 12, 3
    batches = PairBatches(copies(4000, 0, words, length), 16, 512, 0)
    trainer = make_trainer(
        tmp_path,
        shape=make_shape(dim=32, num_heads=2, head_dim=16, ffn_dim=64, vocab_size=FIRST + words, position="learned"),
        batches=batches,
        valid=PairBatches(copies(200, 1, words, length), 16, 512, 0, batches),
        steps=50,
        learning_rate=1e-2,
        embedding_learning_rate=1e-2,
        eval_every=1000,
        checkpoint_every=1000,
        log_every=1000,
    )
    blind = length * math.log(words) / (length + 1)
    assert trainer.run().valid_loss < blind / 3


def test_workers_are_as_many_as_divide_both_threads_and_micro_batches(tmp_path):
    def count(device: str = "cpu", **changes: Any) -> int:
        return worker_count(make_trainer(tmp_path, **changes).training, torch.device(device))

    assert [count(threads=threads, accumulation=3) for threads in (1, 2, 3, 6)] == [1, 1, 3, 3]
    assert count(threads=4, accumulation=2) == 2
    assert count("cuda", threads=4, accumulation=2) == 1


def test_one_bf16_step_is_near_the_fp32_one(tmp_path):
    rest: dict[str, Any] = {"batches": Given(*micro_batches(11)), "clip_norm": 0.0}
    low = gradients_of_a_step(make_trainer(tmp_path / "a", precision="bf16", **rest))
    high = gradients_of_a_step(make_trainer(tmp_path / "b", **rest))
    assert all(gradient.dtype == torch.float32 for gradient in low)
    joined = [torch.cat([gradient.flatten() for gradient in each]) for each in (low, high)]
    assert F.cosine_similarity(*joined, dim=0) > 0.99
    assert not torch.equal(*joined)


@pytest.mark.slow
# torch's compiler warns of what it does itself: deprecated decorators, gradients of tensors that it traces.
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_eager_loss(tmp_path):
    losses = {}
    for compiled in (False, True):
        trainer = make_trainer(tmp_path / str(compiled), compile=compiled, steps=6)
        losses[compiled] = [step.loss for step in trainer.steps()]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_the_model_folder_and_state_hold_no_pickle(tmp_path):
    trainer = make_trainer(tmp_path, reconstruct_weight=0.5, ema_decay=0.9)
    trainer.run()
    files = {path.name for path in (trainer.folder.checkpoints / "step-000012").iterdir()}
    groups = {"model", "optimizer", "best", "average", "random"}
    assert files == {f"{group}.safetensors" for group in groups} | {"state.json", "manifest.json"}
    state = json.loads((trainer.folder.checkpoints / "step-000012" / "state.json").read_text())
    assert state["step"] == 12 and state["steps"] == 12


def test_a_finished_run_that_is_resumed_gives_its_best_model_again(tmp_path):
    trainer = told(tmp_path / "a", (2.0, 1.0, 3.0))
    outcome = trainer.run()
    other = make_trainer(tmp_path / "b", 7)
    other.resume(checkpoint.load(trainer.folder.checkpoints / "step-000012"))
    again = other.run()
    assert (again.steps, again.tokens, again.best_step, again.valid_loss) == (12, outcome.tokens, 8, 1.0)
    assert digest(weights(other.model)) == digest(weights(trainer.model))
