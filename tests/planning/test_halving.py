"""Probe runs: rounds, survivors, and losses predicted from the beginning of a curve."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from chinchilla.config.errors import DataError
from chinchilla.config.plan import Probe
from chinchilla.config.shape import Shape
from chinchilla.planning.halving import DECAY_GAIN, Prior, predict_loss, prior_of, rounds, survivors
from chinchilla.planning.laws import effective_tokens

SHAPE = Shape(vocab_size=9, dim=4, num_heads=1, num_kv_heads=1, head_dim=4, ffn_dim=8, num_decoder_layers=1)

PRIOR = Prior(floor=0.22, exponent=0.366, size_exponent=0.3)
"""Of the synthetic curves below."""


def probe(predicted: float | None, num_params: int = 1000) -> Probe:
    return Probe(
        shape=SHAPE, precision="fp32", compile=False, num_params=num_params, tokens=10, time_s=1.0, step_time_s=0.1,
        loss=5.0, predicted_loss=predicted,
    )  # fmt: skip


def curve(floor: float, gain: float, exponent: float, tokens: np.ndarray) -> list[tuple[float, float]]:
    return [(float(t), float(floor + gain * t**-exponent)) for t in tokens]


def test_six_candidates_halve_in_three_equal_rounds() -> None:
    found = rounds(6, 90.0)
    assert [(r.candidates, r.keep) for r in found] == [(6, 3), (3, 2), (2, 1)]
    assert [r.time_s for r in found] == [5.0, 10.0, 15.0]


@given(st.integers(2, 40), st.floats(1, 1e4))
def test_rounds_spend_the_time_and_end_with_one(candidates: int, time_s: float) -> None:
    found = rounds(candidates, time_s)
    assert sum(r.candidates * r.time_s for r in found) == pytest.approx(time_s)
    assert found[0].candidates == candidates
    assert found[-1].keep == 1
    for before, after in pairwise(found):
        assert before.keep == after.candidates < before.candidates


def test_one_candidate_needs_no_rounds() -> None:
    assert rounds(1, 60.0) == ()


def test_the_best_predictions_survive() -> None:
    probes = [probe(3.0), probe(2.0), probe(2.5), probe(2.0, num_params=500)]
    kept = survivors(probes, 2)
    assert [(p.predicted_loss, p.num_params) for p in kept] == [(2.0, 500), (2.0, 1000)]


def test_a_probe_without_prediction_is_refused() -> None:
    with pytest.raises(DataError, match="no predicted loss"):
        survivors([probe(2.0), probe(None)], 1)


@pytest.mark.parametrize("exponent", [0.25, 0.366, 0.5])
@pytest.mark.parametrize("floor", [0.8, 1.3])
def test_the_end_of_a_synthetic_curve_lies_in_the_interval(floor: float, exponent: float) -> None:
    gain = 4.0 * 2e5**exponent
    seen = np.linspace(3e4, 3e5, 12)
    for reach in (2, 5, 20):
        found = predict_loss(curve(floor, gain, exponent, seen), 5_000_000, reach * 3e5, unique_tokens=1e9, prior=PRIOR)
        truth = DECAY_GAIN * (floor + gain * (reach * 3e5) ** -exponent)
        assert found.p10 <= truth <= found.p90
        assert found.p50 == pytest.approx(truth, rel=0.02 + 0.12 * math.log10(reach))


def test_intervals_on_noisy_curves_cover_and_narrow_with_more_points() -> None:
    random = np.random.default_rng(0)
    inside, widths = 0, {0.1: [], 0.5: []}
    for _ in range(100):
        floor, exponent = random.uniform(0.6, 1.6), random.uniform(0.25, 0.5)
        gain = random.uniform(3, 6) * 1e5**exponent
        truth = DECAY_GAIN * (floor + gain * 1e6**-exponent)
        for share in widths:
            seen = np.linspace(1e4, share * 1e6, 12)
            noisy = [(t, loss * random.normal(1, 0.01)) for t, loss in curve(floor, gain, exponent, seen)]
            found = predict_loss(noisy, 5_000_000, 1e6, unique_tokens=1e9, prior=PRIOR)
            widths[share].append(found.p90 / found.p10 - 1)
            inside += found.p10 <= truth <= found.p90
    assert inside >= 0.8 * 200
    assert np.mean(widths[0.5]) < 0.6 * np.mean(widths[0.1])


def test_within_the_curve_the_answer_is_the_curve() -> None:
    points = curve(1.0, 4.0 * 1e5**0.4, 0.4, np.linspace(1e4, 1e5, 20))
    found = predict_loss(points, 5_000_000, 1e5, unique_tokens=1e9, prior=PRIOR)
    assert found.p50 == pytest.approx(points[-1][1], rel=0.01)
    assert found.source == "measured"
    assert found.p90 / found.p10 < 1.05


@pytest.mark.parametrize(
    ("tokens", "unique", "source"), [(3.9e5, 1e9, "measured"), (4.1e5, 1e9, "guess"), (3e5, 2e5, "guess")]
)
def test_far_or_repeated_is_a_guess(tokens: float, unique: float, source: str) -> None:
    points = curve(1.0, 4.0 * 1e5**0.4, 0.4, np.linspace(1e4, 1e5, 20))
    assert predict_loss(points, 5_000_000, tokens, unique, PRIOR).source == source


def test_repeated_tokens_are_worth_less_than_fresh_ones() -> None:
    points = curve(1.0, 4.0 * 1e5**0.4, 0.4, np.linspace(1e4, 1e5, 20))
    fresh = predict_loss(points, 5_000_000, 2e7, unique_tokens=1e9, prior=PRIOR)
    repeated = predict_loss(points, 5_000_000, 2e7, unique_tokens=1e6, prior=PRIOR)
    equal = predict_loss(points, 5_000_000, effective_tokens(1e6, 2e7), unique_tokens=1e9, prior=PRIOR)
    assert repeated.p50 > fresh.p50
    assert repeated.p50 == pytest.approx(equal.p50)


def test_a_validation_loss_sets_the_height_and_the_curve_the_form() -> None:
    points = curve(1.0, 4.0 * 1e5**0.4, 0.4, np.linspace(1e4, 1e5, 20))
    plain = predict_loss(points, 5_000_000, 3e5, 1e9, PRIOR)
    held_out = predict_loss(points, 5_000_000, 3e5, 1e9, PRIOR, valid_loss=1.2 * points[-1][1])
    assert held_out.p50 == pytest.approx(1.2 * plain.p50, rel=0.01)
    assert held_out.p90 / held_out.p10 == pytest.approx(plain.p90 / plain.p10)
    assert predict_loss(points, 5_000_000, 1e5, 1e9, PRIOR, valid_loss=5.5).p50 == pytest.approx(5.5)


def test_a_curve_of_stale_repeats_stands_still() -> None:
    points = [(1e8 + 1e6 * step, 2.0) for step in range(8)]
    assert predict_loss(points, 5_000_000, 2e8, unique_tokens=1e5, prior=PRIOR).p50 == pytest.approx(
        0.96 * 2.0, rel=0.01
    )


def test_of_equal_curves_the_larger_model_promises_more() -> None:
    points = curve(1.0, 4.0 * 1e5**0.4, 0.4, np.linspace(1e4, 1e5, 12))
    small, large = (predict_loss(points, size, 3e6, 1e9, PRIOR).p50 for size in (2_500_000, 5_000_000))
    assert 0.85 * small < large < 0.99 * small


def test_one_point_rests_on_the_prior() -> None:
    found = predict_loss([(1e5, 5.0)], 5_000_000, 2e6, unique_tokens=1e9, prior=PRIOR)
    assert 1.5 < found.p50 < 4.5
    assert found.p90 / found.p10 > 1.3


def test_a_curve_that_falls_faster_promises_more() -> None:
    steep, flat = (
        predict_loss(curve(1.0, 4.0 * 1e5**exponent, exponent, np.linspace(1e4, 1e5, 12)), 5_000_000, 1e6, 1e9, PRIOR)
        for exponent in (0.5, 0.2)
    )
    assert steep.p50 < flat.p50


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([], "no loss|without a loss curve"),
        ([(1e4, 5.0), (1e4, 4.0)], "forward"),
        ([(0.0, 5.0), (1e4, 4.0)], "forward"),
        ([(1e4, 5.0), (2e4, float("nan"))], "diverged"),
        ([(1e4, 5.0), (2e4, 0.0)], "diverged"),
    ],
)
def test_a_useless_curve_is_refused(points: list[tuple[float, float]], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        predict_loss(points, 1000, 1e6, 1e9, PRIOR)


def test_a_curve_that_is_still_near_chance_leaves_the_prior_alone() -> None:
    """Digits: 2.30 after 2,000 images and 0.12 after 100,000, of which the plateau says nothing."""
    digits = prior_of("classify_image", 10, smoothing=0.1)
    plateau = [(float(seen), 2.30 - seen / 1e5) for seen in range(200, 2201, 200)]
    found = predict_loss(plateau, 170_000, 1e5, 58_000, digits)
    assert found.p10 < 0.117 < found.p90
    assert found.p50 < 0.3
    # The same plateau where chance is far above it is what the loss is like.
    for elsewhere in (replace(digits, chance=5.0), prior_of("classify_image")):
        assert predict_loss(plateau, 170_000, 1e5, 58_000, elsewhere).p10 > found.p90


@pytest.mark.parametrize("power", [1, 2])
def test_what_has_fallen_further_is_never_foretold_more(power: int) -> None:
    digits = prior_of("classify_image", 10, smoothing=0.1)
    seen = np.arange(200, 2201, 200)
    found = []
    for begun in (2300, 2000, 1800, 1500, 1200, 1000, 800, 600, 400, 300):
        falling = [(float(t), float(2.3 * min(1, begun / t) ** power)) for t in seen]
        found.append(predict_loss(falling, 170_000, 1e5, 58_000, digits).p50)
    assert found == sorted(found, reverse=True)


def test_no_loss_is_foretold_below_what_smoothed_labels_leave() -> None:
    """What minimises the smoothed loss over 10 classes gives the right one 0.91: -ln 0.91 = 0.094."""
    digits = prior_of("classify_image", 10, smoothing=0.1)
    logits = minimize(lambda z: -0.91 * log_softmax(z)[0] - 0.01 * log_softmax(z)[1:].sum(), np.zeros(10)).x
    assert digits.least == pytest.approx(-log_softmax(logits)[0], rel=1e-3)
    falling = curve(0.0, 0.2 * 2e4**0.9, 0.9, np.linspace(5e3, 2e4, 12))
    assert predict_loss(falling, 170_000, 1e6, 1e9, digits).p10 == digits.least
    for task in ("classify_text", "classify_table", "detect", "generate"):
        assert (prior_of(task, 2).least, prior_of(task, 2).chance) == (0, math.inf)


def test_of_a_tuned_model_only_the_level_counts() -> None:
    """SmolLM2 on small talk: from 3.8 to 2.2 nats within four steps, and 1.5 after sixty."""
    tuned = prior_of("dialogue", tuned=True)
    seen = (256.0, 512.0, 768.0, 1024.0)
    steep, flat = ([(t, loss) for t, loss in zip(seen, losses, strict=True)] for losses in STARTS)
    found = predict_loss(steep, 135_000_000, 16_000, 14_000, tuned, valid_loss=2.2)
    assert found.p10 < 1.49 < found.p90
    other = predict_loss(flat, 135_000_000, 16_000, 14_000, tuned, valid_loss=2.2)
    assert (other.p10, other.p50, other.p90) == pytest.approx((found.p10, found.p50, found.p90))
    untaught = predict_loss(steep, 135_000_000, 16_000, 14_000, prior_of("dialogue"), valid_loss=2.2)
    assert untaught.p90 < 1.49


STARTS = ((3.8, 3.0, 2.5, 2.2), (2.3, 2.26, 2.23, 2.2))
