"""What a run folder says, read whole and checked, with whatever parts it has."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Plan
from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder

Lines = list[dict[str, Any]]

WITHOUT = "remove it to report without it"


class Part(BaseModel):
    """A JSON file another room wrote; keys that the report doesn't show are let pass."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Sample(Part):
    """One example: its source (or prompt), the reference, and the model's output, or both of a compression's."""

    source: str = ""
    reference: str | None = None
    output: str | None = None
    before: str | None = None
    after: str | None = None


class Results(Part):
    """`results.json`: what training ended with."""

    metrics: dict[str, Any] = {}
    samples: tuple[Sample, ...] = ()
    details: dict[str, Any] = {}
    valid_loss: float | None = None
    train_time_s: float | None = None
    tokens: float | None = None


class Side(Part):
    """A model before or after compression."""

    size_bytes: PositiveFloat
    latency_p50_s: PositiveFloat | None = None
    latency_p90_s: PositiveFloat | None = None
    metrics: dict[str, Any] | None = None


class Compression(Part):
    """`compression.json`: what compression changed, and the run folder it started from."""

    parent: Path
    before: Side
    after: Side
    scheme: str
    samples: tuple[Sample, ...] = ()


class LedgerLine(Part):
    """One line of `ledger.jsonl`."""

    name: str
    predicted: Estimate
    measured: float | None


PartType = TypeVar("PartType", bound=Part)


@dataclass(frozen=True)
class Record:
    """A run's story. What a compressed run lacks is its parent's, where the parent can be reached."""

    path: Path
    plan: Plan
    metrics: Lines
    events: Lines
    ledger: Lines
    environment: dict[str, Any]
    run_toml: str
    size_bytes: int | None
    results: Results | None
    compression: Compression | None
    parent: Path | None

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.path.name


def read(path: Path) -> Record:
    """Read a run folder.

    Raises:
        UsageError: `path` is not a run folder.
        FaultError: a file in it is damaged; the message names it.
    """
    folder = RunFolder.open(path.resolve())
    compression = read_part(folder.path / "compression.json", Compression)
    parent = _parent(folder, compression.parent) if compression else None
    folders = [folder] if parent is None else [folder, parent]
    return Record(
        path=folder.path,
        plan=folder.read_plan(),
        metrics=next((lines for f in folders if (lines := journal.read(f.metrics))), []),
        events=_joined([journal.read(f.events) for f in reversed(folders)]),
        ledger=_joined([_ledger(f.ledger) for f in reversed(folders)]),
        environment=next((_object(f.env_json) for f in folders if f.env_json.exists()), {}),
        run_toml=folder.run_toml.read_text("utf-8", "replace"),
        size_bytes=next((w.stat().st_size for f in folders if (w := f.model / "model.safetensors").exists()), None),
        results=next((r for f in folders if (r := read_part(f.path / "results.json", Results))), None),
        compression=compression,
        parent=parent.path if parent else None,
    )


def _parent(folder: RunFolder, written: Path) -> RunFolder | None:
    """The run that was compressed: where it was, or beside this one if both have moved; None when out of reach."""
    for path in (folder.path / written, folder.path.parent / written.name):
        try:
            found = RunFolder.open(path.resolve())
        except UsageError:
            continue
        if found != folder:
            return found
    return None


def _joined(parts: list[Lines]) -> Lines:
    """All lines, those copied from a parent only once."""
    found: Lines = []
    for lines in parts:
        found += [line for line in lines if line not in found]
    return found


def _ledger(path: Path) -> Lines:
    lines = journal.read(path)
    for number, line in enumerate(lines, 1):
        try:
            LedgerLine.model_validate(line)
        except ValidationError as error:
            raise FaultError(f"{path}: line {number}: {_first(error)}; remove the line to report without it") from None
    return lines


def _object(path: Path, mend: str = WITHOUT) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FaultError(f"{path}: cannot be read as JSON: {error}; {mend}") from None
    if not isinstance(value, dict):
        raise FaultError(f"{path}: holds {type(value).__name__}, not an object; {mend}")
    return value


def read_part(path: Path, kind: type[PartType], mend: str = WITHOUT) -> PartType | None:
    """What a JSON file holds of `kind`; None where there is no such file.

    Raises:
        FaultError: it cannot be read, or holds something else; ends with the `mend`.
    """
    if not path.exists():
        return None
    try:
        return kind.model_validate(_object(path, mend))
    except ValidationError as error:
        raise FaultError(f"{path}: {_first(error)}; {mend}") from None


def _first(error: ValidationError) -> str:
    item = error.errors()[0]
    return f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
