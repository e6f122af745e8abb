"""Runs that determine nothing are refused with runs that would settle it; what the report says of good ones."""

import numpy as np
import pytest
from test_fit import grid, law, noisy

from chinchilla.config.errors import DataError
from chinchilla.planning.fit import fit
from chinchilla.planning.huber import minimise
from chinchilla.planning.identify import (
    DESIGN_NOISE,
    MAX_ERROR,
    TYPICAL,
    exponent_errors,
    identify,
    require_design,
    roll_out,
    settling_runs,
    study,
)
from chinchilla.planning.runs import make_runs

THETA = np.array(TYPICAL)


def runs_of(n, d):
    n, d = np.asarray(n, float), np.asarray(d, float)
    return make_runs(n, d, law(n, d))


ILL_PLACED = {
    "one run": ([1e6], [2e7]),
    "three runs": ([1e6, 4e6, 16e6], [2e7, 8e7, 3e8]),
    "twenty tokens a parameter": (np.geomspace(1e6, 3e7, 12), 20 * np.geomspace(1e6, 3e7, 12)),
    "one size": (np.full(12, 1e6), np.geomspace(2e7, 2e9, 12)),
    "one token count": (np.geomspace(1e6, 1e8, 12), np.full(12, 2e7)),
    "two sizes": (np.repeat([1e6, 2e6], 6), np.tile(np.geomspace(2e7, 2e9, 6), 2)),
    "a narrow corner": grid(4, 4, reach=2.0),
    "a tiny one for long, a huge one for a moment": ([1e6, 1e12], [1e12, 1e6]),
}


@pytest.mark.parametrize("n,d", ILL_PLACED.values(), ids=ILL_PLACED)
def test_runs_that_determine_nothing_are_refused_and_the_runs_proposed_settle_it(n, d):
    runs = runs_of(n, d)
    with pytest.raises(DataError, match=r"do not determine a law.*would settle it: .*parameters × .*tokens"):
        require_design(runs)
    proposals = settling_runs(runs, THETA, DESIGN_NOISE)
    more_n = [proposal.num_params for proposal in proposals]
    more_d = [proposal.tokens for proposal in proposals]
    require_design(runs_of([*n, *more_n], [*d, *more_d]))
    assert not {*zip(more_n, more_d, strict=True)} & {*zip(n, d, strict=True)}


def test_proposals_are_no_dearer_than_the_dearest_run_where_that_is_enough():
    n = np.geomspace(1e6, 3e7, 8)
    proposals = settling_runs(runs_of(n, 20 * n), THETA, DESIGN_NOISE)
    assert proposals
    assert max(proposal.flops for proposal in proposals) <= 6.01 * n[-1] * 20 * n[-1]


def test_a_good_design_is_accepted():
    for sizes, counts in ((3, 3), (4, 4), (5, 5)):
        require_design(runs_of(*grid(sizes, counts)))


def test_linearised_errors_are_those_that_refits_show():
    runs = noisy(0.0, sizes=5, counts=5)
    fitted = fit(runs, bootstraps=100)
    noise = 1e-4  # so small that Huber's loss is a square, for which the linearised errors hold
    target = np.log(runs.loss) + noise * np.random.default_rng(0).standard_normal((2000, len(runs)))
    theta = minimise(np.tile(fitted.theta, (2000, 1)), fitted.points, target, np.ones((1, len(runs)))).theta
    expected = exponent_errors(fitted.points, fitted.theta, noise)
    assert theta[:, 3:].std(0) == pytest.approx(expected, rel=0.06)


def test_the_report_on_a_good_fit_has_nothing_against_it():
    found = study(noisy(0.005, seed=2, sizes=6, counts=6), bootstraps=200)
    report = found.identified
    assert report.warnings == ()
    assert report.proposals == ()
    assert report.noise == pytest.approx(0.005, rel=0.35)
    assert max(report.errors.values()) < MAX_ERROR
    for name, truth in (("alpha", 0.35), ("beta", 0.37)):
        profile = report.profiles[name]
        assert profile.bounded
        assert profile.low < truth < profile.high
        assert profile.objective.min() >= found.fitted.objective * (1 - 1e-9)
    assert len(report.roll_out) == 6  # two steps of 1.97 below the dearest corner
    assert all(abs(held.error) < 0.03 for held in report.roll_out)
    assert [best.flops / found.fitted.law.flops.high for best in found.ahead] == pytest.approx([4, 16, 64])


def test_a_far_run_that_went_wrong_is_found_as_the_most_influential():
    # Huber's loss bounds what a run among others can do; one far from all others decides alone.
    n, d = (np.append(each, far) for each, far in zip(grid(4, 4, reach=8), (2e9, 6e7), strict=True))
    loss = law(n, d) * np.exp(0.0005 * np.random.default_rng(1).standard_normal(17))
    loss[16] *= 1.05
    report = identify(fit(make_runs(n, d, loss, "runs.csv"), bootstraps=100))
    assert report.influential.what == "runs.csv, row 17"
    assert report.influential.allocation == pytest.approx(0.37 / 0.72, abs=0.03)


def test_a_law_that_breaks_among_the_dear_runs_is_told_of():
    n, d = grid(6, 6)
    loss = law(n, d) * np.where(6 * n * d > 0.25 * (6 * n * d).max(), 1.06, 1.0)
    rng = np.random.default_rng(0)
    held = roll_out(make_runs(n, d, loss * np.exp(0.003 * rng.standard_normal(len(n)))))
    assert all(run.error == pytest.approx(1 / 1.06 - 1, abs=0.02) for run in held)
    report = identify(fit(make_runs(n, d, loss), bootstraps=100))
    assert any("dearest runs came out" in warning for warning in report.warnings)


def test_no_roll_out_where_the_cheap_runs_are_too_few():
    n, d = grid(3, 3)
    assert roll_out(runs_of(n, np.full(9, 3e8) + d * 1e-3)) == ()


def test_few_runs_are_warned_of():
    warnings = study(noisy(0.002, sizes=3, counts=3), 200).identified.warnings
    assert any("fewer than 12 runs" in warning for warning in warnings)


def test_noise_that_leaves_an_exponent_open_is_told_with_runs_that_would_help():
    report = identify(fit(noisy(0.012, seed=4, sizes=4, counts=4, reach=5.0), bootstraps=200))
    assert any("is known only to a width of" in warning for warning in report.warnings)
    assert report.proposals


@pytest.mark.parametrize(("rising_with", "what"), [(0, "size"), (1, "tokens")])
def test_losses_that_do_not_fall_are_refused(rising_with, what):
    n, d = grid(4, 4)
    falls, rises = (d / d.min(), n / n.min()) if rising_with == 0 else (n / n.min(), d / d.min())
    # Less than a run may rise by noise at one size, so that reading lets it pass.
    runs = make_runs(n, d, 2 + falls**-0.4 + 0.02 * rises**0.2)
    with pytest.raises(DataError, match=f"do not fall with {what}"):
        identify(fit(runs, bootstraps=100))
