"""The interval between checkpoints: Young and Daly's, within bounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.planning.interval import LEAST_CHECKPOINTS, MTBF_S, checkpoint_interval

SECONDS = st.floats(1e-3, 1e6)
SHARES = st.floats(0.001, 0.2)


def test_a_long_run_saves_at_youngs_interval():
    found = checkpoint_interval(1.0, 24 * 3600, 0.02)
    assert found.time_s == pytest.approx(math.sqrt(2 * 1.0 * MTBF_S))
    assert "√(2" in found.reason and "guess" in found.reason


def test_no_interval_near_it_loses_less():
    """What is lost a second: the cost once an interval, and half an interval at each failure."""

    def lost(interval_s: float) -> float:
        return 5.0 / interval_s + interval_s / 2 / MTBF_S

    best_s = checkpoint_interval(5.0, 1e7, 0.02).time_s
    assert all(lost(best_s) < lost(factor * best_s) for factor in (0.5, 0.9, 1.1, 2))


def test_a_short_run_has_ten():
    found = checkpoint_interval(0.1, 300, 0.02)
    assert found.time_s == 30 and "10 in a short run" in found.reason


def test_a_dear_checkpoint_is_rare():
    found = checkpoint_interval(200.0, 24 * 3600, 0.02)
    assert found.time_s == 10_000 and "2% of the time" in found.reason


@given(SECONDS, SECONDS, SHARES)
def test_the_bounds_hold(cost_s, run_s, share):
    time_s = checkpoint_interval(cost_s, run_s, share).time_s
    assert cost_s <= share * time_s * (1 + 1e-9)
    assert time_s <= max(cost_s / share, run_s / LEAST_CHECKPOINTS)
    assert time_s <= max(cost_s / share, math.sqrt(2 * cost_s * MTBF_S))
