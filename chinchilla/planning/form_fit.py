"""Fit a form of `forms` to one's own runs: damped least squares of log loss over log constants, from many starts.

Levenberg (1944) and Marquardt (1963). The forms have three to nine constants and a table has tens of runs, so a numeric
Jacobian is exact enough; logs keep every constant positive.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla.config.errors import DataError
from chinchilla.planning.constants import Constant
from chinchilla.planning.forms import Form
from chinchilla.planning.huber import Array

STARTS = 24
STEPS = 300
UNSETTLED = 1.0
"""A standard error of a constant's log above which the runs do not say what it is: a factor of e either way."""

_START = {"E": 2.0, "A": 300.0, "B": 1000.0, "C": 0.1, "c": 1.5, "a_S": 10.0, "c_S": 10.0, "a_D": 1e8, "d1": 1.0}
"""Where constants usually lie; exponents near 0.3, precisions' gammas near 2."""


@dataclass(frozen=True)
class FormFit:
    """A form with its constants, fitted to the runs of `source`; `residuals` are log fitted - log measured loss."""

    form: Form
    constants: dict[str, Constant]
    residuals: tuple[float, ...]
    source: str


def study_form(form: Form, runs: Sequence[Mapping[str, float]], source: str) -> FormFit:
    """Fit a form, and say how far each run lies from it. Raises as `fit_form`."""
    constants = fit_form(form, runs)
    values = {name: constant.value for name, constant in constants.items()}
    residuals = tuple(math.log(form.evaluate(values, run) / run["loss"]) for run in runs)
    return FormFit(form, constants, residuals, source)


def fit_form(form: Form, runs: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, Constant]:
    """The form's constants with standard errors, fitted to runs that have its arguments and a `loss`.

    Raises:
        DataError: too few runs, a column missing or not positive, or runs that leave constants open; names them.
    """
    losses = _losses(form, runs)

    def residuals(theta: Array) -> Array:
        constants = dict(zip(form.constants, np.exp(np.clip(theta, -700, 700)).tolist(), strict=True))
        return np.array([_log_loss(form, constants, run) for run in runs]) - np.log(losses)

    found = min(
        (_descend(residuals, start) for start in _starts(form, seed)), key=lambda theta: _cost(residuals(theta))
    )
    errors = _errors(residuals, found)
    loose = [name for name, error in zip(form.constants, errors, strict=True) if not error < UNSETTLED]
    if loose:
        raise DataError(
            f"these {len(runs)} runs do not settle {', '.join(loose)} of the {form.name} form: add runs that vary "
            f"{form.vary}"
        )
    source = f"{form.name} form of {form.source}, {len(runs)} runs of one's own"
    return {
        name: Constant(value=math.exp(log), error=math.exp(log) * error, source=source)
        for name, log, error in zip(form.constants, found.tolist(), errors.tolist(), strict=True)
    }


def _losses(form: Form, runs: Sequence[Mapping[str, float]]) -> Array:
    if len(runs) < form.least_runs:
        raise DataError(
            f"{len(runs)} runs are too few for the {form.name} form's {len(form.constants)} constants: bring at least "
            f"{form.least_runs}, which vary {form.vary}"
        )
    for row, run in enumerate(runs, start=1):
        for name in (*form.arguments, "loss"):
            if not (math.isfinite(run.get(name, math.nan)) and run[name] > 0):
                raise DataError(f"run {row}: {name} is {run.get(name, 'missing')}, not a positive, finite number")
    return np.array([run["loss"] for run in runs])


def _log_loss(form: Form, constants: Mapping[str, float], run: Mapping[str, float]) -> float:
    try:
        return math.log(form.evaluate(constants, run))
    except (OverflowError, ValueError, ZeroDivisionError):
        return 1e3  # a start too far out: worse than any fit


def _starts(form: Form, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    middle = np.log([_START.get(name, 2.0 if name.startswith("gamma_") else 0.3) for name in form.constants])
    return [middle, *(middle + rng.normal(0, 1, (STARTS - 1, len(middle))))]


def _descend(residuals: Callable[[Array], Array], theta: Array) -> Array:
    damping, error = 1e-2, residuals(theta)
    for _ in range(STEPS):
        slope = _jacobian(residuals, theta, error)
        gram = slope.T @ slope
        move = np.linalg.solve(
            gram + damping * (np.diag(gram.diagonal()) + 1e-12 * np.eye(len(theta))), -slope.T @ error
        )
        tried = theta + np.clip(move, -1, 1)
        after = residuals(tried)
        if _cost(after) < _cost(error):
            done = _cost(error) - _cost(after) < 1e-14 * (1e-12 + _cost(error))
            theta, error, damping = tried, after, damping / 3
            if done:
                break
        elif damping > 1e12:
            break
        else:
            damping *= 4
    return theta


def _jacobian(residuals: Callable[[Array], Array], theta: Array, error: Array) -> Array:
    step = 1e-6
    return np.stack([(residuals(theta + step * unit) - error) / step for unit in np.eye(len(theta))], axis=1)


def _errors(residuals: Callable[[Array], Array], theta: Array) -> Array:
    """Standard errors of the logs: √ of the diagonal of σ²·(JᵀJ)⁺, infinite along directions that change nothing."""
    error = residuals(theta)
    slope = _jacobian(residuals, theta, error)
    noise = max(1e-12, _cost(error) / max(1, len(error) - len(theta)))
    _, sizes, directions = np.linalg.svd(slope, full_matrices=False)
    least = 1e-7 * sizes[0]
    variances = np.where(sizes > least, noise / np.maximum(sizes, least) ** 2, np.inf)
    return np.sqrt((directions.T**2 * np.where(directions.T**2 > 1e-12, variances, 0)).sum(1))


def _cost(error: Array) -> float:
    return float(error @ error)
