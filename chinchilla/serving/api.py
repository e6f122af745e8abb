"""The HTTP interface: an endpoint a task, the page to try it, and what the server tells of itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chinchilla.serving.continued import ContinuedAnswers
from chinchilla.serving.engine import Engine
from chinchilla.serving.forms import DOES, FORMS, PATHS
from chinchilla.serving.guard import Guard
from chinchilla.serving.reading import Reading
from chinchilla.serving.requests import RefusedError
from chinchilla.serving.ticket import ClientLeftError
from chinchilla.serving.whole import WholeAnswers

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Of the page's files, which all lie in `web`."""

SHOWN_LIMITS = ("body_bytes", "image_body_bytes", "image_pixels", "texts", "new_tokens", "beam_size", "request_s")

Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints of one model."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.card = engine, engine.answerer.card
        reading = Reading(engine)
        self.whole, self.continued = WholeAnswers(engine, reading), ContinuedAnswers(engine, reading)

    def routes(self) -> list[Route]:
        """Every path with its endpoint."""
        whole = sorted({form.path for form in FORMS.values()})
        return [
            *(Route(path, self.whole.answer, methods=["POST"]) for path in whole),
            Route(PATHS["generate"], self.continued.complete, methods=["POST"]),
            Route(PATHS["dialogue"], self.continued.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/items", self.items),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            *(Route("/" if file.name == "index.html" else f"/{file.name}", _shown(file)) for file in _page_files()),
        ]

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one model served here."""
        card = self.card
        facts: dict[str, Any] = {
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
            "form": {name: part for name, part in card.form.items() if name != "items"},
            "limits": self.engine.limits.model_dump(include=set(SHOWN_LIMITS)),
        }
        if "items" in card.form:
            facts["form"]["num_items"] = len(card.form["items"])
        return JSONResponse({"object": "list", "data": [facts]})

    async def items(self, request: Request) -> Response:
        """`GET /v1/items`: what a model that recommends knows of; they may be many."""
        if "items" not in self.card.form:
            raise RefusedError(404, "wrong_task", f"the model served here {DOES[self.card.task]}, and knows no items")
        return JSONResponse({"object": "list", "data": list(self.card.form["items"])})

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 while requests are answered, else 503."""
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped", "model": self.card.name}, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        text = self.engine.metrics.render(waiting_rows=lambda: len(self.engine.queue))
        return Response(text, media_type="text/plain; version=0.0.4")


def _page_files() -> list[Traversable]:
    files = (resources.files("chinchilla.serving") / "web").iterdir()
    return [file for file in files if PurePath(file.name).suffix in KINDS]


def _shown(file: Traversable) -> Endpoint:
    content = file.read_bytes()
    media_type = KINDS[PurePath(file.name).suffix]

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
