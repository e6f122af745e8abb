"""The pace of all probes together."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.planning.pace import LEAST_SPREAD, UNKNOWN_SPREAD, Window, pace, spread

WINDOWS = st.lists(
    st.builds(Window, st.integers(1, 100), st.floats(0.1, 100), st.floats(0.01, 10)), min_size=1, max_size=9
)


def test_an_even_machine_has_one_pace_whatever_the_shapes():
    windows = [Window(steps, 1.3 * steps * roofline_s, roofline_s) for steps, roofline_s in ((3, 0.1), (20, 0.7))]
    assert pace(windows) == pytest.approx(1.3)
    assert spread(windows) == LEAST_SPREAD


def test_a_window_weighs_as_the_work_done_in_it():
    """One second of work at pace 3, nine at pace 1: as one run over both would be timed."""
    assert pace([Window(1, 3.0, 1.0), Window(9, 9.0, 1.0)]) == pytest.approx(1.2)


def test_the_spread_holds_eight_of_ten_windows():
    windows = [Window(1, time_s, 1.0) for time_s in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert spread(windows) == pytest.approx(math.sqrt(2.5) / 3 * NormalDist().inv_cdf(0.9))
    many = [Window(1, time_s, 1.0) for time_s in NormalDist(10, 1).samples(2000, seed=0)]
    middle, width = pace(many), spread(many)
    assert sum(abs(window.pace / middle - 1) <= width for window in many) / len(many) == pytest.approx(0.8, abs=0.03)


def test_one_window_tells_no_spread():
    assert spread([Window(4, 1.0, 1.0)]) == UNKNOWN_SPREAD


@given(WINDOWS)
def test_it_lies_among_its_windows(windows):
    paces = [window.pace for window in windows]
    assert min(paces) * (1 - 1e-9) <= pace(windows) <= max(paces) * (1 + 1e-9)
