"""The listening process: a port taken before anything slow is done, patience with slow clients, a clean end."""

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Collection
from ipaddress import ip_address

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.serving.answerer import Answerer
from chinchilla.serving.api import build_app
from chinchilla.serving.engine import Engine
from chinchilla.serving.guard import LOOPBACK_HOSTS
from chinchilla.serving.limits import Limits
from chinchilla.serving.metrics import Metrics

log = logging.getLogger("chinchilla")

HEAD_TIME_S = 10.0
"""How long a client may take over the head of a request."""

MAX_CONNECTIONS = 512


def bind(host: str, port: int) -> socket.socket:
    """Take the port (0: any free one) and listen, so that clients wait instead of failing while a model loads.

    Raises:
        UsageError: no such host or port number.
        FaultError: the port is taken, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port}: a port is a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"host {host!r} is not an address of this machine: {error}; try 127.0.0.1") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise _explain(error, host, port) from None
    return sock


def _explain(error: OSError, host: str, port: int) -> FaultError | UsageError:
    if error.errno == errno.EADDRINUSE:
        return FaultError(f"port {port} on {host} is taken by another process; choose one with --port (0: any free)")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"host {host!r} is not an address of this machine; try 127.0.0.1")
    return FaultError(f"cannot listen on port {port} of {host}: {error.strerror}; choose another with --port")


def url_of(sock: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def hosts_of(sock: socket.socket) -> Collection[str] | None:
    """The names that requests may call this server by: loopback's where it listens only there, else any (None)."""
    return LOOPBACK_HOSTS if ip_address(sock.getsockname()[0]).is_loopback else None


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request head does not arrive in time (slowloris)."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Keep the clock running until the head is complete."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIME_S, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """Uvicorn that also ends when the engine does."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: asked ten times a second."""
        return await super().on_tick(counter) or not self.engine.alive


def make_server(answerer: Answerer, sock: socket.socket, limits: Limits) -> Server:
    """A server for `answerer`; `run(sockets=[sock])` runs it."""
    engine = Engine(answerer, limits, Metrics())
    config = uvicorn.Config(
        build_app(engine, hosts_of(sock)),
        # h11 bounds the size of a request's head; httptools does not.
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=limits.drain_s,
    )
    return Server(config, engine)


def run(server: Server, sock: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those in work (at most `drain_s`).

    Raises:
        FaultError: the engine ended by a mistake in the program.
    """
    # Uvicorn raises the signal again when it is done; a server that was asked to end has not failed.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
    server.run(sockets=[sock])
    if server.engine.failed:
        raise FaultError("the engine ended unexpectedly; the traceback above says where")
