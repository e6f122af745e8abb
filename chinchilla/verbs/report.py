"""`chinchilla report RUN`: one HTML page about a run."""

from pathlib import Path

from chinchilla.reporting import page, record
from chinchilla.store.atomic import write_text


def report(run: Path) -> Path:
    """Write `report.html` into the run folder `run`, and return its path.

    Raises:
        UsageError: `run` is not a run folder.
        FaultError: one of its files is damaged, or the disk fails.
    """
    told = record.read(run)
    path = told.path / "report.html"
    write_text(path, page.render(told))
    return path
