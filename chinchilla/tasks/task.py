"""What a task is: what to minimise, what to measure, how to answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from chinchilla.config.plan import TaskName
from chinchilla.models.head import IGNORE
from chinchilla.models.transformer import Transformer

Batch = Mapping[str, Tensor]


class Loss(NamedTuple):
    """A micro-batch's loss, summed over its labelled tokens.

    `total` is what to minimise (smoothed, weighted, with reconstruction); `plain` the cross-entropy in nats, to report.
    """

    total: Tensor
    plain: Tensor


@dataclass(frozen=True)
class Sample:
    """One test example and the model's answer; `reference` is "" where there is no right answer."""

    source: str
    reference: str
    output: str


@dataclass(frozen=True)
class Score:
    """A model's metrics on test data, some of its answers, and what is drawn of them (JSON by name)."""

    metrics: dict[str, float]
    samples: tuple[Sample, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """How training changes the plain cross-entropy.

    `class_weights` are of the classes in order, empty: 1 each; `focal_gamma` is 0 where the loss is not focal.
    """

    label_smoothing: float = 0.0
    reconstruct_weight: float = 0.0
    mask_rate: float = 0.15
    mask_id: int = 3
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0


class Task(Protocol):
    """One task over examples of one kind.

    An example is what is asked and the right answer; a codec turns both into tensors and back (`data.codec`).
    """

    name: TaskName

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """The loss of one micro-batch."""

    def score(
        self,
        model: Transformer,
        codec: Any,
        examples: Sequence[Any],
        /,
        on_progress: Callable[[float], None] = ...,
    ) -> Score:
        """Metrics on held-out examples; `on_progress` is told the share that is done."""

    def question(self, example: Any, /) -> Any:
        """What a user would ask of this example."""

    def reply(self, model: Transformer, codec: Any, question: Any, /) -> str:
        """Answer one question alone, as when served; of a text without end a line."""

    def serve(
        self, model: Transformer, codec: Any, questions: Sequence[Any], /, *args: Any, **options: Any
    ) -> list[dict[str, Any]]:
        """Answer questions, as the codec reads them, together: each answer as JSON by name."""

    def show(self, example: Any, /) -> tuple[str, str | None]:
        """The question in words, and the right answer where there is one."""


def num_tokens(batch: Batch) -> int:
    """Labels of a micro-batch, of tokens or of examples: what its loss is a sum over."""
    return int((batch["labels"] != IGNORE).sum())
