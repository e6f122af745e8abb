"""Score a finished run on its test data: for `chinchilla evaluate`, and before and after compression."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chinchilla.models.transformer import Transformer
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.task import Score, Task
from chinchilla.verbs.load import load
from chinchilla.verbs.prepare import test_examples


@dataclass(frozen=True, eq=False)
class RunExam:
    """A task with its codec and test examples; satisfies `compression.compare.Exam`."""

    task: Task
    codec: Any
    examples: Sequence[Any]
    on_progress: Callable[[float], None] = lambda done: None

    @property
    def questions(self) -> Sequence[Any]:
        """What is asked in each example."""
        return [self.task.question(example) for example in self.examples]

    def show(self, index: int) -> tuple[str, str | None]:
        """An example's question in words, and the right answer where there is one."""
        return self.task.show(self.examples[index])

    def answer(self, model: Transformer, question: Any) -> str:
        """Answer one question the way the task does."""
        return self.task.reply(model, self.codec, question)

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """The task's metrics."""
        return self.score(model).metrics

    def score(self, model: Transformer) -> Score:
        """The task's metrics and its answers."""
        return self.task.score(model, self.codec, self.examples, on_progress=self.on_progress)


def open_exam(path: Path, on_progress: Callable[[float], None] = lambda done: None) -> RunExam:
    """The exam of the run at `path`.

    Raises:
        UsageError: not a run folder.
        DataError: its test data is no longer there.
    """
    return sit_exam(path, on_progress)[0]


def sit_exam(path: Path, on_progress: Callable[[float], None] = lambda done: None) -> tuple[RunExam, Transformer]:
    """The exam of the run at `path`, and the run's model to take it.

    Raises:
        UsageError, DataError: as `open_exam`.
    """
    folder = RunFolder.open(path)
    run = folder.read_run().run
    torch.set_num_threads(folder.read_plan().training.threads)
    model = load(path, run)
    return RunExam(model.task, model.codec, test_examples(run), on_progress), model.model


def evaluate(path: Path, on_progress: Callable[[float], None] = lambda done: None) -> Score:
    """Score the run at `path` on its test data."""
    exam, model = sit_exam(path, on_progress)
    return exam.score(model)
