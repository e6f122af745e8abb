"""`chinchilla measure`: what this machine can do a second and how long its training steps take; kept for planning."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chinchilla.config.machine import Machine
from chinchilla.config.plan import Training
from chinchilla.data.packing import Rows
from chinchilla.data.sources import default_cache
from chinchilla.models.transformer import Transformer
from chinchilla.parallel.calibrate import Case, Step, Taken, calibrate, make_case
from chinchilla.parallel.energy import power
from chinchilla.parallel.measure import cached_measure
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.translate import Translate
from chinchilla.training.allocator import keep_freed_memory, release_freed_memory
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer

Tell = Callable[[str], None]


def measure(refresh: bool = False, tell: Tell = lambda text: None) -> Machine:
    """Measure products by precision, bandwidth, an operator, real training steps, compiling and power.

    The first take under 30 seconds, the steps a minute. Kept in the cache folder ($CHINCHILLA_CACHE or
    ~/.cache/chinchilla) with date and noise; measured anew when `refresh` is set, after 30 days, or when processor,
    threads or torch have changed. What a plan has measured is kept, and what it lacks added.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cached_measure(default_cache(), refresh=refresh, device=device, extend=lambda known: _extended(known, tell))


def _extended(machine: Machine, tell: Tell) -> Machine:
    """With the fit of real steps, the time to compile, and the power at work."""
    tell("measuring power")
    found: dict[str, Any] = {"power": power(_busy(machine.device), machine.device, machine.threads)}
    if machine.device != "cpu":
        tell("no step is calibrated on a GPU: step times stay the roofline's")
        return machine.model_copy(update=found)
    tell("timing real training steps of small models: about a minute, more on a busy machine")
    keep_freed_memory()
    found["calibration"] = calibrate(make_step, machine.device, machine.threads, tell)
    release_freed_memory()
    if machine.has_compiler:
        tell("compiling one small block")
        found["compile_time_s"] = _compile_time()
    return machine.model_copy(update=found)


def _busy(device: str) -> Callable[[], object]:
    matrix = torch.randn(1024, 1024, device=device)
    return lambda: matrix @ matrix


def make_step(case: Case, threads: int, clock: Callable[[], float]) -> Step:
    """The trainer's own step: as many micro-batches as threads, side by side; its update timed apart."""
    trainer = _trainer(case, threads)
    update, spent_s = trainer.optimizer.step, [0.0]

    def timed_update(scale: float) -> None:
        spent_s[0] = _seconds(lambda: update(scale), clock)

    trainer.optimizer.step = timed_update  # type: ignore[method-assign]  # of this one optimizer
    steps = trainer.steps()

    def take() -> Taken:
        whole_s = _seconds(lambda: next(steps), clock)
        return Taken(whole_s - spent_s[0], spent_s[0])

    return take


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    call()
    return clock() - begun


def _compile_time() -> float:
    """Seconds that the first step of one compiled block takes beyond a later one, with no cache to help."""
    # Its import takes seconds, and is part of the first step anyway.
    from torch._inductor.utils import fresh_cache

    trainer = _trainer(make_case(64, (0, 1), 256, (4, 64), "fp32", "adamw"), 1, compiled=True)
    steps = trainer.steps()
    with fresh_cache():
        first_s = _seconds(lambda: next(steps), time.perf_counter)
    return max(0.0, first_s - _seconds(lambda: next(steps), time.perf_counter))


def _trainer(case: Case, threads: int, compiled: bool = False) -> Trainer:
    torch.manual_seed(0)
    given = _Given([_batch(case, seed) for seed in range(threads)])
    return Trainer(
        model=Transformer(case.shape),
        task=Translate() if case.shape.num_encoder_layers else Generate(),
        training=_training(case, threads, compiled),
        batches=given,
        valid=given,
        folder=RunFolder(Path("calibration")),  # never made: nothing is written
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
    )


def _training(case: Case, threads: int, compiled: bool) -> Training:
    settings: dict[str, Any] = {
        **dict.fromkeys(("steps", "eval_every", "checkpoint_every", "log_every"), 10**9),
        **{"learning_rate": 1e-4, "embedding_learning_rate": 1e-4, "weight_decay": 0.05, "clip_norm": 1.0, "seed": 0},
        **{"schedule": "wsd", "warmup_steps": 0, "decay_fraction": 0.1, "keep_checkpoints": 1, "mask_rate": 0.15},
        **dict.fromkeys(("label_smoothing", "dropout", "ema_decay", "reconstruct_weight"), 0.0),
    }
    return Training(
        batch_tokens=threads * case.batch.target_rows,
        accumulation=threads,
        optimizer=case.optimizer,
        precision=case.precision,
        compile=compiled,
        threads=threads,
        **settings,
    )


def _batch(case: Case, seed: int) -> dict[str, Tensor]:
    """Random ids without padding, as packed data has them; a translation's with its segments, one to a row."""
    random, batch = torch.Generator().manual_seed(seed), case.batch

    def ids(length: int) -> Tensor:
        return torch.randint(4, case.shape.vocab_size, (batch.size, length), generator=random)

    made = {"target": ids(batch.target_len), "labels": ids(batch.target_len)}
    if batch.source_len:
        made["source"] = ids(batch.source_len)
        made |= {f"{side}_segments": torch.ones_like(made[side]) for side in ("source", "target")}
    return made


class _Given:
    """The same micro-batches in each epoch."""

    unique_tokens, padding = 0, 0.0

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def num_batches(self, epoch: int) -> int:
        """How many an epoch has."""
        return len(self.batches)

    def order(self, epoch: int) -> list[Rows]:
        """The numbers of the micro-batches."""
        return [np.array([index]) for index in range(len(self.batches))]

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """The one with that number."""
        return self.batches[int(rows[0])]
