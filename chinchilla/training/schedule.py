"""Learning-rate schedules: pure functions of the step, so that a run can be repeated and resumed bit for bit."""

import math

from chinchilla.config.plan import Training

LEAST_SETTLING = 8
"""Steps after which the speed is known at the earliest: no longer run meets the clock before."""


def decay_start(training: Training) -> int:
    """Steps taken at the peak rate before a `wsd` schedule decays; until then the number of steps may change freely."""
    return training.steps - max(1, round(training.decay_fraction * training.steps))


def rate_scale(step: int, training: Training) -> float:
    """The factor on the peak learning rate at `step` (from 0): linear warm-up, then the schedule's course to 0.

    `cosine`: half a cosine (Loshchilov 2017). `wsd`: constant, then linear to 0 over the last `decay_fraction`
    of the steps (warm-up-stable-decay; Hu 2024).
    """
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    left = training.steps - step
    if training.schedule == "wsd":
        return min(1.0, left / max(1, round(training.decay_fraction * training.steps)))
    progress = 1 - left / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def review_due(step: int, reviews: int, training: Training) -> bool:
    """Whether the plan meets the clock after `step`: once the speed is known, and before a `wsd` schedule decays.

    Never after the last step, where all that is left is to end.
    """
    if step >= training.steps:
        return False
    if reviews == 0:
        return step >= settling_steps(training)
    return reviews == 1 and training.schedule == "wsd" and step == decay_start(training)


def reviews_to_come(step: int, reviews: int, training: Training) -> int:
    """How often the plan is still to meet the clock after `step`, where it has `reviews` times."""
    first = reviews == 0 and max(step + 1, settling_steps(training)) < training.steps
    begun = max(step + 1, settling_steps(training)) if first else step
    second = training.schedule == "wsd" and (first or reviews == 1) and begun < decay_start(training)
    return first + second


def settling_steps(training: Training) -> int:
    """Steps after which the speed is known: the first ones are slow, while kernels and caches are made."""
    return min(max(LEAST_SETTLING, training.steps // 20), 50)
