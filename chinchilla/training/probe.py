"""Probe runs: train a candidate for a moment to see how fast it is and how fast it learns."""

import itertools
import statistics
import time
from dataclasses import dataclass

from chinchilla.training.trainer import Trainer

LEAST_STEPS = 4
POINTS = 12

PARTS = 5
LEAST_SPREAD, UNKNOWN_SPREAD = 0.05, 0.2
"""Of a step time: what a quiet machine shows from minute to minute, and what is told of a few steps."""


@dataclass(frozen=True)
class ProbeResult:
    """`curve` is (tokens seen, mean loss there) in nats a token; `step_time_s` the mean of all but the first step.

    `spread` is how far, relatively, the mean of a fifth of the steps lies from it in nine of ten cases.
    """

    curve: tuple[tuple[float, float], ...]
    step_time_s: float
    spread: float
    tokens: int
    steps: int
    time_s: float


def probe(trainer: Trainer, time_s: float) -> ProbeResult:
    """Train for about `time_s` seconds, at least a few steps. Nothing is written."""
    started = time.perf_counter()
    losses: list[tuple[float, float]] = []
    times: list[float] = []
    for step in trainer.steps():
        losses.append((float(trainer.progress.tokens), step.loss))
        times.append(time.perf_counter() - started)
        if len(losses) >= LEAST_STEPS and times[-1] >= time_s:
            break
    each = [later - earlier for earlier, later in itertools.pairwise(times)]
    return ProbeResult(
        curve=_thinned(losses),
        step_time_s=statistics.fmean(each),
        spread=_spread(each),
        tokens=trainer.progress.tokens,
        steps=len(losses),
        time_s=times[-1],
    )


def _spread(each: list[float]) -> float:
    size = len(each) // PARTS
    if size < 2:
        return UNKNOWN_SPREAD
    means = [statistics.fmean(each[start : start + size]) for start in range(0, size * PARTS, size)]
    return max(LEAST_SPREAD, 1.64 * statistics.stdev(means) / statistics.fmean(means))


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Means over neighbouring steps, so that one batch's luck does not decide."""
    size = max(1, len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points) - size + 1, size)]
    return tuple(
        (sum(tokens for tokens, _ in group) / len(group), sum(loss for _, loss in group) / len(group))
        for group in groups
    )
