"""Forms to fit yourself: they refuse without constants, do the sums right, and are recovered from made-up runs."""

import itertools
import math

import numpy as np
import pytest

from chinchilla.config.errors import DataError, UsageError
from chinchilla.planning.form_fit import fit_form
from chinchilla.planning.forms import DISTILLATION, FORMS, LOW_COMMUNICATION, PRECISION, QUANTISATION, SPARSE, Form

SIZES, TOKENS = (1e8, 3e8, 1e9, 3e9), (2e9, 8e9, 3e10)
BITS = ("weights_bits", "activations_bits", "cache_bits")

# Made-up constants of the usual size, one set a form.
TRUTH = {
    "precision": {
        "E": 2.7,
        "A": 4300,
        "B": 18000,
        "alpha": 0.49,
        "beta": 0.45,
        "gamma_weights": 2.67,
        "gamma_activations": 2.2,
        "gamma_cache": 0.96,
    },
    "quantisation": {"C": 0.06, "gamma_D": 0.5, "gamma_N": 0.55, "gamma": 0.9},
    "distillation": {
        "c0": 2.5,
        "c1": 500,
        "d1": 1.3,
        "f1": 0.08,
        "A": 2243,
        "alpha": 0.32,
        "B": 24181,
        "beta": 0.3,
        "gamma": 0.76,
    },
    "low-communication": {"A": 19.2, "alpha": 0.098, "beta": 0.0116},
    "sparse": {"a_S": 16.8, "b_S": 0.722, "c_S": 45, "b_N": 0.245, "a_D": 6.9e8, "b_D": 0.203, "c": 0.651},
}


def table(form: Form, noise: float = 0.0) -> list[dict[str, float]]:
    """Runs that settle a form's constants, with its losses for `TRUTH`."""
    grid = [{"params": size, "tokens": tokens} for size, tokens in itertools.product(SIZES, TOKENS)]
    plain = [run | dict.fromkeys(BITS, 16.0) for run in grid]
    varied: dict[str, list[dict[str, float]]] = {
        "precision": plain
        + [run | {part: bits} for run in plain[::3] for part in BITS for bits in (3.0, 4.0, 6.0, 8.0)],
        "quantisation": [run | {"bits": bits, "loss_before": 3.0} for run in grid for bits in (2.0, 3.0, 4.0, 6.0)],
        "distillation": [
            run | {"teacher_loss": teacher, "student_loss_alone": 2 + 400 * run["params"] ** -0.34}
            for run in grid
            for teacher in (2.0, 2.3, 2.6, 2.9)
        ],
        "low-communication": [{"params": size, "replicas": m} for size in SIZES for m in (1.0, 2.0, 4.0, 8.0)],
        "sparse": [run | {"density": density} for run in grid for density in (1.0, 0.5, 0.25, 0.125)],
    }
    rng = np.random.default_rng(0)
    runs = varied[form.name]
    return [run | {"loss": form.loss(TRUTH[form.name], run) * math.exp(rng.normal(0, noise))} for run in runs]


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_without_constants_a_form_refuses_and_says_what_to_bring(form: Form) -> None:
    for nothing in (None, {}):
        with pytest.raises(UsageError, match="from memory") as caught:
            form.loss(nothing, {"params": 1e9})
        for name in (*form.constants, *form.arguments, str(form.least_runs)):
            assert name in str(caught.value)


def test_precision_by_hand() -> None:
    run = {"params": 1e9, "tokens": 2e10, "weights_bits": 4.0, "activations_bits": 8.0, "cache_bits": 16.0}
    c = TRUTH["precision"]
    kept = (1 - math.exp(-4 / 2.67)) * (1 - math.exp(-8 / 2.2)) * (1 - math.exp(-16 / 0.96))
    assert PRECISION.loss(c, run) == pytest.approx(2.7 + 4300 * (kept * 1e9) ** -0.49 + 18000 * 2e10**-0.45)
    assert PRECISION.loss(c, run) > PRECISION.loss(c, run | {"weights_bits": 8.0})


