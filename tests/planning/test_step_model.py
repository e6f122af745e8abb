"""The fitted step time: least squares against scipy, work counted by hand, rates found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from chinchilla.config.shape import Shape
from chinchilla.parallel.calibrate import cases
from chinchilla.planning.count import Batch, flops, num_params
from chinchilla.planning.step_model import (
    GRADIENT_UNITS,
    UPDATE_UNITS,
    Sample,
    fit,
    gradient_work,
    newton_schulz_flops,
    nnls,
    update_work,
)

SHAPE = Shape(
    vocab_size=1000, dim=64, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=256, num_decoder_layers=2, max_len=128,
    norm="layer",
)  # fmt: skip
BATCH = Batch(4, target_len=128)
RATES = {"FLOP": 2e-11, "byte": 3e-10, "number": 2e-9, "logit": 4e-9, "call": 2e-5}


def samples(noise: float, seed: int = 0) -> list[Sample]:
    """Gradients of the calibration's fp32 models, with times made of known rates."""
    random = np.random.default_rng(seed)
    works = [gradient_work(c.shape, c.batch, c.precision) for c in cases() if c.precision == "fp32"]
    return [Sample(work, truth(work) * (1 + noise * random.standard_normal())) for work in works]


def truth(work: dict[str, float]) -> float:
    return sum(RATES[GRADIENT_UNITS[kind]] * amount for kind, amount in work.items())


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 14))
def test_least_squares_are_scipys(seed: int, columns: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    matrix, target = random.standard_normal((rows, columns)), random.standard_normal(rows)
    found, (wanted, residual) = nnls(matrix, target), scipy_nnls(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(residual, rel=1e-8, abs=1e-9)
    if rows >= columns:
        np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_a_column_said_twice_or_empty_does_no_harm() -> None:
    column = np.arange(1.0, 6.0)
    matrix = np.stack([column, column, np.zeros(5), -column], axis=1)
    np.testing.assert_allclose(matrix @ nnls(matrix, 3 * column), 3 * column)
    assert not nnls(matrix[:, 2:], column).any()


def test_a_negative_rate_is_never_given() -> None:
    # More calls, less time: unbounded least squares would give a call a negative time.
    work = [{"a": float(n), "b": float(10 - n)} for n in range(1, 9)]
    found = fit([Sample(each, 5.0 * each["a"] - 0.1 * each["b"]) for each in work])
    assert found.unit_s["b"] == 0.0
    assert found.unit_s["a"] > 0


def test_rates_are_found_again() -> None:
    found = fit(samples(noise=0.0))
    for kind, unit in GRADIENT_UNITS.items():
        assert found.unit_s[kind] == pytest.approx(RATES[unit], rel=1e-5), kind
    assert max(map(abs, found.errors)) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_noisy_times_still_foretell_a_model_four_times_larger(seed: int) -> None:
    found = fit(samples(noise=0.02, seed=seed))
    large = SHAPE.model_copy(update={"dim": 512, "num_heads": 16, "num_kv_heads": 16, "ffn_dim": 2048})
    large = large.model_copy(update={"vocab_size": 8192, "num_decoder_layers": 6})
    assert num_params(large) > 4 * max(num_params(case.shape) for case in cases()) / 1.5
    work = gradient_work(large, BATCH, "fp32")
    assert sum(found.unit_s[kind] * amount for kind, amount in work.items()) == pytest.approx(truth(work), rel=0.15)
    assert min(found.unit_s.values()) >= 0
    assert found.spread >= 0.05


def test_flops_are_those_that_are_counted() -> None:
    work = gradient_work(SHAPE, BATCH, "fp32")
    assert work["products"] + work["attention"] == flops(SHAPE, BATCH).step
    # Scores and values of two layers: 4 rows, 2 heads, 128 × 128 pairs, 32 channels; forward and twice backward.
    assert work["attention"] == 3 * 2 * 2 * (2 * 4 * 2 * 128 * 128 * 32)
    assert work["cross-entropy"] == 4 * 128 * 1000


def test_all_kinds_of_work_have_a_unit_and_some_amount() -> None:
    for case in cases():
        work = gradient_work(case.shape, case.batch, case.precision)
        assert work.keys() == GRADIENT_UNITS.keys()
        assert min(work.values()) > 0
        assert update_work(case.shape, case.optimizer, case.precision).keys() == UPDATE_UNITS.keys()


def test_an_update_counts_each_number_once() -> None:
    adamw, muon = (update_work(SHAPE, optimizer, "bf16") for optimizer in ("adamw", "muon"))
    assert adamw["adamw"] == num_params(SHAPE) == muon["adamw"] + muon["muon"]
    assert adamw["newton-schulz bf16"] == adamw["muon tensors"] == 0
    # Four matrices a layer: qkv, out, up and down.
    assert muon["muon tensors"] == 8
    assert adamw["adamw tensors"] == muon["adamw tensors"] + 8
    layer = [(192, 64), (64, 64), (256, 64), (64, 256)]
    assert muon["newton-schulz bf16"] == 2 * sum(newton_schulz_flops(*sizes) for sizes in layer)
