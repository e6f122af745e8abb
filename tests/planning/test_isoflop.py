"""Approaches 1 and 2 on laws whose optimum is known, and what they refuse."""

import numpy as np
import pytest
from test_fit import law

from chinchilla.config.errors import BudgetError, DataError
from chinchilla.planning.fit import fit
from chinchilla.planning.isoflop import envelope, isoflop
from chinchilla.planning.runs import make_runs

BUDGETS = np.geomspace(1e15, 1e18, 7)


def valleys(alpha, beta, noise=0.0, reach=4.0, sizes=9, off=1.0, seed=0):
    """Levels of equal compute over a factor `reach` either side of `off` times the optimum; and the optimum's a."""
    a, b = 0.8 * np.exp(alpha * np.log(3e6)), 0.8 * np.exp(beta * np.log(3e8))
    best = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (BUDGETS / 6) ** (beta / (alpha + beta))
    n = (off * best[:, None] * np.geomspace(1 / reach, reach, sizes)).ravel()
    d = np.repeat(BUDGETS, sizes) / 6 / n
    rng = np.random.default_rng(seed)
    loss = law(n, d, 1.7, a, b, alpha, beta) * np.exp(noise * rng.standard_normal(len(n)))
    return make_runs(n, d, loss), beta / (alpha + beta), best


@pytest.mark.parametrize(("alpha", "beta"), [(0.35, 0.35), (0.3, 0.4), (0.45, 0.3)])
def test_parabolas_find_the_growth_of_a_known_law(alpha, beta):
    runs, exponent, best = valleys(alpha, beta)
    found = isoflop(runs, bootstraps=200)
    assert len(found.optima) == len(BUDGETS)
    assert found.a == pytest.approx(exponent, abs=0.002)
    assert found.a + found.b == pytest.approx(1, abs=0.002)
    # With unequal exponents a valley is lopsided, and the parabola's lowest point is off by some per cent.
    assert [each.num_params for each in found.optima] == pytest.approx(best, rel=0.01 if alpha == beta else 0.12)
    num_params, tokens = found.optimum(1e19)
    assert 6 * num_params * tokens == pytest.approx(1e19, rel=0.02)


@pytest.mark.parametrize(("alpha", "beta", "shift"), [(0.3, 0.45, 0.81), (0.45, 0.3, 1.24), (0.35, 0.35, 1.0)])
def test_wide_grids_bias_the_parabolas_of_unequal_exponents_and_not_approach_3(alpha, beta, shift):
    runs, exponent, best = valleys(alpha, beta, reach=30)
    shifts = [each.num_params for each in isoflop(runs, bootstraps=100).optima] / best
    assert shifts == pytest.approx(np.full(len(best), shift), abs=0.01)
    assert fit(runs, bootstraps=100).allocation == pytest.approx(exponent, abs=1e-4)


def test_the_interval_of_the_parabolas_covers():
    inside = 0
    for seed in range(20):
        runs, exponent, _ = valleys(0.35, 0.35, noise=0.003, seed=seed)
        found = isoflop(runs, bootstraps=200, seed=seed).intervals["a"]
        inside += found.low <= exponent <= found.high
    assert inside >= 16  # 19 are expected


def test_the_envelope_finds_the_growth_of_a_known_law():
    runs, exponent, _ = valleys(0.3, 0.4, sizes=41, reach=6)
    found = envelope(runs, bootstraps=100)
    assert found.a == pytest.approx(exponent, abs=0.002)
    assert len(found.optima) == len(BUDGETS)
    assert found.intervals["a"].low < exponent < found.intervals["a"].high
    flops = [each.flops for each in found.optima]
    losses = [each.loss for each in found.optima]
    assert flops == sorted(flops)
    assert losses == sorted(losses, reverse=True)


def test_a_run_beaten_by_a_cheaper_one_is_not_on_the_envelope():
    n, loss = np.geomspace(1e6, 1e8, 8), np.linspace(5, 3, 8)
    loss[4] = 4.6
    assert len(envelope(make_runs(n, 20 * n, loss), bootstraps=100).optima) == 7


def test_levels_that_do_not_do_are_named_with_what_they_lack():
    runs, _, _ = valleys(0.35, 0.35, off=20, reach=3)
    with pytest.raises(DataError, match=r"there are 0 \(.*1\.00e\+15 FLOPs: its best lies below the smallest"):
        isoflop(runs)
    runs, _, _ = valleys(0.35, 0.35, sizes=4)
    with pytest.raises(DataError, match=r"1\.00e\+15 FLOPs: 4 sizes"):
        isoflop(runs)
    n = np.geomspace(1e6, 1e8, 8)
    with pytest.raises(DataError, match="no two runs of one compute"):
        isoflop(make_runs(n, 20 * n, np.linspace(5, 3, 8)))


def test_too_short_an_envelope_and_an_absurd_budget_are_refused():
    with pytest.raises(DataError, match="approach 1 needs 5 runs"):
        envelope(make_runs(np.array([1e6, 2e6]), np.array([2e7, 4e7]), np.array([4.0, 3.0])))
    with pytest.raises(DataError, match=r"at least 3 sizes \(found: 2\)"):
        envelope(make_runs(np.repeat([1e6, 2e6], 4), np.geomspace(1e7, 1e9, 8), np.linspace(5, 3, 8)))
    found = isoflop(valleys(0.35, 0.35)[0], bootstraps=100)
    for flops in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(BudgetError, match="buys nothing"):
            found.optimum(flops)
