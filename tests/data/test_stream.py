"""The stream: in order, resumable anywhere, ahead of its consumer, honest about errors, and gone when closed."""

import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from chinchilla.data.stream import Position, stream


class Counted:
    """Three batches an epoch; notes what was made, and fails where told to."""

    unique_tokens = 3
    padding = 0.0

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[int] = []
        self._fail_at = fail_at

    def num_batches(self, epoch: int) -> int:
        return 3

    def order(self, epoch: int) -> list[np.ndarray]:
        return [np.array([10 * epoch + index]) for index in range(3)]

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        number = int(rows[0])
        if number == self._fail_at:
            raise OSError("the disk is gone")
        self.made.append(number)
        return {"labels": torch.from_numpy(rows)}


def taken(items) -> list[tuple[int, int, int]]:
    return [(position.epoch, position.index, int(batch["labels"][0])) for position, batch in items]


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about in five seconds")


def test_batches_come_in_order_epoch_after_epoch():
    assert taken(stream(Counted(), count=5)) == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 10), (1, 1, 11)]
    assert batch_threads() == []


def test_going_on_after_any_position_gives_the_same_batches():
    whole = taken(stream(Counted(), count=8))
    for done in range(1, 8):
        last = Position(*whole[done - 1][:2])
        assert taken(stream(Counted(), start=last.next, count=8 - done)) == whole[done:]


def test_no_more_than_the_bound_is_made_ahead_of_a_consumer_that_is_busy():
    batches = Counted()
    running = stream(batches, ahead=3)
    next(running)
    wait_for(lambda: len(batches.made) == 4)
    time.sleep(0.05)
    assert len(batches.made) == 4
    assert taken(islice(running, 4)) == [(0, 1, 1), (0, 2, 2), (1, 0, 10), (1, 1, 11)]
    running.close()


def test_closing_early_ends_the_thread():
    running = stream(Counted())
    next(running)
    assert len(batch_threads()) == 1
    running.close()
    assert batch_threads() == []


def test_dropping_the_stream_ends_the_thread():
    for _ in stream(Counted()):
        break
    wait_for(lambda: batch_threads() == [])


def test_an_error_is_raised_at_its_batch_and_not_before():
    running = stream(Counted(fail_at=10))
    assert taken(islice(running, 3)) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(running)
    assert batch_threads() == []


def test_nothing_asked_for_is_nothing_given():
    assert taken(stream(Counted(), count=0)) == []
