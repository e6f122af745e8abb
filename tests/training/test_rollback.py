"""Losses that go wrong: back to the last good checkpoint at half the rate, the same way however often it is resumed."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from training_fakes import EnoughError, Until, digest, make_trainer, overflow_once, weights

from chinchilla.config.errors import FaultError, StoppedError
from chinchilla.store import checkpoint, journal
from chinchilla.tasks.task import Loss
from chinchilla.tasks.translate import Translate
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer
from chinchilla.training.watch import RISE, WINDOW

TIMES = {"time_s", "tokens_per_s", "peak_fraction"}


class Faulty(Translate):
    """A task whose training losses go wrong as told, by a function of the rate and of how far training is."""

    trainer: Trainer
    loss_at: Any = staticmethod(lambda step, rollbacks: 0.0)

    def loss(self, model: Any, batch: Any, objective: Any) -> Loss:
        loss = super().loss(model, batch, objective)
        if not model.training:
            return loss
        more = self.loss_at(self.trainer.progress.step + 1, self.trainer.progress.rollbacks)
        tokens = int((batch["labels"] != -100).sum())
        return Loss(loss.total + more * tokens, loss.plain + more * tokens)


def faulty(folder: Path, loss_at: Any, model_seed: int = 0, **changes: Any) -> Trainer:
    task = Faulty()
    task.loss_at = loss_at
    task.trainer = make_trainer(folder, model_seed, task=task, **changes)
    return task.trainer


def nan_at(*steps: int) -> Any:
    """The first attempt meets NaN at the first of these steps, the second at the second, and so on."""
    return lambda step, rollbacks: math.nan if rollbacks < len(steps) and step == steps[rollbacks] else 0.0


def rollbacks(trainer: Trainer) -> list[tuple[int, int, float]]:
    found = [event for event in journal.read(trainer.folder.events) if event["kind"] == "rollback"]
    return [(event["step"], event["to_step"], event["rate_scale"]) for event in found]


def lines(trainer: Trainer) -> list[dict[str, Any]]:
    found = journal.read(trainer.folder.metrics)
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def rates(trainer: Trainer) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in lines(trainer) if "loss" in line}


def test_one_nan_costs_half_the_rate_and_the_steps_since_the_checkpoint(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    trainer = faulty(tmp_path / "faulty", nan_at(7))
    outcome = trainer.run()
    assert outcome.steps == 12 and math.isfinite(outcome.valid_loss)
    assert rollbacks(trainer) == [(6, 4, 0.5)]
    (event,) = (event for event in journal.read(trainer.folder.events) if event["kind"] == "rollback")
    assert event["why"] == "the loss is nan"
    # Each step stands once in the journal, the same up to the checkpoint, at half the rate after it.
    usual, found = rates(whole), rates(trainer)
    assert [line["step"] for line in lines(trainer) if "loss" in line] == list(range(1, 13))
    assert lines(trainer)[:5] == lines(whole)[:5]
    assert all(found[step] == usual[step] * (1 if step <= 4 else 0.5) for step in usual)
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())


def test_the_rest_is_what_half_the_rate_gives_from_that_checkpoint(tmp_path):
    """Same data, same noise: the checkpoint is taken up whole."""
    rest: dict[str, Any] = {"dropout": 0.2, "accumulation": 2, "threads": 2, "ema_decay": 0.9, "keep_checkpoints": 9}
    trainer = faulty(tmp_path / "faulty", nan_at(11), **rest)
    trainer.run()
    whole = make_trainer(tmp_path / "whole", **rest)
    whole.run()
    saved = checkpoint.load(whole.folder.checkpoints / "step-000008")
    saved.state["rollbacks"] = 1
    other = make_trainer(tmp_path / "other", model_seed=4, **rest)
    other.resume(saved)
    other.run()
    assert digest(weights(other.model)) == digest(weights(trainer.model))


def test_before_the_first_checkpoint_it_is_back_to_the_start(tmp_path):
    trainer = faulty(tmp_path, nan_at(2, 4), eval_every=2)
    trainer.run()
    assert rollbacks(trainer) == [(1, 0, 0.5), (3, 0, 0.25)]
    again = make_trainer(tmp_path / "again", eval_every=2)
    again.progress.rollbacks = 2
    again.run()
    assert digest(weights(trainer.model)) == digest(weights(again.model))


def test_after_three_returns_it_is_a_fault_and_stays_one(tmp_path):
    trainer = faulty(tmp_path, lambda step, rollbacks: math.nan if step == 6 else 0.0)
    with pytest.raises(FaultError, match=r"loss is nan after 5 steps; 3 returns .* train\.learning_rate") as fault:
        trainer.run()
    assert fault.value.exit_code == 5
    assert rollbacks(trainer) == [(5, 4, 0.5), (5, 4, 0.25), (5, 4, 0.125)]
    again = faulty(tmp_path, lambda step, rollbacks: math.nan if step == 6 else 0.0, model_seed=2)
    again.resume(checkpoint.latest(again.folder.checkpoints, lambda path, why: pytest.fail(why)))
    with pytest.raises(FaultError, match="3 returns"):
        again.run()
    assert len(rollbacks(again)) == 3


def test_weights_that_overflow_are_not_saved_as_a_checkpoint_to_return_to(tmp_path):
    """The loss of step 8 is fine, its update is not, and the loss of step 9 shows it."""
    trainer = make_trainer(tmp_path, eval_every=100)
    overflow_once(trainer, 7)
    trainer.run()
    assert rollbacks(trainer) == [(8, 4, 0.5)]


RISING: dict[str, Any] = {"steps": 120, "eval_every": 30, "checkpoint_every": 10, "keep_checkpoints": 3}


def rising_at(at: int) -> Any:
    return lambda step, rollbacks: RISE + 2.0 if step >= at and rollbacks == 0 else 0.0


def test_a_loss_that_rises_for_good_goes_back_to_before_it_rose(tmp_path):
    trainer = faulty(tmp_path, rising_at(56), **RISING)
    outcome = trainer.run()
    ((step, to_step, scale),) = rollbacks(trainer)
    assert 56 + WINDOW // 2 - 1 <= step <= 56 + WINDOW
    assert (to_step, scale, outcome.steps) == (50, 0.5, 120)
    assert max(line["loss"] for line in lines(trainer) if "loss" in line) < 5
    assert outcome.valid_loss < 4.5


def test_a_spike_is_left_alone_and_its_checkpoint_waits(tmp_path):
    trainer = faulty(tmp_path, lambda step, rollbacks: 50.0 if 48 <= step < 54 else 0.0, **RISING)
    trainer.run()
    assert rollbacks(trainer) == []
    saved = [event["step"] for event in journal.read(trainer.folder.events) if event["kind"] == "checkpoint"]
    assert saved == [10, 20, 30, 40, 54, 60, 70, 80, 90, 100, 110, 120]


@pytest.mark.parametrize("loss_at", [nan_at(14, 17), rising_at(20)], ids=["nan", "rising"])
@pytest.mark.parametrize("stop", [3, 11, 12, 15, 45, 57])
def test_a_run_that_is_cut_off_and_resumed_takes_the_same_returns_and_ends_in_the_same_bits(tmp_path, loss_at, stop):
    rest: dict[str, Any] = {"steps": 60, "checkpoint_every": 6, "dropout": 0.2, "ema_decay": 0.9, "keep_checkpoints": 3}
    whole = faulty(tmp_path / "whole", loss_at, **rest)
    whole.run()
    cut = faulty(tmp_path / "cut", loss_at, **rest, monitor=Until(stop))
    with pytest.raises(EnoughError):
        cut.run()
    cut.saver.settle()
    other = faulty(tmp_path / "cut", loss_at, model_seed=8, **rest)
    saved = checkpoint.latest(other.folder.checkpoints, lambda path, why: pytest.fail(why))
    if saved is None:
        other = faulty(tmp_path / "cut", loss_at, **rest)
    else:
        other.resume(saved)
    other.folder.cut_metrics(saved.step if saved else 0)
    other.run()
    assert digest(weights(other.model)) == digest(weights(whole.model))
    assert lines(other) == lines(whole)
    assert rollbacks(whole) == [
        each for index, each in enumerate(rollbacks(other)) if each not in rollbacks(other)[:index]
    ]


def stopped_and_resumed(folder: Path, stops: tuple[int, ...], loss_at: Any, **changes: Any) -> Trainer:
    """A run that is asked to stop after these steps, and each time goes on as `chinchilla train --resume` does."""
    for stop in (*stops, None):
        trainer = faulty(folder, loss_at, **changes)
        saved = checkpoint.latest(trainer.folder.checkpoints, lambda path, why: pytest.fail(why))
        if saved is not None:
            trainer.resume(saved)
            trainer.folder.cut_metrics(saved.step)
        trainer.should_stop = lambda trainer=trainer, stop=stop: trainer.progress.step == stop
        if stop is None:
            trainer.run()
        else:
            with pytest.raises(StoppedError):
                trainer.run()
    return trainer


@pytest.mark.parametrize(
    ("stops", "nan", "to_step"),
    [((3,), 7, 0), ((3, 5), 7, 0), ((10, 12), 15, 8), ((3, 10), 12, 8), ((9, 10, 11, 12), 20, 16)],
)
def test_stops_change_nothing_about_where_a_run_returns_to(tmp_path, stops, nan, to_step):
    rest: dict[str, Any] = {"steps": 20, "checkpoint_every": 8, "keep_checkpoints": 2, "dropout": 0.2, "ema_decay": 0.9}
    whole = faulty(tmp_path / "whole", nan_at(nan), **rest)
    whole.run()
    other = stopped_and_resumed(tmp_path / "other", stops, nan_at(nan), **rest)
    assert rollbacks(other) == rollbacks(whole) == [(nan - 1, to_step, 0.5)]
    assert digest(weights(other.model)) == digest(weights(whole.model))
    assert lines(other) == lines(whole)
    names = [sorted(path.name for path in each.folder.checkpoints.iterdir()) for each in (whole, other)]
    assert names[0] == names[1]


def test_a_plan_made_anew_on_weights_that_overflowed_is_not_returned_to(tmp_path):
    """It is saved at once all the same, and the state says that all was not well."""
    trainer = make_trainer(tmp_path, eval_every=100, replan=lambda review: 14)
    overflow_once(trainer, 7)
    assert trainer.run().steps == 14
    assert rollbacks(trainer) == [(8, 4, 0.5)]


@pytest.mark.parametrize(("nan", "asked", "steps"), [(15, [8, 13, 24], 40), (31, [8, 24, 29], 34)])
def test_the_plan_meets_the_clock_again_after_a_return(tmp_path, nan, asked, steps):
    """Also where the decay has begun: what was done in vain has cost time."""
    seen: list[int] = []

    def replan(review: Any) -> int | None:
        seen.append(review.step)
        return 34 if review.step == 29 else None

    trainer = faulty(tmp_path, nan_at(nan), steps=40, replan=replan)
    assert trainer.run().steps == steps
    assert seen == asked


def test_a_return_while_the_disk_is_full_is_survived(tmp_path, monkeypatch):
    usual = faulty(tmp_path / "usual", nan_at(7))
    usual.run()

    def full(*args: Any) -> None:
        raise checkpoint.DiskFullError("No space left on device")

    class Filling(Silent):
        def step(self, step: int, *rest: float) -> None:
            if step == 6:
                trainer.saver.wait()  # the save of step 4 is to be there
                monkeypatch.setattr(journal, "append", full)
                monkeypatch.setattr(journal, "cut", full)
                monkeypatch.setattr("chinchilla.training.saver.checkpoint.save", full)
            elif step == 10:
                monkeypatch.undo()

    trainer = faulty(tmp_path / "full", nan_at(7), monitor=Filling())
    trainer.run()
    assert rollbacks(trainer) == rollbacks(usual) == [(6, 4, 0.5)]
    assert digest(weights(trainer.model)) == digest(weights(usual.model))
    assert lines(trainer) == lines(usual)


def test_checkpoints_that_are_gone_when_they_are_needed_are_told_with_the_mend(tmp_path):
    class Losing(Silent):
        def step(self, step: int, *rest: float) -> None:
            if step == 6:
                trainer.saver.settle()  # or what is being written would fail, before anything is needed
                shutil.rmtree(tmp_path / "checkpoints")

    trainer = faulty(tmp_path, nan_at(7), monitor=Losing())
    with pytest.raises(FaultError, match=r"checkpoints of this run are gone.*; restore one from a copy, or train anew"):
        trainer.run()
