"""The report of a sweep: its small runs, the law from them, what it advises, and how firmly all this stands."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, PositiveFloat

from chinchilla.config.errors import FaultError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import LABELS, Label
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning.halving import prior_of
from chinchilla.planning.laws import effective_tokens
from chinchilla.planning.own_law import OwnLaw, read_law
from chinchilla.reporting.page import Grid, sheet
from chinchilla.reporting.record import Part, read_part
from chinchilla.reporting.sweep_plots import sweep_charts, swept_runs
from chinchilla.reporting.tables import shape_name
from chinchilla.reporting.values import quantity, seconds, span

SWEEP = "sweep.json"

AGAIN = "do `chinchilla sweep` there again"


class SmallRun(Part):
    """A finished small run."""

    run: str
    params: PositiveFloat
    tokens: PositiveFloat
    steps: int
    loss: PositiveFloat
    time_s: float


class Advised(Part):
    """The big run."""

    shape: Shape
    params: Estimate
    tokens: PositiveFloat
    epochs: float
    loss: Estimate
    width_90: float


class Swept(Part):
    """`sweep.json`: what a sweep came to."""

    runs: tuple[SmallRun, ...] = Field(min_length=1)
    big: Advised
    target_s: float


def is_sweep(path: Path) -> bool:
    """Whether this is the folder of a sweep that has come to a law."""
    return (path / SWEEP).is_file()


def render_sweep(path: Path) -> str:
    """The report of a sweep's folder as HTML.

    Raises:
        FaultError: its `sweep.json` is damaged.
        DataError: its `law.json` is missing or damaged.
    """
    found, law = read_part(path / SWEEP, Swept, AGAIN), read_law(path / "law.json")
    if found is None or law.task is None:
        raise FaultError(f"{path}: law.json and {SWEEP} are not of one sweep; {AGAIN}")
    unique, counted = law.unique_tokens, LABELS[law.task]

    def worth(tokens: float) -> float:
        return effective_tokens(unique or tokens, tokens)

    rows = [(run.params, worth(run.tokens), run.loss) for run in found.runs]
    runs = swept_runs(rows, path.name)
    best = found.big.params.p50, worth(found.big.tokens)
    drawn = sweep_charts(law, runs, prior_of(law.task), best, counted)
    return sheet(f"{path.name}: small runs", _lead(found, counted), drawn, list(_grids(found, law, counted)))


def _lead(found: Swept, counted: Label) -> str:
    big = found.big
    return (
        f"For {seconds(found.target_s)} of training, by a law from {len(found.runs)} small runs: "
        f"{shape_name(big.shape)}, {show_count(big.params.p50)} parameters, on {show_count(big.tokens)} {counted.many} "
        f"({big.epochs:.3g} epochs), to a validation loss of {big.loss.p50:.3f} ({span(big.loss)}; 90 % within "
        f"{big.width_90:.1%})"
    )


def _grids(found: Swept, law: OwnLaw, counted: Label) -> Iterator[Grid]:
    rows = []
    for run in found.runs:
        told = law.predict(run.params, run.tokens).p50
        numbers = (show_count(run.params), f"{run.steps:,}", show_count(run.tokens), seconds(run.time_s))
        rows.append((Path(run.run).name, *numbers, f"{run.loss:.3f}", f"{told:.3f} ({told / run.loss - 1:+.1%})"))
    head = ("small run", "parameters", "steps", counted.many, "time", "loss", "law")
    yield Grid("Small runs", head, rows)
    constants = [
        (name, quantity(each.value), *(quantity(end) for end in each.interval or (None, None)))
        for name, each in law.constants.items()
    ]
    yield Grid("L = E + A/N^alpha + B/D^beta", ("constant", "most probable", "2.5 %", "97.5 %"), constants)
