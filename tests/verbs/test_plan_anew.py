"""When a run under way plans its remaining steps anew: never to take longer than its budget."""

from types import SimpleNamespace

import pytest

from chinchilla.config.frozen import Frozen
from chinchilla.config.plan import Pauses
from chinchilla.training.progress import Review
from chinchilla.verbs.train import _replanner

_NONE = Pauses()


class _Training(Frozen):
    """What a review looks at."""

    steps: int
    eval_every: int
    checkpoint_every: int


@pytest.mark.parametrize(
    ("step_time_s", "steps"),
    [
        (1.0, None),  # 50 of 51 seconds
        (0.93, None),  # 46.5, nine tenths of what is left
        (0.9, 106),  # more than a tenth would be left over
        (1.03, 99),  # half a second too long
        (2.0, 75),
        (60.0, 51),  # one more, so that the run can end
    ],
)
def test_a_plan_that_would_exceed_its_budget_or_leave_a_tenth_of_it_is_made_anew(step_time_s, steps):
    assert replanned(step_time_s, None) == steps


@pytest.mark.parametrize(("step_time_s", "steps"), [(0.1, 100), (0.9, 100), (1.03, 99)])
def test_steps_that_are_enough_for_the_data_stay_where_there_is_time_for_more(step_time_s, steps):
    assert replanned(step_time_s, 100) == steps


def test_what_is_still_to_be_written_and_validated_is_left_its_time():
    """31.5 s of 51 are left for steps of one: two checkpoints that are waited for, and a validation at the end."""
    assert replanned(1.0, None, Pauses(eval_s=4.0, checkpoint_s=7.75), saves=2) == 81


def test_the_pauses_at_intervals_count():
    """Of 51 s the end takes two, and each step one and a twenty-fifth of two: 45 fit."""
    assert replanned(1.0, None, Pauses(eval_s=1.0, checkpoint_s=1.0), every=25) == 95


def replanned(step_time_s, most_steps, pauses=_NONE, saves=1, every=10**6):
    training = _Training(steps=100, eval_every=every, checkpoint_every=every)
    made = SimpleNamespace(training=training, pauses=pauses, planning_time_s=9.0, most_steps=most_steps)
    replan = _replanner(made, budget_time_s=110.0)
    return replan(Review(step=50, steps=100, step_time_s=step_time_s, time_s=50.0, saves=saves))
