"""The laws against their sources: published figures, the points they were fitted on, and a numeric minimum."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from chinchilla.config.errors import BudgetError
from chinchilla.planning.laws import (
    BESIROGLU,
    EPOCH_GRID,
    HOFFMANN,
    LAWS,
    REPEAT_HALF_LIFE,
    ChinchillaLaw,
    bits_per_byte,
    effective_tokens,
    law_loss,
    repeated_optimum,
)

POINTS = Path(__file__).parents[3] / "shared" / "data" / "epoch" / "svg_extracted_data.csv"
CHINCHILLA_FLOPS = 5.88e23

budgets = st.floats(17, 26).map(lambda exponent: 10.0**exponent)
laws = st.sampled_from(list(LAWS.values()))


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Parameters, FLOPs and loss of the 240 fitted runs."""
    if not POINTS.exists():
        pytest.skip("the public run data (../shared/data/epoch) is not on this machine")
    with POINTS.open() as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"])) for r in csv.DictReader(file)]
    return np.array(sorted(rows, key=lambda row: row[2])[:-5])


@pytest.mark.parametrize(
    ("law", "tokens_per_param"), [(EPOCH_GRID, 17.9), (HOFFMANN, 59.0), (BESIROGLU, 18.25)], ids=lambda x: str(x)[:12]
)
def test_tokens_a_parameter_at_the_budget_of_chinchilla(law: ChinchillaLaw, tokens_per_param: float) -> None:
    num_params, tokens = law.optimum(CHINCHILLA_FLOPS)
    assert tokens / num_params == pytest.approx(tokens_per_param, rel=0.003)
    assert 6 * num_params * tokens == pytest.approx(CHINCHILLA_FLOPS)


def test_hoffmanns_constants_give_the_papers_projection_for_67_billion_parameters() -> None:
    # Table A3, approach 3: 67B at 1.71e24 FLOPs with 4.1T tokens; the TeX constants give 1.75e24 and 4.35T.
    num_params, tokens = HOFFMANN.optimum(1.75e24)
    assert num_params == pytest.approx(67e9, rel=0.01)
    assert tokens == pytest.approx(4.35e12, rel=0.01)


@given(laws, budgets)
def test_the_optimum_is_the_least_loss_of_the_budget(law: ChinchillaLaw, flops: float) -> None:
    def loss(log_params: float) -> float:
        num_params = math.exp(log_params)
        return law.loss(num_params, flops / 6 / num_params)

    found = minimize_scalar(loss, bounds=(math.log(1e4), math.log(1e14)), method="bounded", options={"xatol": 1e-9})
    num_params, tokens = law.optimum(flops)
    assert num_params == pytest.approx(math.exp(found.x), rel=1e-3)
    assert law.loss(num_params, tokens) == pytest.approx(found.fun, rel=1e-9)


@pytest.mark.parametrize(("law", "median"), [(EPOCH_GRID, 0.0033), (BESIROGLU, 0.0032), (HOFFMANN, 0.0035)])
def test_median_residual_on_the_traced_points(law: ChinchillaLaw, median: float, points: np.ndarray) -> None:
    residuals = [abs(math.log(law.loss(n, c / 6 / n) / loss)) for n, c, loss in points]
    assert np.median(residuals) == pytest.approx(median, abs=0.0001)


def test_the_ranges_are_those_of_the_traced_points(points: np.ndarray) -> None:
    num_params, flops = points[:, 0], points[:, 1]
    tokens = flops / 6 / num_params
    for span, values in ((BESIROGLU.params, num_params), (BESIROGLU.flops, flops), (BESIROGLU.tokens, tokens)):
        assert span.holds(values.min())
        assert span.holds(values.max())
        assert span.low > 0.97 * values.min()
        assert span.high < 1.03 * values.max()


def test_a_run_outside_the_range_is_known() -> None:
    assert BESIROGLU.covers(1e20, 1e9, 1e20 / 6e9)
    assert not BESIROGLU.covers(1e14, 5e6, 3e6)
    assert not BESIROGLU.covers(1e24, 1e11, 1.7e12)


def test_far_below_its_range_the_law_promises_worse_than_chance() -> None:
    # Ten minutes of a CPU: why the plan comes from probe runs there.
    num_params, tokens = BESIROGLU.optimum(1e14)
    assert num_params < 1.5e6
    assert BESIROGLU.loss(num_params, tokens) > 0.95 * math.log(32_000)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_an_absurd_budget_is_refused(flops: float) -> None:
    with pytest.raises(BudgetError, match=r"budget\.flops"):
        BESIROGLU.optimum(flops)


def test_every_constant_has_a_source() -> None:
    for law in LAWS.values():
        for constant in (law.irreducible, law.param_scale, law.token_scale, law.param_exponent, law.token_exponent):
            assert "20" in constant.source


def test_repeats_up_to_four_epochs_are_nearly_as_good_as_fresh() -> None:
    # Muennighoff 2023's reading of its own constant.
    assert effective_tokens(1e9, 4e9) > 0.9 * 4e9
    assert effective_tokens(1e9, 40e9) < 0.45 * 40e9


@given(st.floats(1e3, 1e12), st.floats(0.1, 1e3))
def test_effective_tokens_grow_but_never_past_what_was_seen(unique: float, epochs: float) -> None:
    worth = effective_tokens(unique, epochs * unique)
    assert worth <= epochs * unique * (1 + 1e-12)
    assert worth <= unique * (1 + REPEAT_HALF_LIFE.value) * (1 + 1e-12)
    assert worth <= effective_tokens(unique, 1.5 * epochs * unique)


def test_effective_tokens_by_the_formula_with_a_round_half_life() -> None:
    # U = 100, seen = 300: R = 2, so 100 + 100·10·(1 - e^-0.2).
    assert effective_tokens(100, 300, half_life=10) == pytest.approx(100 + 1000 * (1 - math.exp(-0.2)))


@given(laws, budgets, st.floats(-3, 2).map(lambda exponent: 10.0**exponent))
def test_the_repeated_optimum_is_the_least_loss_of_budget_and_data(
    law: ChinchillaLaw, flops: float, share: float
) -> None:
    unique = share * law.optimum(flops)[1]

    def loss(log_tokens: float) -> float:
        tokens = math.exp(log_tokens)
        return law.loss(flops / 6 / tokens, effective_tokens(unique, tokens))

    num_params, tokens = repeated_optimum(law, flops, unique)
    fresh = law.optimum(flops)[1]
    bounds = (math.log(min(unique, fresh)) - 3, math.log(fresh) + 3)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert loss(math.log(tokens)) == pytest.approx(found.fun, rel=1e-6)
    assert 6 * num_params * tokens == pytest.approx(flops)


def test_a_loss_from_a_law_is_marked_as_a_guess() -> None:
    estimate = law_loss(BESIROGLU, 1e9, 1e11, 1e10)
    assert estimate.source == "guess"
    assert estimate.p50 == BESIROGLU.loss(1e9, effective_tokens(1e10, 1e11))
    assert estimate.p10 < estimate.p50 < estimate.p90


def test_bits_per_byte_of_a_uniform_guess_over_bytes() -> None:
    assert bits_per_byte(math.log(256), tokens=10, num_bytes=10) == pytest.approx(8)
    assert bits_per_byte(math.log(2), tokens=5, num_bytes=20) == pytest.approx(0.25)
