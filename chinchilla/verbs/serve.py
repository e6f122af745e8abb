"""`chinchilla serve`: answer requests over HTTP with the model of a run folder."""

import logging
from pathlib import Path

from chinchilla.serving.limits import Limits
from chinchilla.serving.server import bind, hosts_of, make_server, run, url_of

log = logging.getLogger("chinchilla")


def serve(path: Path, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
    """Serve the model at `path` (a run folder or a model folder) until SIGTERM or SIGINT.

    Raises:
        UsageError: no such folder, not a model, or no such host.
        FaultError: the port is taken, the model is damaged, or the engine failed.
    """
    with bind(host, port) as sock:
        # The weights, and torch itself, come only once the port is ours.
        from chinchilla.verbs.load import load

        model = load(path)
        server = make_server(model, sock, limits or Limits())
        if hosts_of(sock) is None:
            log.warning("listening beyond this machine, without authentication: whoever reaches it may use the model")
        log.info("serving %s (%s) at %s; stop with Ctrl-C", model.card.name, model.card.task, url_of(sock))
        run(server, sock)
        log.info("stopped")
