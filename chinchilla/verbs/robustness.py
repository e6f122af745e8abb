"""`chinchilla evaluate RUN --attack …`: what is left of a classifier's accuracy when its inputs are disturbed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from chinchilla.config.attack import Attack, AttackKind
from chinchilla.config.errors import UsageError
from chinchilla.data.corrupt import IMAGES, SEVERITIES, TEXTS
from chinchilla.data.picture_classes import PictureClasses
from chinchilla.data.text_classes import TextClasses
from chinchilla.models.head import IGNORE
from chinchilla.models.quantized import is_quantized
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.attack import box_of, disturbance, disturbed
from chinchilla.tasks.classify import Classify, probabilities
from chinchilla.tasks.task import Objective
from chinchilla.verbs.exam import RunExam, sit_exam

KINDS = (*get_args(AttackKind), *TEXTS, *IMAGES)
EPS = {TextClasses: (0.01, 0.03, 0.1), PictureClasses: (2 / 255, 4 / 255, 8 / 255, 16 / 255)}
OTHER_EPS = (0.05, 0.1, 0.25, 0.5)
"""Strengths that are tried where none are given: of texts, images, and rows of tables."""


@dataclass(frozen=True)
class Strength:
    """Accuracy at one strength: an attack's `eps`, or a corruption's severity from 1 to 5; 0 is undisturbed."""

    strength: float
    accuracy: float


def robustness(
    path: Path,
    kind: str,
    strengths: Sequence[float] = (),
    steps: int = 20,
    on_progress: Callable[[float], None] = lambda done: None,
) -> list[Strength]:
    """Accuracy on the run's test data, undisturbed and at each strength.

    Raises:
        UsageError: no classifier; or a disturbance or a strength that its inputs do not have.
    """
    exam, model = sit_exam(path)
    if not isinstance(exam.task, Classify):
        raise UsageError(f"{path}: is a model for {exam.task.name}; disturbances are scored for classifiers")
    questions = exam.questions
    truth = np.array([exam.codec.classes.number(exam.show(index)[1] or "") for index in range(len(questions))])
    found = [Strength(0.0, _accuracy(exam, probabilities(model, exam.codec, questions), truth))]
    chosen = _checked(exam, model, kind, strengths)
    for number, strength in enumerate(chosen, start=1):
        if kind in get_args(AttackKind):
            attack = Attack(kind=kind, eps=strength, steps=steps)
            accuracy = _attacked(exam, model, questions, truth, attack)
        else:
            corrupted = list(_corrupted(questions, kind, int(strength)))
            accuracy = _accuracy(exam, probabilities(model, exam.codec, corrupted), truth)
        found.append(Strength(strength, accuracy))
        on_progress(number / len(chosen))
    return found


def _checked(exam: RunExam, model: Transformer, kind: str, strengths: Sequence[float]) -> Sequence[float]:
    """The strengths, or those that are usual."""
    if kind in get_args(AttackKind):
        if is_quantized(model):
            raise UsageError("an int8 model has no gradients to attack by; attack the run that it was made from")
        return strengths or EPS.get(type(exam.codec), OTHER_EPS)
    have = {TextClasses: TEXTS, PictureClasses: IMAGES}.get(type(exam.codec), {})
    if kind not in have:
        known = ", ".join((*get_args(AttackKind), *have))
        raise UsageError(f"--attack {kind}: not for {exam.task.name}; there are {known}")
    wrong = [strength for strength in strengths if strength not in SEVERITIES]
    if wrong:
        raise UsageError(f"--strength {wrong[0]:g}: {kind} has the severities {', '.join(map(str, SEVERITIES))}")
    return strengths or SEVERITIES


def _corrupted(questions: Sequence[Any], kind: str, severity: int) -> Iterator[Any]:
    """The same disturbance of a question in every run: seeded by its place."""
    change = (TEXTS | IMAGES)[kind]  # type: ignore[operator]  # a kind of text takes texts, one of images images
    for place, question in enumerate(questions):
        yield change(question, severity, np.random.default_rng((place, severity)))


def _attacked(exam: RunExam, model: Transformer, questions: Sequence[Any], truth: Any, attack: Attack) -> float:
    """Accuracy when each input is moved, within reach, against its own label."""
    box, right = box_of(exam.codec, attack.eps), 0
    model.draw_from(torch.Generator().manual_seed(0))
    device = model.head.weight.device
    for places, inputs in exam.codec.batches(questions):
        classes = torch.from_numpy(truth[places]).to(device)
        batch = {name: tensor.to(device) for name, tensor in inputs.items()} | {
            "labels": _labels(model, inputs, classes)
        }
        delta = disturbance(exam.task, model, batch, Objective(), attack, box)
        with torch.no_grad(), disturbed(model, batch, delta, box) as moved:
            states = model.encode(moved["source"], moved.get("source_segments"))
            chances = model.logits(model.read_out(states)[:, 0]).softmax(1).cpu().numpy()
        right += int((exam.codec.classes.decide(chances) == truth[places]).sum())
    return right / len(questions)


def _labels(model: Transformer, inputs: Mapping[str, torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
    """The classes (batch,) at the first positions, nothing at the others."""
    stem = model.shape.stem
    length = inputs["source"].shape[1] if stem is None else stem.num_positions
    labels = torch.full((len(classes), length), IGNORE, device=classes.device)
    labels[:, 0] = classes
    return labels


def _accuracy(exam: RunExam, chances: Any, truth: Any) -> float:
    return float((exam.codec.classes.decide(chances) == truth).mean())
