"""How often to save a checkpoint: what it costs against what a failure would lose."""

import math
from dataclasses import dataclass

from chinchilla.config.units import show_time

MTBF_S = 6 * 3600.0
"""Mean time between failures of one machine, a guess: laptops sleep, spot machines are taken back, memory runs out."""

LEAST_CHECKPOINTS = 10
"""Checkpoints in a run too short for failures to be likely: whoever stops it loses a tenth at most."""


@dataclass(frozen=True)
class Interval:
    """Seconds of training between two checkpoints, and why."""

    time_s: float
    reason: str


def checkpoint_interval(cost_s: float, run_s: float, share: float) -> Interval:
    """The interval for checkpoints that cost `cost_s` each in a run of `run_s` seconds.

    Young (1974) and Daly (2006): √(2 · cost · MTBF) loses least to saving and to doing steps again. A run has at least
    `LEAST_CHECKPOINTS`, unless they would take more than `share` of its time.
    """
    best_s, least_s = math.sqrt(2 * cost_s * MTBF_S), cost_s / share
    if least_s >= min(best_s, run_s / LEAST_CHECKPOINTS):
        return Interval(
            least_s, f"a checkpoint costs about {show_time(cost_s)}, and all may take {share:.0%} of the time"
        )
    if run_s / LEAST_CHECKPOINTS <= best_s:
        return Interval(
            run_s / LEAST_CHECKPOINTS, f"{LEAST_CHECKPOINTS} in a short run; each costs {show_time(cost_s)}"
        )
    why = f"√(2 · {show_time(cost_s)} · {show_time(MTBF_S)}): a checkpoint's cost, the time between failures (a guess)"
    return Interval(best_s, why)
