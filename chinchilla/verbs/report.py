"""`chinchilla report RUN`: one HTML page about a run, or about a sweep."""

import logging
from pathlib import Path

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.planning.layout import Layouts
from chinchilla.planning.rows import facts_of
from chinchilla.reporting import page, record, sweep_page
from chinchilla.store.atomic import write_text
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs import layouts

log = logging.getLogger("chinchilla")


def report(run: Path) -> Path:
    """Write `report.html` into the folder `run` of a run or of a sweep, and return its path.

    Raises:
        UsageError: `run` is no such folder, or a sweep that has not come to its end.
        FaultError: one of its files is damaged, or the disk fails.
        DataError: a sweep's law cannot be read.
    """
    if sweep_page.is_sweep(run):
        path = run.resolve() / "report.html"
        write_text(path, sweep_page.render_sweep(run.resolve()))
        return path
    if any(run.glob("small-*/plan.json")):
        raise UsageError(
            f"{run}: a sweep that has come to no law yet; `chinchilla sweep` with --out {run} goes on with it"
        )
    told = record.read(run)
    path = told.path / "report.html"
    write_text(path, page.render(told, _layouts(RunFolder.open(told.path))))
    return path


def _layouts(folder: RunFolder) -> Layouts | None:
    """The layouts of the plan's step over the run's cluster; None, and told, where its file no longer serves."""
    made = folder.read_plan()
    facts = facts_of(made)
    try:
        cluster = layouts.read(folder.read_run().run)
        return None if facts is None or cluster is None else layouts.layouts(made, facts, cluster)
    except (UsageError, BudgetError) as error:
        log.warning("the report shows no layouts: %s", error)
        return None
