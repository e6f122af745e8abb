"""Requests that are refused, each with its own status, code and clear words; hostile sockets; the door."""

import json
import socket

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_fakes import Running, Translator, Writer, running

from chinchilla.serving import server as server_module

JSON = {"Content-Type": "application/json"}
POST = b"POST /v1/translate HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def translating():
    with running(Translator(max_len=50), body_bytes=20_000, texts=8, receive_s=1.5) as server:
        yield server


@pytest.fixture(scope="module")
def writing():
    with running(Writer(max_len=50), body_bytes=20_000, texts=8) as server:
        yield server


def refused(response: httpx.Response, status: int, code: str, *words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "invalid_json", ["not valid JSON"]),
        (b"{", 400, "invalid_json", ["line 1"]),
        (b'{"text": "\xff"}', 400, "invalid_json", ["unicode"]),
        (b'{"text": "\\ud800"}', 400, "invalid_json", []),
        (b'{"text": "a", "beam_size": NaN}', 400, "invalid_json", []),
        (b"[" * 5000, 400, "invalid_json", ["recursion limit"]),
        (b'{"text":' + b'{"a":' * 1000 + b"1" + b"}" * 1001, 400, "invalid_json", ["recursion limit"]),
        (b'["text"]', 422, "not_an_object", ["JSON object"]),
        (b"{}", 422, "missing_key", ["text is missing"]),
        (b'{"text": null}', 422, "missing_key", ["text is missing"]),
        (b'{"txt": "a"}', 422, "unknown_key", ["txt", "did you mean text?"]),
        (b'{"text": "a", "zzz": 1}', 422, "unknown_key", ["known keys: text, model, beam_size"]),
        (b'{"text": 3}', 422, "invalid_value", ["text", "given: 3"]),
        (b'{"text": []}', 422, "invalid_value", ["text", "not empty"]),
        (b'{"text": ["a", 1]}', 422, "invalid_value", ["list of texts"]),
        (b'{"text": "a", "beam_size": 0}', 422, "invalid_value", ["beam_size", "given: 0"]),
        (b'{"text": "a", "beam_size": true}', 422, "invalid_value", ["beam_size", "given: true"]),
        (b'{"text": "a", "beam_size": "4"}', 422, "invalid_value", ["beam_size"]),
        (b'{"text": "a", "beam_size": 1e999}', 422, "invalid_value", ["beam_size"]),
        (b'{"text": "a", "beam_size": 9}', 422, "invalid_value", ["at most 8"]),
        (b'{"text": "a", "model": "gpt-4"}', 404, "model_not_found", ["fake-translate"]),
        (json.dumps({"text": ["a"] * 9}).encode(), 422, "too_many_texts", ["at most 8"]),
        (json.dumps({"text": "a " * 50}).encode(), 422, "context_length_exceeded", ["51 tokens", "50"]),
        (json.dumps({"text": ["a", "a " * 50]}).encode(), 422, "context_length_exceeded", ["text 1"]),
        (json.dumps({"text": "a" * 20_000}).encode(), 413, "body_too_large", ["20000 bytes"]),
    ],
)
def test_translate_bodies(translating: Running, body: bytes, status: int, code: str, words: list[str]):
    refused(translating.client.post("/v1/translate", content=body, headers=JSON), status, code, *words)


@pytest.mark.parametrize(
    ("changes", "status", "code", "words"),
    [
        ({"max_tokens": 0}, 422, "invalid_value", ["max_tokens"]),
        ({"max_tokens": 1025}, 422, "invalid_value", ["at most 1024"]),
        ({"max_tokens": 49}, 422, "context_length_exceeded", ["2 tokens and max_tokens 49", "50"]),
        ({"max_tokens": 2.0}, 422, "invalid_value", ["max_tokens"]),
        ({"temperature": -0.1}, 422, "invalid_value", ["temperature"]),
        ({"temperature": 2.1}, 422, "invalid_value", ["temperature"]),
        ({"temperature": "1"}, 422, "invalid_value", ["temperature"]),
        ({"top_p": 0}, 422, "invalid_value", ["top_p"]),
        ({"top_k": -1}, 422, "invalid_value", ["top_k"]),
        ({"seed": 2**70}, 422, "invalid_value", ["seed"]),
        ({"stop": ""}, 422, "invalid_value", ["stop", "empty"]),
        ({"stop": ["a"] * 9}, 422, "invalid_value", ["stop", "at most 8"]),
        ({"stream": 1}, 422, "invalid_value", ["stream"]),
        ({"stream_options": {"usage": True}}, 422, "unknown_key", ["stream_options.usage"]),
        ({"n": 2}, 422, "invalid_value", ["n:", "1"]),
        ({"logit_bias": {"1": 5}}, 422, "unknown_key", ["logit_bias"]),
        ({"presence_penalty": 0.5}, 422, "invalid_value", ["presence_penalty"]),
        ({"prompt": [1, 2]}, 422, "invalid_value", ["prompt"]),
        ({"temprature": 1}, 422, "unknown_key", ["did you mean temperature?"]),
    ],
)
def test_completion_bodies(writing: Running, changes: dict, status: int, code: str, words: list[str]):
    refused(writing.post("/v1/completions", {"prompt": "a"} | changes), status, code, *words)


