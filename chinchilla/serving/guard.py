"""The door: which requests come in at all, what every answer carries, and the count of both.

A page on another site can make a browser send requests here, or point its own name at this address (DNS
rebinding). So the Host must be one of ours when we listen on this machine alone, and a request that is not a
plain GET must come from our own page or from no page.
"""

import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chinchilla.serving.metrics import Metrics
from chinchilla.serving.requests import RefusedError

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An ASGI app around another. `hosts` are the names it may be called by (None: any); `routes` are counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Collection[str] | None, routes: Collection[str]) -> None:
        self.app, self.metrics, self.hosts, self.routes = app, metrics, hosts, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 500

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            refused = self._refuse(scope)
            app = self.app if refused is None else JSONResponse(refused.body(), refused.status)
            await app(scope, receive, send_guarded)
        finally:
            # Paths that do not exist share one label: clients must not be able to grow the metrics.
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.requests.add(1, route, str(status))
            self.metrics.request_s.observe(time.perf_counter() - started_s, route)

    def _refuse(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return RefusedError(403, "foreign_host", "this server answers only to the name it listens on")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and _netloc(origin) != host.lower():
            return RefusedError(403, "foreign_origin", "pages of other sites may not use this server")
        return None


def _host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None when there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
