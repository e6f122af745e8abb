"""Micro-batches one after the other, made ahead in a thread so that a training step never waits for them."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count as count_up
from itertools import islice

from torch import Tensor

from chinchilla.data.batches import Batches

Item = tuple["Position", dict[str, Tensor]]


@dataclass(frozen=True, order=True)
class Position:
    """The micro-batch number `index` of epoch `epoch`, both from 0."""

    epoch: int = 0
    index: int = 0

    @property
    def next(self) -> "Position":
        """Where to go on after this micro-batch: save this. Past an epoch's last it means the next epoch's first."""
        return Position(self.epoch, self.index + 1)


def stream(
    batches: Batches, start: Position = Position(), count: int | None = None, ahead: int = 4
) -> Generator[Item, None, None]:
    """Give micro-batches with their positions from `start` on, endlessly or `count` of them.

    A thread holds `ahead` of them ready. An error in it is raised here, at the batch it belongs to. Closing the
    generator (or dropping it) ends the thread.
    """
    made = islice(_made(batches, start), count)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        waiting: deque[Future[Item | None]] = deque(thread.submit(next, made, None) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, made, None))
            yield item
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def _made(batches: Batches, start: Position) -> Iterator[Item]:
    first = start.index
    for epoch in count_up(start.epoch):
        order = batches.order(epoch)
        for index in range(first, len(order)):
            yield Position(epoch, index), batches.batch(order[index])
        first = max(0, first - len(order))
