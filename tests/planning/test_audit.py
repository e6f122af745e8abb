"""Bias, coverage and recalibration: against scipy, on ledgers made up with known faults, and through files."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from chinchilla.config.correction import Correction
from chinchilla.config.errors import FaultError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.planning import audit
from chinchilla.planning.audit import LEVELS, Outcome

MACHINE = Machine(
    name="made up",
    device="cpu",
    threads=2,
    memory_bytes=2**33,
    torch_version="2",
    measured_at="2026-01-01T00:00:00+00:00",
    noise=0.1,
    matmul=(MatmulRate(m=1, k=1, n=1, precision="fp32", flops_per_s=1e9),),
    bytes_per_s=1e10,
    op_overhead_s=1e-6,
    has_compiler=False,
)
TENTH = norm.ppf(0.9)


def draw(rng, runs, bias=0.0, scale=1.0, spread=0.2, name="loss"):
    """Outcomes whose errors are normal in logarithms: `scale` times as wide as predicted, around `bias`."""
    found = []
    for _ in range(runs):
        p50, width = math.exp(rng.gauss(0, 2)), math.log1p(spread * rng.uniform(0.5, 2))
        predicted = Estimate(
            p10=p50 * math.exp(-width), p50=p50, p90=p50 * math.exp(width), unit="nats/token", source="guess"
        )
        measured = p50 * math.exp(bias + scale * width / TENTH * rng.gauss(0, 1))
        found.append(Outcome(name, predicted, measured))
    return found


def corrected(outcomes, correction):
    return [Outcome(one.name, correction.apply(one.predicted), one.measured) for one in outcomes]


def coverage(outcomes):
    return sum(one.inside for one in outcomes) / len(outcomes)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilsons_interval_is_scipys(hits_of, confidence):
    hits, trials = hits_of
    theirs = binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    assert audit.wilson(hits, trials, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_nothing_is_known_of_no_runs():
    assert audit.wilson(0, 0) == (0.0, 1.0)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(-1, 1), st.floats(0.2, 3))
def test_the_bias_of_made_up_ledgers_is_recovered(seed, bias, scale):
    outcomes = draw(random.Random(seed), 400, bias, scale)
    (score,) = audit.scores(outcomes)
    # A median of 400 errors, whose standard deviation is at most scale · log(1.4) / 1.28.
    assert score.bias == pytest.approx(bias, abs=5 * 1.25 * scale * math.log(1.4) / TENTH / 20)
    assert score.num_runs == 400


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_honest_predictions_have_a_straight_calibration_curve(seed):
    (score,) = audit.scores(draw(random.Random(seed), 1000))
    assert score.curve == pytest.approx(LEVELS, abs=5 * 0.5 / math.sqrt(1000))


def test_the_curve_agrees_with_the_quantiles_that_were_told():
    outcomes = draw(random.Random(3), 500, bias=0.1, scale=1.7)
    (score,) = audit.scores(outcomes)
    for level, quantile in ((0.1, "p10"), (0.5, "p50"), (0.9, "p90")):
        below = sum(one.measured <= getattr(one.predicted, quantile) for one in outcomes) / len(outcomes)
        assert score.curve[LEVELS.index(level)] == pytest.approx(below)
    assert score.coverage == coverage(outcomes)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-0.7, 0.7), st.floats(0.3, 3))
def test_recalibrated_predictions_cover_80_per_cent_of_new_draws(seed, bias, scale):
    rng = random.Random(seed)
    learnt = audit.correction(draw(rng, 400, bias, scale))
    after = coverage(corrected(draw(rng, 1500, bias, scale), learnt))
    # The order statistic that sets the width has a standard error of 2 points, the new draws one of 1.
    assert after == pytest.approx(0.8, abs=0.1)


def test_recalibrated_predictions_cover_80_per_cent_on_average_over_many_small_ledgers():
    rng = random.Random(0)
    for runs, scale in ((20, 1.0), (60, 1.0), (60, 2.0), (60, 0.5)):
        covered = []
        for _ in range(60):
            bias = rng.gauss(0, 0.1)
            learnt = audit.correction(draw(rng, runs, bias, scale))
            covered.append(coverage(corrected(draw(rng, 50, bias, scale), learnt)))
        assert np.mean(covered) == pytest.approx(0.8, abs=0.04), (runs, scale)


def test_few_runs_correct_little_and_many_correct_all():
    wrong = Estimate.around(1.0, 0.2, "s", "measured")
    outcome = Outcome("step_time_s", wrong, 2.0)
    factors = [audit.correction([outcome] * runs).factor for runs in (1, 6, 60, 6000)]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(2 ** (1 / 7))
    assert factors[1] == pytest.approx(math.sqrt(2))
    assert factors[-1] == pytest.approx(2, rel=1e-2)


def test_a_lucky_run_or_three_narrow_nothing():
    exact = Outcome("step_time_s", Estimate.around(1.0, 0.2, "s", "measured"), 1.0)
    assert [audit.correction([exact] * runs).widening for runs in (1, 3)] == [1, 1]
    assert audit.correction([exact] * 20).widening < 1


def test_honest_predictions_are_hardly_changed():
    learnt = audit.correction(draw(random.Random(1), 2000))
    assert learnt.factor == pytest.approx(1, abs=0.02)
    assert learnt.widening == pytest.approx(1, abs=0.06)


positive = st.floats(1e-3, 1e3)


@given(positive, st.floats(0, 2), st.floats(0, 2), st.floats(0.1, 10), st.floats(0.05, 20))
def test_a_correction_comes_off_as_it_was_put_on(p50, down, up, factor, widening):
    raw = Estimate(p10=p50 * math.exp(-down), p50=p50, p90=p50 * math.exp(up), unit="s", source="measured")
    correction = Correction(factor=factor, widening=widening)
    told = correction.apply(raw)
    assert told.p10 <= told.p50 <= told.p90
    assert math.log(told.p90 / told.p50) == pytest.approx(widening * math.log(raw.p90 / raw.p50), abs=1e-9)
    back = correction.undo(told)
    assert (back.p10, back.p50, back.p90) == pytest.approx((raw.p10, raw.p50, raw.p90), rel=1e-9)


@given(positive, positive)
def test_twice_and_half_are_as_far_off(p50, ratio):
    assume(ratio != 1)
    predicted = Estimate.around(p50, 0.2, "s", "measured")
    over, under = Outcome("s", predicted, p50 * ratio), Outcome("s", predicted, p50 / ratio)
    assert over.error == pytest.approx(-under.error, abs=1e-12)
    assert over.distance(0) == pytest.approx(-under.distance(0), rel=1e-6)
    assert over.chance == pytest.approx(1 - under.chance, abs=1e-9)


def test_an_interval_without_width_is_scored():
    exact = Estimate(p10=5, p50=5, p90=5, unit="bytes", source="measured")
    (score,) = audit.scores([Outcome("size_bytes", exact, 5.0), Outcome("size_bytes", exact, 6.0)])
    assert score.coverage == 0.5
    learnt = audit.correction([Outcome("size_bytes", exact, 5.0)] * 50)
    assert learnt.factor == 1
    assert learnt.apply(exact) == exact


def test_kinds_are_kept_apart_by_source():
    guess = draw(random.Random(0), 5, bias=1.0)
    measured = [
        Outcome("loss", one.predicted.model_copy(update={"source": "measured"}), one.predicted.p50) for one in guess
    ]
    found = {score.source: score for score in audit.scores([*guess, *measured])}
    assert found["measured"].bias == 0
    assert found["guess"].bias > 0.5


def test_what_is_free_is_not_corrected():
    made = audit.recalibration(draw(random.Random(0), 20, bias=0.5), MACHINE, 20, "2026-11-22T00:00:00+00:00")
    kind = made.corrections[0]
    free = Estimate.around(0.0, 0.2, "money", kind.source)
    dear = free.model_copy(update={"p10": 1.0, "p50": 1.0, "p90": 1.0})
    assert set(made.corrects({kind.name: free})) == set()
    assert set(made.corrects({kind.name: dear})) == {kind.name}


def test_a_recalibration_is_kept_for_its_machine_alone(tmp_path):
    made = audit.recalibration(draw(random.Random(0), 20, bias=0.5), MACHINE, 20, "2026-11-22T00:00:00+00:00")
    audit.save(tmp_path / "cache", made)
    assert audit.load(tmp_path / "cache", MACHINE) == made
    assert audit.load(tmp_path / "cache", MACHINE.model_copy(update={"torch_version": "3"})) == made
    assert audit.load(tmp_path / "cache", MACHINE.model_copy(update={"threads": 1})) is None
    assert audit.load(tmp_path / "cache", MACHINE.model_copy(update={"name": "another"})) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 1}', "\udcff"])
def test_a_damaged_recalibration_is_named_and_not_passed_over(tmp_path, text):
    made = audit.recalibration(draw(random.Random(0), 3), MACHINE, 3, "2026-11-22T00:00:00+00:00")
    path = audit.save(tmp_path, made)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FaultError, match=r"recalibration-.*remove it"):
        audit.load(tmp_path, MACHINE)
