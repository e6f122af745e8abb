"""Two models side by side on the same examples: scores, answers and the latency of single answers."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from chinchilla.config.errors import DataError
from chinchilla.config.frozen import Frozen
from chinchilla.models.transformer import Transformer

LATENCY_TEXTS = 40
ROUNDS = 3
SAMPLES = 8


class Exam(Protocol):
    """A run's test data, and how its task scores and answers. It keeps nothing of a model it was given."""

    @property
    def questions(self) -> Sequence[Any]:
        """What to answer: source sentences, prompts, images, rows of a table."""

    def show(self, index: int) -> tuple[str, str | None]:
        """A question in words, and what its answer should be, where the data says."""

    def answer(self, model: Transformer, question: Any) -> str:
        """Answer one question, the way the task does when served."""

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Scores on the test data, such as `bleu` and `chrf`, or `bits_per_byte`."""


class Side(Frozen):
    """One model as measured; latency is that of one text at a time."""

    size_bytes: int
    latency_p50_s: float
    latency_p90_s: float
    metrics: dict[str, float]


class Sample(Frozen):
    """One text and what either model answered."""

    source: str
    reference: str | None
    before: str
    after: str


class Ratios(Frozen):
    """Before divided by after: how many times smaller and faster."""

    size: float
    latency_p50: float


class Comparison(Frozen):
    """What `compression.json` holds; `parent` is relative to the run folder it lies in."""

    parent: Path
    scheme: str
    threads: int
    before: Side
    after: Side
    ratios: Ratios
    samples: tuple[Sample, ...]


class Subject(NamedTuple):
    """A model and the size of its weights on disk."""

    model: Transformer
    size_bytes: int


def compare(parent: Path, scheme: str, before: Subject, after: Subject, exam: Exam) -> Comparison:
    """Score, time and sample both.

    Raises:
        DataError: the exam has no examples.
    """
    questions = exam.questions[:LATENCY_TEXTS]
    if not questions:
        raise DataError(f"{parent}: the run's test data has no examples to compare the models on")
    answers = [lambda asked, model=side.model: exam.answer(model, asked) for side in (before, after)]
    sides = [
        Side(
            size_bytes=subject.size_bytes,
            latency_p50_s=_quantile(times, 0.5),
            latency_p90_s=_quantile(times, 0.9),
            metrics=exam.evaluate(subject.model),
        )
        for subject, times in zip((before, after), latencies(answers, questions, ROUNDS), strict=True)
    ]
    return Comparison(
        parent=parent,
        scheme=scheme,
        threads=torch.get_num_threads(),
        before=sides[0],
        after=sides[1],
        ratios=Ratios(
            size=sides[0].size_bytes / sides[1].size_bytes,
            latency_p50=sides[0].latency_p50_s / sides[1].latency_p50_s,
        ),
        samples=tuple(
            Sample(source=shown, reference=right, before=answers[0](asked), after=answers[1](asked))
            for asked, (shown, right) in zip(questions[:SAMPLES], map(exam.show, range(SAMPLES)), strict=False)
        ),
    )


def latencies(answers: Sequence[Callable[[Any], object]], questions: Sequence[Any], rounds: int) -> list[list[float]]:
    """Seconds that each of `answers` takes for each question: the median of `rounds`.

    They take turns, each first as often as the others, so that what else the machine does falls on all alike. One
    answer of each goes uncounted: it packs weights and warms caches.
    """
    for answer in answers:
        answer(questions[0])
    medians: list[list[float]] = [[] for _ in answers]
    for question in questions:
        times: list[list[float]] = [[] for _ in answers]
        for turn in range(rounds):
            for offset in range(len(answers)):
                side = (turn + offset) % len(answers)
                start = time.perf_counter()
                answers[side](question)
                times[side].append(time.perf_counter() - start)
        for side, taken in enumerate(times):
            medians[side].append(statistics.median(taken))
    return medians


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