def test_quantisation_by_hand() -> None:
    run = {"params": 1e9, "tokens": 2e10, "bits": 3.0, "loss_before": 3.0}
    worse = 0.06 * 2e10**0.5 / 1e9**0.55 * math.exp(-3 / 0.9)
    assert QUANTISATION.loss(TRUTH["quantisation"], run) == pytest.approx(3 + worse)
    assert QUANTISATION.loss(TRUTH["quantisation"], run | {"tokens": 2e11}) > 3 + worse


def test_distillation_by_hand() -> None:
    c = {"c0": 1.0, "c1": 2.0, "d1": 1.0, "f1": 1.0, "A": 1.0, "alpha": 0.5, "B": 1.0, "beta": 0.5, "gamma": 1.0}
    run = {"params": 100.0, "tokens": 400.0, "teacher_loss": 2.0, "student_loss_alone": 2.0}
    # 2 + 1/2 · (1 + 1)^-2 · (0.1 + 0.05)
    assert DISTILLATION.loss(c, run) == pytest.approx(2 + 0.5 * 0.25 * 0.15)


def test_low_communication_and_sparse_by_hand() -> None:
    assert LOW_COMMUNICATION.loss(
        {"A": 20, "alpha": 0.1, "beta": 0.01}, {"params": 1e10, "replicas": 4}
    ) == pytest.approx(20 * 0.1 * 4**0.01)
    run = {"params": 1e8, "tokens": 1e10, "density": 0.25}
    c = {"a_S": 10, "b_S": 0.5, "c_S": 40, "b_N": 0.25, "a_D": 1e8, "b_D": 0.5, "c": 0.6}
    assert SPARSE.loss(c, run) == pytest.approx((10 * 0.5 + 40) * 0.01 + 0.1 + 0.6)


@pytest.mark.parametrize(
    ("constants", "run", "told"),
    [
        ({"A": 20, "alpha": 0.1}, {"params": 1e9, "replicas": 2}, "constant 'beta' is missing"),
        ({"A": 20, "alpha": -0.1, "beta": 0.1}, {"params": 1e9, "replicas": 2}, "constant alpha is -0.1"),
        ({"A": 20, "alpha": 0.1, "beta": 0.1, "gamma": 1}, {"params": 1e9, "replicas": 2}, "'gamma' is unknown"),
        ({"A": 20, "alpha": 0.1, "beta": 0.1}, {"params": math.nan, "replicas": 2}, "argument params is nan"),
    ],
)
def test_wrong_constants_and_arguments_are_named(constants: dict[str, float], run: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        LOW_COMMUNICATION.loss(constants, run)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_recovered_from_runs_without_noise(name: str) -> None:
    found = fit_form(FORMS[name], table(FORMS[name]))
    for symbol, constant in found.items():
        assert constant.value == pytest.approx(TRUTH[name][symbol], rel=1e-3)
        assert constant.tag == "fitted"


def test_with_noise_the_truth_lies_within_the_errors() -> None:
    found = fit_form(SPARSE, table(SPARSE, noise=0.002))
    for symbol, constant in found.items():
        assert constant.error is not None
        assert abs(constant.value - TRUTH["sparse"][symbol]) < 4 * constant.error


def test_runs_that_never_vary_something_do_not_settle_it() -> None:
    dense = [run for run in table(SPARSE) if run["density"] == 1.0]
    with pytest.raises(DataError, match=r"2 runs are too few|do not settle .*b_S"):
        fit_form(SPARSE, dense)
    alone = [run for run in table(LOW_COMMUNICATION) if run["replicas"] == 1.0] * 2
    with pytest.raises(DataError, match="do not settle beta"):
        fit_form(LOW_COMMUNICATION, alone)


def test_too_few_runs_and_bad_rows_are_refused() -> None:
    runs = table(LOW_COMMUNICATION)
    with pytest.raises(DataError, match="5 runs are too few"):
        fit_form(LOW_COMMUNICATION, runs[:5])
    with pytest.raises(DataError, match="run 3: loss is nan"):
        fit_form(LOW_COMMUNICATION, [*runs[:2], runs[2] | {"loss": math.nan}, *runs[3:]])
    with pytest.raises(DataError, match="run 1: replicas is missing"):
        fit_form(LOW_COMMUNICATION, [{"params": 1e9, "loss": 2.0}, *runs])
