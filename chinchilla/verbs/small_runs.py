"""The small runs of a sweep: what they share, which there could be, the plan of one, and those that are finished."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chinchilla.config.errors import BudgetError, DataError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import Loaded
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Plan, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_time
from chinchilla.planning import design, halving, search
from chinchilla.planning.count import num_params
from chinchilla.planning.design import Small
from chinchilla.planning.huber import Points
from chinchilla.planning.laws import effective_tokens
from chinchilla.planning.machine import step_time
from chinchilla.planning.own_law import OwnLaw, Settings, own_law
from chinchilla.planning.pace import Window, pace, spread
from chinchilla.planning.posterior import Posterior, posterior
from chinchilla.planning.room import Room
from chinchilla.store.run_folder import RunFolder, require_writable
from chinchilla.training.allocator import keep_freed_memory, used_bytes
from chinchilla.training.monitor import check_trackers
from chinchilla.verbs import layouts
from chinchilla.verbs.choice import GAPS, Choice
from chinchilla.verbs.choose import room_for
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.plan import assemble, measured_machine
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared

SMALL_SHARE = 0.5
"""Of the budget, where the big run is to come out of the same."""

SCORED = 8
"""Test examples a small run is scored on: its law takes the validation loss, and scoring is no use of the time."""

OVERHEAD_S = 2.0
"""What a run takes beside its steps: making and saving the model, the score."""

ALIKE = 1.2
"""Factor in steps within which a run of the same shape says nothing that one done has not said."""

UNTIMED_SPREAD = 0.5
"""Relative spread of a step time before any run of the sweep was timed."""


@dataclass(frozen=True, eq=False)
class Ground:
    """All that stays the same over a sweep. `small_s` may go into small runs, `target_s` into the big one."""

    loaded: Loaded
    out: Path
    prepared: Prepared
    machine: Machine
    draft: Training
    room: Room
    shapes: tuple[Shape, ...]
    small_s: float
    target_s: float

    @property
    def step_tokens(self) -> int:
        """Labelled tokens a step."""
        return self.room.batch.loss_rows * self.draft.accumulation

    def step_s(self, shape: Shape) -> float:
        """Seconds that a step of a shape is expected to take."""
        draft = self.draft
        return step_time(
            shape, self.room.batch, self.machine, draft.precision, draft.optimizer, draft.accumulation
        ).total_s

    def worth(self, tokens: float) -> float:
        """Effective tokens of so many seen."""
        return effective_tokens(self.prepared.facts.unique_tokens, tokens)


@dataclass(frozen=True)
class Done:
    """A finished small run; `loss` is its validation loss at the end of the schedule."""

    run: Path
    shape: Shape
    num_params: int
    steps: int
    tokens: float
    loss: float
    time_s: float


def survey(loaded: Loaded, out: Path | None, target_s: float | None, tell: Callable[[str], None]) -> Ground:
    """Read the data, measure the machine, and divide the budget; nothing is run or written.

    Without a target the big run takes what is left of the budget.

    Raises:
        DataError: data that cannot be used.
        UsageError: no time budget, a model to start from, a wrong cluster file, a folder that cannot be written, or
            fewer than three sizes left open.
        BudgetError: reading the data takes all of the budget, or no shape fits the limits.
    """
    run = loaded.run
    begun = time.perf_counter()
    if run.budget.time is None:
        raise UsageError("a sweep needs a time: give budget.time or --budget, like 30m")
    if run.model.start is not None:
        raise UsageError(
            f"model.start {run.model.start}: a sweep compares sizes that all learn from nothing, and this model has "
            "one size: sweep without it, or let `chinchilla plan` time that model"
        )
    folder = out or run.runs / f"{run.name or run.task}-sweep"
    check_trackers(run.train.trackers)
    require_writable(folder.parent)
    cluster = layouts.read(run)
    prepared = prepare(quick(run), tell)
    machine = measured_machine(run, tell)
    keep_freed_memory()
    left_s = run.budget.time - (time.perf_counter() - begun)
    if left_s <= 0:
        raise BudgetError(f"budget: reading and encoding the data alone took {show_time(run.budget.time)}: raise it")
    small_s = left_s if target_s else SMALL_SHARE * left_s
    target_s = target_s or left_s - small_s
    draft = draft_training(run, machine, prepared, target_s)
    layouts.require_rates(cluster, draft.precision)
    room = room_for(run, prepared, machine, draft, used_bytes(torch.device(machine.device)))
    shapes = _shapes(run, prepared, draft, room)
    # What no big run can meet is refused before the small ones.
    search.candidates(prepared.facts, machine, run.limits, run.model, target_s, room)
    return Ground(loaded, folder, prepared, machine, draft, room, shapes, small_s, target_s)


def quick(run: Run) -> Run:
    """The run with a short score."""
    return run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"max_examples": SCORED})})


def candidates(ground: Ground, done: Sequence[Done], most_s: float) -> list[Small]:
    """Every shape at every length that takes at most `most_s`, but for what is done, at the speed of what is done."""
    found = []
    for shape in ground.shapes:
        step_s, size = speed(ground, done) * ground.step_s(shape), num_params(shape)
        least = math.ceil(design.LEAST_TOKENS_A_PARAMETER * size / ground.step_tokens)
        for steps in design.lengths(step_s, most_s - OVERHEAD_S):
            if steps >= least and not _repeats(shape, steps, done):
                tokens = steps * ground.step_tokens
                found.append(
                    Small(shape, size, steps, tokens, ground.worth(tokens), time_s=steps * step_s + OVERHEAD_S)
                )
    return found


def small_plan(ground: Ground, small: Small, done: Sequence[Done]) -> tuple[Loaded, Plan]:
    """The settings and the plan of one small run. With runs done its loss is predicted by the law of those."""
    loaded, shape = _settled(ground, small), small.shape
    way, step_s = bool(ground.room.way(shape)), speed(ground, done) * ground.step_s(shape)
    choice = Choice(
        shape=shape,
        compile=ground.draft.compile,
        recompute=way,
        step_time=Estimate.around(step_s, _spread(ground, done), "s", "measured" if done else "guess"),
        needs_bytes=round(GAPS * ground.room.peak(shape, way)),
        probes=(),
        reason="a small run of a sweep: narrows the prediction of the big one",
        compile_reason="off unless the recipe says so",
        rate_reason="as in the big run",
        curve=(),
        valid_loss=None,
        eval_time_s=None,
        unique_tokens=ground.prepared.facts.unique_tokens,
        prior=halving.prior_of(ground.prepared.facts.task),
        own=fitted(ground, done) if done else None,
    )
    made = assemble(loaded.run, ground.prepared, ground.machine, ground.draft, choice, time.perf_counter())
    if not done:
        # No law is known of this text yet, and one of another text says nothing of its level.
        made = made.model_copy(update={"predicted": {k: v for k, v in made.predicted.items() if k != "loss"}})
    return loaded, made


def speed(ground: Ground, done: Sequence[Done]) -> float:
    """Seconds for each of the step-time model's, over all runs done."""
    windows = _windows(ground, done)
    return pace(windows) if windows else 1.0


