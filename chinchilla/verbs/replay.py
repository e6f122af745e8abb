"""Train a few steps of a run over again and hold them against what the run kept, bit for bit. Nothing is written."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla.config.errors import FaultError
from chinchilla.models.folder import read_json
from chinchilla.store import checkpoint, journal
from chinchilla.store.checkpoint import Checkpoint
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.trained import trained
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.train import rebuild

NEAR = 20
"""Steps beyond those asked for that are gone to reach something to compare with."""

AVERAGE = "average of "
"""Stands before the name of a weight whose running average is meant."""


@dataclass(frozen=True)
class Replay:
    """Steps `start` to `stop`, done again; `compared` says with what, and `difference` what differs first, if any."""

    start: int
    stop: int
    compared: tuple[str, ...]
    difference: str | None = None


@dataclass(frozen=True)
class _Course:
    """What there is to compare with, from step `start` on: logged losses by step, and the next checkpoint."""

    start: int
    end: int
    losses: Mapping[int, float]
    next: Checkpoint | None

    def stop(self, steps: int) -> int:
        """Where a replay of about `steps` steps ends: at the next checkpoint if that is near, else at a loss."""
        asked, far = min(self.start + steps, self.end), min(self.start + max(steps, NEAR), self.end)
        if self.next is not None and self.next.step <= far:
            return self.next.step
        if any(step <= asked for step in self.losses):
            return asked
        return min((step for step in self.losses if step <= far), default=asked)


def replay(folder: RunFolder, whole: Sequence[Path], steps: int) -> Replay | None:
    """Do about `steps` steps again from the newest but one of the `whole` checkpoints, which are given newest first.

    With one checkpoint it starts there, or from the run's beginning where that one is the last step. Compared are the
    weights with the next checkpoint and the losses with `metrics.jsonl`; where neither is near, a second replay with
    the first. None where there is nothing to replay.

    Raises:
        DataError, UsageError: the run's data cannot be read any more.
        FaultError: a file is damaged.
    """
    logged = [record for record in journal.read(folder.metrics) if record.get("loss") is not None]
    if not whole and not logged:
        return None
    saved, following = _ends(whole)
    trainer = rebuild(folder)
    if saved is not None:
        trainer.resume(saved)
    course = _course(folder, trainer, saved, following, logged)
    stop = course.stop(steps)
    if stop <= course.start:
        return None
    losses = _run(trainer, stop - course.start)
    found = _compare(trainer, course, stop, losses)
    if found.compared:
        return _explained(found, folder)
    return _explained(_twice(folder, trainer, saved, losses), folder)


def _ends(whole: Sequence[Path]) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The checkpoint to start from (None: the beginning), and the one after it."""
    if len(whole) > 1:
        return checkpoint.load(whole[1]), checkpoint.load(whole[0])
    only = checkpoint.load(whole[0]) if whole else None
    if only is not None and only.state["steps"] <= only.step:
        return None, only
    return only, None


def _course(
    folder: RunFolder,
    trainer: Trainer,
    saved: Checkpoint | None,
    following: Checkpoint | None,
    logged: Sequence[Mapping[str, Any]],
) -> _Course:
    start = saved.step if saved else 0
    # Where the run was planned anew or went back, it took a course that its earlier checkpoints do not know.
    turns = [_turn(event) for event in journal.read(folder.events)]
    end = min([trainer.training.steps, *(turn for turn in turns if turn is not None and turn >= start + bool(saved))])
    losses = {line["step"]: line["loss"] for line in logged if start < line["step"] <= end}
    return _Course(start, end, losses, following if following and start < following.step <= end else None)


def _turn(event: Mapping[str, Any]) -> int | None:
    """The step after which an event changed the run's course."""
    return {"replan": event.get("step"), "rollback": event.get("to_step")}.get(event.get("kind", ""))


def _run(trainer: Trainer, steps: int) -> list[float]:
    """The losses of the next steps."""
    with contextlib.closing(trainer.steps()) as taken:
        return [step.loss for step in islice(taken, steps)]


