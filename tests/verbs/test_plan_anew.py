"""When a run under way plans its remaining steps anew: never to take longer than its budget."""

from types import SimpleNamespace

import pytest

from chinchilla.config.estimate import Estimate
from chinchilla.training.progress import Review
from chinchilla.verbs.train import _replanner

_PREDICTED = {"train_time_s": 100.0, "step_time_s": 1.0}


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


def replanned(step_time_s, most_steps):
    predicted = {name: Estimate.around(value, 0.1, "s", "measured") for name, value in _PREDICTED.items()}
    training = SimpleNamespace(steps=100)
    made = SimpleNamespace(
        predicted=predicted, corrections={}, training=training, planning_time_s=9.0, most_steps=most_steps
    )
    replan = _replanner(made, budget_time_s=110.0)
    return replan(Review(step=50, steps=100, step_time_s=step_time_s, time_s=50.0))