def places(ground: Ground, done: Sequence[Done]) -> Points:
    """Where runs lie, in effective tokens."""
    worth = np.array([ground.worth(run.tokens) for run in done])
    return Points.of(np.array([float(run.num_params) for run in done]), worth)


def known(ground: Ground, done: Sequence[Done], points: Points) -> Posterior:
    """What finished runs at `points` say of the law; with none, what the task's prior says about that centre."""
    return posterior(points, np.array([run.loss for run in done]), halving.prior_of(ground.prepared.facts.task))


def fitted(ground: Ground, done: Sequence[Done]) -> OwnLaw:
    """The law of finished runs."""
    found = known(ground, done, places(ground, done))
    sizes, tokens = np.array([float(run.num_params) for run in done]), np.array([float(run.tokens) for run in done])
    source = f"posterior of {len(done)} small runs in {ground.out.name}"
    return own_law(found, sizes, tokens, ground.prepared.facts, ground.draft, source)


def finished(ground: Ground) -> tuple[Done, ...]:
    """The finished runs in the sweep's folder, in the order they were made.

    Raises:
        UsageError: one of them is of other data or settings.
        DataError: one of them is damaged.
    """
    folders = _folders(ground.out)
    return tuple(_done(ground, folder) for folder in folders if (folder.path / "results.json").exists())


