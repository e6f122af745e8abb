"""The waiting rows in order and in bounds; the metrics page as Prometheus reads it."""

import random
import re
import threading

import pytest

from chinchilla.serving.answerer import Question
from chinchilla.serving.limits import Limits
from chinchilla.serving.metrics import Histogram, Metrics
from chinchilla.serving.queue import Job, Queue, QueueClosedError, QueueFullError


def job(*texts: str, beam_size: int = 1) -> Job:
    return Job([Question(text, (("beam_size", beam_size),)) for text in texts], lambda index, event: None)


def texts(rows) -> list[str]:
    return [row.item.content for row in rows]


def test_every_job_has_its_turn():
    queue = Queue(20)
    queue.put(job("a1", "a2", "a3", "a4"))
    queue.put(job("b1"))
    queue.put(job("c1", "c2"))
    assert texts(queue.take(4)) == ["a1", "b1", "c1", "a2"]
    assert texts(queue.take(9)) == ["c2", "a3", "a4"]
    assert texts(queue.take(9)) == [] and len(queue) == 0


def test_rows_of_another_kind_keep_their_place():
    queue = Queue(20)
    for name, beam_size in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        queue.put(job(name, beam_size=beam_size))
    assert texts(queue.take(9, key=lambda row: row.item.options)) == ["a", "c"]
    assert texts(queue.take(9, key=lambda row: row.item.options)) == ["b", "d"]


def test_bounds_count_rows_and_cancelling_frees_them():
    queue = Queue(4)
    large = job("a1", "a2", "a3")
    queue.put(large)
    with pytest.raises(QueueFullError):
        queue.put(job("b1", "b2"))
    assert texts(queue.take(1)) == ["a1"]
    queue.cancel(large)
    assert len(queue) == 0 and large.cancelled
    queue.cancel(large)
    queue.put(job("b1", "b2", "b3", "b4"))
    assert len(queue) == 4


def test_closing_gives_back_what_waits_and_refuses_more():
    queue = Queue(9)
    queue.put(job("a1", "a2"))
    queue.take(1)
    assert texts(queue.close()) == ["a2"]
    assert not queue.wait()
    with pytest.raises(QueueClosedError):
        queue.put(job("b"))


def test_many_threads_lose_and_double_nothing():
    queue, taken = Queue(50), []

    def put(owner: int) -> None:
        draws = random.Random(owner)
        for number in range(60):
            names = [f"{owner}-{number}-{row}" for row in range(draws.randint(1, 4))]
            while True:
                try:
                    queue.put(job(*names))
                    break
                except QueueFullError:
                    threading.Event().wait(0.001)

    def take() -> None:
        while queue.wait():
            taken.extend(texts(queue.take(7)))

    threads = [threading.Thread(target=put, args=(owner,)) for owner in range(4)]
    taker = threading.Thread(target=take)
    for thread in (*threads, taker):
        thread.start()
    for thread in threads:
        thread.join(20)
    while len(queue):
        threading.Event().wait(0.001)
    queue.close()
    taker.join(20)
    assert len(taken) == len(set(taken))
    assert {name.rsplit("-", 1)[0] for name in taken} == {f"{o}-{n}" for o in range(4) for n in range(60)}


def test_histogram_buckets_are_cumulative():
    histogram = Histogram("size", "How large.", (1.0, 2.5, 10.0), ("kind",))
    for value in (0.5, 1.0, 2.0, 99.0):
        histogram.observe(value, "a")
    assert list(histogram.lines())[2:] == [
        'size_bucket{kind="a",le="1"} 2',
        'size_bucket{kind="a",le="2.5"} 3',
        'size_bucket{kind="a",le="10"} 3',
        'size_bucket{kind="a",le="+Inf"} 4',
        'size_sum{kind="a"} 102.5',
        'size_count{kind="a"} 4',
    ]


def test_the_page_is_valid_exposition_text():
    metrics = Metrics()
    metrics.requests.add(1, "/v1/translate", "200")
    metrics.request_s.observe(0.02, "/v1/translate")
    metrics.tokens.add(12, "in")
    text = metrics.render(waiting_rows=lambda: 3)
    sample = re.compile(r'^[a-z_]+(\{([a-z]+="[^"\\]*",?)+\})? (\d+(\.\d+)?([eE][-+]\d+)?)$')
    comment = re.compile(r"^# (HELP|TYPE) [a-z_]+ .+$")
    lines = text.splitlines()
    assert text.endswith("\n") and all(sample.match(line) or comment.match(line) for line in lines)
    assert "chinchilla_waiting_rows 3" in lines
    assert 'chinchilla_requests_total{route="/v1/translate",status="200"} 1' in lines


def test_limits_that_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="cannot exceed waiting_rows"):
        Limits(texts=10, waiting_rows=5)
    with pytest.raises(ValueError, match="greater than 0"):
        Limits(batch_rows=0)
