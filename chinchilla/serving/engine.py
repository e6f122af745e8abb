"""The one thread that runs the model; every request goes through its queue."""

import logging
import math
import threading

from chinchilla.serving.answerer import Answerer
from chinchilla.serving.batching import Answering, Batching, Completing
from chinchilla.serving.forms import CONTINUED
from chinchilla.serving.limits import Limits
from chinchilla.serving.metrics import Metrics
from chinchilla.serving.queue import Failed, Job, Queue, Row

log = logging.getLogger("chinchilla")

JOIN_S = 5.0
"""How long `close` waits for the batch in work; the thread does not keep the process alive after that."""


class Engine:
    """Runs one model in one thread of its own, in batches, as its task demands.

    `submit` and `cancel` may be called from any thread. A job's `emit` is called in the engine's thread.
    """

    def __init__(self, answerer: Answerer, limits: Limits, metrics: Metrics) -> None:
        self.answerer, self.limits, self.metrics = answerer, limits, metrics
        self.queue = Queue(limits.waiting_rows)
        self.failed = False
        """Whether the thread ended by a mistake in the program."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and takes jobs."""
        return self._thread.is_alive() and not self.queue.closed

    @property
    def retry_after_s(self) -> int:
        """When a refused client may try again: as long as the last row had to wait, in whole seconds."""
        return max(1, math.ceil(self.queue.last_wait_s))

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its answers.

        Raises:
            QueueFullError: too many rows wait; try again in `retry_after_s`.
            QueueClosedError: the engine has stopped.
        """
        self.queue.put(job)

    def cancel(self, job: Job) -> None:
        """Drop a job: its waiting rows at once, its running rows before the next step. Harmless when it is done."""
        self.queue.cancel(job)

    def close(self) -> None:
        """Stop after the step in work; jobs still unanswered fail."""
        self._refuse(self.queue.close())
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            log.warning("the engine is still busy %g s after it was told to stop; leaving it", JOIN_S)

    def _run(self) -> None:
        batching, finished = self._batching(), False
        try:
            while self._has_work(batching):
                batching.turn()
            finished = True
        finally:
            # Also when a mistake in the program ends this thread: whoever waits must hear of it.
            self.failed = not finished
            self._refuse(self.queue.close() + batching.abandon())

    def _batching(self) -> Batching:
        kind = Completing if self.answerer.card.task in CONTINUED else Answering
        return kind(self.answerer, self.queue, self.limits, self.metrics)

    def _has_work(self, batching: Batching) -> bool:
        return self.queue.wait() if batching.idle else not self.queue.closed

    def _refuse(self, rows: list[Row]) -> None:
        for row in rows:
            row.emit(Failed("the server is stopping"))
