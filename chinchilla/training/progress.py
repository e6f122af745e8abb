"""Where a run stands, and how that is kept in a checkpoint's `state.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from chinchilla.data.stream import Position


@dataclass
class Progress:
    """All that a checkpoint's `state.json` holds of the course so far, besides the settings and the recent steps.

    `due` is set while a checkpoint waits for the loss to be calm again.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    tokens: int = 0
    time_s: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    reviews: int = 0
    rollbacks: int = 0
    due: bool = False

    @property
    def rate_factor(self) -> float:
        """What the scheduled learning rates are multiplied by: each return to an earlier checkpoint halves them."""
        return 0.5**self.rollbacks

    def to_state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return vars(self) | {
            "position": [self.position.epoch, self.position.index],
            "best_loss": self.best_loss if self.best_step >= 0 else None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """From a checkpoint of this release or an earlier one, which may lack what is new."""
        known = {item.name: state[item.name] for item in fields(cls) if item.name in state}
        known["position"] = Position(*state["position"])
        known["best_loss"] = math.inf if state["best_loss"] is None else state["best_loss"]
        return cls(**known)


class Step(NamedTuple):
    """One optimizer step: its plain loss in nats a token, and the labelled tokens that it saw."""

    loss: float
    tokens: int


@dataclass(frozen=True)
class Review:
    """How the plan meets the clock: `step` of `steps` done in `time_s`, at `step_time_s` a step of late.

    `saves` counts the checkpoints that steps will wait for: this review's, those of later ones and the last step's.
    """

    step: int
    steps: int
    step_time_s: float
    time_s: float
    saves: int


@dataclass(frozen=True)
class Outcome:
    """What training gave; `step_time_s` is the mean of all steps but the first, without validations and checkpoints.

    Of a resumed run it is the mean of the last 1,000 steps before the checkpoint and of those since.
    """

    steps: int
    tokens: int
    train_time_s: float
    step_time_s: float
    valid_loss: float
    best_step: int
