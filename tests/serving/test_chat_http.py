"""`POST /v1/chat/completions` over real HTTP: OpenAI's form, whole and streamed; conversations that grow too long."""

import json

import pytest
from serving_fakes import Chatter, Running, Writer, running
from test_complete_http import events
from test_refusals_http import refused

PATH = "/v1/chat/completions"


def said(*contents: str, system: str = "") -> list[dict]:
    """A conversation that the user begins."""
    start = [{"role": "system", "content": system}] if system else []
    return start + [
        {"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)
    ]


@pytest.fixture(scope="module")
def chatting():
    with running(Chatter(max_len=40), new_tokens=30) as server:
        yield server


def test_a_whole_answer(chatting: Running):
    answer = chatting.post(PATH, {"messages": said("hello", system="be brief"), "max_tokens": 3}).json()
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": " 1 2 3"}
    assert choice["finish_reason"] == "length" and choice["index"] == 0
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert chatting.engine.answerer.asked[-1] == said("hello", system="be brief")


def test_a_stream(chatting: Running):
    body = {"messages": said("a"), "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    with chatting.client.stream("POST", PATH, json=body) as response:
        chunks = events(response)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": " 1"}, {"content": " 2"}, {"content": " 3"}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "length"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 3


def test_a_stream_that_ends_in_a_stop_text_has_a_last_empty_delta(chatting: Running):
    body = {"messages": said("a"), "max_tokens": 9, "stop": ["3"], "stream": True}
    with chatting.client.stream("POST", PATH, json=body) as response:
        chunks = events(response)
    assert chunks[-1]["choices"][0]["delta"] == {} and chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_without_a_length_the_answer_may_fill_the_model(chatting: Running):
    one = chatting.post(PATH, {"messages": said("a")}).json()
    assert one["usage"]["completion_tokens"] == 30  # what the server allows
    long = chatting.post(PATH, {"messages": said("word " * 20)}).json()
    assert long["usage"] == {"prompt_tokens": 21, "completion_tokens": 19, "total_tokens": 40}


def test_a_conversation_that_is_too_long_is_refused_or_cut_as_asked(chatting: Running):
    body = {"messages": said(*["five words are said here"] * 9), "max_tokens": 10}
    refused(chatting.post(PATH, body), 422, "context_length_exceeded", "54 tokens and max_tokens 10", "40")
    answer = chatting.post(PATH, body | {"truncation": "auto"}).json()
    assert answer["notes"] == ["left out the oldest exchanges"]
    assert answer["usage"]["prompt_tokens"] == 30
    open_end = {key: body[key] for key in ("messages",)} | {"truncation": "auto"}
    assert chatting.post(PATH, open_end).json()["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 10,
        "total_tokens": 40,
    }
    with chatting.client.stream(
        "POST", PATH, json=open_end | {"stream": True, "stream_options": {"include_usage": True}}
    ) as response:
        assert events(response)[-1]["notes"] == ["left out the oldest exchanges"]


def test_parts_of_text_are_joined_and_other_keys_of_a_message_passed_over(chatting: Running):
    message = {"role": "user", "name": "me", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}
    assert chatting.post(PATH, {"messages": [message], "max_completion_tokens": 2}).status_code == 200
    assert chatting.engine.answerer.asked[-1] == said("a b")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"messages": None}, "missing_key", ["messages"]),
        ({"messages": []}, "invalid_value", ["messages"]),
        ({"messages": "hello"}, "invalid_value", ["messages"]),
        ({"messages": [{"role": "user"}]}, "missing_key", ["messages.0.content"]),
        ({"messages": [{"role": "robot", "content": "a"}]}, "invalid_value", ["messages.0.role", "'assistant'"]),
        ({"messages": said("a", "b")}, "invalid_value", ["messages:", "user"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", ["type text only"]),
        ({"max_tokens": 31}, "invalid_value", ["max_tokens: at most 30"]),
        ({"max_completion_tokens": 31}, "invalid_value", ["max_completion_tokens: at most 30"]),
        ({"truncation": "middle"}, "invalid_value", ["truncation"]),
        ({"n": 2}, "invalid_value", ["n:"]),
        ({"tools": []}, "unknown_key", ["tools"]),
        ({"best_of": 1}, "unknown_key", ["best_of"]),
    ],
)
def test_what_is_refused(chatting: Running, changes: dict, code: str, words: list[str]):
    refused(chatting.post(PATH, {"messages": said("a")} | changes), 422, code, *words)


def test_the_other_kind_of_writer_is_named(chatting: Running):
    refused(chatting.post("/v1/completions", {"prompt": "a"}), 404, "wrong_task", "in a chat", f"POST to {PATH}")
    with running(Writer()) as server:
        refused(server.post(PATH, {"messages": said("a")}), 404, "wrong_task", "POST to /v1/completions")


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event():
    with running(Chatter()) as server:
        body = {"messages": said("trap"), "stream": True}
        with server.client.stream("POST", PATH, json=body) as response:
            assert events(response)[-1]["error"]["code"] == "engine_failed"
        assert json.loads(server.post(PATH, {"messages": said("fine"), "max_tokens": 1}).text)["choices"]
