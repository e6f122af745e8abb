"""Summaries, classes and recommendations over real HTTP: what is asked, what is told, what is refused."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_fakes import Classifier, Recommender, Running, Translator, eventually, running
from test_refusals_http import JSON, json_values, refused

from chinchilla.config.plan import TaskName
from chinchilla.serving.forms import DOES, PATHS

PNG = b"PNG\r\n a picture"


@pytest.fixture(scope="module")
def texts():
    with running(Classifier("text"), texts=4) as server:
        yield server


@pytest.fixture(scope="module")
def images():
    with running(Classifier("image"), image_body_bytes=60_000, body_bytes=1_000, texts=4) as server:
        yield server


@pytest.fixture(scope="module")
def rows():
    with running(Classifier("table"), texts=4) as server:
        yield server


@pytest.fixture(scope="module")
def films():
    with running(Recommender()) as server:
        yield server


def test_every_task_is_served_and_has_a_form_on_the_page():
    tasks = set(get_args(TaskName))
    assert tasks == set(PATHS) == set(DOES)
    page = (resources.files("chinchilla.serving") / "web" / "app.js").read_text()
    assert all(re.search(rf"^  {task}[:,]", page, re.MULTILINE) for task in tasks)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_summaries():
    with running(Translator("summarise")) as server:
        answer = server.post("/v1/summarise", {"text": ["a long\ntext", " "], "beam_size": 2}).json()
        assert answer["summaries"] == [{"text": "A LONG\nTEXT"}, {"text": ""}]
        assert answer["usage"] == {"source_tokens": 5, "target_tokens": 4}
        assert server.engine.answerer.beams == [2]
        refused(server.post("/v1/translate", {"text": "a"}), 404, "wrong_task", "summarises", "POST to /v1/summarise")


def test_texts_are_put_in_classes_in_their_order(texts: Running):
    answer = texts.post("/v1/classify", {"text": ["four", "three"]})
    assert answer.status_code == 200
    told = answer.json()
    assert told["classifications"] == [
        {"label": "a", "probabilities": {"a": 0.75, "b": 0.25}},
        {"label": "b", "probabilities": {"a": 0.25, "b": 0.75}},
    ]
    assert told["model"] == "fake-classify_text" and told["usage"] == {"source_tokens": 4} and told["time_s"] > 0


def test_a_text_that_was_cut_says_so(texts: Running):
    [told] = texts.post("/v1/classify", {"text": "word " * 30}).json()["classifications"]
    assert told["notes"] == ["read the first 9 of 30 tokens"]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"text": ["fine", " "]}, 422, "invalid_value", ["text 1:", "empty text"]),
        ({"text": ["a"] * 5}, 422, "too_many_texts", ["at most 4"]),
        ({"text": []}, 422, "invalid_value", ["not empty"]),
        ({"image": "aGk="}, 422, "unknown_key", ["known keys: text, model"]),
        ({"text": "a", "beam_size": 2}, 422, "unknown_key", ["beam_size"]),
        ({"text": "a", "model": "x"}, 404, "model_not_found", ["fake-classify_text"]),
    ],
)
def test_texts_that_are_refused(texts: Running, body: dict, status: int, code: str, words: list[str]):
    refused(texts.post("/v1/classify", body), status, code, *words)


def test_one_question_that_breaks_the_model_fails_alone():
    classifier = Classifier("text")
    with running(classifier) as texts, ThreadPoolExecutor(3) as pool:
        classifier.gate.clear()
        first = pool.submit(texts.post, "/v1/classify", {"text": "first"})
        assert classifier.entered.acquire(timeout=10)
        bad = pool.submit(texts.post, "/v1/classify", {"text": "poison"})
        good = pool.submit(texts.post, "/v1/classify", {"text": "good"})
        eventually(lambda: len(texts.engine.queue) == 2)
        classifier.gate.set()
        assert first.result().status_code == good.result().status_code == 200
        assert bad.result().status_code == 500


def test_a_client_that_leaves_is_not_answered():
    classifier = Classifier("text")
    with running(classifier) as texts, ThreadPoolExecutor(1) as pool:
        classifier.gate.clear()
        first = pool.submit(texts.post, "/v1/classify", {"text": "first"})
        assert classifier.entered.acquire(timeout=10)
        with texts.sent("/v1/classify", {"text": "gone"}):
            eventually(lambda: len(texts.engine.queue) == 1)
        eventually(lambda: len(texts.engine.queue) == 0)
        classifier.gate.set()
        assert first.result().status_code == 200
        assert texts.metric("chinchilla_cancelled_total") == 1
    assert classifier.batches == [["first"]]


def test_images_come_as_base64_bare_or_in_a_data_url(images: Running):
    lines = "\n".join(encoded(PNG)[start : start + 8] for start in range(0, len(encoded(PNG)), 8))
    body = {"image": [encoded(PNG), f"data:image/png;base64,{encoded(PNG + b'1')}", lines]}
    told = images.post("/v1/classify", body).json()
    assert images.engine.answerer.batches[-1] == [PNG, PNG + b"1", PNG]
    assert [one["label"] for one in told["classifications"]] == ["b", "a", "b"]
    assert "usage" not in told


def test_bodies_of_images_may_be_large_and_of_others_not(images: Running, texts: Running):
    large = PNG + bytes(30_000)
    assert images.post("/v1/classify", {"image": encoded(large)}).status_code == 200
    refused(images.post("/v1/classify", {"image": encoded(large * 2)}), 413, "body_too_large", "60000 bytes")
    refused(texts.post("/v1/classify", {"text": "a" * 1_100_000}), 413, "body_too_large")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("", ["image:", "not an image"]),
        (encoded(b"GIF"), ["image:", "not an image"]),
        ([encoded(PNG), encoded(b"GIF")], ["image 1:"]),
        ("http://localhost/x.png", ["image.0:", "not valid base64"]),
        ("/etc/passwd", ["image.0:", "not valid base64"]),
        ("/etc/shadow/", ["image:", "not an image"]),  # which is base64 by chance
        ("data:image/png,abc", ["image.0:", "base64"]),
        ("data:text/html;base64,PGI+", ["not an image"]),
        ("aGk", ["image.0:", "not valid base64"]),
        (3, ["image:", "a file in base64"]),
        (["a", 1], ["image:", "a file in base64"]),
    ],
)
def test_images_that_are_refused(images: Running, image: object, words: list[str]):
    refused(images.post("/v1/classify", {"image": image}), 422, "invalid_value", *words)


def test_a_long_refused_value_is_not_sent_back(images: Running):
    answer = images.post("/v1/classify", {"image": "!" * 50_000})
    refused(answer, 422, "invalid_value")
    assert len(answer.text) < 500


def test_rows_of_a_table(rows: Running):
    told = rows.post("/v1/classify", {"row": [{"age": 41, "job": "cook"}, {"job": None, "age": "42"}]}).json()
    assert [one["label"] for one in told["classifications"]] == ["b", "a"]
    assert [one.get("notes") for one in told["classifications"]] == [None, ["no value for job: taken as missing"]]
    one = rows.post("/v1/classify", {"row": {}}).json()["classifications"]
    assert one[0]["notes"] == ["no value for age, job: taken as missing"]


def test_rows_that_are_refused(rows: Running):
    unknown = rows.post("/v1/classify", {"row": [{}, {"agee": 3}]})
    refused(unknown, 422, "invalid_value", "row 1:", "'agee'", "age, job")
    assert unknown.json()["error"]["param"] == "row"
    refused(rows.post("/v1/classify", {"row": "age=3"}), 422, "invalid_value", 'like {"column": value}')
    refused(rows.post("/v1/classify", {"row": [{}] * 5}), 422, "too_many_rows", "at most 4")


def test_the_form_says_what_can_be_asked(rows: Running, films: Running):
    [model] = rows.client.get("/v1/models").json()["data"]
    assert model["form"]["columns"][1] == {"name": "job", "kind": "category", "categories": ["cook", "smith"]}
    assert model["form"]["classes"] == ["a", "b"]
    assert films.client.get("/v1/models").json()["data"][0]["form"] == {"num_items": 8}
    assert films.client.get("/v1/items").json() == {"object": "list", "data": list("abcdefgh")}
    refused(rows.client.get("/v1/items"), 404, "wrong_task", "knows no items")


def test_recommendations(films: Running):
    told = films.post("/v1/recommend", {"items": ["c", "d", 5], "k": 2}).json()
    assert told["recommendations"] == [{"item": "e", "score": 1.0}, {"item": "f", "score": 0.5}]
    assert told["notes"] == ["passed over 1 unknown items"] and told["model"] == "fake-recommend"
    assert len(films.post("/v1/recommend", {"items": []}).json()["recommendations"]) == 8
    again = films.post("/v1/recommend", {"items": ["h", "a", "b"], "k": 8, "exclude_seen": False}).json()
    assert {"a", "b", "h"} <= {one["item"] for one in again["recommendations"]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"items": ["zz"]}, ["items:", "'zz'"]),
        ({"items": "a"}, ["items:"]),
        ({"items": ["a", True]}, ["items.1"]),
        ({"items": ["a"], "k": 0}, ["k:"]),
        ({"items": ["a"], "k": 1001}, ["k:", "1000"]),
    ],
)
def test_histories_that_are_refused(films: Running, body: dict, words: list[str]):
    refused(films.post("/v1/recommend", body), 422, "invalid_value", *words)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values | st.binary(max_size=40).map(encoded), key=st.sampled_from(["text", "image", "row", "items"]))
def test_no_question_is_the_servers_fault(
    texts: Running, images: Running, rows: Running, films: Running, value: object, key: str
):
    server = {"text": texts, "image": images, "row": rows, "items": films}[key]
    path = "/v1/recommend" if key == "items" else "/v1/classify"
    answer = server.client.post(path, content=json.dumps({key: value}).encode(), headers=JSON)
    assert answer.status_code < 500, (key, value, answer.text)