def unfinished(out: Path) -> list[Path]:
    """Runs in a sweep's folder that were stopped."""
    return [folder.path for folder in _folders(out) if not (folder.path / "results.json").exists()]


def _shapes(run: Run, prepared: Prepared, draft: Training, room: Room) -> tuple[Shape, ...]:
    """The sizes that fit the recipe's limits and the memory."""
    shapes = [
        shape.model_copy(update={"reconstruct": draft.reconstruct_weight > 0})
        for shape in design.ladder(prepared.facts, run.model)
        if (run.limits.size is None or 4 * num_params(shape) <= run.limits.size) and room.way(shape) is not None
    ]
    if len(shapes) < design.LEAST_SIZES:
        raise UsageError(
            f"a sweep compares at least {design.LEAST_SIZES} sizes, and the recipe leaves room for {len(shapes)}: "
            "leave model.dim open, or raise limits.size or limits.memory"
        )
    return tuple(shapes)


def _repeats(shape: Shape, steps: int, done: Sequence[Done]) -> bool:
    return any(shape == run.shape and max(steps, run.steps) < ALIKE * min(steps, run.steps) for run in done)


def _settled(ground: Ground, small: Small) -> Loaded:
    """The recipe with a small run's size and length, validated and saved once, at the end of the schedule."""
    run, shape = ground.loaded.run, small.shape
    model = {
        "dim": shape.dim,
        "num_encoder_layers": shape.num_encoder_layers or None,
        "num_decoder_layers": shape.num_decoder_layers or None,
    }
    train = {"steps": small.steps, "eval_every": small.steps, "probes": False}
    told = {
        "name": "small",
        "runs": ground.out,
        "model": run.model.model_copy(update=model),
        "train": run.train.model_copy(update=train),
    }
    keys = [f"model.{name}" for name in model] + [f"train.{name}" for name in train]
    return Loaded(quick(run).model_copy(update=told), ground.loaded.origins | dict.fromkeys(keys, "sweep"))


def _windows(ground: Ground, done: Sequence[Done]) -> list[Window]:
    return [Window(run.steps, run.time_s, ground.step_s(run.shape)) for run in done]


def _spread(ground: Ground, done: Sequence[Done]) -> float:
    return spread(_windows(ground, done)) if done else UNTIMED_SPREAD


def _folders(out: Path) -> list[RunFolder]:
    """Run folders of a sweep, oldest first; not what was made of them since, like `small-1-int8-1`."""
    paths = [path for path in out.glob("small-*") if (path / "plan.json").is_file()] if out.is_dir() else []
    numbers = {int(rest): path for path in paths if (rest := path.name.removeprefix("small-")).isdecimal()}
    return [RunFolder(path) for _, path in sorted(numbers.items())]


def _done(ground: Ground, folder: RunFolder) -> Done:
    made, facts = folder.read_plan(), ground.prepared.facts
    same = (made.task, made.shape.vocab_size, made.unique_tokens) == (facts.task, facts.vocab_size, facts.unique_tokens)
    if not same or Settings.of(made.training) != Settings.of(ground.draft):
        raise UsageError(f"{folder.path}: of other data or training settings than this recipe's: give another --out")
    path = folder.path / "results.json"
    try:
        results = json.loads(path.read_text("utf-8"))
        steps, tokens, loss, time_s = (results[name] for name in ("steps", "tokens", "valid_loss", "train_time_s"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error!r}); remove that run, and the sweep does it again") from None
    return Done(folder.path, made.shape, made.num_params, steps, tokens, loss, time_s)
