"""The folder that joins the verbs: what was asked, decided, done and measured in one run."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import Loaded, load_run, to_toml
from chinchilla.config.plan import Plan
from chinchilla.config.units import show_bytes
from chinchilla.store import journal
from chinchilla.store.atomic import failures_named, make_folder, sync_folder, write_text
from chinchilla.store.guard import alone, refuse_links

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PACKAGES = ("chinchilla-ml", "torch", "numpy", "safetensors", "tokenizers", "pydantic", "pyarrow", "sacrebleu")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Files are written atomically, journals grow by whole lines."""

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str) -> Self:
        """Make the empty folder `runs/<name>-<n>` with the next free number, and `runs` itself where it is missing.

        Call it once everything that can be refused has been checked. Several processes may create at once.

        Raises:
            UsageError: `runs` cannot be written, or `name` is not a plain name.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"name: {name!r} cannot name a run folder; use letters, digits, '.', '_' and '-'")
        try:
            make_folder(runs)
            path = _make_numbered(runs, name)
            sync_folder(runs)
        except OSError as error:
            raise _unusable(runs, error) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The run folder at `path`.

        Raises:
            UsageError: it is missing or lacks what makes a run folder; the message names it and what to do.
            FaultError: a link in it leads what is written elsewhere.
        """
        folder = cls(path)
        if not path.is_dir():
            what = "a file, not a run folder" if path.exists() else "no such run folder"
            raise UsageError(f"{path}: {what}{_known(path.parent)}")
        missing = [file.name for file in (folder.run_toml, folder.plan_json) if not file.is_file()]
        if missing:
            raise UsageError(
                f"{path}: not a run folder, {' and '.join(missing)} missing{_known(path)}; "
                "`chinchilla train` and `chinchilla compress` make one"
            )
        refuse_links(path)
        return folder

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for writing (`chinchilla.store.guard.alone`)."""
        return alone(self.path)

    @property
    def run_toml(self) -> Path:
        """The resolved configuration, each value with its origin."""
        return self.path / "run.toml"

    @property
    def plan_json(self) -> Path:
        """What was decided and predicted."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """Journal: one line a logged step or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Journal: saves, restarts, NaNs, re-plans, faults."""
        return self.path / "events.jsonl"

    @property
    def ledger(self) -> Path:
        """Journal: predicted against measured."""
        return self.path / "ledger.jsonl"

    @property
    def env_json(self) -> Path:
        """Versions, platform, seed and threads."""
        return self.path / "env.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints (`chinchilla.store.checkpoint`)."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the finished model in the Hugging Face layout."""
        return self.path / "model"

    def write_run(self, loaded: Loaded) -> None:
        """Write `run.toml`. Raises FaultError when the disk fails, as every write here."""
        write_text(self.run_toml, to_toml(loaded))

    def read_run(self) -> Loaded:
        """Read `run.toml`. Raises UsageError when it is missing or was changed into something invalid."""
        return load_run(self.run_toml)

    def write_plan(self, plan: Plan) -> None:
        """Write `plan.json`."""
        write_text(self.plan_json, plan.model_dump_json(indent=2) + "\n")

    def read_plan(self) -> Plan:
        """Read `plan.json`.

        Raises:
            FaultError: it is missing or damaged; the message names the first wrong place.
        """
        with failures_named(self.plan_json):
            data = self.plan_json.read_bytes()
        try:
            return Plan.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise FaultError(f"{self.plan_json}: damaged at {place}: {first['msg']}; restore it from a copy") from None

    def write_env(self, seed: int, threads: int) -> None:
        """Write `env.json`: what a repetition of this run would have to match."""
        values = {
            "time": _now(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpu_count": os.cpu_count(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "seed": seed,
            "threads": threads,
        }
        write_text(self.env_json, json.dumps(values, indent=2) + "\n")

    def require_there(self) -> None:
        """Refuse to write into a folder that was moved or deleted, which would make half of it anew.

        Raises:
            FaultError: it is gone.
        """
        if not self.path.is_dir():
            raise FaultError(
                f"{self.path}: the run folder is gone; if it was moved, bring it back or go on where it is now: "
                "`chinchilla train --resume RUN`"
            )

    def log_metrics(self, **values: Any) -> None:
        """Append a line to `metrics.jsonl`."""
        self.require_there()
        journal.append(self.metrics, values)

    def log_event(self, kind: str, **values: Any) -> None:
        """Append a line to `events.jsonl`: the time (UTC, ISO 8601), the kind, and `values`."""
        self.require_there()
        journal.append(self.events, {"time": _now(), "kind": kind, **values})

    def log_prediction(self, name: str, predicted: Estimate, measured: float, unit: str) -> None:
        """Append a line to `ledger.jsonl`.

        Raises:
            ValueError: the measurement is in another unit than the prediction.
        """
        if unit != predicted.unit:
            raise ValueError(f"{name}: predicted in {predicted.unit}, measured in {unit}")
        record = {"time": _now(), "name": name, "predicted": predicted.model_dump(), "measured": measured, "unit": unit}
        journal.append(self.ledger, record)

    def cut_metrics(self, step: int) -> int:
        """Drop the metrics of steps after `step`, which a resume from there will do again; give how many lines went.

        Raises:
            FaultError: `metrics.jsonl` is damaged before its last line.
        """
        return journal.cut(self.metrics, lambda record: record.get("step", 0) <= step)


def require_writable(runs: Path) -> None:
    """Refuse a folder of runs that cannot be written, before anything is spent; nothing is left behind.

    Raises:
        UsageError: neither it nor, where it is still to be made, what it would lie in can be written.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(runs)):
            pass
    except OSError as error:
        raise _unusable(runs, error) from error


def require_room(runs: Path, size_bytes: int, what: str) -> None:
    """Refuse a disk with too little room for `what`.

    Raises:
        FaultError: fewer than `size_bytes` are free.
    """
    free = shutil.disk_usage(_existing(runs)).free
    if free < size_bytes:
        raise FaultError(
            f"runs: {what} take {show_bytes(size_bytes)}, and the disk of {runs} has {show_bytes(free)} free; "
            "make room or choose another with runs=FOLDER"
        )


def _existing(path: Path) -> Path:
    """The path itself, or what it would lie in."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _unusable(runs: Path, error: OSError) -> UsageError:
    return UsageError(
        f"runs: no run folder can be made in {runs}: {error.strerror or error}; choose another with runs=FOLDER"
    )


def _make_numbered(runs: Path, name: str) -> Path:
    numbered = re.compile(rf"{re.escape(name)}-([0-9]+)")
    matches = [numbered.fullmatch(entry.name) for entry in runs.iterdir()]
    number = max((int(match[1]) for match in matches if match), default=0)
    while True:
        number += 1
        path = runs / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return path


def _known(folder: Path) -> str:
    """A hint that names the newest run folders in `folder`."""
    if not folder.is_dir():
        return ""
    found = sorted(folder.glob("*/run.toml"), key=lambda file: file.stat().st_mtime, reverse=True)
    return f"; {folder} holds {', '.join(file.parent.name for file in found[:5])}" if found else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