def test_a_client_that_sends_every_neutral_default_is_answered(writing: Running):
    body = {"model": "fake-generate", "prompt": "a", "n": 1, "best_of": 1, "echo": False, "user": "me", "stop": None}
    body |= {"presence_penalty": 0, "frequency_penalty": 0.0, "seed": -1, "logprobs": None, "max_tokens": 2}
    assert writing.post("/v1/completions", body).status_code == 200


def test_the_other_task_and_other_paths(translating: Running, writing: Running):
    refused(translating.post("/v1/completions", {"prompt": "a"}), 404, "wrong_task", "POST to /v1/translate")
    refused(writing.post("/v1/translate", {"text": "a"}), 404, "wrong_task", "POST to /v1/completions")
    refused(translating.client.get("/v1/nothing"), 404, "not_found", "/v1/nothing")
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/app.js/../../../api.py", "/v1/models/"):
        refused(httpx.get(translating.url + path), 404, "not_found")


def test_methods_and_media_types(translating: Running):
    wrong = translating.client.get("/v1/translate")
    refused(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    refused(translating.client.delete("/health"), 405, "method_not_allowed")
    refused(translating.client.post("/v1/translate", data={"text": "a"}), 415, "not_json", "Content-Type")
    refused(translating.client.post("/v1/translate", content=b'{"text":"a"}'), 415, "not_json")
    zipped = translating.client.post("/v1/translate", content=b"x", headers=JSON | {"Content-Encoding": "gzip"})
    refused(zipped, 415, "encoded_body")
    with_charset = {"Content-Type": "application/json; charset=utf-8"}
    assert translating.client.post("/v1/translate", content=b'{"text":"a"}', headers=with_charset).status_code == 200


def test_a_body_without_a_declared_size_is_refused_as_soon_as_it_is_too_large(translating: Running):
    sent = []

    def chunks():
        for _ in range(400):
            sent.append(1)
            yield b"x" * 50_000

    refused(translating.client.post("/v1/translate", content=chunks(), headers=JSON), 413, "body_too_large")


def test_a_body_that_does_not_arrive(translating: Running):
    head = POST + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    assert talk(translating, head + b'{"text":').startswith(b"HTTP/1.1 408")


def talk(server: Running, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Send raw bytes; return what comes back until the server closes or falls silent."""
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(data)
        return connection.recv(65536)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nnothex\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_harms_nobody(translating: Running, data: bytes):
    answer = talk(translating, data)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert translating.post("/v1/translate", {"text": "a"}).status_code == 200


def test_silent_connections_are_closed_and_delay_nobody(translating: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "HEAD_TIME_S", 0.5)
    port = int(translating.url.rsplit(":", 1)[1])
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    try:
        for connection in crowd[:50]:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert translating.post("/v1/translate", {"text": "a"}).status_code == 200
        for connection in crowd:
            assert connection.recv(1) == b"", "the server should have closed this connection"
    finally:
        for connection in crowd:
            connection.close()


def test_a_slow_second_request_on_a_good_connection_is_closed_too(
    translating: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "HEAD_TIME_S", 0.5)
    port = int(translating.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HT")
        while connection.recv(65536):
            pass


def test_only_our_names_and_our_page(translating: Running):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[", ""):
        answer = translating.client.get("/v1/models", headers={"Host": host})
        refused(answer, 403, "foreign_host")
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000"):
        assert translating.client.get("/health", headers={"Host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", "https://[", ""):
        answer = translating.post("/v1/translate", {"text": "a"}, headers={"Origin": origin})
        refused(answer, 403, "foreign_origin")
    own = {"Origin": translating.url}
    assert translating.post("/v1/translate", {"text": "a"}, headers=own).status_code == 200
    assert "access-control-allow-origin" not in translating.client.options("/v1/translate", headers=own).headers


def test_every_answer_carries_the_security_headers(translating: Running):
    for path in ("/", "/app.js", "/v1/models", "/health", "/metrics", "/nothing"):
        headers = translating.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_unknown_paths_do_not_grow_the_metrics(translating: Running):
    before = len(translating.client.get("/metrics").text)
    for number in range(30):
        translating.client.get(f"/path-{number}")
    assert len(translating.client.get("/metrics").text) < before + 500
    assert translating.metric('chinchilla_requests_total{route="other",status="404"}') >= 30


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    ["text", "beam_size", "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream"]
)
likely = st.dictionaries(keys, json_values | st.text() | st.lists(st.text(max_size=9), max_size=3), max_size=8)
bodies = st.binary(max_size=200) | (json_values | likely).map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_no_body_is_the_servers_fault(translating: Running, writing: Running, body: bytes):
    for server, path in ((translating, "/v1/translate"), (writing, "/v1/completions")):
        answer = server.client.post(path, content=body, headers=JSON)
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]


@settings(max_examples=60)
@given(body=likely.map(lambda value: value | {"prompt": "a", "text": "a"}))
def test_likely_bodies_are_answered_or_explained(translating: Running, writing: Running, body: dict):
    translate = {key: value for key, value in body.items() if key in ("text", "beam_size", "model")}
    complete = {key: value for key, value in body.items() if key not in ("text", "beam_size")}
    for server, path, own in ((translating, "/v1/translate", translate), (writing, "/v1/completions", complete)):
        answer = server.client.post(path, content=json.dumps(own).encode(), headers=JSON)
        assert answer.status_code in (200, 400, 404, 422), (own, answer.text)


def test_the_server_still_works_after_all_this(translating: Running, writing: Running):
    assert translating.post("/v1/translate", {"text": "a b"}).json()["translations"] == [{"text": "A B"}]
    assert writing.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
