"""The rows that wait for the engine: bounded, and a turn for every request."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chinchilla.serving.answerer import Answer, Piece, Prompt, Question


@dataclass(frozen=True)
class Failed:
    """The engine could not answer; `reason` is for the log and the client."""

    reason: str


Event = Answer | Piece | Failed


@dataclass(eq=False)
class Job:
    """One request: rows to answer, and `emit(row, event)`, which the engine's thread calls as answers come."""

    rows: Sequence[Question] | Sequence[Prompt]
    emit: Callable[[int, Event], None]
    cancelled: bool = False
    taken: int = 0
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Row:
    """One row of a job, as the engine takes it from the queue."""

    job: Job
    index: int

    @property
    def item(self) -> Question | Prompt:
        """What is to be answered."""
        return self.job.rows[self.index]

    def emit(self, event: Event) -> None:
        """Tell the request's owner."""
        self.job.emit(self.index, event)


class QueueFullError(Exception):
    """No room for the job's rows."""


class QueueClosedError(Exception):
    """The engine has stopped, or is about to."""


class Queue:
    """Jobs in their order of arrival; `take` draws one row from each in turn, so that no large job holds up a small.

    Safe for any number of threads that put and one that takes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.closed = False
        self.last_wait_s = 0.0
        self._jobs: deque[Job] = deque()
        self._num_rows = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Rows waiting."""
        return self._num_rows

    def put(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            QueueFullError: its rows do not fit.
            QueueClosedError: nobody will take them.
        """
        with self._changed:
            if self.closed:
                raise QueueClosedError
            if self._num_rows + len(job.rows) > self.capacity:
                raise QueueFullError
            self._jobs.append(job)
            self._num_rows += len(job.rows)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Forget the rows still waiting, and mark the job for whoever runs the others."""
        with self._changed:
            job.cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)
                self._num_rows -= len(job.rows) - job.taken

    def close(self) -> list[Row]:
        """Refuse new jobs from now on; return the rows that nobody will take."""
        with self._changed:
            self.closed = True
            left = [Row(job, index) for job in self._jobs for index in range(job.taken, len(job.rows))]
            self._jobs.clear()
            self._num_rows = 0
            self._changed.notify_all()
            return left

    def wait(self) -> bool:
        """Sleep until a row waits (True) or the queue is closed (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_rows > 0 or self.closed)
            return not self.closed

    def gather(self, num_jobs: int, num_rows: int, until_s: float) -> None:
        """Sleep until so many jobs or so many rows wait, or the monotonic clock reaches `until_s`."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._jobs) >= num_jobs or self._num_rows >= num_rows or self.closed,
                timeout=max(0.0, until_s - time.monotonic()),
            )

    def take(self, room: int, key: Callable[[Row], object] = lambda row: None) -> list[Row]:
        """Up to `room` rows whose `key` equals that of the first in line; never waits."""
        rows: list[Row] = []
        with self._changed:
            passed: deque[Job] = deque()
            while self._jobs and len(rows) < room:
                job = self._jobs.popleft()
                row = Row(job, job.taken)
                if rows and key(row) != key(rows[0]):
                    passed.append(job)
                    continue
                rows.append(row)
                job.taken += 1
                self._num_rows -= 1
                if job.taken < len(job.rows):
                    self._jobs.append(job)
            self._jobs.extendleft(reversed(passed))
        if rows:
            self.last_wait_s = time.monotonic() - rows[0].job.arrived_s
        return rows
