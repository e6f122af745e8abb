"""Score a finished run on its test data: for `chinchilla evaluate`, and before and after compression."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla.config.run import Run
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling
from chinchilla.models.transformer import Transformer
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.task import Score
from chinchilla.tasks.translate import Translate
from chinchilla.verbs.load import load
from chinchilla.verbs.prepare import make_task, test_examples

LATENCY_TOKENS = 32
"""Tokens a completion is long when its latency is measured: greedy, so that every model does alike."""


@dataclass(frozen=True, eq=False)
class RunExam:
    """A run's test data and its task; satisfies `compression.compare.Exam`."""

    run: Run
    tokenizer: Tokenizer
    examples: tuple[tuple[str, ...], ...]
    on_progress: Callable[[float], None] = lambda done: None

    @property
    def sources(self) -> Sequence[str]:
        """Source sentences, or the first words of documents."""
        if self.run.task == "translate":
            return [example[0] for example in self.examples]
        return [" ".join(example[0].split()[:6]) for example in self.examples]

    @property
    def references(self) -> Sequence[str | None]:
        """Translations, or the documents."""
        return [example[-1] for example in self.examples]

    def answer(self, model: Transformer, text: str) -> str:
        """Answer one text the way the task does."""
        if self.run.task == "translate":
            return Translate(self.run.evaluate.beam_size).answer(model, self.tokenizer, [text])[0]
        return Generate().answer(model, self.tokenizer, text, Sampling(LATENCY_TOKENS, temperature=0))

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """The task's metrics."""
        return self.score(model).metrics

    def score(self, model: Transformer) -> Score:
        """The task's metrics and its answers."""
        return make_task(self.run).score(model, self.tokenizer, self.examples, self.on_progress)


def open_exam(path: Path, on_progress: Callable[[float], None] = lambda done: None) -> RunExam:
    """The exam of the run at `path`.

    Raises:
        UsageError: not a run folder.
        DataError: its test data is no longer there.
    """
    folder = RunFolder.open(path)
    run = folder.read_run().run
    torch.set_num_threads(folder.read_plan().training.threads)
    return RunExam(run, load(path).tokenizer, test_examples(run), on_progress)


def evaluate(path: Path, on_progress: Callable[[float], None] = lambda done: None) -> Score:
    """Score the run at `path` on its test data."""
    return open_exam(path, on_progress).score(load(path).model)
