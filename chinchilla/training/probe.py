"""Probe runs: train a candidate for a moment to see how fast it is and how fast it learns."""

import itertools
import time
from dataclasses import dataclass

from chinchilla.training.allocator import peak_bytes, release_freed_memory, reset_peak, used_bytes
from chinchilla.training.trainer import Trainer

LEAST_STEPS, SETTLING_STEPS = 5, 2
"""Steps that a probe takes at least, and those that are not timed: the first sets things up, and the second may still
be slow (SmolLM2-135M's took 10 and 5.8 s on two cores, later ones 4.2)."""

POINTS = 12

PARTS = 5
"""Stretches that a probe's steps are timed in, if there are two steps for each."""


@dataclass(frozen=True)
class ProbeResult:
    """`curve` is (tokens seen, mean loss there) in nats a token; `parts` the steps and seconds of each stretch of it.

    The first `SETTLING_STEPS` are in none of them. `working_bytes` is the most memory in use beyond what stays in
    use after it: a process's first steps also set up what every later one finds there, and the optimizer's state.
    """

    curve: tuple[tuple[float, float], ...]
    parts: tuple[tuple[int, float], ...]
    tokens: int
    steps: int
    time_s: float
    working_bytes: int

    @property
    def step_time_s(self) -> float:
        """Mean seconds of a step."""
        return sum(time_s for _, time_s in self.parts) / sum(steps for steps, _ in self.parts)


def probe(trainer: Trainer, time_s: float) -> ProbeResult:
    """Train for about `time_s` seconds, at least a few steps. Nothing is written."""
    release_freed_memory()
    reset_peak(trainer.device)
    started = time.perf_counter()
    losses: list[tuple[float, float]] = []
    times: list[float] = []
    for step in trainer.steps():
        losses.append((float(trainer.progress.tokens), step.loss))
        times.append(time.perf_counter() - started)
        if len(losses) >= LEAST_STEPS and times[-1] >= time_s:
            break
    most = peak_bytes(trainer.device)
    release_freed_memory()
    each = [later - earlier for earlier, later in itertools.pairwise(times[SETTLING_STEPS - 1 :])]
    return ProbeResult(
        curve=_thinned(losses),
        parts=_parts(each),
        tokens=trainer.progress.tokens,
        steps=len(losses),
        time_s=times[-1],
        working_bytes=max(0, most - used_bytes(trainer.device)),
    )


def _parts(each: list[float]) -> tuple[tuple[int, float], ...]:
    count = PARTS if len(each) >= 2 * PARTS else 1
    cuts = [len(each) * number // count for number in range(count + 1)]
    return tuple((stop - start, sum(each[start:stop])) for start, stop in itertools.pairwise(cuts))


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Means over neighbouring steps, so that one batch's luck does not decide."""
    size = max(1, len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points) - size + 1, size)]
    return tuple(
        (sum(tokens for tokens, _ in group) / len(group), sum(loss for _, loss in group) / len(group))
        for group in groups
    )
