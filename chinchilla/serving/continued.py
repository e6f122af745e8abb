"""The endpoints of tasks that continue a prompt token by token: completions and chats, whole or as a stream."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from chinchilla.serving.answerer import Piece, Prompt
from chinchilla.serving.engine import Engine
from chinchilla.serving.reading import Reading
from chinchilla.serving.replies import CHAT, TEXT, Reply
from chinchilla.serving.requests import ChatBody, CompletionBody, RefusedError, SamplingBody
from chinchilla.serving.ticket import ClientLeftError, Ticket

LATE_S = 5.0
"""Beyond the deadline, how long a stream's last words may take to reach a slow client."""

FREE = 4
"""One part in so many of a model is kept for an answer whose length the client leaves open."""


class EventStream(StreamingResponse):
    """Server-sent events about a ticket, which is closed after them. A client that does not read is cut off."""

    def __init__(self, events: AsyncIterator[bytes], ticket: Ticket, time_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.ticket, self.time_s = ticket, time_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until there are no more."""
        with contextlib.closing(self.ticket), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.time_s):
                await self.stream_response(send)


class ContinuedAnswers:
    """Continues prompts, and answers in chats."""

    def __init__(self, engine: Engine, reading: Reading) -> None:
        self.engine, self.reading = engine, reading
        self.limits, self.metrics, self.card = reading.limits, reading.metrics, reading.card

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        started_s = time.perf_counter()
        self.reading.check_task(request)
        body = await self.reading.body(request, CompletionBody)
        self._check_length(body.max_tokens, "max_tokens")
        asked = await self.reading.questions(body.prompt, "prompt", body.max_tokens)
        seed = secrets.randbits(63) if body.seed is None else body.seed
        rows = [_prompt(one.question, body, body.max_tokens, (seed + index) % 2**63) for index, one in enumerate(asked)]
        reply = Reply(TEXT, self.card.name, len(rows), sum(one.num_tokens for one in asked))
        return await self._answer(Ticket(self.engine, rows, request), reply, body, started_s)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        started_s = time.perf_counter()
        self.reading.check_task(request)
        body = await self.reading.body(request, ChatBody)
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        wanted = getattr(body, name)
        self._check_length(wanted or 1, name)
        free = wanted or min(self.limits.new_tokens, self.card.max_len // FREE)
        room = self.card.max_len - free if body.truncation == "auto" else None
        conversation = {"messages": [message.model_dump() for message in body.messages], "room": room}
        [asked] = await self.reading.questions([conversation], "messages", wanted or 1)
        max_tokens = wanted or min(self.limits.new_tokens, self.card.max_len - asked.num_tokens)
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**63
        reply = Reply(CHAT, self.card.name, 1, asked.num_tokens, asked.notes)
        ticket = Ticket(self.engine, [_prompt(asked.question, body, max_tokens, seed)], request)
        return await self._answer(ticket, reply, body, started_s)

    def _check_length(self, max_tokens: int, param: str) -> None:
        if max_tokens > self.limits.new_tokens:
            raise RefusedError(422, "invalid_value", f"{param}: at most {self.limits.new_tokens}", param)

    async def _answer(self, ticket: Ticket, reply: Reply, body: SamplingBody, started_s: float) -> Response:
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._stream(ticket, reply, with_usage, started_s)
            return EventStream(events, ticket, self.limits.request_s + LATE_S)
        with contextlib.closing(ticket):
            async for _ in self._pieces(ticket, reply, started_s):
                pass
        return JSONResponse(reply.whole() | {"time_s": time.perf_counter() - started_s})

    async def _pieces(self, ticket: Ticket, reply: Reply, started_s: float) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all rows as they come, once the reply has them, until every row has ended."""
        try:
            while None in reply.finish:
                index, piece = await ticket.next()
                assert isinstance(piece, Piece)
                if reply.num_tokens == 0:
                    self.metrics.first_token_s.observe(time.perf_counter() - started_s)
                reply.add(index, piece)
                yield index, piece
        finally:
            self.metrics.tokens.add(reply.num_tokens, "out")

    async def _stream(self, ticket: Ticket, reply: Reply, with_usage: bool, started_s: float) -> AsyncIterator[bytes]:
        try:
            async for index, piece in self._pieces(ticket, reply, started_s):
                if piece.text or piece.finish:
                    yield _event(reply.chunk(index, piece))
            if with_usage:
                yield _event(reply.last_chunk() | {"time_s": time.perf_counter() - started_s})
        except RefusedError as refused:
            # The status line is long gone: the stream itself must say what went wrong.
            yield _event(refused.body())
        except ClientLeftError:
            self.metrics.cancelled.add(1)
            return
        yield b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _prompt(content: Any, body: SamplingBody, max_tokens: int, seed: int) -> Prompt:
    return Prompt(content, max_tokens, body.temperature, body.top_k, body.top_p, seed, tuple(body.stop))
