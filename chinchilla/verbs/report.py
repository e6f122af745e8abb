"""`chinchilla report RUN`: one HTML page about a run."""

import logging
from pathlib import Path

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.planning.layout import Layouts
from chinchilla.planning.rows import facts_of
from chinchilla.reporting import page, record
from chinchilla.store.atomic import write_text
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs import layouts

log = logging.getLogger("chinchilla")


def report(run: Path) -> Path:
    """Write `report.html` into the run folder `run`, and return its path.

    Raises:
        UsageError: `run` is not a run folder.
        FaultError: one of its files is damaged, or the disk fails.
    """
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
