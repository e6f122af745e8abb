"""Side by side: fair turns, quantiles over texts, and nothing to compare on."""

from collections import Counter
from pathlib import Path

import pytest

from chinchilla.compression import compare as room
from chinchilla.compression.compare import Subject, compare, latencies
from chinchilla.config.errors import DataError


class Clock:
    """Time that only goes on when an answer takes some."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(room.time, "perf_counter", lambda: self.now)

    def answering(self, time_s):
        def answer(text):
            taken = time_s(text)
            self.now += taken
            return f"{text} in {taken}"

        return answer


def test_latencies_are_medians_by_text(monkeypatch):
    clock = Clock(monkeypatch)
    stalls = iter([0, 0, 50, 0] * 9)  # the warm-up, then a stall in one of three rounds
    slow = clock.answering(lambda text: len(text) + next(stalls))
    fast = clock.answering(lambda text: len(text) / 2)
    first, second = latencies([slow, fast], ["aaaa"], rounds=3)
    assert (first, second) == ([4], [2])
    _, second = latencies([fast, fast], ["a", "bbb"], rounds=1)
    assert second == [0.5, 1.5]


def test_both_sides_go_first_as_often_and_warm_up():
    calls = []
    latencies([lambda text: calls.append("a"), lambda text: calls.append("b")], ["x", "y"], rounds=4)
    assert calls[:2] == ["a", "b"]
    firsts = Counter(calls[2::2])
    assert firsts == {"a": 4, "b": 4}


class FakeExam:
    def __init__(self, clock, count):
        self.questions = [f"{index:03}" for index in range(count)]
        self.clock = clock

    def show(self, index):
        return self.questions[index], None

    def answer(self, model, text):
        return self.clock.answering(lambda text: int(text) * model)(text)

    def evaluate(self, model):
        return {"bleu": 10.0 * model}


def test_comparison(monkeypatch):
    exam = FakeExam(Clock(monkeypatch), 60)
    found = compare(Path("../run"), "int8-dynamic", Subject(2, 400), Subject(1, 100), exam)
    # 40 texts that take 0…39 seconds, twice that on the left: the 20th and the 36th of them.
    assert (found.before.latency_p50_s, found.before.latency_p90_s) == (38, 70)
    assert (found.after.latency_p50_s, found.after.latency_p90_s) == (19, 35)
    assert (found.ratios.size, found.ratios.latency_p50) == (4, 2)
    assert (found.before.metrics, found.after.metrics) == ({"bleu": 20}, {"bleu": 10})
    assert found.samples[3].before == "003 in 6" and found.samples[3].after == "003 in 3"
    assert len(found.samples) == 8


def test_no_examples(monkeypatch):
    with pytest.raises(DataError, match="no examples"):
        compare(Path("../run"), "int8-dynamic", Subject(2, 400), Subject(1, 100), FakeExam(Clock(monkeypatch), 0))
