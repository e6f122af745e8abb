"""The server as a process of its own: its port, its end by SIGTERM and Ctrl-C, its exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving_fakes import Translator, running

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.serving.server import bind, hosts_of, url_of
from chinchilla.verbs.serve import serve

SCRIPT = """
import logging, sys
from serving_fakes import Writer
from chinchilla.serving.limits import Limits
from chinchilla.serving.server import bind, make_server, run, url_of

logging.basicConfig(level=logging.INFO)
with bind("127.0.0.1", 0) as sock:
    limits = Limits(drain_s=int(sys.argv[1]), new_tokens=99_999)
    server = make_server(Writer(step_s=0.02, max_len=100_000), sock, limits)
    print(url_of(sock), flush=True)
    run(server, sock)
print("stopped", flush=True)
"""


VERB = """
import logging, sys, types
from pathlib import Path
from serving_fakes import Writer
from chinchilla.verbs.serve import serve

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
sys.modules["chinchilla.verbs.load"] = types.SimpleNamespace(load=lambda path: Writer(name=path.name))
assert "torch" not in sys.modules
serve(Path("runs/text-1"), host=sys.argv[1], port=0)
"""


@contextmanager
def script(text: str, argument: str) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", text, argument]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def process(drain_s: int) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    with (
        script(SCRIPT, str(drain_s)) as child,
        httpx.Client(base_url=child.stdout.readline().strip(), timeout=30) as client,
    ):
        yield child, client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end_and_takes_no_more(number: int):
    with process(drain_s=30) as (child, client):
        body = {"prompt": "a", "max_tokens": 60, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["text"] == " 60"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{client.base_url}/health", timeout=5)
        assert child.wait(20) == 0
        assert child.stdout.read() == "stopped\n"


def test_an_answer_that_takes_too_long_does_not_hold_up_the_end():
    with process(drain_s=1) as (child, client):
        body = {"prompt": "a", "max_tokens": 90_000, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert child.wait(20) == 0


def test_a_taken_port_is_found_before_the_model_is_loaded(tmp_path: Path):
    # There is no such folder: had it been looked at first, the error would be about that.
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FaultError, match=f"port {port} on 127.0.0.1 is taken .* --port"):
            serve(tmp_path / "none", port=port)


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_verb_says_where_it_listens_and_ends_well(host: str, warns: bool):
    with script(VERB, host) as child:
        lines = []
        while not lines or "serving" not in lines[-1]:
            lines.append(child.stdout.readline())
            assert lines[-1], "it ended before it served"
        assert lines[-1].startswith(f"chinchilla serving text-1 (generate) at http://{host}:")
        assert any("without authentication" in line for line in lines) == warns
        port = lines[-1].split(";")[0].rsplit(":", 1)[1]
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=30
        )
        assert answer.json()["choices"][0]["text"] == " 1 2"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        assert "chinchilla stopped\n" in child.stdout.read()


def test_hosts_and_ports_that_are_none():
    with pytest.raises(UsageError, match="70000"):
        bind("127.0.0.1", 70_000)
    with pytest.raises(UsageError, match="not an address of this machine"):
        bind("203.0.113.1", 0)
    with pytest.raises(UsageError, match="not an address of this machine"):
        bind("no such host", 0)


def test_only_a_server_of_this_machine_alone_insists_on_its_names():
    with bind("127.0.0.1", 0) as sock:
        assert "localhost" in hosts_of(sock)
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    with bind("0.0.0.0", 0) as sock:
        assert hosts_of(sock) is None


def test_a_client_that_comes_while_the_model_loads_is_answered_later():
    with running(Translator()) as server:
        assert server.client.get("/health").json() == {"status": "ok", "model": "fake-translate"}
    with bind("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()[:2], timeout=5):
        pass


def test_after_the_end_the_port_is_free_again():
    with running(Translator()) as server:
        port = int(server.url.rsplit(":", 1)[1])
        assert server.post("/v1/translate", {"text": "a"}).status_code == 200
    with bind("127.0.0.1", port):
        pass
