"""A fixed number of steps that must fit a time: which shapes are quick enough."""

import math
from dataclasses import dataclass, replace

from chinchilla.config.errors import BudgetError
from chinchilla.config.machine import Machine
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_time
from chinchilla.planning.machine import step_time
from chinchilla.planning.room import Room


@dataclass(frozen=True)
class Deadline:
    """`steps` steps, taken as `room` says, that must fit `time_s` seconds of `machine`.

    `pace` is how many seconds one of the step-time model's has turned out to take.
    """

    steps: int
    time_s: float
    machine: Machine
    room: Room
    pace: float = 1.0

    @property
    def key(self) -> str:
        """What is to be met."""
        return f"budget.time for train.steps={self.steps}"

    @property
    def tokens(self) -> float:
        """Labelled tokens that the steps see."""
        return float(self.steps * self.room.batch.loss_rows * self.room.accumulation)

    def needs(self, shape: Shape) -> float:
        """Seconds that the steps take."""
        return self.pace * self.steps * self._step_s(shape)

    def missed(self, step_s: float) -> bool:
        """Whether steps that were measured to take so long do not fit."""
        return self.steps * step_s > self.time_s

    def at(self, shape: Shape, step_s: float) -> "Deadline":
        """The same at the pace of a shape whose step was measured."""
        return replace(self, pace=step_s / self._step_s(shape))

    def error(self, shape: Shape, among: str) -> BudgetError:
        """That even the quickest shape is too slow, with the steps that it could take."""
        needs_s = self.needs(shape)
        most = math.floor(self.steps * self.time_s / needs_s)
        layers = "+".join(str(number) for number in (shape.num_encoder_layers, shape.num_decoder_layers) if number)
        fewer = f"set train.steps={most} or less, or raise it" if most else "raise it"
        return BudgetError(
            f"budget.time leaves {show_time(self.time_s)} for steps, and {self.steps:,} (train.steps) of the quickest "
            f"model {among} ({layers} layers of {shape.dim}) take about {show_time(needs_s)}: {fewer}"
        )

    def _step_s(self, shape: Shape) -> float:
        room = self.room
        return step_time(shape, room.batch, self.machine, room.precision, room.optimizer, room.accumulation).total_s
