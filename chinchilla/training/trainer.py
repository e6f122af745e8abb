"""The training loop: one path for every model and task, resumable bit for bit."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from chinchilla.config.errors import FaultError, StoppedError, UsageError
from chinchilla.config.plan import LABELS, Training
from chinchilla.data.batches import Batches
from chinchilla.data.stream import Item, stream
from chinchilla.models.transformer import Transformer
from chinchilla.store import checkpoint
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.task import Batch, Loss, Objective, Task, num_tokens
from chinchilla.training.device import autocast, compile_blocks_, to_device
from chinchilla.training.monitor import Monitor, Tracker
from chinchilla.training.optimizer import Optimizer
from chinchilla.training.progress import Outcome, Progress, Review, Step
from chinchilla.training.ranks import Ranks
from chinchilla.training.records import Records
from chinchilla.training.replays import Replays
from chinchilla.training.rollback import MOST_ROLLBACKS, Returns, given_up
from chinchilla.training.saver import Saver, Snapshot
from chinchilla.training.schedule import rate_scale, review_due, reviews_to_come
from chinchilla.training.snapshot import (
    Weights,
    all_finite,
    copy_weights,
    learned,
    load_random_state,
    load_weights,
    on_cpu,
    random_state,
)
from chinchilla.training.trained import frozen_digest, trained
from chinchilla.training.validation import valid_loss
from chinchilla.training.watch import DivergedError, Watch, require_finite
from chinchilla.training.workers import Workers, worker_count

VALID_BATCHES = 32
"""Micro-batches of the validation data that a validation looks at, at most."""


@dataclass
class Trainer:
    """Trains `model` on `batches` by the settings in `training`; everything it does is written to `folder`.

    Of a model that is partly frozen (`models.adapt`) the rest is trained, and checkpoints hold that rest.

    `flops_per_token` (matmul FLOPs a labelled token, forward and backward) and `peak_flops_per_s` give the share
    of the machine's peak. `replan(review)`, where there is a clock to meet, may return a new number of steps; it is
    asked when the speed after warm-up is known, before a `wsd` schedule decays, and after a return to an earlier
    checkpoint. `should_stop()` is asked between steps.
    """

    model: Transformer
    task: Task
    training: Training
    batches: Batches
    valid: Batches
    folder: RunFolder
    monitor: Monitor
    flops_per_token: float
    peak_flops_per_s: float
    replan: Callable[[Review], int | None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    trackers: Sequence[Tracker] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.model.to(self.device)
        self.model.recompute_(self.training.recompute)
        self.model.drop_path_(self.training.drop_path)
        if self.training.compile:
            compile_blocks_(self.model)
        self.workers = Workers(self.model, worker_count(self.training, self.device), self.training.seed)
        self.optimizer = Optimizer(self.model, self.training, self.workers)
        self.ranks = Ranks(self.model)
        self.replays = Replays(self.task)
        self.progress = Progress()
        self.average = copy_weights(self.model) if self.training.ema_decay else None
        self.best: Weights = {}
        shape = self.model.shape
        # Boxes are not chosen among so many: what knowing nothing of them costs has to be seen.
        self.watch = Watch(math.inf if shape.boxes else math.log(shape.num_outputs))
        self.records = Records(self.folder)
        self.saver = Saver(self.folder, self.training.keep_checkpoints, self.records, self.monitor)
        self.returns = Returns(self.folder, self.records, self.saver)
        self._started = 0.0
        self.objective = Objective(
            self.training.label_smoothing,
            self.training.reconstruct_weight,
            self.training.mask_rate,
            class_weights=self.training.class_weights,
            focal_gamma=self.training.focal_gamma,
        )
        self._times: list[float] = []

    def run(self) -> Outcome:
        """Train to the last step; the model ends with the weights that did best on the validation data.

        Where the loss is no number, or rises for good, training goes back to the last good checkpoint at half the
        rate, three times at most. A checkpoint that finds the disk full is told of and left out.

        Raises:
            StoppedError: `should_stop` said so; the last step is saved.
            FaultError: it went wrong after the third return, the disk fails, or the last checkpoint finds it full.
        """
        self._started = time.perf_counter() - self.progress.time_s
        try:
            if self.progress.step == 0:
                self.returns.begin(self._snapshot(scheduled=True))
            self._stop_if_asked()
            while self.progress.step < self.training.steps:
                try:
                    self._go_on()
                except DivergedError as error:
                    self._roll_back(error)
            self.saver.require_saved()
            self.records.flush()
        except Exception as error:
            # Whoever called holds the run's lock no longer than this: nothing may be written after it. A second
            # Ctrl-C (KeyboardInterrupt, no Exception) waits for nothing: the process ends, and that thread with it.
            self.saver.wait()
            if isinstance(error, FaultError):
                self.records.fault(self.progress.step, error)
            raise
        self.progress.time_s = time.perf_counter() - self._started
        load_weights(self.model, self.best)
        return Outcome(
            steps=self.progress.step,
            tokens=self.progress.tokens,
            train_time_s=self.progress.time_s,
            step_time_s=statistics.fmean(self._times[1:] or self._times) if self._times else 0.0,
            valid_loss=self.progress.best_loss,
            best_step=self.progress.best_step,
        )

    def _go_on(self) -> None:
        with contextlib.closing(self.steps()) as steps:
            for step in steps:
                self.progress.time_s = time.perf_counter() - self._started
                self.watch.see(step.loss)
                self._log(step)
                self._after_step()

    def steps(self) -> Generator[Step, None, None]:
        """Take the steps that are left, and nothing else: nothing is written.

        Raises:
            DivergedError: a loss or a gradient is no number; that step is not taken.
        """
        for model in self.workers.models:
            model.train()
        self.replays.begin()
        items = stream(self.batches, self.progress.position)
        with contextlib.closing(items):
            while self.progress.step < self.training.steps:
                yield self._step(items)

    def _step(self, items: Iterator[Item]) -> Step:
        begun = time.perf_counter()
        group = self.replays.take(items, self.training.accumulation, self.progress.step)
        micro_batches = self.replays.disturbed(self.model, [to_device(batch, self.device) for _, batch in group])
        tokens = sum(num_tokens(batch) for batch in micro_batches)
        # Images in which there is nothing to find have no label, and a loss all the same.
        shared = max(1, tokens)

        def mean_loss(model: Transformer, batch: Batch) -> Loss:
            with autocast(self.device, self.training.precision):
                loss = self.task.loss(model, batch, self.objective)
            # The mean over the step's real tokens, however they fall into micro-batches.
            return Loss(loss.total / shared, loss.plain)

        gradients, nats = self.workers.gradients(micro_batches, mean_loss)
        require_finite(nats, "loss")
        parameters = trained(self.model).values()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.ranks.see()
        norm = nn.utils.clip_grad_norm_(parameters, self.training.clip_norm or math.inf)
        require_finite(float(norm), "gradient")
        self.replays.learn(self.model, micro_batches)
        self.optimizer.step(self._rate_scale(self.progress.step))
        self.ranks.allot_(self.progress.step + 1, self.training.steps, self.average or {})
        self._update_average()
        self.progress.step += 1
        if self.replays.over(self.progress.step):
            self.progress.position = group[-1][0].next
        self.progress.tokens += tokens
        self._times.append(time.perf_counter() - begun)
        return Step(nats / shared, tokens)

    def _rate_scale(self, step: int) -> float:
        return rate_scale(step, self.training) * self.progress.rate_factor

    def _after_step(self) -> None:
        self.saver.poll()
        self.returns.let_go()
        reviewed = self._review()
        progress, training = self.progress, self.training
        last = progress.step == training.steps
        if last or progress.step % training.eval_every == 0:
            self._validate()
        progress.due |= progress.step % training.checkpoint_every == 0
        # While the loss is off, a checkpoint waits: it would be one to return to, and push out better ones.
        if last or reviewed or (progress.due and self._is_calm()):
            self.save()
        # The answer comes from the clock: one that is not saved at once could not be repeated by a resumed run.
        if reviewed:
            self.saver.settle()
        if not last:
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """End in good order: save what is not saved yet, and say how to go on."""
        if not self.should_stop():
            return
        step, path = self.progress.step, self.folder.path
        self.monitor.note(f"asked to stop: saving step {step}; a second signal ends it at once")
        self.saver.settle()
        if step and self.saver.stands != step:
            self.save(scheduled=False)
        self.saver.require_saved()
        self.records.event("stopped", step=step)
        self.records.flush()
        raise StoppedError(
            f"{path}: stopped after step {step} of {self.training.steps}; go on with: chinchilla train --resume {path}"
        )

    def _roll_back(self, error: DivergedError) -> None:
        """Return to the last good checkpoint, or to the start, and go on at half the rate."""
        self.saver.settle()
        step, rollbacks, time_s = self.progress.step, self.progress.rollbacks + 1, self.progress.time_s
        if rollbacks > MOST_ROLLBACKS:
            raise given_up(self.folder.path, error, step) from error
        self._go_back()
        self.progress.rollbacks, self.progress.time_s = rollbacks, time_s
        # What was done in vain has cost time: the plan meets the clock anew.
        self.progress.reviews = 0
        to_step, factor = self.progress.step, self.progress.rate_factor
        self.records.event("rollback", step=step, to_step=to_step, why=error.why, rate_scale=factor)
        self.monitor.note(f"{error.why} after step {step}: back to step {to_step}, at {factor:g} of the rate")
        self.monitor.total(self.training.steps)
        # Saved at once, so that a run that is killed and resumed takes the same course.
        self.save()
        self.saver.settle()

    def _go_back(self) -> None:
        """Take up the place to return to, and drop what came after it."""
        self._take_up(self.returns.take())
        checkpoint.drop_after(self.folder.checkpoints, self.progress.step)
        self.records.cut(self.progress.step)

    def _review(self) -> bool:
        """Ask for a new plan where it is time to; whether it was asked."""
        progress, old = self.progress, self.training.steps
        if self.replan is None or not review_due(progress.step, progress.reviews, self.training):
            return False
        progress.reviews += 1
        recent = statistics.fmean(self._times[-max(1, progress.step // 2) :])
        # This review's, those of later ones, the last step's.
        saves = 2 + reviews_to_come(progress.step, progress.reviews, self.training)
        steps = self.replan(Review(progress.step, old, recent, progress.time_s, saves))
        if steps is not None and steps != old:
            self.records.event("replan", step=progress.step, steps=steps, step_time_s=recent)
            self.monitor.note(f"steps take {recent:.3g} s: planned anew, {steps} instead of {old}")
            self.monitor.total(steps)
            self.training = self.training.model_copy(update={"steps": steps})
        return True

    def _update_average(self) -> None:
        if self.average is None:
            return
        # A short memory at first, or the random start would weigh on the average for long.
        decay = min(self.training.ema_decay, (1 + self.progress.step) / (10 + self.progress.step))
        own = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [own[name].detach() for name in self.average], 1 - decay)

    def _validate(self) -> None:
        kept = copy_weights(self.model) if self.average else {}
        load_weights(self.model, self.average or {})
        progress, loss = self.progress, self.valid_loss()
        require_finite(loss, "validation loss")
        # A model that is still above its budget of ranks is none to end with.
        if loss < progress.best_loss and self.ranks.settled:
            progress.best_loss, progress.best_step = loss, progress.step
            self.best = copy_weights(self.model)
        load_weights(self.model, kept)
        self.records.metrics(step=progress.step, time_s=progress.time_s, tokens=progress.tokens, valid_loss=loss)
        self._track({"valid_loss": loss})
        self.monitor.note(f"step {progress.step}: validation loss {loss:.4f} nats {LABELS[self.task.name].a}")

    def valid_loss(self) -> float:
        """Plain cross-entropy on the validation data, in nats a token."""
        precision = self.training.precision
        return valid_loss(self.task, self.valid, VALID_BATCHES, self.workers, self.device, precision)

    def save(self, scheduled: bool = True) -> None:
        """Save a checkpoint aside: the copy is made now, the writing goes on while steps are taken.

        One that is not `scheduled` comes from outside, and is not what the run would return to.

        Raises:
            FaultError: the save before failed for another reason than a full disk.
        """
        if scheduled and self._is_calm():
            self.progress.due = False
        self.saver.save(self.progress.step, lambda: self._snapshot(scheduled))

    def _snapshot(self, scheduled: bool) -> Snapshot:
        tensors = learned(self.model, self.optimizer, self.average)
        # The best weights are replaced, never changed.
        tensors |= {"best": self.best, "random": random_state(self.workers, self.device)}
        if self.ranks.maps:
            tensors["ranks"] = on_cpu(self.ranks.state())
        if self.replays.times > 1:
            tensors["disturbances"] = on_cpu(self.replays.state())
        own = {"steps": self.training.steps, "times": self._times[-1000:], "frozen": self._frozen}
        own |= {"scheduled": scheduled, "calm": self._is_calm()}
        return Snapshot(tensors, self.progress.to_state() | self.watch.to_state() | own)

    def _is_calm(self) -> bool:
        """Whether a checkpoint taken now could be returned to."""
        return self.watch.calm and all_finite(self.model)

    @cached_property
    def _frozen(self) -> str | None:
        return frozen_digest(self.model)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint as if nothing had happened. The trainer is as it was made, seed and all.

        Raises:
            UsageError: the checkpoint was trained beside other frozen weights than this model's.
        """
        if saved.state.get("frozen") != self._frozen:
            raise UsageError(
                f"{self.folder.path}: trained on top of other frozen weights than this model's; resume it with the "
                "model and the adapter that it began with"
            )
        self.returns.resume(saved, lambda: self._snapshot(scheduled=True))
        self._take_up(saved)

    def _take_up(self, saved: checkpoint.Checkpoint | Snapshot) -> None:
        state, tensors = saved.state, saved.tensors
        load_weights(self.model, tensors["model"])
        self.optimizer.load({name: tensor.to(self.device) for name, tensor in tensors["optimizer"].items()})
        if self.ranks.maps:
            self.ranks.load({name: tensor.to(self.device) for name, tensor in tensors["ranks"].items()})
        self.replays.load({name: tensor.to(self.device) for name, tensor in tensors.get("disturbances", {}).items()})
        self.best = dict(tensors.get("best", {}))
        if self.average is not None:
            self.average = {name: tensor.to(self.device, copy=True) for name, tensor in tensors["average"].items()}
        load_random_state(tensors["random"], self.workers, self.device)
        self._times = list(state["times"])
        self.training = self.training.model_copy(update={"steps": state["steps"]})
        self.progress = Progress.from_state(state)
        self.watch.load(state)

    def _log(self, step: Step) -> None:
        progress = self.progress
        if progress.step % self.training.log_every and progress.step != self.training.steps:
            return
        step_time_s = statistics.median(self._times[-self.training.log_every :])
        tokens_per_s = step.tokens / step_time_s
        fraction = tokens_per_s * self.flops_per_token / self.peak_flops_per_s
        values = {
            "loss": step.loss,
            "learning_rate": self.training.learning_rate * self._rate_scale(progress.step - 1),
            "tokens_per_s": tokens_per_s,
            "peak_fraction": fraction,
        }
        self.records.metrics(step=progress.step, time_s=progress.time_s, tokens=progress.tokens, **values)
        self._track(values)
        left_s = (self.training.steps - progress.step) * step_time_s
        self.monitor.step(progress.step, step.loss, tokens_per_s, fraction, left_s)

    def _track(self, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self.progress.step, values)
