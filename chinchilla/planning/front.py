"""Which plans for a budget nothing else beats: loss against size, the time of an answer, and training's memory.

What is compared is the shape. The chosen one's predictions are the plan's own; another's are those times a ratio, by
whatever the choice was made with: probe runs of the same round, or a law at what the same budget buys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla.config.considered import Considered
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.plan import Plan, Probe
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import FP32
from chinchilla.planning.count import num_params
from chinchilla.planning.latency import Request, answer_time
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.repeat import SAME_LOSS, repeated


@dataclass(frozen=True)
class Rival:
    """A shape that was weighed against the chosen one: its loss, as a multiple of that one's, and what says so.

    `source` None is that of the chosen one's loss, which the same probes foretell.
    """

    shape: Shape
    loss_ratio: float
    source: Source | None = None


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point, (objectives,), whether no other is nowhere above it and somewhere below.

    Less is better. Of points that are the same, all are on the front or none.
    """
    values = np.array(points, dtype=float).reshape(len(points), -1)
    nowhere_above = (values[:, None] <= values[None]).all(-1)
    somewhere_below = (values[:, None] < values[None]).any(-1)
    beaten = np.any(nowhere_above & somewhere_below, axis=0)
    return [not each for each in beaten]


def by_probes(probes: Sequence[Probe], chosen: Shape) -> tuple[Rival, ...]:
    """Rivals by their predicted losses in the last round that each took part in, where the chosen one was beside them.

    In a round all train for as long, and what is kept was foretold to end no higher: no ratio is below 1.
    """
    rounds: dict[Shape, list[float]] = {}
    for probe in probes:
        if probe.predicted_loss is not None:
            rounds.setdefault(probe.shape, []).append(probe.predicted_loss)
    ours = rounds.pop(chosen, [])
    return tuple(
        Rival(shape, losses[-1] / ours[len(losses) - 1]) for shape, losses in rounds.items() if len(losses) <= len(ours)
    )


def by_own_law(law: OwnLaw, options: Sequence[tuple[Shape, float]], chosen: Shape) -> tuple[Rival, ...]:
    """Rivals of (shape, tokens that the budget buys it), the chosen one among them, by the medians that chose it."""
    losses = {shape: float(np.median(law.losses(num_params(shape), seen, noise=False))) for shape, seen in options}
    return tuple(
        Rival(shape, losses[shape] / losses[chosen], law.predict(num_params(shape), seen).source)
        for shape, seen in options
        if shape != chosen
    )


def by_published_law(
    law: ChinchillaLaw, flops: float, unique_tokens: float, shapes: Sequence[Shape], chosen: Shape, *, known: bool
) -> tuple[Rival, ...]:
    """Rivals at what 6·N·D = `flops` buys, the count that the law was fitted with; `planning.repeat` discounts.

    Larger ones of the same loss, which text worn out by repeats comes to, are left out: nothing speaks for them.
    `known` says whether the law is one of such data; outside its range it guesses.
    """
    rule = repeated(law)

    def bought(shape: Shape) -> tuple[int, float]:
        size = num_params(shape)
        return size, flops / FLOPS_PER_PARAM_TOKEN / size

    def loss(shape: Shape) -> float:
        size, tokens = bought(shape)
        return rule.loss(size, tokens, unique_tokens)

    def holds(shape: Shape) -> bool:
        size, tokens = bought(shape)
        return known and not rule.discounts(size, tokens, unique_tokens) and law.covers(flops, size, tokens)

    rivals = (Rival(shape, loss(shape) / loss(chosen), "law" if holds(shape) else "guess") for shape in shapes)
    least = num_params(chosen)
    return tuple(each for each in rivals if num_params(each.shape) < least or abs(each.loss_ratio - 1) > SAME_LOSS)


def considered(
    made: Plan, rivals: Sequence[Rival], request: Request, held: Callable[[Shape], float]
) -> tuple[Considered, ...]:
    """The chosen shape and its rivals, smallest first, with those on the front told; () without rivals.

    `held` gives a shape's peak memory in bytes; its ratio to the chosen one's is put on the plan's.
    """
    if not rivals:
        return ()
    chosen = Considered(
        shape=made.shape,
        num_params=made.num_params,
        size_bytes=FP32 * made.num_params,
        on_front=True,
        **{name: made.predicted[name] for name in ("loss", "latency_s", "memory_bytes")},
    )
    answer_s, held_bytes = answer_time(made.shape, request, made.machine).total_s, held(made.shape)
    found = [chosen]
    for rival in rivals:
        size = num_params(rival.shape)
        ratio = answer_time(rival.shape, request, made.machine).total_s / answer_s
        changes = {
            "loss": _times(chosen.loss, rival.loss_ratio, rival.source or chosen.loss.source),
            "latency_s": _times(chosen.latency_s, ratio, "guess"),
            "memory_bytes": _times(chosen.memory_bytes, held(rival.shape) / held_bytes, "guess"),
        }
        sizes = {"shape": rival.shape, "num_params": size, "size_bytes": FP32 * size}
        found.append(chosen.model_copy(update=sizes | changes))
    found.sort(key=lambda each: each.num_params)
    on_front = pareto([objectives(each) for each in found])
    return tuple(each.model_copy(update={"on_front": stays}) for each, stays in zip(found, on_front, strict=True))


def objectives(each: Considered) -> tuple[float, float, float, float]:
    """What is to be small: loss, size, the time of an answer, memory."""
    return each.loss.p50, each.size_bytes, each.latency_s.p50, each.memory_bytes.p50


def _times(estimate: Estimate, ratio: float, source: Source) -> Estimate:
    return estimate.scaled(ratio, estimate.unit).model_copy(update={"source": source})
