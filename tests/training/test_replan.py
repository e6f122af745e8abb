"""Plans that are made anew while a run goes: after the warm-up and before the decay, when the speed is known."""

import pytest
from training_fakes import EnoughError, Until, digest, make_trainer, weights

from chinchilla.store import checkpoint, journal
from chinchilla.training.trainer import Review


class Replanner:
    """Plans anew, and remembers being asked."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.asked: list[Review] = []

    def __call__(self, review: Review) -> int | None:
        self.asked.append(review)
        return self.steps


@pytest.mark.parametrize("steps", [10, 14, 24])
def test_the_rest_is_planned_anew(tmp_path, steps):
    replan = Replanner(steps)
    trainer = make_trainer(tmp_path, steps=16, replan=replan)
    outcome = trainer.run()
    assert outcome.steps == trainer.training.steps == steps
    first = replan.asked[0]
    assert (first.step, first.steps) == (8, 16) and 0 < first.step_time_s <= first.time_s
    events = [event for event in journal.read(trainer.folder.events) if event["kind"] == "replan"]
    assert [(event["step"], event["steps"]) for event in events] == [(8, steps)]
    last = journal.read(trainer.folder.metrics)[-1]
    assert last["step"] == steps and "valid_loss" in last
    assert (trainer.folder.checkpoints / f"step-{steps:06d}").is_dir()


def test_a_longer_plan_whose_speed_would_be_known_later_is_not_planned_again(tmp_path):
    """The speed counts as known after 8 of 160 steps, and after 9 of 180."""
    replan = Replanner(180)
    trainer = make_trainer(tmp_path, steps=160, replan=replan, monitor=Until(12), eval_every=500, checkpoint_every=500)
    with pytest.raises(EnoughError):
        trainer.run()
    assert [review.step for review in replan.asked] == [8]


def test_the_plan_meets_the_clock_again_before_the_decay_and_never_after(tmp_path):
    """The last 40 % of 40 steps decay; a plan of 60 steps decays from 36 on."""
    trainer = make_trainer(tmp_path / "a", steps=40, replan=(replan := Replanner(None)))
    trainer.run()
    assert [review.step for review in replan.asked] == [8, 24]
    assert [review.saves for review in replan.asked] == [3, 2]
    lengthened = make_trainer(tmp_path / "b", steps=40, replan=lambda review: 60 if review.step == 24 else None)
    assert lengthened.run().steps == 60
    cosine = make_trainer(tmp_path / "c", steps=40, schedule="cosine", replan=(replan := Replanner(None)))
    cosine.run()
    assert [(review.step, review.saves) for review in replan.asked] == [(8, 2)]


def test_a_new_plan_is_saved_at_once(tmp_path):
    trainer = make_trainer(tmp_path / "a", steps=16, replan=Replanner(20), checkpoint_every=500, monitor=Until(9))
    with pytest.raises(EnoughError):
        trainer.run()
    saved = checkpoint.load(trainer.folder.checkpoints / "step-000008")
    other = make_trainer(tmp_path / "b", 5, steps=16)
    other.resume(saved)
    assert other.run().steps == 20


def test_a_run_that_is_done_when_the_speed_is_known_is_not_lengthened(tmp_path):
    trainer = make_trainer(tmp_path, steps=8, replan=(replan := Replanner(20)))
    assert trainer.run().steps == 8
    assert replan.asked == []


def test_a_plan_that_was_found_to_fit_is_not_asked_about_again(tmp_path):
    """By other timings the answer could be another."""
    trainer = make_trainer(tmp_path, steps=40, replan=Replanner(None), checkpoint_every=500, monitor=Until(12))
    with pytest.raises(EnoughError):
        trainer.run()
    other = make_trainer(tmp_path, 5, steps=40, replan=(replan := Replanner(None)), checkpoint_every=500)
    other.resume(checkpoint.load(trainer.folder.checkpoints / "step-000008"))
    other.run()
    assert [review.step for review in replan.asked] == [24]


@pytest.mark.parametrize("steps", [None, 16])
def test_a_plan_that_stands_is_no_event(tmp_path, steps):
    trainer = make_trainer(tmp_path, steps=16, replan=Replanner(steps))
    assert trainer.run().steps == 16
    assert not [event for event in journal.read(trainer.folder.events) if event["kind"] == "replan"]


def test_a_new_plan_survives_a_resume(tmp_path):
    trainer = make_trainer(tmp_path / "a", steps=16, replan=Replanner(20), keep_checkpoints=9)
    trainer.run()
    saved = checkpoint.load(trainer.folder.checkpoints / "step-000012")
    again = Replanner(99)
    other = make_trainer(tmp_path / "b", 5, steps=16, replan=again)
    other.resume(saved)
    assert other.run().steps == 20
    assert again.asked == []
    assert digest(weights(other.model)) == digest(weights(trainer.model))


def test_a_resume_before_the_speed_is_known_still_plans_anew(tmp_path):
    trainer = make_trainer(tmp_path / "a", steps=16, keep_checkpoints=9)
    trainer.run()
    other = make_trainer(tmp_path / "b", 5, steps=16, replan=Replanner(11))
    other.resume(checkpoint.load(trainer.folder.checkpoints / "step-000004"))
    assert other.run().steps == 11
