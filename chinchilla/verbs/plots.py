"""The charts of `fit` and `plan` as files of their own: `--plot`."""

from pathlib import Path

from chinchilla.config.plan import Plan
from chinchilla.config.units import show_count
from chinchilla.planning.identify import Study
from chinchilla.planning.isoflop import Allocation
from chinchilla.planning.layout import Layouts
from chinchilla.planning.search import Facts
from chinchilla.reporting.calibration import standalone
from chinchilla.reporting.law_plots import law_charts
from chinchilla.reporting.page import sheet
from chinchilla.reporting.plan_plots import plan_charts
from chinchilla.reporting.scales import stacked
from chinchilla.reporting.tables import shape_name
from chinchilla.store.atomic import write_text


def draw_fit(found: Study | Allocation, path: Path) -> None:
    """Write a fit's charts: a page, or with a name ending in .svg all in one picture.

    Raises:
        FaultError: it cannot be written.
    """
    drawn = law_charts(found)
    if path.suffix.lower() == ".svg":
        titles = ", ".join(title for title, _, _ in drawn)
        write_text(path, standalone(stacked([svg for _, svg, _ in drawn], titles)))
        return
    runs = found.runs if isinstance(found, Allocation) else found.fitted.runs
    what = f"approach {found.approach}" if isinstance(found, Allocation) else "L = E + A/N^alpha + B/D^beta"
    write_text(path, sheet("Scaling law", f"{what}, from {len(runs)} runs of {runs.source}", drawn))


def draw_plan(made: Plan, facts: Facts, found: Layouts | None, path: Path) -> None:
    """Write a page of what a plan was reckoned from, with its layouts where there is a cluster.

    Raises:
        FaultError: it cannot be written.
    """
    batch = facts.batch(made.training.batch_tokens / made.training.accumulation)
    lead = f"{shape_name(made.shape)}, {show_count(made.num_params)} parameters, {made.training.precision}"
    write_text(path, sheet("How it was planned", lead, plan_charts(made, batch, found)))
