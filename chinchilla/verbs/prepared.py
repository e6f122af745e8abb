"""A run's data, ready to train on and to score with, whatever they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chinchilla.config.adapter import Adapter
from chinchilla.config.plan import Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.data.batches import Batches
from chinchilla.data.codec import Codec
from chinchilla.models.transformer import Transformer
from chinchilla.planning.search import Facts
from chinchilla.tasks.class_weights import class_weights
from chinchilla.tasks.task import Task
from chinchilla.verbs.transfer import Start, new_model, with_new_head


class MakeBatches(Protocol):
    """Micro-batches of about so many labels, of the size of others where there are some."""

    def __call__(self, encoded: Any, labels: int, seed: int, like: Any = None, /) -> Batches: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run's data, ready to train on and to score with; `test` holds examples as the task scores them.

    `class_counts` are the training examples of each class in order; empty where there are no classes.
    """

    run: Run
    task: Task
    codec: Codec
    train: Any
    valid: Any
    test: tuple[Any, ...]
    row_len: int
    facts: Facts
    make_batches: MakeBatches
    start: Start | None = None
    class_counts: Mapping[str, int] = field(default_factory=dict)

    def class_weights(self, run: Run) -> tuple[float, ...]:
        """See `tasks.class_weights`.

        Raises:
            UsageError: a class that is weighed is none.
        """
        asked = run.train.class_weights
        return class_weights(asked, self.class_counts) if asked is not None else ()

    def new_model(self, shape: Shape, dropout: float) -> Transformer:
        """A model to train, with what it takes over from the one that the run starts from."""
        return new_model(shape, dropout, self.start, self.run.adapter)

    def adapter_on(self, shape: Shape) -> Adapter | None:
        """The adapter that is trained on a model of this shape, and what is trained beside it."""
        adapter = self.run.adapter
        return None if adapter is None else with_new_head(adapter, self.start, shape)

    def batches(self, training: Training) -> Batches:
        """Training micro-batches of `batch_tokens / accumulation` labels."""
        return self.make_batches(self.train, _micro(training), training.seed)

    def valid_batches(self, training: Training) -> Batches:
        """Validation micro-batches, of the training ones' size so that kernels are made once."""
        return self.make_batches(self.valid, _micro(training), 0, self.batches(training))


def spread(examples: Sequence[Any], most: int | None) -> tuple[Any, ...]:
    """So many of them, evenly from the first to the last (files are often sorted by class); all if `most` is None."""
    if most is None or most >= len(examples):
        return tuple(examples)
    return tuple(examples[number * len(examples) // most] for number in range(most))


def _micro(training: Training) -> int:
    """Labels of a micro-batch."""
    return training.batch_tokens // training.accumulation


Tell = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """What is particular to the data of some tasks.

    `split` reads a run's three parts, `prepare` encodes them, `examples` gives the test data's as the task scores them.
    `make_task` makes the task; `open_codec` opens what a model folder keeps (its settings, and the text of its
    tokenizer.json, or None).
    """

    split: Callable[[Run], Any]
    prepare: Callable[[Run, Any, Task, tuple[Any, ...], Tell], Prepared]
    examples: Callable[[Run, Any], tuple[Any, ...]]
    make_task: Callable[[Run | None], Task]
    open_codec: Callable[[dict[str, Any], str | None, str], Any]
