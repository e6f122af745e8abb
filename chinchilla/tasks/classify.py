"""Putting examples in classes: cross-entropy; accuracy, F1, areas under curves, calibration."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import metrics as measures
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.classes import Classes
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.costs import cost_curve, cost_metrics
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15
"""Of the calibration curve (Guo 2017 takes 15)."""

SHOWN = 160
"""Characters of a question that are shown."""


class ClassCodec(Protocol):
    """What turns a classifier's questions into its inputs."""

    @property
    def classes(self) -> Classes:
        """The classes, in the order of the model's outputs."""

    def batches(self, questions: Sequence[Any], /) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of questions that go through the model together, and the inputs of its `encode`."""


class Verdict(NamedTuple):
    """An answer: the class, and the probability of each by name."""

    label: str
    probabilities: dict[str, float]


class Classify:
    """An example to one of several classes. An example is what is asked, its class, and how it is shown."""

    def __init__(self, name: TaskName) -> None:
        self.name: TaskName = name

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """See `token_objective`: a label stands at the first position of its example."""
        return token_objective(model, batch, objective)

    def score(
        self,
        model: Transformer,
        codec: ClassCodec,
        examples: Sequence[tuple[Any, ...]],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """See `class_metrics`; `details` holds the confusion matrix and the curves of calibration and of costs.

        Raises:
            DataError: there are no examples, or one of an unknown class.
        """
        if not examples:
            raise DataError("the test data has no example to score on; name some in data.test")
        names = codec.classes.names
        truth = np.array([codec.classes.number(example[1]) for example in examples])
        if (truth < 0).any():
            unknown = examples[int(np.argmax(truth < 0))][1]
            raise DataError(f"the test data has the class {unknown!r}, which the training data has not: leave it out")
        chances = probabilities(model, codec, [example[0] for example in examples], on_progress)
        chosen = codec.classes.decide(chances)
        samples = (
            Sample(*self.show(example), names[place])  # type: ignore[arg-type]  # test examples have a class
            for example, place in zip(examples, chosen, strict=True)
        )
        details: dict[str, Any] = {
            "confusion": {
                "classes": list(names),
                "counts": measures.confusion_matrix(truth, chosen, labels=range(len(names))).tolist(),
            },
            "calibration": calibration(truth, chances),
        }
        if codec.classes.costs is not None:
            is_positive, score = _positive(truth, chances, codec.classes)
            details["costs"] = {
                "positive": codec.classes.positive,
                **codec.classes.costs.model_dump(),
                "curve": cost_curve(is_positive, score, codec.classes.costs),
            }
        return Score(class_metrics(truth, chances, codec.classes), tuple(samples), details)

    def question(self, example: tuple[Any, ...]) -> Any:
        """What is to be put in a class."""
        return example[0]

    def reply(self, model: Transformer, codec: ClassCodec, question: Any) -> str:
        """Its class."""
        return self.answer(model, codec, [question])[0].label

    def serve(self, model: Transformer, codec: ClassCodec, questions: Sequence[Any]) -> list[dict[str, Any]]:
        """`label` and `probabilities` of each."""
        return [verdict._asdict() for verdict in self.answer(model, codec, questions)]

    def show(self, example: tuple[Any, ...]) -> tuple[str, str | None]:
        """The question in words, and its class."""
        shown = example[2] if len(example) > 2 else str(example[0])
        return (shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"), example[1]

    def answer(self, model: Transformer, codec: ClassCodec, questions: Sequence[Any]) -> list[Verdict]:
        """The class that each question is answered with (`Classes.decide`), and how likely all are."""
        names, chances = codec.classes.names, probabilities(model, codec, questions)
        return [
            Verdict(names[place], dict(zip(names, row.tolist(), strict=True)))
            for place, row in zip(codec.classes.decide(chances), chances, strict=True)
        ]


@torch.inference_mode()
def probabilities(
    model: Transformer,
    codec: ClassCodec,
    questions: Sequence[Any],
    on_progress: Callable[[float], None] = lambda done: None,
) -> Floats:
    """How likely each class is (questions, classes)."""
    found, done = np.zeros((len(questions), len(codec.classes.names))), 0
    device = model.head.weight.device
    for places, inputs in codec.batches(questions):
        states = model.encode(inputs["source"].to(device), _segments(inputs, device))
        found[places] = model.logits(model.read_out(states)[:, 0].float()).double().softmax(1).cpu().numpy()
        done += len(places)
        on_progress(done / len(questions))
    return found


def _segments(inputs: Mapping[str, Tensor], device: torch.device) -> Tensor | None:
    segments = inputs.get("source_segments")
    return None if segments is None or bool(segments.all()) else segments.to(device)


def class_metrics(truth: Ints, chances: Floats, classes: Classes) -> dict[str, float]:
    """Scores of probabilities (examples, classes) against classes (examples,), as scikit-learn reckons them.

    `accuracy`; `macro_f1` over the classes there are, both of the answers (`Classes.decide`); `log_loss` in nats;
    `calibration_error` (Guo 2017, 15 bins). Of two classes, for the positive one: `roc_auc`, `pr_auc` (average
    precision), `ks` (the greatest distance of the two score distributions), `brier`; `cost_metrics` where errors have
    costs. Of more: `roc_auc` as the mean over one against the rest. What the test data leaves undefined, having one
    class only, is not there.
    """
    chosen = classes.decide(chances)
    kept = np.clip(chances[np.arange(len(truth)), truth], 1e-15, 1.0)
    found = {
        "accuracy": float((chosen == truth).mean()),
        "macro_f1": float(measures.f1_score(truth, chosen, average="macro", zero_division=0.0)),
        "log_loss": float(-np.log(kept).mean()),
        "calibration_error": _calibration_error(truth, chances),
    }
    if len(classes.names) == 2:
        is_positive, score = _positive(truth, chances, classes)
        told = cost_metrics(is_positive, score, classes.costs) if classes.costs is not None else {}
        return found | _binary(is_positive, score) | told
    if len(np.unique(truth)) == len(classes.names):
        found["roc_auc"] = float(measures.roc_auc_score(truth, chances, multi_class="ovr"))
    return found


def _positive(truth: Ints, chances: Floats, classes: Classes) -> tuple[NDArray[np.bool_], Floats]:
    """Which examples are of the positive class of two, and how likely each is (examples,)."""
    positive = classes.number(classes.positive) if classes.positive else 1
    return truth == positive, chances[:, positive]


def _binary(truth: NDArray[np.bool_], score: Floats) -> dict[str, float]:
    if truth.all() or not truth.any():
        return {}
    missed, caught, _ = measures.roc_curve(truth, score)
    return {
        "roc_auc": float(measures.auc(missed, caught)),
        "pr_auc": float(measures.average_precision_score(truth, score)),
        "ks": float(np.abs(caught - missed).max()),
        "brier": float(np.square(score - truth).mean()),
    }


def calibration(truth: Ints, chances: Floats) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of the answers in each bin of confidence that has any."""
    sure, right = chances.max(1), chances.argmax(1) == truth
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        (float(sure[place == each].mean()), float(right[place == each].mean()), int((place == each).sum()))
        for each in range(BINS)
        if (place == each).any()
    ]


def _calibration_error(truth: Ints, chances: Floats) -> float:
    bins = calibration(truth, chances)
    return math.fsum(abs(sure - right) * count for sure, right, count in bins) / len(truth)
