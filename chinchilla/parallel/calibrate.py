"""Real training steps of small models, timed and fitted: how long any step takes on this machine.

Ten models of 0.8 to 5 million parameters, narrow and wide, shallow and deep, of both families, each in fp32 and bf16,
and half of them with Muon. They take turns, since a shared machine's speed drifts, and each counts with the median of
its turns. A turn is a step to warm the caches, which a run's own steps keep warm, and one that counts. With one thread
on a CPU a second is one of processor time, which neighbours lengthen less, else one of the wall clock.
"""

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from chinchilla.config.machine import Calibration, Precision, StepTerm
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, num_params
from chinchilla.planning.step_model import GRADIENT_UNITS, UPDATE_UNITS, Fit, Sample, fit, gradient_work, update_work

ROUNDS, LEAST_ROUNDS = 3, 2
BUDGET_S = 55.0
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
OPTIMIZERS: tuple[OptimizerKind, ...] = ("adamw", "muon")
Clock = Literal["cpu", "wall"]
CLOCKS: dict[Clock, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}

log = logging.getLogger("chinchilla")


@dataclass(frozen=True)
class Case:
    """A model to time: steps of one micro-batch like `batch` for each thread."""

    shape: Shape
    batch: Batch
    precision: Precision
    optimizer: OptimizerKind


class Taken(NamedTuple):
    """Seconds that one step took: its gradients with all but the update, and its update."""

    gradients_s: float
    update_s: float


Step = Callable[[], Taken]
MakeStep = Callable[[Case, int, Callable[[], float]], Step]
"""Makes a function that takes one real step of a case on so many threads, and times it by a clock."""


@dataclass(frozen=True)
class Timed:
    """A case and its steps, one of each round; `waiting` is wall seconds for each second of the clock."""

    case: Case
    taken: tuple[Taken, ...]
    waiting: float

    @property
    def gradients_s(self) -> float:
        """Median seconds of the gradients."""
        return median(taken.gradients_s for taken in self.taken)

    @property
    def update_s(self) -> float:
        """Median seconds of the update."""
        return median(taken.update_s for taken in self.taken)

    @property
    def noise(self) -> float:
        """How much longer than its shortest step its longest took."""
        sums = [sum(taken) for taken in self.taken]
        return max(sums) / min(sums) - 1


def make_case(
    dim: int,
    layers: tuple[int, int],
    vocab_size: int,
    rows: tuple[int, int],
    precision: Precision,
    optimizer: OptimizerKind,
) -> Case:
    """`layers` of an encoder and a decoder, as the planner builds them; `rows` is how many of what length."""
    head_dim = 64 if dim >= 192 else 32
    heads = dim // head_dim
    shape = Shape(
        vocab_size=vocab_size, dim=dim, num_heads=heads, num_kv_heads=heads, head_dim=head_dim, ffn_dim=4 * dim,
        num_encoder_layers=layers[0], num_decoder_layers=layers[1], max_len=rows[1], norm="layer",
    )  # fmt: skip
    translates = layers[0] > 0
    batch = Batch(rows[0], rows[1] if translates else 0, rows[1], packed=translates)
    return Case(shape, batch, precision, optimizer)


MODELS = (
    (128, (0, 3), 2048, (8, 128)),
    (128, (0, 5), 1024, (2, 256)),
    (192, (0, 3), 4096, (4, 128)),
    (256, (0, 2), 8192, (8, 64)),
    (384, (0, 2), 2048, (4, 128)),
    (512, (0, 1), 4096, (8, 32)),
    (128, (2, 2), 4096, (16, 32)),
    (192, (3, 2), 2048, (8, 64)),
    (256, (1, 2), 8192, (8, 32)),
    (384, (1, 1), 2048, (16, 64)),
)
"""Width, layers of encoder and decoder, vocabulary, rows and their length."""


def cases(models: Sequence[tuple[int, tuple[int, int], int, tuple[int, int]]] = MODELS) -> list[Case]:
    """Each model in both precisions, with one optimizer in one and the other in the other."""
    return [
        make_case(*model, precision, OPTIMIZERS[(index + turn) % 2])
        for index, model in enumerate(models)
        for turn, precision in enumerate(PRECISIONS)
    ]


def clock_of(device: str, threads: int) -> Clock:
    """Processor time where it is the step's own, else the wall's."""
    return "cpu" if device == "cpu" and threads == 1 else "wall"


def time_steps(
    wanted: Sequence[Case],
    make_step: MakeStep,
    threads: int,
    clock: Clock,
    tell: Callable[[str], None] = lambda text: None,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
) -> list[Timed]:
    """A step of each case to set up, then rounds of two, the first untimed; fewer where the clock passes `budget_s`."""
    read = CLOCKS[clock]
    begun, wall = read(), time.perf_counter()
    steps = []
    for number, case in enumerate(wanted, start=1):
        tell(f"calibrating: model {number} of {len(wanted)}, {num_params(case.shape) / 1e6:.1f}M, {case.precision}")
        steps.append(make_step(case, threads, read))
        steps[-1]()
    taken: list[list[Taken]] = [[] for _ in wanted]
    for number in range(1, rounds + 1):
        if number > LEAST_ROUNDS and (read() - begun) * number / (number - 1) > budget_s:
            log.info("calibrated with %d rounds of steps instead of %d: this machine is slow", number - 1, rounds)
            break
        tell(f"calibrating: round {number} of {rounds}")
        for own, step in zip(taken, steps, strict=True):
            step()
            own.append(step())
    waiting = max(1.0, (time.perf_counter() - wall) / (read() - begun))
    return [Timed(case, tuple(own), waiting) for case, own in zip(wanted, taken, strict=True)]


def calibrate(
    make_step: MakeStep,
    device: str = "cpu",
    threads: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Calibration, ...]:
    """Time `cases()` and fit them."""
    clock = clock_of(device, threads)
    return fitted(time_steps(cases(), make_step, threads, clock, tell), threads, clock)


def fitted(timed: Sequence[Timed], threads: int, clock: Clock) -> tuple[Calibration, ...]:
    """The fit of each precision's gradients, and of all updates together: only Muon's products differ."""
    update = fit([Sample(update_work(t.case.shape, t.case.optimizer, t.case.precision), t.update_s) for t in timed])
    return tuple(
        _calibration([t for t in timed if t.case.precision == p], p, update, threads, clock) for p in PRECISIONS
    )


def _calibration(timed: Sequence[Timed], precision: Precision, update: Fit, threads: int, clock: Clock) -> Calibration:
    gradients = fit([_sample(each, threads) for each in timed])
    return Calibration(
        precision=precision,
        gradients=_terms(gradients, GRADIENT_UNITS),
        update=_terms(update, UPDATE_UNITS),
        spread=gradients.spread,
        update_spread=update.spread,
        clock=clock,
        waiting=timed[0].waiting,
        noise=median(each.noise for each in timed),
        num_models=len(timed),
        most_params=max(num_params(each.case.shape) for each in timed),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _sample(timed: Timed, threads: int) -> Sample:
    work = gradient_work(timed.case.shape, timed.case.batch, timed.case.precision)
    return Sample({kind: threads * amount for kind, amount in work.items()}, timed.gradients_s)


def _terms(found: Fit, units: dict[str, str]) -> tuple[StepTerm, ...]:
    return tuple(StepTerm(kind=kind, unit=units[kind], unit_s=unit_s) for kind, unit_s in found.unit_s.items())
