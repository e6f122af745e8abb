"""`chinchilla fit`: a scaling law from finished runs, and how firmly they hold it."""

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chinchilla.config.errors import UsageError
from chinchilla.planning.fit import CONFIDENCE, Best, Interval
from chinchilla.planning.form_fit import FormFit, study_form
from chinchilla.planning.forms import form_of
from chinchilla.planning.huber import Array
from chinchilla.planning.identify import Identification, Study, Without, study
from chinchilla.planning.isoflop import Allocation, envelope, isoflop
from chinchilla.planning.own_law import fitted_law
from chinchilla.planning.runs import Runs, read_columns, read_runs
from chinchilla.store.atomic import require_place, write_text


def fit(path: Path, approach: int = 3, bootstraps: int = 1000) -> Study | Allocation:
    """Fit the runs in a file or folder: approach 3 gives a law L(N, D), approaches 1 and 2 the growth of the best size.

    Raises:
        DataError: the runs cannot be read, contradict the law's form, or do not determine what was asked.
        UsageError: `path` is of no kind that holds runs.
    """
    runs = read_runs(path)
    fits: dict[int, Callable[[Runs, int], Study | Allocation]] = {1: envelope, 2: isoflop, 3: study}
    return fits[approach](runs, bootstraps)


def fit_form(path: Path, name: str) -> FormFit:
    """Fit one of `planning.forms`, like "precision", to the runs in a CSV or JSONL that has its columns.

    Raises:
        DataError: the runs cannot be read, are too few, or do not settle the form's constants.
        UsageError: no such form, or `path` is of no kind that holds such runs.
    """
    form = form_of(name)
    return study_form(form, read_columns(path, (*form.arguments, "loss")), str(path))


def form_json(found: FormFit) -> dict[str, Any]:
    """What `--form --json` prints; errors of runs are relative."""
    errors = sorted(abs(math.expm1(each)) for each in found.residuals)
    return {
        "form": found.form.name,
        "formula": found.form.formula,
        "form_source": found.form.source,
        "runs": len(found.residuals),
        "constants": {name: {"value": c.value, "error": c.error} for name, c in found.constants.items()},
        "median_error": statistics.median(errors),
        "largest_error": errors[-1],
    }


def check_out(out: Path | None, approach: int) -> None:
    """Refuse, before any work, to keep what is no law or where it cannot be.

    Raises:
        UsageError: another approach than 3, another ending than .json, or no such folder.
    """
    if out is not None and approach != 3:
        raise UsageError(f"--out keeps a law of the loss, and approach {approach} finds none: leave --approach at 3")
    require_place("--out", out, ".json")


def keep(found: Study | Allocation, out: Path) -> None:
    """Write a fitted law for `chinchilla plan --law`.

    Raises:
        FaultError: it cannot be written.
    """
    assert isinstance(found, Study)
    write_text(out, fitted_law(found.fitted).model_dump_json(indent=1) + "\n")


def as_json(found: Study | Allocation) -> dict[str, Any]:
    """What `--json` prints; intervals are [low, high] at `confidence`."""
    return _allocation(found) if isinstance(found, Allocation) else _law(found)


def _law(found: Study) -> dict[str, Any]:
    fitted, law = found.fitted, found.fitted.law
    return {
        "approach": 3,
        "E": law.irreducible.value,
        "A": law.param_scale.value,
        "B": law.token_scale.value,
        "alpha": law.param_exponent.value,
        "beta": law.token_exponent.value,
        "a": fitted.allocation,
        "b": 1 - fitted.allocation,
        "confidence": CONFIDENCE,
        "intervals": _ends(fitted.intervals),
        "errors": {name: interval.error for name, interval in fitted.intervals.items()},
        "runs": len(fitted.runs),
        "repeats": fitted.runs.repeats,
        "bootstraps": len(fitted.draws),
        "convention": fitted.runs.convention,
        "objective": fitted.objective,
        "ahead": [_best(each) for each in found.ahead],
        "identification": _identified(found.identified),
        "warnings": list(found.identified.warnings),
        "law": law.model_dump(),
    }


def _allocation(found: Allocation) -> dict[str, Any]:
    return {
        "approach": found.approach,
        "a": found.a,
        "b": found.b,
        "log_k": found.log_k,
        "log_l": found.log_l,
        "confidence": CONFIDENCE,
        "intervals": _ends(found.intervals),
        "runs": len(found.runs),
        "convention": found.runs.convention,
        "optima": [vars(each) for each in found.optima],
    }


def _ends(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}


def _best(each: Best) -> dict[str, Any]:
    estimates = {"params": each.num_params, "tokens": each.tokens, "loss": each.loss}
    return {"flops": each.flops, **{name: estimate.model_dump() for name, estimate in estimates.items()}}


def _identified(found: Identification) -> dict[str, Any]:
    return {
        "noise": found.noise,
        "condition": found.condition,
        "errors": found.errors,
        "profiles": {
            name: {
                "values": _list(profile.values),
                "objective": _list(profile.objective),
                "interval": [profile.low, profile.high],
                "bounded": profile.bounded,
            }
            for name, profile in found.profiles.items()
        },
        "without_highest": [_without(each) for each in found.without_highest],
        "influential": _without(found.influential),
        "roll_out": [
            {"run": each.place, "predicted": each.predicted.model_dump(), "measured": each.measured}
            for each in found.roll_out
        ],
        "proposals": [{"params": p.num_params, "tokens": p.tokens, "flops": p.flops} for p in found.proposals],
    }


def _without(each: Without) -> dict[str, Any]:
    return {"without": each.what, "alpha": each.alpha, "beta": each.beta, "a": each.allocation}


def _list(values: Array) -> list[float]:
    return [float(value) for value in values]
