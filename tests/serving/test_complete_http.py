"""`POST /v1/completions` over real HTTP: OpenAI's form, streams, continuous batching, leaving clients."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_fakes import Writer, eventually, running


def events(response: httpx.Response) -> list[dict]:
    """The `data:` events of a stream; the end marker must be there."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_whole_answer():
    with running(Writer()) as server:
        answer = server.post("/v1/completions", {"prompt": "count", "max_tokens": 3}).json()
        assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
        assert answer["model"] == "fake-generate" and answer["created"] > 0
        assert answer["choices"] == [{"index": 0, "text": " 1 2 3", "finish_reason": "length", "logprobs": None}]
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_stop_and_several_prompts():
    with running(Writer()) as server:
        body = {"prompt": ["a", "b c"], "max_tokens": 9, "stop": "4"}
        answer = server.post("/v1/completions", body).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert [choice["text"] for choice in answer["choices"]] == [" 1 2 3", " 1 2 3"]
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
        assert answer["usage"]["prompt_tokens"] == 5


def test_a_stream_comes_in_order_and_while_it_is_written():
    writer = Writer()
    with running(writer) as server:
        writer.gate.clear()
        body = {"prompt": "count", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            # The model stands still in its second step, and the first token is already here.
            first = json.loads(next(lines).removeprefix("data: "))
            assert first["choices"][0]["text"] == " 1" and first["choices"][0]["finish_reason"] is None
            writer.gate.set()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in rest[:-1]]
        assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == [" 2", " 3", " 4"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        assert {chunk["id"] for chunk in chunks} == {first["id"]}


def test_a_stream_of_several_prompts_names_each():
    with running(Writer()) as server:
        body = {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            chunks = events(response)
        for index in (0, 1):
            own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            assert "".join(choice["text"] for choice in own) == " 1 2 3"
            assert [choice["finish_reason"] for choice in own] == [None, None, "length"]


def test_a_prompt_joins_a_running_batch_and_leaves_before_it():
    writer = Writer()
    with running(writer) as server, ThreadPoolExecutor(4) as pool:
        writer.gate.clear()
        long = pool.submit(server.post, "/v1/completions", {"prompt": "long", "max_tokens": 200})
        assert writer.entered.acquire(timeout=10)
        short = pool.submit(server.post, "/v1/completions", {"prompt": "short", "max_tokens": 3})
        eventually(lambda: len(server.engine.queue) == 1)
        writer.gate.set()
        assert short.result().json()["choices"][0]["text"] == " 1 2 3"
        assert long.result().json()["choices"][0]["text"].endswith(" 199 200")
    assert writer.steps[:4] == [["long"], ["long", "short"], ["long", "short"], ["long"]]


def test_no_more_rows_than_the_batch_holds():
    writer = Writer()
    with running(writer, batch_rows=3) as server:
        body = {"prompt": [f"p{n}" for n in range(8)], "max_tokens": 5}
        answer = server.post("/v1/completions", body).json()
        assert [choice["text"] for choice in answer["choices"]] == [" 1 2 3 4 5"] * 8
    assert max(map(len, writer.steps)) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_row_and_no_other(stream):
    writer = Writer(step_s=0.01, max_len=1_000_000)
    with running(writer, new_tokens=100_000, batch_rows=4) as server, ThreadPoolExecutor(2) as pool:
        other = pool.submit(server.post, "/v1/completions", {"prompt": "other", "max_tokens": 60})
        assert writer.entered.acquire(timeout=10)
        body = {"prompt": "leaving", "max_tokens": 100_000, "stream": stream}
        with server.sent("/v1/completions", body):
            eventually(lambda: any("leaving" in step for step in writer.steps))
        eventually(lambda: "leaving" not in writer.steps[-1])
        assert other.result().json()["choices"][0]["text"].endswith(" 59 60")
        assert server.metric("chinchilla_cancelled_total") == 1


def test_the_deadline_ends_a_stream_with_an_error_event():
    writer = Writer(step_s=0.01, max_len=1_000_000)
    with running(writer, request_s=1, new_tokens=100_000) as server:
        body = {"prompt": "long", "max_tokens": 100_000, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            chunks = events(response)
        assert chunks[0]["choices"][0]["text"] == " 1"
        assert chunks[-1]["error"]["code"] == "deadline"
        whole = server.post("/v1/completions", body | {"stream": False})
        assert whole.status_code == 504
        assert server.post("/v1/completions", {"prompt": "next", "max_tokens": 3}).status_code == 200
        assert writer.steps[-1] == ["next"]


def test_a_prompt_that_breaks_the_model_fails_alone():
    writer = Writer(step_s=0.005)
    with running(writer) as server, ThreadPoolExecutor(2) as pool:
        other = pool.submit(server.post, "/v1/completions", {"prompt": "other", "max_tokens": 40})
        assert writer.entered.acquire(timeout=10)
        bad = server.post("/v1/completions", {"prompt": "poison"})
        assert bad.status_code == 500 and bad.json()["error"]["type"] == "server_error"
        assert other.result().json()["choices"][0]["finish_reason"] == "length"


def test_a_failed_step_fails_its_batch_and_the_engine_goes_on():
    with running(Writer()) as server:
        assert server.post("/v1/completions", {"prompt": "trap"}).status_code == 500
        with server.client.stream("POST", "/v1/completions", json={"prompt": "trap", "stream": True}) as response:
            assert events(response)[-1]["error"]["code"] == "engine_failed"
        assert server.post("/v1/completions", {"prompt": "fine", "max_tokens": 2}).status_code == 200


def test_a_full_queue_refuses_a_stream_with_a_status_not_an_event():
    writer = Writer()
    with running(writer, waiting_rows=1, texts=1, batch_rows=1) as server, ThreadPoolExecutor(4) as pool:
        writer.gate.clear()
        first = pool.submit(server.post, "/v1/completions", {"prompt": "first", "max_tokens": 2})
        assert writer.entered.acquire(timeout=10)
        second = pool.submit(server.post, "/v1/completions", {"prompt": "second", "max_tokens": 2})
        eventually(lambda: len(server.engine.queue) == 1)
        refused = server.post("/v1/completions", {"prompt": "third", "stream": True})
        assert refused.status_code == 503 and "retry-after" in refused.headers
        writer.gate.set()
        assert first.result().status_code == second.result().status_code == 200


def test_many_clients_at_once_all_get_their_own_answer():
    writer = Writer()
    with running(writer, batch_rows=8) as server, ThreadPoolExecutor(12) as pool:
        barrier = threading.Barrier(12)

        def complete(number: int) -> bool:
            barrier.wait()
            body = {"prompt": f"p{number}", "max_tokens": number + 1, "stream": number % 2 == 0}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
                if body["stream"]:
                    text = "".join(chunk["choices"][0]["text"] for chunk in events(response))
                else:
                    text = json.loads(response.read())["choices"][0]["text"]
            return text == "".join(f" {n + 1}" for n in range(number + 1))

        assert all(pool.map(complete, range(12)))
        assert server.metric('chinchilla_tokens_total{direction="out"}') == sum(range(1, 13))
