"""What validations and checkpoints take from a run, and the steps that are left."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.errors import BudgetError
from chinchilla.config.plan import Pauses
from chinchilla.planning.pauses import fitting_steps, num_steps, paused_time, steps_between


@given(
    st.floats(10, 1e5), st.floats(1e-3, 5), st.floats(0, 3), st.integers(1, 500), st.floats(0, 3), st.integers(1, 500),
    st.integers(1, 3),
)  # fmt: skip
def test_steps_fill_the_time_but_no_more(
    time_s: float, step_s: float, eval_s: float, eval_every: int, checkpoint_s: float, checkpoint_every: int, saves: int
) -> None:
    def spent(steps: int) -> float:
        evals, checkpoints = steps // eval_every + 1, steps // checkpoint_every + saves
        return steps * step_s + evals * eval_s + checkpoints * checkpoint_s

    pauses = Pauses(eval_s=eval_s, checkpoint_s=checkpoint_s)
    if time_s < step_s + 2 * eval_s + (1 + saves) * checkpoint_s:
        return
    every = {"eval_every": eval_every, "checkpoint_every": checkpoint_every}
    steps = fitting_steps(time_s, step_s, pauses, **every, saves=saves)
    assert num_steps(time_s, step_s, pauses, **every) >= steps
    assert spent(steps) <= time_s * (1 + 1e-9)
    assert time_s - spent(steps) <= step_s + 2 * eval_s + (1 + saves) * checkpoint_s + 1e-6 * time_s


def test_no_time_for_a_step_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"one step .* takes 3 s.*raise the budget"):
        num_steps(2.5, 1.0, Pauses(eval_s=2.0))
    with pytest.raises(BudgetError, match="0 s left"):
        num_steps(-4, 1.0)


@given(st.floats(0, 100), st.floats(1e-3, 10), st.floats(0.001, 0.5))
def test_an_interval_keeps_an_event_within_its_share(cost_s: float, step_s: float, share: float) -> None:
    steps = steps_between(cost_s, step_s, share)
    assert cost_s <= share * (cost_s + steps * step_s) * (1 + 1e-9)
    assert steps == 1 or cost_s > share * (cost_s + (steps - 1) * step_s) * (1 - 1e-9)


def test_no_cost_allows_every_step() -> None:
    assert steps_between(0.0, 1.0, 0.05) == 1
    assert math.isclose(steps_between(1.0, 1.0, 0.05), 19)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 3), st.data())
def test_the_pauses_are_those_that_a_run_makes(
    steps: int, eval_every: int, checkpoint_every: int, saves: int, data: st.DataObject
) -> None:
    """As the trainer does after each step, and after the one that is under review: first the review, whose checkpoint
    is among the saves, then the validation. A factor of 1,000 tells the two kinds apart."""
    after = data.draw(st.integers(0, steps - 1))
    training = SimpleNamespace(steps=steps, eval_every=eval_every, checkpoint_every=checkpoint_every)
    evals, checkpoints = int(after > 0 and after % eval_every == 0), saves - 1
    for step in range(after + 1, steps + 1):
        evals += step == steps or step % eval_every == 0
        checkpoints += step == steps or step % checkpoint_every == 0
    costs = Pauses(eval_s=1.0, checkpoint_s=1000.0)
    paused_s = paused_time(training, costs, saves, after)  # type: ignore[arg-type]  # what it looks at of a training
    assert paused_s == evals + 1000 * checkpoints
