"""Watches the loss: not a number, or rising for good."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from chinchilla.config.errors import FaultError

WINDOW = 32
"""Steps whose median loss is looked at: half of them have to be bad, so no spike of a few steps is an alarm."""

RISE = 1.0
"""Nats a token by which that median may lie above the best one before. Runs that went well stayed below 0.05."""


class DivergedError(FaultError):
    """Training has gone wrong; `why` says how, in a few words."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; train anew with a lower train.learning_rate")
        self.why = why


def require_finite(value: float, what: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        DivergedError: `value` is one.
    """
    if not math.isfinite(value):
        raise DivergedError(f"the {what} is {value}")


class Watch:
    """The losses of late beside the best there were.

    `start` is what knowing nothing costs: the logarithm of how many there are to choose among, or infinite.
    """

    def __init__(self, start: float) -> None:
        self.best = start
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def see(self, loss: float) -> None:
        """Take in one step's loss.

        Raises:
            DivergedError: the median of the last `WINDOW` steps lies more than `RISE` above the best before.
        """
        self.losses.append(loss)
        if len(self.losses) < WINDOW:
            return
        median = statistics.median(self.losses)
        self.best = min(self.best, median)
        if median > self.best + RISE:
            raise DivergedError(f"the loss rose to {median:.4g}, from {self.best:.4g} nats, and stayed there")

    @property
    def calm(self) -> bool:
        """Whether the last step was no worse than that: a checkpoint taken now can be returned to."""
        return not self.losses or self.losses[-1] <= self.best + RISE

    def to_state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"losses": list(self.losses), "best_median": self.best if math.isfinite(self.best) else None}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave; a checkpoint of an earlier release has none of it."""
        self.losses = deque(state.get("losses", ()), WINDOW)
        if "best_median" in state:
            best = state["best_median"]
            self.best = math.inf if best is None else best
