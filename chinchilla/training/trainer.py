"""The training loop: one path for every model and task, resumable bit for bit."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chinchilla.config.errors import FaultError
from chinchilla.config.plan import Training
from chinchilla.data.batches import Batches
from chinchilla.data.packing import Rows
from chinchilla.data.stream import Item, Position, stream
from chinchilla.models.transformer import Transformer
from chinchilla.store import checkpoint
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.task import Batch, Loss, Objective, Task, num_tokens
from chinchilla.training.monitor import Monitor, Tracker
from chinchilla.training.optimizer import Optimizer
from chinchilla.training.schedule import decay_start, rate_scale
from chinchilla.training.workers import Workers

Weights = dict[str, Tensor]

VALID_BATCHES = 32
"""Micro-batches of the validation data that a validation looks at, at most."""


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint's `state.json` holds besides the settings."""

    step: int = 0
    position: Position = field(default_factory=Position)
    tokens: int = 0
    time_s: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    reviews: int = 0


class Step(NamedTuple):
    """One optimizer step: its plain loss in nats a token, and the labelled tokens that it saw."""

    loss: float
    tokens: int


@dataclass(frozen=True)
class Review:
    """How the plan meets the clock: `step` of `steps` done in `time_s`, at `step_time_s` a step of late."""

    step: int
    steps: int
    step_time_s: float
    time_s: float


@dataclass(frozen=True)
class Outcome:
    """What training gave; `step_time_s` is the mean of all steps but the first, without validations and checkpoints."""

    steps: int
    tokens: int
    train_time_s: float
    step_time_s: float
    valid_loss: float
    best_step: int


