"""When a loss counts as gone wrong: a lasting rise, and not the noise and spikes that every run has."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.training.watch import RISE, WINDOW, DivergedError, Watch, require_finite

START = math.log(8000)


def falling(steps: int, noise: float, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    return [1.5 + 7 * (1 + step) ** -0.4 + noise * random.standard_normal() for step in range(steps)]


def first_alarm(losses: list[float], start: float = START) -> int | None:
    watch = Watch(start)
    for step, loss in enumerate(losses):
        try:
            watch.see(loss)
        except DivergedError:
            return step
    return None


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_a_loss_that_falls_is_no_alarm(noise):
    assert first_alarm(falling(3000, noise)) is None


@given(st.integers(0, 99), st.integers(1, WINDOW // 2 - 1), st.floats(0, 1e6))
def test_a_spike_shorter_than_half_the_window_is_no_alarm(seed, length, height):
    losses = falling(200, 0.1, seed)
    losses[100 : 100 + length] = [loss + height for loss in losses[100 : 100 + length]]
    assert first_alarm(losses) is None


@given(st.integers(0, 99), st.integers(100, 150), st.floats(1.5, 50))
def test_a_lasting_rise_is_found_within_the_window(seed, at, height):
    losses = falling(300, 0.05, seed)
    losses[at:] = [losses[at - 1] + height] * (300 - at)
    found = first_alarm(losses)
    assert found is not None and at < found <= at + WINDOW


def test_a_loss_that_rises_from_the_first_step_is_found():
    """Then no median before was better: log(vocab_size) is what knowing nothing costs."""
    assert first_alarm([START + 0.1 * step for step in range(100)]) is not None
    assert first_alarm([START + 0.5] * 500) is None


def test_it_goes_on_where_its_state_was_taken():
    losses = [*falling(60, 0.2), *([9.0] * 60)]
    whole, cut = Watch(START), Watch(START)
    for loss in losses[:70]:
        whole.see(loss)
    cut.load(json.loads(json.dumps(whole.to_state())))
    assert (cut.best, cut.losses, cut.calm) == (whole.best, whole.losses, whole.calm)
    cut.load({})
    assert not cut.losses and cut.best == whole.best


def test_calm_is_about_the_last_step():
    watch = Watch(2.0)
    assert watch.calm
    watch.see(2.0 + RISE + 0.1)
    assert not watch.calm
    watch.see(2.0)
    assert watch.calm


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_named(value):
    with pytest.raises(DivergedError, match=rf"the gradient is {value}; train anew with a lower train\.learning_rate"):
        require_finite(value, "gradient")
    require_finite(1e300, "gradient")


def test_where_the_start_is_not_known_the_first_window_is_the_measure():
    watch = Watch(math.inf)
    assert json.loads(json.dumps(watch.to_state(), allow_nan=False))["best_median"] is None
    for _ in range(WINDOW):
        watch.see(100.0)
    again = Watch(math.inf)
    again.load(watch.to_state())
    with pytest.raises(DivergedError, match=r"the loss rose to 10\d, from 100"):
        for _ in range(WINDOW):
            again.see(100.0 + 2 * RISE)
    # Back at the start no window was seen, whatever was reached before: the first one is the measure again.
    again.load(Watch(math.inf).to_state())
    for _ in range(WINDOW):
        again.see(100.0 + 2 * RISE)
