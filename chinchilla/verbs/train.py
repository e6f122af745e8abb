"""`chinchilla train`: carry out a plan into a run folder; `--resume` goes on with one."""

import json
import logging
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from chinchilla.compression.compare import latencies
from chinchilla.config.adapter import Adapter
from chinchilla.config.costs import Costs
from chinchilla.config.errors import StoppedError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import Loaded
from chinchilla.config.plan import LABELS, Label, OptimizerKind, Plan
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count, show_time
from chinchilla.models.adapt import merge_
from chinchilla.models.adapter_files import write_adapter
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.memory import state
from chinchilla.planning.pauses import fitting_steps, paused_time
from chinchilla.store import checkpoint
from chinchilla.store.atomic import write_text
from chinchilla.store.run_folder import RunFolder, require_room, require_writable
from chinchilla.tasks.task import Score
from chinchilla.training.allocator import keep_freed_memory, peak_bytes, reset_peak
from chinchilla.training.monitor import Monitor, Silent, check_trackers, open_trackers
from chinchilla.training.progress import Outcome, Review
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.answer_probe import timed_answer
from chinchilla.verbs.exam import RunExam
from chinchilla.verbs.plan import NEW_PLAN_ABOVE, plan
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared, spread
from chinchilla.verbs.stop import StopSignals

log = logging.getLogger("chinchilla")

SAMPLES = 12

LATENCY_TEXTS = 5
"""Test texts that are answered one by one, to see how long an answer takes."""


class Progress(Monitor, Protocol):
    """A monitor that also says where the whole command stands."""

    def stage(self, text: str) -> None:
        """What is being done now."""

    def start(self, total_steps: int, total: float, label: Label, predicted_loss: Estimate | None) -> None:
        """Training begins, on `total` of what `label` calls them."""

    def stop(self) -> None:
        """Training has ended."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, scores on the test data, and predictions beside measurements by name."""

    run: Path
    metrics: dict[str, float]
    predicted: dict[str, Estimate]
    measured: dict[str, float]


def train(loaded: Loaded, progress: Progress, on_plan: Callable[[Plan], None] = lambda made: None) -> TrainResult:
    """Plan and train a new run. The run folder is made once the data is read and the plan stands.

    `on_plan` is told the plan before training begins.

    Raises:
        DataError, BudgetError, UsageError: as `plan`; nothing is left behind.
        FaultError: the disk or the training failed; the run can be resumed from its last checkpoint.
        StoppedError: SIGINT or SIGTERM came while it trained; the run can be resumed from that step.
    """
    run = loaded.run
    check_trackers(run.train.trackers)
    require_writable(run.runs)
    made, prepared = plan(run, progress.stage)
    return begin(loaded, made, prepared, progress, on_plan)


def begin(
    loaded: Loaded,
    made: Plan,
    prepared: Prepared,
    progress: Progress,
    on_plan: Callable[[Plan], None] = lambda made: None,
) -> TrainResult:
    """Train a planned run into a new run folder.

    Raises:
        FaultError, StoppedError: as `train`.
    """
    run = loaded.run
    training = made.training
    adapter, ema = prepared.adapter_on(made.shape), training.ema_decay > 0
    needed = disk_bytes(made.shape, training.optimizer, ema, training.keep_checkpoints, adapter)
    require_room(run.runs, needed, f"{training.keep_checkpoints + 1} checkpoints and the model")
    on_plan(made)
    # From here on a signal leaves a run folder that can be resumed; until now it left none.
    with StopSignals() as stop:
        folder = RunFolder.create(run.runs, run.name or run.task)
        with folder.lock():
            folder.write_run(loaded)
            folder.write_plan(made)
            folder.write_env(run.seed, made.training.threads)
            if prepared.codec.tokenizer_json is not None:
                write_text(folder.path / "tokenizer.json", prepared.codec.tokenizer_json)
            folder.log_event("planned", planning_time_s=made.planning_time_s)
            return _carry_out(folder, made, prepared, progress, None, stop)


def disk_bytes(shape: Shape, optimizer: OptimizerKind, ema: bool, keep: int, adapter: Adapter | None = None) -> int:
    """What a run needs on the disk at most: one checkpoint more than the `keep` that are kept, and the model."""
    held = state(shape, optimizer, ema, adapter)
    return (keep + 1) * held.saved + held.weights