@dataclass
class Trainer:
    """Trains `model` on `batches` by the settings in `training`; everything it does is written to `folder`.

    `flops_per_token` (matmul FLOPs a labelled token, forward and backward) and `peak_flops_per_s` give the share
    of the machine's peak. `replan(review)` may return a new number of steps; it is asked when the speed after warm-up
    is known, and once more before a `wsd` schedule decays.
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
    replan: Callable[[Review], int | None] = lambda review: None
    trackers: Sequence[Tracker] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.model.to(self.device)
        if self.training.compile:
            compile_blocks_(self.model)
        self.workers = Workers(self.model, worker_count(self.training, self.device), self.training.seed)
        self.optimizer = Optimizer(self.model, self.training, self.workers)
        self.progress = Progress()
        self.average = _copy(self.model) if self.training.ema_decay else None
        self.best: Weights = {}
        self.objective = Objective(
            self.training.label_smoothing, self.training.reconstruct_weight, self.training.mask_rate
        )
        self._times: list[float] = []

    def run(self) -> Outcome:
        """Train to the last step; the model ends with the weights that did best on the validation data.

        Raises:
            FaultError: the loss is no longer a number, or the disk fails.
        """
        started = time.perf_counter() - self.progress.time_s
        try:
            for step in self.steps():
                self.progress.time_s = time.perf_counter() - started
                self._log(step)
                self._after_step()
        except FaultError as error:
            self.folder.log_event("fault", step=self.progress.step, why=str(error))
            raise
        self.progress.time_s = time.perf_counter() - started
        self._load(self.best)
        return Outcome(
            steps=self.progress.step,
            tokens=self.progress.tokens,
            train_time_s=self.progress.time_s,
            step_time_s=statistics.fmean(self._times[1:] or self._times) if self._times else 0.0,
            valid_loss=self.progress.best_loss,
            best_step=self.progress.best_step,
        )

    def steps(self) -> Iterator[Step]:
        """Take the steps that are left, and nothing else: nothing is written."""
        for model in self.workers.models:
            model.train()
        items = stream(self.batches, self.progress.position)
        with contextlib.closing(items):
            while self.progress.step < self.training.steps:
                yield self._step(items)

    def _step(self, items: Iterator[Item]) -> Step:
        begun = time.perf_counter()
        group = list(islice(items, self.training.accumulation))
        micro_batches = [_to(batch, self.device) for _, batch in group]
        tokens = sum(num_tokens(batch) for batch in micro_batches)

        def mean_loss(model: Transformer, batch: Batch) -> Loss:
            with self._autocast():
                loss = self.task.loss(model, batch, self.objective)
            # The mean over the step's real tokens, however they fall into micro-batches.
            return Loss(loss.total / tokens, loss.plain)

        gradients, nats = self.workers.gradients(micro_batches, mean_loss)
        self._require_finite(nats, "loss")
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm or math.inf)
        self._require_finite(float(norm), "gradient")
        self.optimizer.step(rate_scale(self.progress.step, self.training))
        self._update_average()
        self.progress.step += 1
        self.progress.position = group[-1][0].next
        self.progress.tokens += tokens
        self._times.append(time.perf_counter() - begun)
        return Step(nats / tokens, tokens)

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise FaultError(
                f"{self.folder.path}: the {what} is {value} after {self.progress.step} steps; "
                "train anew with a lower train.learning_rate"
            )

    def _after_step(self) -> None:
        planned_anew = self._review_due() and self._plan_anew()
        step, training = self.progress.step, self.training
        last = step == training.steps
        if last or step % training.eval_every == 0:
            self._validate()
        # A new plan comes from the clock: one that is not saved at once could not be repeated by a resumed run.
        if last or planned_anew or step % training.checkpoint_every == 0:
            self.save()

    def _review_due(self) -> bool:
        step, training = self.progress.step, self.training
        if self.progress.reviews == 0:
            return step >= settling_steps(training)
        return self.progress.reviews == 1 and training.schedule == "wsd" and step == decay_start(training)

    def _plan_anew(self) -> bool:
        """Ask for a new plan; whether there is one."""
        progress, old = self.progress, self.training.steps
        progress.reviews += 1
        recent = statistics.fmean(self._times[-max(1, progress.step // 2) :])
        steps = self.replan(Review(progress.step, old, recent, progress.time_s))
        if steps is None or steps == old:
            return False
        self.folder.log_event("replan", step=progress.step, steps=steps, step_time_s=recent)
        self.monitor.note(f"steps take {recent:.3g} s: {steps} instead of {old} fit the budget")
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
        kept = _copy(self.model) if self.average else {}
        self._load(self.average or {})
        progress, loss = self.progress, self.valid_loss()
        self._require_finite(loss, "validation loss")
        if loss < progress.best_loss:
            progress.best_loss, progress.best_step = loss, progress.step
            self.best = _copy(self.model)
        self._load(kept)
        self.folder.log_metrics(step=progress.step, time_s=progress.time_s, tokens=progress.tokens, valid_loss=loss)
        self._track({"valid_loss": loss})
        self.monitor.note(f"step {progress.step}: validation loss {loss:.4f} nats a token")

    def valid_loss(self) -> float:
        """Plain cross-entropy on the validation data, in nats a token."""
        order, models = self.valid.order(0)[:VALID_BATCHES], self.workers.models
        shares = [(model, order[index :: len(models)]) for index, model in enumerate(models)]
        found = self.workers.map(lambda share: self._valid_nats(*share), shares)
        return sum(nats for nats, _ in found) / sum(tokens for _, tokens in found)

    def _valid_nats(self, model: Transformer, order: Sequence[Rows]) -> tuple[float, int]:
        """Summed loss on these batches, and their tokens."""
        nats, tokens = 0.0, 0
        model.eval()
        with torch.no_grad(), self._autocast():
            for rows in order:
                batch = _to(self.valid.batch(rows), self.device)
                nats += float(self.task.loss(model, batch, Objective()).plain)
                tokens += num_tokens(batch)
        model.train()
        return nats, tokens

    def save(self) -> None:
        """Write a checkpoint."""
        progress = self.progress
        tensors = {"model": _copy(self.model), "optimizer": self.optimizer.state(), "best": self.best}
        tensors["random"] = {"cpu": torch.get_rng_state(), **self.workers.state()}
        if self.device.type == "cuda":
            tensors["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.average:
            tensors["average"] = self.average
        state = vars(progress) | {
            "position": [progress.position.epoch, progress.position.index],
            "best_loss": progress.best_loss if progress.best_step >= 0 else None,
            "steps": self.training.steps,
            "times": self._times[-1000:],
        }
        checkpoint.save(self.folder.checkpoints, progress.step, tensors, state, self.training.keep_checkpoints)
        self.folder.log_event("checkpoint", step=progress.step)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint as if nothing had happened."""
        state = saved.state
        self._load(saved.tensors["model"])
        self.optimizer.load({name: tensor.to(self.device) for name, tensor in saved.tensors["optimizer"].items()})
        self.best = saved.tensors.get("best", {})
        if self.average:
            self.average = {name: tensor.to(self.device) for name, tensor in saved.tensors["average"].items()}
        torch.set_rng_state(saved.tensors["random"]["cpu"])
        self.workers.load(saved.tensors["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.tensors["random"]["cuda"], self.device)
        self._times = list(state["times"])
        self.training = self.training.model_copy(update={"steps": state["steps"]})
        best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        own = {"position": Position(*state["position"]), "best_loss": best_loss}
        self.progress = Progress(**{name: own.get(name, state[name]) for name in vars(Progress())})

    def _log(self, step: Step) -> None:
        progress = self.progress
        if progress.step % self.training.log_every and progress.step != self.training.steps:
            return
        step_time_s = statistics.median(self._times[-self.training.log_every :])
        tokens_per_s = step.tokens / step_time_s
        fraction = tokens_per_s * self.flops_per_token / self.peak_flops_per_s
        values = {
            "loss": step.loss,
            "learning_rate": self.training.learning_rate * rate_scale(progress.step - 1, self.training),
            "tokens_per_s": tokens_per_s,
            "peak_fraction": fraction,
        }
        self.folder.log_metrics(step=progress.step, time_s=progress.time_s, tokens=progress.tokens, **values)
        self._track(values)
        left_s = (self.training.steps - progress.step) * step_time_s
        self.monitor.step(progress.step, step.loss, tokens_per_s, fraction, left_s)

    def _track(self, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self.progress.step, values)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bf16")

    @torch.no_grad()
    def _load(self, weights: Weights) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def worker_count(training: Training, device: torch.device) -> int:
    """Threads to spread a step's micro-batches over: as many of both as divide evenly, on a CPU, without compiling."""
    if device.type != "cpu" or training.compile:
        return 1
    return math.gcd(training.accumulation, training.threads)


def settling_steps(training: Training) -> int:
    """Steps after which the speed is known: the first ones are slow, while kernels and caches are made."""
    return min(max(8, training.steps // 20), 50)


def compile_blocks_(model: Transformer) -> None:
    """Compile each block; equal blocks share one compiled form, which costs less than compiling the model whole."""
    for stack in (model.encoder, model.decoder):
        for block in stack.layers if stack is not None else ():
            # All batches of a run have one size.
            block.compile(dynamic=False)


def _copy(model: nn.Module) -> Weights:
    """All weights, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _to(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
