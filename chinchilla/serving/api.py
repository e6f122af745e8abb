"""The HTTP interface: translation, OpenAI-compatible completions, and the page to try them."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chinchilla.config.plan import TaskName
from chinchilla.serving.answerer import Answerer, Piece, Prompt, Sentence
from chinchilla.serving.engine import Engine
from chinchilla.serving.guard import Guard
from chinchilla.serving.limits import Limits
from chinchilla.serving.metrics import Metrics
from chinchilla.serving.queue import Translated
from chinchilla.serving.requests import CompletionBody, RefusedError, TranslateBody, read_body
from chinchilla.serving.ticket import ClientLeftError, Ticket

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
ENDPOINTS: dict[TaskName, str] = {"translate": "/v1/translate", "generate": "/v1/completions"}
LATE_S = 5.0
"""Beyond the deadline, how long a stream's last words may take to reach a slow client."""

Endpoint = Callable[[Request], Awaitable[Response]]


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


class Api:
    """The endpoints of one model."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answerer: Answerer = engine.answerer
        self.limits: Limits = engine.limits
        self.metrics: Metrics = engine.metrics
        self.card = engine.answerer.card

    def routes(self) -> list[Route]:
        """Every path with its endpoint."""
        return [
            Route("/v1/translate", self.translate, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            *(Route(path, _page_file(*file)) for path, file in PAGE_FILES.items()),
        ]

    async def translate(self, request: Request) -> Response:
        """`POST /v1/translate`."""
        started_s = time.perf_counter()
        self._check_task("translate")
        body = await read_body(request, TranslateBody, self.limits)
        self._check_model(body.model)
        if body.beam_size > self.limits.beam_size:
            raise RefusedError(422, "invalid_value", f"beam_size: at most {self.limits.beam_size}", "beam_size")
        source_tokens = await self._count(body.text, "text", extra=0)
        answers = await self._translations(request, body)
        target_tokens = sum(answer.num_tokens for answer in answers.values())
        self._count_out(target_tokens)
        blank = Translated("", 0)
        return JSONResponse(
            {
                "translations": [{"text": answers.get(index, blank).text} for index in range(len(body.text))],
                "model": self.card.name,
                "usage": {"source_tokens": source_tokens, "target_tokens": target_tokens},
                "time_s": time.perf_counter() - started_s,
            }
        )

    async def _translations(self, request: Request, body: TranslateBody) -> dict[int, Translated]:
        """The translation of each text, by its place; blank texts need none."""
        places = [place for place, text in enumerate(body.text) if text.strip()]
        answers: dict[int, Translated] = {}
        if not places:
            return answers
        rows = [Sentence(body.text[place], body.beam_size) for place in places]
        with contextlib.closing(Ticket(self.engine, rows, request)) as ticket:
            while len(answers) < len(rows):
                index, event = await ticket.next()
                assert isinstance(event, Translated)
                answers[places[index]] = event
        return answers

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        started_s = time.perf_counter()
        self._check_task("generate")
        body = await read_body(request, CompletionBody, self.limits)
        self._check_model(body.model)
        if body.max_tokens > self.limits.new_tokens:
            raise RefusedError(422, "invalid_value", f"max_tokens: at most {self.limits.new_tokens}", "max_tokens")
        prompt_tokens = await self._count(body.prompt, "prompt", extra=body.max_tokens)
        rows = _prompts(body)
        answer = _Completion(self.card.name, len(rows), prompt_tokens)
        ticket = Ticket(self.engine, rows, request)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._stream(ticket, answer, with_usage, started_s)
            return EventStream(events, ticket, self.limits.request_s + LATE_S)
        with contextlib.closing(ticket):
            async for index, piece in self._pieces(ticket, answer, started_s):
                answer.texts[index] += piece.text
        return JSONResponse(answer.whole() | {"time_s": time.perf_counter() - started_s})

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one model served here."""
        card = self.card
        facts = {
            "id": card.name,
            "object": "model",
            "created": card.created,
            "owned_by": "chinchilla",
            "task": card.task,
            "num_params": card.num_params,
            "size_bytes": card.size_bytes,
            "precision": card.precision,
            "max_len": card.max_len,
            "metrics": dict(card.metrics),
            "limits": self.limits.model_dump(include={"body_bytes", "texts", "new_tokens", "beam_size", "request_s"}),
        }
        return JSONResponse({"object": "list", "data": [facts]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while requests are answered, else 503."""
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped", "model": self.card.name}, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        text = self.metrics.render(waiting_rows=lambda: len(self.engine.queue))
        return Response(text, media_type="text/plain; version=0.0.4")

    def _check_task(self, task: TaskName) -> None:
        if self.card.task != task:
            what = "translates" if self.card.task == "translate" else "continues text"
            message = f"the model served here {what}: POST to {ENDPOINTS[self.card.task]}"
            raise RefusedError(404, "wrong_task", message)

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.card.name):
            message = f"no such model here; the one served is {self.card.name!r} (model may be left out)"
            raise RefusedError(404, "model_not_found", message, "model")

    async def _count(self, texts: Sequence[str], param: str, extra: int) -> int:
        """Tokens of all texts together, once each of them, and `extra` tokens more, is known to fit the model."""
        if len(texts) > self.limits.texts:
            raise RefusedError(422, "too_many_texts", f"{param}: at most {self.limits.texts} texts a request", param)
        # Off the event loop: a body full of text takes long to cut into tokens.
        counts = await asyncio.to_thread(self.answerer.count_tokens, texts)
        for index, count in enumerate(counts):
            if count + extra > self.card.max_len:
                where = f"{param} {index}" if len(texts) > 1 else param
                more = f" and max_tokens {extra}" if extra else ""
                message = f"{where}: {count} tokens{more} exceed the model's {self.card.max_len}; shorten it"
                raise RefusedError(422, "context_length_exceeded", message, param)
        self.metrics.tokens.add(sum(counts), "in")
        return sum(counts)

    def _count_out(self, num_tokens: int) -> None:
        self.metrics.tokens.add(num_tokens, "out")

    async def _pieces(
        self, ticket: Ticket, answer: "_Completion", started_s: float
    ) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all rows as they come, entered into the answer's counts, until every row has ended."""
        try:
            while None in answer.finish:
                index, piece = await ticket.next()
                assert isinstance(piece, Piece)
                if answer.num_tokens == 0:
                    self.metrics.first_token_s.observe(time.perf_counter() - started_s)
                answer.num_tokens += 1
                answer.finish[index] = piece.finish
                yield index, piece
        finally:
            self._count_out(answer.num_tokens)

    async def _stream(
        self, ticket: Ticket, answer: "_Completion", with_usage: bool, started_s: float
    ) -> AsyncIterator[bytes]:
        try:
            async for index, piece in self._pieces(ticket, answer, started_s):
                if piece.text or piece.finish:
                    yield _event(answer.chunk(index, piece))
            if with_usage:
                yield _event(answer.chunk(None, None) | {"time_s": time.perf_counter() - started_s})
        except RefusedError as refused:
            # The status line is long gone: the stream itself must say what went wrong.
            yield _event(refused.body())
        except ClientLeftError:
            self.metrics.cancelled.add(1)
            return
        yield b"data: [DONE]\n\n"


class _Completion:
    """One answer to `/v1/completions` in the making."""

    def __init__(self, model: str, num_rows: int, prompt_tokens: int) -> None:
        self.head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.prompt_tokens = prompt_tokens
        self.num_tokens = 0
        self.texts = [""] * num_rows
        self.finish: list[str | None] = [None] * num_rows

    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.num_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": total,
        }

    def whole(self) -> dict[str, Any]:
        ends = zip(self.texts, self.finish, strict=True)
        choices = [_choice(index, text, finish) for index, (text, finish) in enumerate(ends)]
        return self.head | {"choices": choices, "usage": self.usage()}

    def chunk(self, index: int | None, piece: Piece | None) -> dict[str, Any]:
        if index is None or piece is None:
            return self.head | {"choices": [], "usage": self.usage()}
        return self.head | {"choices": [_choice(index, piece.text, piece.finish)]}


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _prompts(body: CompletionBody) -> list[Prompt]:
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return [
        Prompt(
            text=text,
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            seed=(seed + index) % 2**63,
            stop=tuple(body.stop),
        )
        for index, text in enumerate(body.prompt)
    ]


def _page_file(name: str, media_type: str) -> Endpoint:
    content = (resources.files("chinchilla.serving") / "web" / name).read_bytes()

    async def show(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return show


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of every other error."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.scope['path']}: {error.detail.lower()}"
    refused = RefusedError(error.status_code, code, message, headers=error.headers)
    return await _refused(request, refused)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(RefusedError(500, "internal", "a fault in the server; its log has the details").body(), 500)


def build_app(engine: Engine, hosts: Collection[str] | None) -> Guard:
    """The ASGI app of a model; it starts the engine and closes it. `hosts`: the names it answers to (None: any)."""
    api = Api(engine)

    async def _left(request: Request, error: Exception) -> Response:
        engine.metrics.cancelled.add(1)
        return Response(status_code=499)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    handlers: dict[Any, Any] = {RefusedError: _refused, HTTPException: _not_routed, Exception: _broken}
    handlers |= {ClientLeftError: _left, ClientDisconnect: _left}
    routes = api.routes()
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(app, engine.metrics, hosts, [route.path for route in routes])
