"""A request's job as the event loop sees it: events to await, a deadline, and a client that may leave."""

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.requests import Request

from chinchilla.serving.answerer import Prompt, Question
from chinchilla.serving.engine import Engine
from chinchilla.serving.queue import Event, Failed, Job, QueueClosedError, QueueFullError
from chinchilla.serving.requests import RefusedError


class ClientLeftError(Exception):
    """The client closed its connection before the answer was complete."""


class Ticket:
    """Rows submitted to the engine for one request; `close` cancels whatever of them is unfinished.

    Raises:
        RefusedError: 503, with Retry-After, when the queue is full or the engine has stopped.
    """

    def __init__(self, engine: Engine, rows: Sequence[Question] | Sequence[Prompt], request: Request) -> None:
        self._engine, self._request = engine, request
        self._loop = asyncio.get_running_loop()
        self._deadline_s = self._loop.time() + engine.limits.request_s
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._job = Job(rows, self._emit)
        self._submit()
        self._watch = asyncio.create_task(self._watch_client())

    def close(self) -> None:
        """Cancel what is unfinished; harmless when nothing is."""
        self._watch.cancel()
        self._engine.cancel(self._job)

    async def next(self) -> tuple[int, Event]:
        """The next event and the row it belongs to.

        Raises:
            RefusedError: 500 when the model failed, 504 when the request's time is over.
            ClientLeftError: nobody waits for the answer.
        """
        try:
            async with asyncio.timeout_at(self._deadline_s):
                arrived = await self._events.get()
        except TimeoutError:
            self._engine.metrics.refused.add(1, "deadline")
            limit_s = self._engine.limits.request_s
            raise RefusedError(504, "deadline", f"no complete answer within {limit_s:g} s; ask for less") from None
        if arrived is None:
            raise ClientLeftError
        index, event = arrived
        if isinstance(event, Failed):
            raise RefusedError(500 if self._engine.alive else 503, "engine_failed", event.reason)
        return index, event

    def _submit(self) -> None:
        try:
            self._engine.submit(self._job)
        except QueueFullError:
            self._engine.metrics.refused.add(1, "queue_full")
            message, wait_s = "too many requests are waiting; try again later", self._engine.retry_after_s
            raise RefusedError(503, "queue_full", message, headers={"Retry-After": str(wait_s)}) from None
        except QueueClosedError:
            raise RefusedError(503, "stopping", "the server is stopping", headers={"Retry-After": "5"}) from None

    def _emit(self, index: int, event: Event) -> None:
        # A loop that is closed has nobody left to tell: the server was made to quit.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def _watch_client(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._engine.cancel(self._job)
        self._events.put_nowait(None)
