"""Micro-batches that several steps in a row see, and the disturbances that grow on them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from torch import Tensor

from chinchilla.data.stream import Item
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.attack import DISTURBANCE, FreelyHardened
from chinchilla.tasks.task import Batch, Task


class Replays:
    """What each step sees: new micro-batches, or where the task is hardened freely the last ones once more.

    Every replay is a step, and its labels are counted. A disturbance belongs to a place in the step: it goes on from
    one replay to the next, and then to the micro-batch that comes to the same place.
    """

    def __init__(self, task: Task) -> None:
        self._task = task if isinstance(task, FreelyHardened) else None
        self.times = 1 if self._task is None else self._task.replays
        self._group: list[Item] = []
        self._disturbances: list[Tensor] = []

    def begin(self) -> None:
        """Micro-batches come from another stream now."""
        self._group = []

    def take(self, items: Iterator[Item], accumulation: int, step: int) -> list[Item]:
        """The micro-batches of a step."""
        if self.times == 1:
            return list(islice(items, accumulation))
        if not self._group or step % self.times == 0:
            self._group = list(islice(items, accumulation))
        return self._group

    def over(self, steps: int) -> bool:
        """Whether after so many steps new micro-batches come."""
        return steps % self.times == 0

    def disturbed(self, model: Transformer, micro_batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches with their disturbances, which ask for gradients."""
        if self._task is None:
            return micro_batches
        known: Sequence[Tensor | None] = self._disturbances or [None] * len(micro_batches)
        pairs = zip(micro_batches, known, strict=True)
        return [
            {**batch, DISTURBANCE: self._task.carried(model, batch, delta).requires_grad_()} for batch, delta in pairs
        ]

    def learn(self, model: Transformer, micro_batches: Sequence[Batch]) -> None:
        """Move each disturbance by the gradient that it has got."""
        if self._task is not None:
            self._disturbances = [self._task.moved(model, batch) for batch in micro_batches]

    def state(self) -> dict[str, Tensor]:
        """The disturbances by their places."""
        return {str(place): delta for place, delta in enumerate(self._disturbances)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._disturbances = [state[str(place)] for place in range(len(state))]
