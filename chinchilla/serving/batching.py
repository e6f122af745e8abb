"""How waiting rows become batches: whole batches of questions, and one running batch of completions."""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from chinchilla.serving.answerer import ANSWER_ERRORS, Answerer, Options, Piece, Prompt, Question
from chinchilla.serving.limits import Limits
from chinchilla.serving.metrics import Metrics
from chinchilla.serving.queue import Failed, Queue, Row

log = logging.getLogger("chinchilla")


class Batching(Protocol):
    """One way to serve a queue; the engine calls `turn` until the queue is closed."""

    def turn(self) -> None:
        """Take what waits and do one bounded piece of work; return at once when there is none."""

    def abandon(self) -> list[Row]:
        """Give up the rows in work and return them."""

    @property
    def idle(self) -> bool:
        """Whether nothing is in work, so that the engine may sleep until a row arrives."""


class Answering:
    """Answers up to `batch_rows` waiting questions at a time.

    After a batch that served several requests, the next one waits up to `gather_s` for as many: their clients are
    likely to send again at once. A request that comes later than that, or alone, is never held back.
    """

    idle = True

    def __init__(self, answerer: Answerer, queue: Queue, limits: Limits, metrics: Metrics) -> None:
        self.answerer, self.queue, self.limits, self.metrics = answerer, queue, limits, metrics
        self._last_jobs = 1
        self._last_end_s = 0.0
        self._rows: list[Row] = []

    def turn(self) -> None:
        """Answer one batch; its questions share their options."""
        self.queue.gather(self._last_jobs, self.limits.batch_rows, self._last_end_s + self.limits.gather_s)
        self._rows = self.queue.take(self.limits.batch_rows, key=_options)
        if self._rows:
            self._answer(self._rows)
            self._last_jobs = len({id(row.job) for row in self._rows})
            self._last_end_s = time.monotonic()
        self._rows = []

    def abandon(self) -> list[Row]:
        """The rows of the batch that was being answered."""
        rows, self._rows = self._rows, []
        return rows

    def _answer(self, rows: Sequence[Row]) -> None:
        questions = [row.item.content for row in rows]
        try:
            answers = self.answerer.answer(questions, **dict(_options(rows[0])))
        except ANSWER_ERRORS as error:
            self._isolate(rows, error)
            return
        self.metrics.batch_rows.observe(len(rows))
        for row, answer in zip(rows, answers, strict=True):
            row.emit(answer)

    def _isolate(self, rows: Sequence[Row], error: Exception) -> None:
        """Answer a failed batch row by row, so that only the row that fails suffers."""
        if len(rows) == 1:
            _fail(rows, error)
            return
        for row in rows:
            self._answer([row])


class Completing:
    """Continuous batching: prompts join the running batch between two steps and leave it when they end."""

    def __init__(self, answerer: Answerer, queue: Queue, limits: Limits, metrics: Metrics) -> None:
        self.answerer, self.queue, self.limits, self.metrics = answerer, queue, limits, metrics
        self._decoding = answerer.decoding()
        self._rows: list[Row] = []

    @property
    def idle(self) -> bool:
        """Whether no prompt is being continued."""
        return not self._rows

    def turn(self) -> None:
        """Let go of cancelled rows, let one waiting prompt join, and give every running row a token."""
        self._leave([index for index, row in enumerate(self._rows) if row.job.cancelled])
        self._step()
        # One prompt a step: reading a prompt holds up every running row, so that is bounded.
        for row in self.queue.take(min(1, self.limits.batch_rows - len(self._rows))):
            self._join(row)

    def abandon(self) -> list[Row]:
        """The rows of the running batch, which is dropped."""
        rows, self._rows = self._rows, []
        return rows

    def _join(self, row: Row) -> None:
        assert isinstance(row.item, Prompt)
        try:
            pieces = self._decoding.join([row.item])
        except ANSWER_ERRORS as error:
            _fail([row], error)
            return
        self._rows.append(row)
        self._deliver(pieces, first=len(self._rows) - 1)

    def _step(self) -> None:
        if not self._rows:
            return
        try:
            pieces = self._decoding.step()
        except ANSWER_ERRORS as error:
            _fail(self.abandon(), error)
            self._decoding = self.answerer.decoding()
            return
        self.metrics.batch_rows.observe(len(self._rows))
        self._deliver(pieces, first=0)

    def _deliver(self, pieces: Sequence[Piece], first: int) -> None:
        """Send the pieces of the rows from `first` on, and let the finished rows leave."""
        for row, piece in zip(self._rows[first:], pieces, strict=True):
            row.emit(piece)
        self._leave([first + index for index, piece in enumerate(pieces) if piece.finish])

    def _leave(self, indices: Sequence[int]) -> None:
        if indices:
            self._decoding.leave(indices)
            self._rows = [row for index, row in enumerate(self._rows) if index not in set(indices)]


def _options(row: Row) -> Options:
    assert isinstance(row.item, Question)
    return row.item.options


def _fail(rows: Sequence[Row], error: Exception) -> None:
    log.error("the model failed on %d row(s)", len(rows), exc_info=error)
    for row in rows:
        row.emit(Failed(f"the model failed on this input ({type(error).__name__}); the server's log has the details"))
