"""What a task is: what to minimise, what to measure, how to answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from chinchilla.config.plan import TaskName
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.head import IGNORE
from chinchilla.models.transformer import Transformer

Batch = Mapping[str, Tensor]


class Loss(NamedTuple):
    """A micro-batch's loss, summed over its labelled tokens.

    `total` is what to minimise (smoothed, with reconstruction); `plain` the cross-entropy in nats, to report.
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
    """A model's metrics on test data, and some of its answers."""

    metrics: dict[str, float]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Objective:
    """How training changes the plain cross-entropy."""

    label_smoothing: float = 0.0
    reconstruct_weight: float = 0.0
    mask_rate: float = 0.15
    mask_id: int = 3


class Task(Protocol):
    """One task over examples of one kind."""

    name: TaskName

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """The loss of one micro-batch."""

    def score(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        examples: Sequence[tuple[str, ...]],
        on_progress: Callable[[float], None] = ...,
    ) -> Score:
        """Metrics on held-out examples; `on_progress` is told the share that is done."""


def num_tokens(batch: Batch) -> int:
    """Labelled tokens of a micro-batch: what its loss is a sum over."""
    return int((batch["labels"] != IGNORE).sum())