def resume(path: Path, progress: Progress) -> TrainResult:
    """Go on with an interrupted run from its last whole checkpoint, or from the start where there is none yet.

    Raises:
        UsageError: not a run folder, or another process is at work in it.
        FaultError: checkpoints are there, and all are damaged; or as `train`.
        StoppedError: as `train`.
    """
    folder = RunFolder.open(path)
    with folder.lock():
        loaded, made = folder.read_run(), folder.read_plan()
        torch.set_num_threads(made.training.threads)
        keep_freed_memory()
        prepared = prepare(with_tokenizer(folder, loaded), progress.stage)

        def damaged(where: Path, why: str) -> None:
            folder.log_event("damaged", path=str(where), why=why)
            progress.note(f"{where} is damaged ({why}); taking the one before")

        saved = checkpoint.latest(folder.checkpoints, damaged)
        step = saved.step if saved else 0
        folder.cut_metrics(step)
        folder.log_event("resumed", step=step)
        progress.note(f"going on from step {step}")
        with StopSignals() as stop:
            return _carry_out(folder, made, prepared, progress, saved, stop)


def rebuild(folder: RunFolder) -> Trainer:
    """The trainer of a run as it was before its first step; nothing is written. `Trainer.resume` takes it further.

    Raises:
        DataError, UsageError: the run's data or settings cannot be read any more.
        FaultError: a file of the run is damaged.
    """
    loaded, made = folder.read_run(), folder.read_plan()
    torch.set_num_threads(made.training.threads)
    keep_freed_memory()
    return _trainer(folder, made, prepare(with_tokenizer(folder, loaded)), Silent(), [])


def with_tokenizer(folder: RunFolder, loaded: Loaded) -> Run:
    """The run with the tokenizer it began with, so that a changed library cannot change the ids."""
    kept = folder.path / "tokenizer.json"
    run = loaded.run
    return (
        run.model_copy(update={"tokenizer": run.tokenizer.model_copy(update={"file": kept})}) if kept.exists() else run
    )


def _carry_out(
    folder: RunFolder,
    made: Plan,
    prepared: Prepared,
    progress: Progress,
    saved: checkpoint.Checkpoint | None,
    stop: StopSignals,
) -> TrainResult:
    trackers = open_trackers(prepared.run.train.trackers, folder.path)
    trainer = _trainer(folder, made, prepared, progress, trackers)
    trainer.should_stop = stop.asked
    if saved is not None:
        trainer.resume(saved)
    reset_peak(trainer.device)
    progress.start(trainer.training.steps, made.predicted["tokens"].p50, LABELS[made.task], made.predicted.get("loss"))
    try:
        outcome = _run(trainer, stop)
    finally:
        progress.stop()
        for tracker in trackers:
            tracker.close()
    memory_bytes = peak_bytes(trainer.device)
    progress.stage("scoring on the test data")
    model = _finished(folder, trainer.model, prepared.run.adapter)
    score = prepared.task.score(model, prepared.codec, prepared.test)
    measured = _measured(made, outcome, memory_bytes)
    write_model(
        folder.model,
        model,
        prepared.codec.tokenizer_json,
        _card(made, score, outcome),
        {
            "task": made.task,
            "metrics": score.metrics,
            "codec": prepared.codec.settings,
        },
    )
    measured["size_bytes"] = float((folder.model / "model.safetensors").stat().st_size)
    measured["latency_s"] = _latency(prepared, model)
    if "money" in made.predicted:
        measured["money"] = _spent(made, outcome)
    for name, predicted in made.predicted.items():
        if name in measured:  # nothing counts what was drawn: energy is as declared
            folder.log_prediction(name, predicted, measured[name], predicted.unit)
    _write_results(folder, score, outcome, measured)
    folder.log_event("finished", steps=outcome.steps, train_time_s=outcome.train_time_s)
    return TrainResult(folder.path, score.metrics, made.predicted, measured)


def _finished(folder: RunFolder, model: Transformer, adapter: Adapter | None) -> Transformer:
    """The model as it answers. An adapter is kept alone, and made part of the weights; a bottleneck stays in place."""
    if adapter is not None:
        write_adapter(folder.path / "adapter", model)
        if adapter.kind != "bottleneck":
            merge_(model)
    return model.eval()


def _run(trainer: Trainer, stop: StopSignals) -> Outcome:
    """Train; a signal that came is an error with its exit code, also where the last step was done already."""
    try:
        outcome = trainer.run()
        # What follows saves nothing, and can be interrupted as anything else.
        stop.release()
        if stop.asked():
            path = trainer.folder.path
            trainer.folder.log_event("stopped", step=outcome.steps)
            raise StoppedError(
                f"{path}: stopped after the last step, before the test; go on with: chinchilla train --resume {path}"
            )
    except StoppedError as stopped:
        stopped.exit_code = stop.exit_code
        raise
    return outcome


def _trainer(folder: RunFolder, made: Plan, prepared: Prepared, progress: Monitor, trackers: list[Any]) -> Trainer:
    training, run = made.training, prepared.run
    torch.manual_seed(training.seed)
    return Trainer(
        model=prepared.new_model(made.shape, training.dropout),
        task=prepared.task,
        training=training,
        batches=prepared.batches(training),
        valid=prepared.valid_batches(training),
        folder=folder,
        monitor=progress,
        flops_per_token=made.flops_per_token,
        peak_flops_per_s=made.machine.flops_per_s(training.precision),
        replan=_replanner(made, made.budget_time_s) if made.budget_time_s and run.train.steps is None else None,
        trackers=trackers,
        device=torch.device(made.machine.device),
    )


