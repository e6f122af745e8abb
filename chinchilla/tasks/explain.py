"""Why a classifier answered so: which parts of an input speak for a class, what it looked at, and a test of both.

Integrated gradients (Sundararajan 2017, arXiv 1703.01365), attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928)
and the deletion test (Petsiuk 2018, arXiv 1806.07421).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla.config.errors import UsageError
from chinchilla.data.picture_boxes import PictureBoxes
from chinchilla.data.rows import did_you_mean
from chinchilla.models.attention_maps import attention_maps, rollout
from chinchilla.models.quantized import is_quantized
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.subject import Explained, Part, Subject, make_subject

Floats = NDArray[np.float64]

STEPS = (64, 256, 1024)
"""Points of the way from the baseline at which gradients are taken: the next where so many leave too much of a gap."""

LARGEST_GAP = 0.01
"""Of the sum of all attributions, each without its sign."""

CUTS = 32
"""Most steps in which all parts are removed."""

RANDOM_ORDERS = 10
"""Orders that a deletion curve is set against."""

PIECE_POSITIONS = 8192
"""Positions that go through the model together."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each part of an input has to do with a class.

    Log-odds are log p/(1 - p) in nats. `attribution` (parts,) should add up to `odds` - `baseline_odds`; `gap` is what
    it comes short of that, with gradients at `steps` points. `attention` (parts,) are their shares in what the class is
    read from. `deletion` holds the class's probability as parts are removed, by the order of removal ("attribution",
    "attention", and "random" as a mean), at the shares of parts in `removed`; `areas` are those under the curves.
    """

    label: str
    probabilities: dict[str, float]
    parts: tuple[Part, ...]
    attribution: Floats
    attention: Floats
    odds: float
    baseline: str
    baseline_odds: float
    gap: float
    steps: int
    removed: Floats
    deletion: Mapping[str, Floats]
    areas: Mapping[str, float]


def explain(model: Transformer, codec: Any, question: Any, label: str | None = None) -> Explanation:
    """Explain what a classifier makes of a question that its codec has read; `label` is the answered class if None.

    Raises:
        UsageError: see `check`.
    """
    check(model, codec, label)
    subject = make_subject(model, codec, question)
    chances = _chances(subject, subject.given)[0]
    names = codec.classes.names
    target = int(codec.classes.decide(chances[None])[0]) if label is None else codec.classes.number(label)
    with torch.no_grad():
        ends = torch.cat([subject.given, subject.baseline])
        odds, baseline_odds = log_odds(subject.logits(ends).double(), target).tolist()
    for steps in STEPS:
        attribution = integrated_gradients(subject, target, steps)
        gap = odds - baseline_odds - float(attribution.sum())
        if abs(gap) <= LARGEST_GAP * np.abs(attribution).sum():
            break
    attention = class_attention(model, subject)
    removed, curves = _curves(subject, target, attribution, attention)
    return Explanation(
        label=names[target],
        probabilities=dict(zip(names, chances.tolist(), strict=True)),
        parts=subject.parts,
        attribution=attribution,
        attention=attention,
        odds=odds,
        baseline=subject.about,
        baseline_odds=baseline_odds,
        gap=gap,
        steps=steps,
        removed=removed,
        deletion=curves,
        areas={name: float(np.trapezoid(curve, removed)) for name, curve in curves.items()},
    )


def check(model: Transformer, codec: Any, label: str | None) -> None:
    """Refuse what cannot be explained, before any work.

    Raises:
        UsageError: no classifier, an int8 model, or an unknown class.
    """
    if not isinstance(codec, Explained) or isinstance(codec, PictureBoxes):
        raise UsageError("only models that put texts, images or rows of tables in classes can be explained")
    if is_quantized(model):
        raise UsageError("an int8 model has no gradients to explain it by; explain the run that it was made from")
    if label is not None and label not in codec.classes.names:
        hint = did_you_mean(label, codec.classes.names)
        raise UsageError(f"--class: no class {label!r}{hint}; there are {', '.join(codec.classes.names)}")


def log_odds(logits: Tensor, target: int) -> Tensor:
    """log p/(1 - p) of a class in nats: `logits` (batch, classes) → (batch,)."""
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    return logits[:, target] - others.logsumexp(1)


def integrated_gradients(subject: Subject, target: int, steps: int) -> Floats:
    """What each part (parts,) adds to a class's log-odds between the baseline and the input.

    Equation 3 of the paper, with gradients at the middles of `steps` equal parts of the way.
    """
    way = subject.given - subject.baseline
    total = torch.zeros_like(way, dtype=torch.float64)
    middles = (torch.arange(steps, device=way.device) + 0.5) / steps
    for shares in middles.split(_rows(subject)):
        points = (subject.baseline + shares.view(-1, *[1] * (way.dim() - 1)) * way).requires_grad_()
        odds = log_odds(subject.logits(points), target)
        (gradient,) = torch.autograd.grad(odds.sum(), points)
        total += gradient.double().sum(0, keepdim=True)
    return _by_part((total * way / steps)[0], subject.place, len(subject.parts))


def class_attention(model: Transformer, subject: Subject) -> Floats:
    """Shares (parts,) of what the class is read from that come from the parts, by attention rollout."""
    drawn = model.read_out(rollout(attention_maps(model, subject.source)))[0, 0]
    shares = _by_part(drawn.double(), subject.seen, len(subject.parts))
    return shares / shares.sum()


def deletion(subject: Subject, target: int, order: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Shares of parts removed, from 0 to 1, and the class's probability when the first of `order` are the baseline's.

    All parts go in `CUTS` steps, or one by one where there are fewer.
    """
    count = len(subject.parts)
    cuts = np.unique(np.linspace(0, count, min(count, CUTS) + 1).round().astype(int))
    rank = np.full(count + 1, count)  # what belongs to no part is never removed
    rank[order] = np.arange(count)
    gone = torch.from_numpy(rank < cuts[:, None]).to(subject.place.device)
    found = []
    for piece in gone.split(_rows(subject)):
        found.append(_chances(subject, torch.where(piece[:, subject.place], subject.baseline, subject.given)))
    return cuts / count, np.concatenate(found)[:, target]


def _curves(subject: Subject, target: int, attribution: Floats, attention: Floats) -> tuple[Floats, dict[str, Floats]]:
    """The shares removed, and the curve of each order."""
    removed, by_attribution = deletion(subject, target, np.argsort(-attribution, kind="stable"))
    _, by_attention = deletion(subject, target, np.argsort(-attention, kind="stable"))
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(subject.parts)) for _ in range(RANDOM_ORDERS)]
    by_chance = np.mean([deletion(subject, target, order)[1] for order in orders], axis=0)
    return removed, {"attribution": by_attribution, "attention": by_attention, "random": by_chance}


@torch.no_grad()
def _chances(subject: Subject, points: Tensor) -> Floats:
    return subject.logits(points).double().softmax(1).cpu().numpy()


def _by_part(values: Tensor, place: Tensor, count: int) -> Floats:
    """Sums of values over each part (parts,); those of no part are left out."""
    sums = values.new_zeros(count + 1)
    sums.index_add_(0, place.expand_as(values).flatten(), values.flatten())
    return sums[:count].cpu().numpy()


def _rows(subject: Subject) -> int:
    return max(1, PIECE_POSITIONS // len(subject.seen))
