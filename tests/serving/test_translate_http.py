"""`POST /v1/translate` over real HTTP: answers, batches, fairness, bounds, failures."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_fakes import Translator, eventually, running


def test_one_text_and_several():
    with running(Translator()) as server:
        one = server.post("/v1/translate", {"text": "guten tag"})
        assert one.status_code == 200
        answer = one.json()
        assert answer["translations"] == [{"text": "GUTEN TAG"}]
        assert answer["model"] == "fake-translate"
        assert answer["usage"] == {"source_tokens": 3, "target_tokens": 3}
        assert answer["time_s"] > 0
        many = server.post("/v1/translate", {"text": ["a", "b c", "ü"], "beam_size": 1}).json()
        assert [item["text"] for item in many["translations"]] == ["A", "B C", "Ü"]
        assert many["usage"] == {"source_tokens": 7, "target_tokens": 7}


def test_blank_texts_keep_their_place_and_need_no_model():
    translator = Translator()
    with running(translator) as server:
        answer = server.post("/v1/translate", {"text": ["", "a", "  "]}).json()
        assert [item["text"] for item in answer["translations"]] == ["", "A", ""]
        assert server.post("/v1/translate", {"text": ""}).json()["translations"] == [{"text": ""}]
    assert translator.batches == [["a"]]


def test_requests_that_wait_together_are_answered_together():
    translator = Translator()
    with running(translator, batch_rows=4) as server, ThreadPoolExecutor(8) as pool:
        translator.gate.clear()
        first = pool.submit(server.post, "/v1/translate", {"text": "first"})
        assert translator.entered.acquire(timeout=10)
        others = [pool.submit(server.post, "/v1/translate", {"text": f"text {n}"}) for n in range(6)]
        eventually(lambda: len(server.engine.queue) == 6)
        translator.gate.set()
        assert first.result().json()["translations"] == [{"text": "FIRST"}]
        for n, other in enumerate(others):
            assert other.result().json()["translations"] == [{"text": f"TEXT {n}"}]
        assert server.metric('chinchilla_batch_rows_bucket{le="1"}') == 1
        assert server.metric("chinchilla_batch_rows_count") == 3
    assert [len(batch) for batch in translator.batches] == [1, 4, 2]


def test_beam_sizes_are_not_mixed():
    translator = Translator()
    with running(translator) as server, ThreadPoolExecutor(8) as pool:
        translator.gate.clear()
        waiting = [pool.submit(server.post, "/v1/translate", {"text": "first"})]
        assert translator.entered.acquire(timeout=10)
        for beam_size in (1, 2, 1, 2):
            body = {"text": f"beam {beam_size}", "beam_size": beam_size}
            waiting.append(pool.submit(server.post, "/v1/translate", body))
            eventually(lambda: len(server.engine.queue) == len(waiting) - 1)
        translator.gate.set()
        assert all(answer.result().status_code == 200 for answer in waiting)
    assert translator.batches[1:] == [["beam 1", "beam 1"], ["beam 2", "beam 2"]]
    assert translator.beams[1:] == [1, 2]


def test_a_small_request_does_not_wait_for_a_large_one():
    translator = Translator()
    with running(translator, batch_rows=4) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        large = pool.submit(server.post, "/v1/translate", {"text": [f"large {n}" for n in range(40)]})
        assert translator.entered.acquire(timeout=10)
        small = pool.submit(server.post, "/v1/translate", {"text": "small"})
        eventually(lambda: len(server.engine.queue) == 37)
        translator.gate.set()
        assert small.result().status_code == large.result().status_code == 200
    assert "small" in translator.batches[1]
    assert sum(map(len, translator.batches)) == 41


def test_a_full_queue_refuses_at_once_and_takes_again_later():
    translator = Translator()
    with running(translator, waiting_rows=3, texts=3) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        first = pool.submit(server.post, "/v1/translate", {"text": "first"})
        assert translator.entered.acquire(timeout=10)
        second = pool.submit(server.post, "/v1/translate", {"text": ["a", "b"]})
        eventually(lambda: len(server.engine.queue) == 2)
        refused = server.post("/v1/translate", {"text": ["c", "d"]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert server.metric("chinchilla_waiting_rows") == 2
        translator.gate.set()
        assert first.result().status_code == second.result().status_code == 200
        assert server.post("/v1/translate", {"text": ["c", "d"]}).status_code == 200
        assert server.metric('chinchilla_refused_total{reason="queue_full"}') == 1


def test_the_deadline_ends_a_request_and_empties_its_place():
    translator = Translator()
    with running(translator, request_s=1) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        first = pool.submit(server.post, "/v1/translate", {"text": "first"})
        assert translator.entered.acquire(timeout=10)
        late = server.post("/v1/translate", {"text": "late"})
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline"
        assert "1 s" in late.json()["error"]["message"]
        assert first.result().status_code == 504
        assert len(server.engine.queue) == 0
        translator.gate.set()
        eventually(lambda: server.metric("chinchilla_batch_rows_count") == 1)
    assert translator.batches == [["first"]]


def test_a_client_that_leaves_is_not_translated():
    translator = Translator()
    with running(translator) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        first = pool.submit(server.post, "/v1/translate", {"text": "first"})
        assert translator.entered.acquire(timeout=10)
        with server.sent("/v1/translate", {"text": "gone"}):
            eventually(lambda: len(server.engine.queue) == 1)
        eventually(lambda: len(server.engine.queue) == 0)
        translator.gate.set()
        assert first.result().status_code == 200
        assert server.post("/v1/translate", {"text": "next"}).status_code == 200
        assert server.metric("chinchilla_cancelled_total") == 1
    assert translator.batches == [["first"], ["next"]]


def test_only_the_text_that_breaks_the_model_fails():
    translator = Translator()
    with running(translator) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        first = pool.submit(server.post, "/v1/translate", {"text": "first"})
        assert translator.entered.acquire(timeout=10)
        bad = pool.submit(server.post, "/v1/translate", {"text": "poison"})
        good = pool.submit(server.post, "/v1/translate", {"text": "good"})
        eventually(lambda: len(server.engine.queue) == 2)
        translator.gate.set()
        assert first.result().status_code == good.result().status_code == 200
        assert good.result().json()["translations"] == [{"text": "GOOD"}]
        assert bad.result().status_code == 500
        error = bad.result().json()["error"]
        assert error["code"] == "engine_failed" and "index out of range" not in error["message"]
        assert server.client.get("/health").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_the_program_ends_the_server_and_answers_everyone():
    translator = Translator()
    with running(translator, batch_rows=1) as server, ThreadPoolExecutor(4) as pool:
        translator.gate.clear()
        bad = pool.submit(server.post, "/v1/translate", {"text": "mistake"})
        assert translator.entered.acquire(timeout=10)
        waiting = pool.submit(server.post, "/v1/translate", {"text": "waiting"})
        eventually(lambda: len(server.engine.queue) == 1)
        translator.gate.set()
        assert bad.result().status_code == waiting.result().status_code == 503
        eventually(lambda: server.engine.failed and not server.server.servers[0].is_serving())


def test_a_lone_request_is_never_held_back():
    # The gathering pause is made so long that a test which waits for it once would be cut off by the deadline.
    with running(Translator(), gather_s=60, request_s=20) as server:
        for n in range(5):
            assert server.post("/v1/translate", {"text": f"text {n}"}).status_code == 200


def test_after_a_shared_batch_the_engine_waits_for_as_many():
    translator = Translator()
    with running(translator, gather_s=60) as server, ThreadPoolExecutor(8) as pool:
        translator.gate.clear()
        waiting = [pool.submit(server.post, "/v1/translate", {"text": "first"})]
        assert translator.entered.acquire(timeout=10)
        waiting += [pool.submit(server.post, "/v1/translate", {"text": f"text {n}"}) for n in range(3)]
        eventually(lambda: len(server.engine.queue) == 3)
        translator.gate.set()
        assert all(answer.result().status_code == 200 for answer in waiting)
        barrier = threading.Barrier(3)

        def again(n: int) -> httpx.Response:
            barrier.wait()
            return httpx.post(f"{server.url}/v1/translate", json={"text": f"again {n}"}, timeout=30)

        assert all(answer.status_code == 200 for answer in pool.map(again, range(3)))
    assert [len(batch) for batch in translator.batches] == [1, 3, 3]
