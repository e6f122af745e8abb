"""`chinchilla audit`: how right the predictions of past runs were, and what later plans learn from it."""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chinchilla.config.correction import Correction
from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.machine import Machine
from chinchilla.data.sources import default_cache
from chinchilla.planning import audit as history
from chinchilla.planning.audit import Outcome, Recalibration, Score
from chinchilla.reporting.calibration import calibration_chart, standalone
from chinchilla.reporting.record import LedgerLine
from chinchilla.store import journal
from chinchilla.store.atomic import write_text
from chinchilla.store.run_folder import RunFolder

Tell = Callable[[str], None]


@dataclass(frozen=True)
class PastRun:
    """A run's outcomes as they were told, and as they were before any correction."""

    path: Path
    machine: Machine
    told: tuple[Outcome, ...]
    raw: tuple[Outcome, ...]


@dataclass(frozen=True)
class Audit:
    """Past runs, the score of each kind of prediction as it was told, and each machine's recalibration."""

    runs: tuple[PastRun, ...]
    scores: tuple[Score, ...]
    recalibrations: tuple[Recalibration, ...]


def audit(paths: Sequence[Path], tell: Tell = lambda text: None) -> Audit:
    """Score the ledgers of run folders, or of folders that hold run folders; runs without a ledger are told of.

    Raises:
        UsageError: a path that is neither.
        DataError: no run has a ledger with measurements.
        FaultError: a ledger or plan is damaged; the message names file and line.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _run_folders(path)))
    runs = tuple(run for folder in folders if (run := _past_run(RunFolder.open(folder), tell)))
    if not runs:
        raise DataError(
            f"{', '.join(map(str, paths))}: none of {len(folders)} runs has a ledger; a run writes it when it ends: "
            "finish one with `chinchilla train --resume RUN`"
        )
    return Audit(
        runs=runs,
        scores=tuple(history.scores(outcome for run in runs for outcome in run.told)),
        recalibrations=tuple(_recalibrations(runs)),
    )


def save(audited: Audit) -> list[Path]:
    """Keep each machine's recalibration in the cache folder, for its later plans.

    Raises:
        FaultError: it cannot be written.
    """
    return [history.save(default_cache(), recalibration) for recalibration in audited.recalibrations]


def draw(audited: Audit, path: Path) -> None:
    """Write predicted against measured as an SVG file.

    Raises:
        FaultError: it cannot be written.
    """
    write_text(path, standalone(calibration_chart([outcome for run in audited.runs for outcome in run.told])))


def as_json(audited: Audit) -> dict[str, Any]:
    """The audit as one JSON object."""
    return {
        "runs": [str(run.path) for run in audited.runs],
        "nominal": history.NOMINAL,
        "levels": history.LEVELS,
        "scores": [asdict(score) | {"honest": score.honest} for score in audited.scores],
        "recalibrations": [found.model_dump() for found in audited.recalibrations],
    }


def _run_folders(path: Path) -> list[Path]:
    """The path itself where it is a run folder, else the run folders in it, in the order of their names.

    Raises:
        UsageError: neither.
    """
    inside = sorted(file.parent.resolve() for file in path.glob("*/plan.json"))
    if (path / "plan.json").exists() or not inside:
        if path.is_dir() and not any(path.iterdir()):
            raise UsageError(f"{path}: an empty folder; give run folders, or a folder of run folders")
        return [RunFolder.open(path.resolve()).path]
    return inside


def _past_run(folder: RunFolder, tell: Tell) -> PastRun | None:
    """What a run's ledger says; None, and told, where it says nothing."""
    made = folder.read_plan()
    told = tuple(_outcomes(folder.ledger, made.fixed, tell))
    if not told:
        tell(f"{folder.path}: left out, no ledger with measurements (the run has not finished)")
        return None
    raw = tuple(_before(outcome, made.corrections.get(outcome.name)) for outcome in told)
    return PastRun(folder.path, made.machine, told, raw)


def _outcomes(ledger: Path, fixed: Container[str], tell: Tell) -> Iterator[Outcome]:
    """One outcome a quantity: the later line counts, of a run that was finished twice; what is free has none."""
    latest: dict[str, LedgerLine] = {}
    for number, record in enumerate(journal.read(ledger), 1):
        line = _line(record, f"{ledger}: line {number}")
        latest[line.name] = line
    for name, line in latest.items():
        if line.measured is None:
            tell(f"{ledger}: {name} was not measured, left out")
        elif line.measured > 0:
            yield Outcome(f"{history.FIXED}{name}" if name in fixed else name, line.predicted, line.measured)


def _line(record: dict[str, Any], place: str) -> LedgerLine:
    try:
        line = LedgerLine.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise FaultError(f"{place}: {wrong}; restore the file from a copy or remove the line") from None
    free = line.predicted.p90 == line.measured == 0  # money on a machine that costs nothing
    if not free and (line.predicted.p10 <= 0 or (line.measured is not None and not 0 < line.measured < math.inf)):
        raise FaultError(f"{place}: {line.name}: not more than 0; restore the file from a copy or remove the line")
    return line


def _before(outcome: Outcome, correction: Correction | None) -> Outcome:
    if correction is None:
        return outcome
    return Outcome(outcome.name, correction.undo(outcome.predicted), outcome.measured)


def _recalibrations(runs: Iterable[PastRun]) -> Iterator[Recalibration]:
    """One for each processor, device and number of threads that the runs were planned on."""
    machines: defaultdict[tuple[str, str, int], list[PastRun]] = defaultdict(list)
    for run in runs:
        machines[run.machine.name, run.machine.device, run.machine.threads].append(run)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    for found in machines.values():
        raw = [outcome for run in found for outcome in run.raw]
        yield history.recalibration(raw, found[-1].machine, len(found), date)
