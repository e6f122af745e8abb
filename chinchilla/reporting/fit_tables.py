"""The tables of `chinchilla fit` for a terminal."""

import math
import statistics

from rich.console import Group

from chinchilla.config.plan import Label
from chinchilla.config.units import show_count
from chinchilla.planning.fit import Best, Fit
from chinchilla.planning.form_fit import FormFit
from chinchilla.planning.identify import Identification, Study, Without, show_proposals
from chinchilla.planning.isoflop import Allocation
from chinchilla.reporting.tables import Rows, _table
from chinchilla.reporting.values import interval

CONSTANT_HEAD = ("constant", "value", "95 % interval", "standard error")
CHECK_HEAD = ("check", "found")
FORM_HEAD = ("constant", "value", "standard error", "of the value")
MOST_ROWS = 20


def fit_tables(found: Study | Allocation) -> Group:
    """What a fit found, by any of the three approaches."""
    return _allocation_tables(found) if isinstance(found, Allocation) else _law_tables(found)


def form_tables(found: FormFit) -> Group:
    """A form that was fitted to the user's runs: its constants, and how far the runs lie from it."""
    title = f"{found.form.name}: {found.form.formula}, from {len(found.residuals)} runs"
    return Group(
        _table(title, FORM_HEAD, form_rows(found), (0,)),
        _table("How well it fits", CHECK_HEAD, form_checks(found), (0, 1)),
    )


def form_rows(found: FormFit) -> Rows:
    """A row a constant."""
    return [
        (name, f"{constant.value:.5g}", f"{constant.error:.2g}", f"{constant.error / constant.value:.1%}")
        for name, constant in found.constants.items()
        if constant.error is not None
    ]


def form_checks(found: FormFit) -> Rows:
    """How far the runs lie from the form, and what it is good for."""
    errors = [abs(math.expm1(each)) for each in found.residuals]
    return [
        ("error of a run", f"median {statistics.median(errors):.2%}, largest {max(errors):.2%}"),
        ("the form", f"{found.form.about}; {found.form.source}"),
        ("holds for", f"runs like those of {found.source}; a plan does not use it"),
    ]


def _law_tables(found: Study) -> Group:
    """A fitted law: its constants, budgets ahead, and how firmly it stands."""
    title = f"L = E + A/N^alpha + B/D^beta, from {len(found.fitted.runs)} runs"
    return Group(
        _table(title, CONSTANT_HEAD, constant_rows(found.fitted), (0,)),
        _table("Budgets ahead", ahead_head(found.fitted.runs.counted), ahead_rows(found.ahead), (4,)),
        _table("How firmly it stands", CHECK_HEAD, check_rows(found.fitted, found.identified), (0, 1)),
    )


def _allocation_tables(found: Allocation) -> Group:
    """Approach 1 or 2: the growth of the best size, and the optima it goes through."""
    title = f"Best size = k C^a, approach {found.approach}, from {len(found.runs)} runs"
    tables = [
        _table(title, CONSTANT_HEAD, exponent_rows(found), (0,)),
        _table("Best size by compute", optima_head(found.runs.counted), optimum_rows(found), ()),
    ]
    left_out: Rows = [(f"{each.optimum.flops:.2e}", each.trouble) for each in found.levels if each.trouble]
    if left_out:
        tables.append(_table("Levels left out", ("FLOPs", "why"), _thinned(left_out), (1,)))
    return Group(*tables)


def ahead_head(counted: Label) -> tuple[str, ...]:
    """Titles of the columns of `ahead_rows`."""
    return "budget, FLOPs", "parameters p50 [p10 – p90]", counted.many, f"loss, nats {counted.a}", "source"


def optima_head(counted: Label) -> tuple[str, ...]:
    """Titles of the columns of `optimum_rows`."""
    return "FLOPs", "parameters", counted.many, "loss"


def exponent_rows(found: Allocation) -> Rows:
    """The two exponents with their intervals."""
    rows: Rows = []
    for name, value, of in (("a", found.a, "parameters"), ("b", found.b, found.runs.counted.many)):
        interval_, what = found.intervals[name], f"{name}, of {of}"
        rows.append((what, f"{value:.4f}", f"{interval_.low:.3f} – {interval_.high:.3f}", f"{interval_.error:.2g}"))
    return rows


def optimum_rows(found: Allocation) -> Rows:
    """The optima that the line goes through, cheapest first."""
    return _thinned(
        [
            (f"{each.flops:.2e}", show_count(each.num_params), show_count(each.tokens), f"{each.loss:.4f}")
            for each in found.optima
        ]
    )


def _thinned(rows: Rows) -> Rows:
    """At most `MOST_ROWS` of many rows, evenly."""
    return rows[:: -(-len(rows) // MOST_ROWS)]


def constant_rows(fitted: Fit) -> Rows:
    """The five constants, and a of N_opt ∝ C^a."""
    law = fitted.law
    values = {
        "E": law.irreducible.value,
        "A": law.param_scale.value,
        "B": law.token_scale.value,
        "alpha": law.param_exponent.value,
        "beta": law.token_exponent.value,
        "a": fitted.allocation,
    }
    ends = fitted.intervals
    return [
        (name, f"{value:.5g}", f"{ends[name].low:.4g} – {ends[name].high:.4g}", f"{ends[name].error:.2g}")
        for name, value in values.items()
    ]


def ahead_rows(ahead: tuple[Best, ...]) -> Rows:
    """What the law advises, a row a budget."""
    return [
        (f"{each.flops:.2e}", interval(each.num_params), interval(each.tokens), interval(each.loss), each.loss.source)
        for each in ahead
    ]


def check_rows(fitted: Fit, identified: Identification) -> Rows:
    """What each check found, warnings last."""
    counted = fitted.runs.counted
    rows: Rows = [
        (
            "repeated runs",
            f"{fitted.runs.repeats} of {len(fitted.runs)} have the size and {counted.many} of another; all count",
        ),
        ("noise of a run", f"{identified.noise:.2%}"),
        ("condition of the Hessian", f"{identified.condition:.2g}"),
    ]
    for name, profile in identified.profiles.items():
        open_end = "" if profile.bounded else ", open beyond"
        rows.append((f"profile of {name}", f"{profile.low:.3f} – {profile.high:.3f} (95 %){open_end}"))
    rows += [(f"a without {each.what}", _exponents(each)) for each in identified.without_highest]
    rows.append(("most influential", f"{identified.influential.what}; without it {_exponents(identified.influential)}"))
    rows.append(("cheap runs foretell the dear", _roll_out(identified)))
    rows.append(
        ("compute", "6ND" if fitted.runs.convention == "paper6nd" else "as the runs give it; budgets ahead: 6ND")
    )
    rows += [("warning", warning) for warning in identified.warnings]
    if identified.proposals:
        rows.append(("runs that would settle it", show_proposals(identified.proposals, counted)))
    return rows


def _exponents(without: Without) -> str:
    return f"a {without.allocation:.3f} (alpha {without.alpha:.3f}, beta {without.beta:.3f})"


def _roll_out(identified: Identification) -> str:
    held = identified.roll_out
    if not held:
        return "not tested: the runs of at most a quarter of the largest compute do not determine a law"
    inside = sum(each.inside for each in held)
    middle = statistics.median(abs(each.error) for each in held)
    return f"{len(held)} runs held out: median error {middle:.2%}, {inside} inside p10 – p90"