def _replanner(made: Plan, budget_time_s: float) -> Callable[[Review], int | None]:
    """Plan the remaining steps anew where they would exceed the budget, or leave more than a tenth of what is left.

    They are never more than the data is worth.
    """

    def replan(review: Review) -> int | None:
        pauses, training = made.pauses, made.training.model_copy(update={"steps": review.steps})
        left_s = max(0.0, budget_time_s - made.planning_time_s - review.time_s)
        needed_s = (review.steps - review.step) * review.step_time_s
        needed_s += paused_time(training, pauses, review.saves, after=review.step)
        if (1 - NEW_PLAN_ABOVE) * left_s <= needed_s <= left_s:
            return None
        every = {"eval_every": training.eval_every, "checkpoint_every": training.checkpoint_every}
        more = fitting_steps(left_s, review.step_time_s, pauses, **every, saves=review.saves)
        fitting = review.step + max(1, more)
        return min(fitting, made.most_steps or fitting)

    return replan


def _planned(made: Plan, name: str) -> Estimate:
    """A prediction as it was before past runs corrected it, each quantity by itself: those belong together."""
    correction = made.corrections.get(name)
    return correction.undo(made.predicted[name]) if correction else made.predicted[name]


def _measured(made: Plan, outcome: Outcome, memory_bytes: int) -> dict[str, float]:
    return {
        "step_time_s": outcome.step_time_s,
        "train_time_s": outcome.train_time_s,
        "tokens": float(outcome.tokens),
        "loss": outcome.valid_loss,
        "memory_bytes": float(memory_bytes),
        "flops": outcome.tokens * made.flops_per_token,
    }


def _spent(made: Plan, outcome: Outcome) -> float:
    """Money for planning and training, at the price that the plan was made with."""
    planned_s = made.planning_time_s + _planned(made, "train_time_s").p50
    return _planned(made, "money").p50 * (made.planning_time_s + outcome.train_time_s) / planned_s


def _latency(prepared: Prepared, model: Transformer) -> float:
    """Seconds of one answer, as long as the plan's; where no decoder answers, of the test example of mean length."""
    found = timed_answer(model, prepared.facts.request)
    if found is not None:
        return found.total_s
    lengths = [len(prepared.task.show(example)[0]) for example in prepared.test]
    typical = statistics.mean(lengths)
    order = sorted(range(len(lengths)), key=lambda index: abs(lengths[index] - typical))
    exam = RunExam(prepared.task, prepared.codec, [prepared.test[index] for index in order[:LATENCY_TEXTS]])
    (times,) = latencies([lambda asked: exam.answer(model, asked)], exam.questions, 1)
    return statistics.median(times)


def _card(made: Plan, score: Score, outcome: Outcome) -> str:
    """The model card."""
    metrics = "\n".join(f"| {name} | {value:.3f} |" for name, value in score.metrics.items())
    shape = "\n".join(f"- {name}: {value}" for name, value in made.shape.model_dump().items())
    return f"""---
library_name: chinchilla
tags: [{made.task}]
---

# {made.task.replace("_", " ").capitalize()}, {show_count(made.num_params)} parameters

Trained by Chinchilla for {show_time(outcome.train_time_s)} on {made.machine.name} ({made.machine.threads} threads,
{platform.system()}): {show_count(outcome.tokens)} {LABELS[made.task].many},
{outcome.tokens / made.unique_tokens:.2g} epochs.

| metric (test data) | value |
|---|---|
{metrics}
{_costs(score.details.get("costs"))}
## Shape

{shape}
"""


def _costs(told: dict[str, Any] | None) -> str:
    """What a model card says of the threshold that a table's classes are told by, where errors have costs."""
    if told is None:
        return ""
    costs = Costs(false_negative=told["false_negative"], false_positive=told["false_positive"])
    return f"""
It answers `{told["positive"]}` from a probability of {costs.threshold:.4g} on, since overlooking one costs
{costs.false_negative:g} and a false alarm {costs.false_positive:g}. `trivial_cost` is that of one answer to all.
"""


def _write_results(folder: RunFolder, score: Score, outcome: Outcome, measured: dict[str, float]) -> None:
    results = {
        "metrics": score.metrics,
        "samples": [vars(sample) for sample in spread(score.samples, SAMPLES)],
        "details": score.details,
        "valid_loss": outcome.valid_loss,
        "best_step": outcome.best_step,
        "steps": outcome.steps,
        "train_time_s": outcome.train_time_s,
        "tokens": outcome.tokens,
        "measured": measured,
    }
    write_text(folder.path / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
