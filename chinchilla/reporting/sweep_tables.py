"""The tables of `chinchilla sweep` for a terminal."""

import math
from collections.abc import Sequence
from typing import Protocol

from rich.console import Group
from rich.table import Table

from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Label
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning.design import Big, Design
from chinchilla.planning.own_law import OwnLaw
from chinchilla.reporting.tables import Rows, _table, shape_name
from chinchilla.reporting.values import NONE, interval, quantity, seconds

BIG_HEAD = ("the big run", "", "rests on")


class Finished(Protocol):
    """A finished small run."""

    @property
    def shape(self) -> Shape: ...
    @property
    def num_params(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens(self) -> float: ...
    @property
    def time_s(self) -> float: ...
    @property
    def loss(self) -> float: ...


class Swept(Protocol):
    """What a sweep came to (`chinchilla.verbs.sweep.Sweep`)."""

    @property
    def runs(self) -> Sequence[Finished]: ...
    @property
    def law(self) -> OwnLaw: ...
    @property
    def big(self) -> Big: ...
    @property
    def epochs(self) -> float: ...
    @property
    def width(self) -> float: ...
    @property
    def target_s(self) -> float: ...


def design_table(made: Design, counted: Label) -> Table:
    """The runs that a design proposes, and how well the big run's loss would then be known."""
    rows: Rows = [
        (
            shape_name(run.shape),
            show_count(run.num_params),
            f"{run.steps:,}",
            show_count(run.tokens),
            seconds(run.time_s),
        )
        for run in made.runs
    ]
    told = NONE if math.isnan(made.width) else f"{made.width:.1%}"
    title = f"Small runs, {seconds(made.time_s)}; they would tell the big run's loss to {told} (90 %)"
    return _table(title, ("small run", "parameters", "steps", counted.many, "about"), rows, left=(0,))


def sweep_tables(found: Swept, counted: Label) -> Group:
    """The small runs beside the law, its constants, and the big run that it advises."""
    return Group(_done_table(found, counted), _law_table(found.law), _big_table(found, counted))


def _done_table(found: Swept, counted: Label) -> Table:
    rows: Rows = []
    for run in found.runs:
        told = found.law.predict(run.num_params, run.tokens).p50
        law = f"{told:.3f} ({told / run.loss - 1:+.1%})"
        numbers = (show_count(run.num_params), f"{run.steps:,}", show_count(run.tokens), seconds(run.time_s))
        rows.append((shape_name(run.shape), *numbers, f"{run.loss:.3f}", law))
    head = ("small run", "parameters", "steps", counted.many, "time", "loss", "law")
    return _table("Small runs", head, rows, left=(0,))


def _law_table(found: OwnLaw) -> Table:
    rows: Rows = []
    for name, constant in found.constants.items():
        low, high = constant.interval or (None, None)
        rows.append((name, quantity(constant.value), quantity(low), quantity(high)))
    title = "Your own law: L = E + A/N^alpha + B/D^beta (weak priors, so few runs suffice)"
    return _table(title, ("constant", "most probable", "2.5 %", "97.5 %"), rows, left=(0,))


def _big_table(found: Swept, counted: Label) -> Table:
    big = found.big
    seen = f"{show_count(big.tokens)}, {found.epochs:.3g} epochs"
    rows: Rows = [
        ("model", shape_name(big.shape), "least predicted loss in the time"),
        _estimated("parameters", big.num_params),
        (counted.many, seen, "the small runs' speed"),
        _estimated("validation loss", big.loss),
        ("loss, 90 % interval", f"{found.width:.1%} wide", "the law's own uncertainty and a run's noise"),
    ]
    return _table(f"For {seconds(found.target_s)} of training", BIG_HEAD, rows, left=(0, 1, 2))


def _estimated(name: str, estimate: Estimate) -> tuple[str, str, str]:
    return name, interval(estimate), estimate.source
