"""`--dry-run` of `plan` and `train`: all that can be checked before the machine is measured and anything is probed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_bytes, show_count
from chinchilla.planning import cost, search
from chinchilla.planning.bounds import bounds
from chinchilla.planning.count import num_params
from chinchilla.store import checkpoint
from chinchilla.store.guard import undisturbed
from chinchilla.store.run_folder import RunFolder, require_room, require_writable
from chinchilla.training.monitor import check_trackers
from chinchilla.verbs import layouts
from chinchilla.verbs.plan import known_law, known_tariff
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.train import disk_bytes, with_tokenizer
from chinchilla.verbs.transfer import check_start

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """What a plan would be made of: the data, and the least shape that the recipe leaves it."""

    prepared: Prepared
    least: Shape

    @property
    def lines(self) -> list[str]:
        """It in words."""
        facts = self.prepared.facts
        return [
            f"{facts.num_examples:,} training examples, {show_count(facts.unique_tokens)} {facts.labels} an epoch, "
            f"rows of {self.prepared.row_len}",
            f"{num_params(self.least):,} parameters at least",
        ]

    def as_json(self) -> dict[str, Any]:
        """It as `--json` prints it; `unique_tokens` counts what `labels` names."""
        facts = self.prepared.facts
        return {
            "examples": facts.num_examples,
            "unique_tokens": facts.unique_tokens,
            "labels": facts.labels,
            "row_len": self.prepared.row_len,
            "least_params": num_params(self.least),
        }


@dataclass(frozen=True)
class Rest:
    """What is left of a run: from `step`, which a checkpoint holds (0: from the start), to `steps`."""

    step: int
    steps: int


def look(run: Run, law: Path | None = None, tell: Tell = lambda text: None) -> Look:
    """Check what `plan` would take: cluster, budget, law, what the run starts from, its adapter, all data, the limits.

    A limit on latency or memory needs the machine, and a budget of energy may need its power: neither is looked at.

    Raises:
        DataError, UsageError, BudgetError: as `plan`.
    """
    layouts.read(run)
    check_start(run)
    if run.budget.energy is None:
        cost.in_time(run.budget, known_tariff(run, None))
    own = None if law is None else known_law(run, law)
    prepared = prepare(run, tell)
    if own is not None and law is not None:
        own.for_data(prepared.facts, law)
    return Look(prepared, _least_shape(prepared))


def look_before_training(run: Run, tell: Tell = lambda text: None) -> Look:
    """Check what `train` would take: what `look` does, trackers, the folder of runs, and the disk's room.

    Raises:
        DataError, UsageError, BudgetError: as `plan`.
        FaultError: not even the least shape's checkpoints have room on the disk.
    """
    check_trackers(run.train.trackers)
    require_writable(run.runs)
    found = look(run, tell=tell)
    train = run.train
    optimizer = train.optimizer or ("muon" if run.adapter is None else "adamw")
    adapter, ema = found.prepared.adapter_on(found.least), bool(train.ema_decay)
    needed = disk_bytes(found.least, optimizer, ema, train.keep_checkpoints, adapter)
    require_room(run.runs, needed, f"{train.keep_checkpoints + 1} checkpoints and the model, at the smallest size,")
    tell(f"disk: room for {show_bytes(needed)}, the least that it takes")
    return found


def look_before_resuming(path: Path, tell: Tell = lambda text: None) -> Rest:
    """Check what `train --resume` would take: the run, that nobody is at work in it, its data and checkpoints.

    Raises:
        UsageError: not a run folder, or another process is at work in it; its data or settings cannot be used any more.
        DataError: its data cannot be read any more.
        FaultError: a file of it or every checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    with undisturbed(path):
        loaded, made = folder.read_run(), folder.read_plan()
        check_trackers(loaded.run.train.trackers)
        prepare(with_tokenizer(folder, loaded), tell)
        saved = checkpoint.latest(folder.checkpoints, lambda where, why: tell(f"{where} is damaged ({why})"))
    # A run that meets the clock plans its steps anew; the checkpoint has the number that stands.
    return Rest(saved.step, saved.state["steps"]) if saved else Rest(0, made.training.steps)


def _least_shape(prepared: Prepared) -> Shape:
    """The shape of the model to start from, with its adapter tried on; else the smallest that a plan could come to."""
    run, facts = prepared.run, prepared.facts
    held_to = bounds(facts.request, None, run.limits.model_copy(update={"latency": None}))
    if prepared.start is None:
        return search.smallest(facts, run.model, held_to)
    shape = prepared.start.shape_for(facts, run.model)
    prepared.start.require_within(shape, held_to)
    with torch.device("meta"):
        prepared.new_model(shape, 0.0)
    return shape
