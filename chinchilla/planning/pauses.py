"""What validations and checkpoints take from the steps of a run, and how many steps are left."""

import math

from chinchilla.config.errors import BudgetError
from chinchilla.config.plan import Pauses, Training

NONE = Pauses()


def fitting_steps(
    time_s: float,
    step_time_s: float,
    pauses: Pauses = NONE,
    *,
    eval_every: int = 1,
    checkpoint_every: int = 1,
    saves: int = 1,
) -> int:
    """Steps that fit `time_s`, with validations and checkpoints at their intervals; 0 where not one does.

    The last step has one of each; `saves` counts its checkpoint and those that are taken beside the intervals.
    """
    each = step_time_s + pauses.eval_s / eval_every + pauses.checkpoint_s / checkpoint_every
    return max(0, math.floor((time_s - pauses.eval_s - saves * pauses.checkpoint_s) / each))


def num_steps(
    time_s: float, step_time_s: float, pauses: Pauses = NONE, *, eval_every: int = 1, checkpoint_every: int = 1
) -> int:
    """The same, with no checkpoint beside the intervals but the last.

    Raises:
        BudgetError: not even one step fits.
    """
    steps = fitting_steps(time_s, step_time_s, pauses, eval_every=eval_every, checkpoint_every=checkpoint_every)
    if steps < 1:
        raise BudgetError(
            f"{max(time_s, 0):.3g} s left for training, and one step with its evaluation and checkpoint takes "
            f"{step_time_s + pauses.eval_s + pauses.checkpoint_s:.3g} s: raise the budget or fix a smaller model"
        )
    return steps


def paused_time(training: Training, pauses: Pauses, saves: int, after: int = 0) -> float:
    """Seconds that validations and checkpoints take from step `after` on, whose own validation is still to come.

    `saves` counts the checkpoint of the last step and those that are taken beside the intervals.
    """
    evals = math.ceil(training.steps / training.eval_every) - max(0, after - 1) // training.eval_every
    checkpoints = (training.steps - 1) // training.checkpoint_every - after // training.checkpoint_every + saves
    return evals * pauses.eval_s + checkpoints * pauses.checkpoint_s


def steps_between(cost_s: float, step_time_s: float, share: float) -> int:
    """Steps between two events of `cost_s` each so that they take at most `share` of the time."""
    return max(1, math.ceil(cost_s * (1 - share) / (share * step_time_s)))