def _compare(trainer: Trainer, course: _Course, stop: int, losses: Sequence[float]) -> Replay:
    compared: list[str] = []
    difference: str | None = None
    for step, loss in enumerate(losses, course.start + 1):
        if step in course.losses:
            compared.append(f"the loss of step {step}")
            if loss != course.losses[step] and difference is None:
                difference = f"step {step}: the loss is {loss!r}, metrics.jsonl says {course.losses[step]!r}"
    if course.next is not None and course.next.step == stop:
        compared.append(f"the weights of step {stop}")
        differing = first_difference(_weights(trainer), _saved_weights(course.next))
        if differing is not None and difference is None:
            difference = f"step {stop}: {differing}"
    return Replay(course.start, stop, tuple(compared), difference)


def _twice(folder: RunFolder, trainer: Trainer, saved: Checkpoint | None, losses: Sequence[float]) -> Replay:
    """Do the same steps once more, and compare them with the first time."""
    weights = _weights(trainer)
    if saved is None:
        trainer = rebuild(folder)
    else:
        # Loaded anew: a trainer goes on in the tensors that it was given.
        trainer.resume(checkpoint.load(folder.checkpoints / f"step-{saved.step:06d}"))
    start = trainer.progress.step
    repeated = _run(trainer, len(losses))
    stop = start + len(losses)
    return Replay(
        start, stop, ("a second replay of the same steps",), _between(trainer, start, losses, repeated, weights)
    )


def _between(
    trainer: Trainer, start: int, losses: Sequence[float], repeated: Sequence[float], weights: Mapping[str, Tensor]
) -> str | None:
    for step, (first, second) in enumerate(zip(losses, repeated, strict=True), start + 1):
        if first != second:
            return f"step {step}: the loss is {first!r} the first time, {second!r} the second"
    differing = first_difference(_weights(trainer), weights)
    return None if differing is None else f"step {start + len(losses)}: {differing}"


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the weights that are trained, and of their running averages where the run has them."""
    averages = {AVERAGE + name: tensor for name, tensor in (trainer.average or {}).items()}
    named = dict(trained(trainer.model)) | averages
    return {name: weight.detach().to("cpu", copy=True) for name, weight in named.items()}


def _saved_weights(saved: Checkpoint) -> dict[str, Tensor]:
    averages = saved.tensors.get("average", {})
    return saved.tensors["model"] | {AVERAGE + name: tensor for name, tensor in averages.items()}


def first_difference(found: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> str | None:
    """The first tensor and value whose bits differ, in words; None where all are equal."""
    for name in sorted(found.keys() | kept.keys()):
        if name not in found or name not in kept:
            return f"tensor {name} is {'missing' if name not in found else 'too many'}"
        one, other = found[name].contiguous().flatten(), kept[name].contiguous().flatten()
        if found[name].shape != kept[name].shape or one.dtype != other.dtype:
            return f"tensor {name} is of another shape or kind"
        # Bytes, since -0 equals 0 and NaN never equals itself.
        bits = one.view(torch.uint8) != other.view(torch.uint8)
        if bits.any():
            place = int(bits.nonzero()[0]) // one.element_size()
            count = int(bits.view(-1, one.element_size()).any(1).sum())
            return (
                f"tensor {name} differs in {count:,} of {len(one):,} values, the first at {place}: "
                f"{one[place].item()!r} now, {other[place].item()!r} kept"
            )
    return None


def _explained(found: Replay, folder: RunFolder) -> Replay:
    """With a difference, also what is no longer as it was: only the same machine promises the same bits."""
    changed = _changes(folder) if found.difference else []
    if not changed:
        return found
    told = f"{found.difference} (this is not what the run was made on: {'; '.join(changed)})"
    return Replay(found.start, found.stop, found.compared, told)


def _changes(folder: RunFolder) -> list[str]:
    try:
        kept = read_json(folder.path, folder.env_json.name)
    except FaultError:
        return ["env.json is damaged"]
    packages = kept.get("packages")
    torch_then = packages.get("torch") if isinstance(packages, dict) else None
    now = {"platform": platform.platform(), "processor": platform.machine()}
    pairs = [("torch", torch_then, importlib.metadata.version("torch"))]
    pairs += [(name, kept.get(name), value) for name, value in now.items()]
    return [f"{name} {then} then, {value} now" for name, then, value in pairs if then is not None and then != value]
