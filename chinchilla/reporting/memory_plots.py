"""Memory over a training step: what lives from phase to phase, and its chart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import Part, parts
from chinchilla.planning.count import Batch
from chinchilla.planning.huber import Array
from chinchilla.planning.memory import memory
from chinchilla.planning.operators import BYTES
from chinchilla.reporting.canvas import FIRST, INK, MISS, MUTED, PREDICTED, SECOND, drawable, drawing, figure, svg
from chinchilla.reporting.values import quantity

READY = "gradients"
"""The operator whose kept bytes are gradients already: the token loss."""

HELD = ("weights", "optimizer", "copies", "activations", "logits", "gradients", "rest")
_HELD_COLORS = (
    (FIRST, 0.75),
    (FIRST, 0.35),
    (MUTED, 0.25),
    (PREDICTED, 0.55),
    (MISS, 0.6),
    (SECOND, 0.6),
    (MUTED, 0.6),
)


@dataclass(frozen=True)
class Moment:
    """Bytes that live at one phase of a step, by what they are.

    `copies` are the best weights so far, their average, and tables; `activations` those held as the phase begins;
    `gradients` are all parameters' that are made, and those on their way to them; `rest` is an update's scratch.
    """

    phase: str
    weights: int
    optimizer: int
    copies: int
    activations: int = 0
    logits: int = 0
    gradients: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, name) for name in HELD)


def moments(shape: Shape, batch: Batch, training: Training, device: str) -> list[Moment]:
    """What lives from phase to phase, in order: the forward pass part by part, then the phases of `memory.memory`.

    A moment's total is that phase's peak; of a part's forward pass it is what is held when that part is done.
    """
    workers = math.gcd(training.accumulation, training.threads) if device == "cpu" and not training.compile else 1
    dropout, drop_path = training.dropout > 0, training.drop_path > 0
    made = memory(
        shape,
        batch,
        training.precision,
        training.optimizer,
        ema=training.ema_decay > 0,
        dropout=dropout,
        drop_path=drop_path,
        accumulation=training.accumulation,
        recompute=training.recompute,
        workers=workers,
    )
    held, work = made.state, parts(shape, batch, training.precision, dropout, drop_path)
    stored = [_stored(part, shape, batch, training) for part in work]
    empty = Moment("", held.weights, held.optimizer, held.copies + held.tables)
    summed = workers * held.gradients if training.accumulation > workers else 0
    begun = replace(empty, gradients=summed)
    found = [
        replace(begun, phase=f"forward of {part.name}", activations=workers * size)
        for part, size in zip(work, accumulate(stored), strict=True)
        if part.name.startswith(("encoder.", "decoder.")) and not part.name.endswith("reconstruction")
    ]
    ready = workers * sum(op.kept for part in work for op in part.ops if op.operator == READY)
    whole = replace(begun, activations=workers * sum(stored), logits=workers * made.logits, gradients=summed + ready)
    found.append(_rest(whole, "forward", made.phases))
    for index, part in reversed(list(enumerate(work))):
        alive = replace(empty, activations=workers * _alive(work, stored, index))
        found.append(_gradients(alive, f"backward of {part.name}", made.phases))
    found.append(_gradients(empty, "sum of gradients", made.phases))
    found.append(_rest(replace(empty, gradients=held.gradients), "update", made.phases))
    found.append(_rest(empty, "validation", made.phases))
    return found


def _rest(moment: Moment, phase: str, phases: Mapping[str, int]) -> Moment:
    return replace(moment, phase=phase, rest=phases[phase] - moment.total)


def _gradients(moment: Moment, phase: str, phases: Mapping[str, int]) -> Moment:
    """What a backward pass holds beside the rest are gradients."""
    return replace(moment, phase=phase, gradients=phases[phase] - moment.total)


def _kept(part: Part) -> int:
    """Bytes kept for the backward pass, without the gradients that the loss leaves ready made."""
    return sum(op.kept for op in part.ops if op.operator != READY)


def _block(part: Part) -> str:
    """The layer that a part belongs to; itself where it is in none."""
    return part.name.rpartition(".")[0] if part.name.count(".") == 2 else part.name


def _stored(part: Part, shape: Shape, batch: Batch, training: Training) -> int:
    """What stays after a part's forward pass: of a layer that is computed again its input."""
    if not training.recompute or _block(part) == part.name:
        return _kept(part)
    rows = batch.source_rows if part.name.startswith("encoder") else batch.target_rows
    return BYTES[training.precision] * rows * shape.dim if part.name.endswith(".attention") else 0


def _alive(work: Sequence[Part], stored: Sequence[int], index: int) -> int:
    """Activations as a part's backward pass begins: its own and those before; its layer's computed again."""
    block, before = _block(work[index]), work[: index + 1]
    return sum(_kept(part) if _block(part) == block else size for part, size in zip(before, stored, strict=False))


def memory_chart(found: Sequence[Moment]) -> str:
    """Bytes over the phases of a step, stacked by what they are, with the peak."""
    with drawing("memory"):
        drawn, (axes,) = figure(height_in=3.2)
        _stack(axes, found)
        return svg(drawn, "memory", "Memory over the phases of a training step, by what it holds")


def _stack(axes: Axes, found: Sequence[Moment]) -> None:
    edges = _edges(found)
    floor = np.zeros(len(edges))
    for name, (color, alpha) in zip(HELD, _HELD_COLORS, strict=True):
        sizes = np.array([getattr(moment, name) for moment in found], dtype=float)
        if sizes.any():
            top = floor + np.append(sizes, sizes[-1])
            axes.fill_between(edges, floor, top, step="post", color=color, alpha=alpha, linewidth=0, label=name)
            floor = top
    peak = max(found, key=lambda moment: moment.total)
    axes.axhline(peak.total, color=INK, linewidth=0.8, linestyle="--")
    said = drawable(f"peak {quantity(peak.total, 'bytes')}: {peak.phase}", 60)
    axes.annotate(said, (edges[-1], peak.total), (0, 3), textcoords="offset points", ha="right", fontsize=8.5)
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.12 * peak.total))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "bytes") if value else "0"))
    _stages(axes, [_stage(moment) for moment in found], edges)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)


def _edges(found: Sequence[Moment]) -> Array:
    """Where each moment begins and the last one ends: a part of a pass is 1 wide, others have room for a name."""
    passes = sum(_stage(moment) in ("forward", "backward") for moment in found)
    widths = [1.0 if _stage(moment) in ("forward", "backward") else 0.2 * passes for moment in found]
    return np.concatenate([[0.0], np.cumsum(widths)])


def _stage(moment: Moment) -> str:
    return {"sum of gradients": "sum", "validation": "validate"}.get(moment.phase, moment.phase.split()[0])


def _stages(axes: Axes, stages: Sequence[str], edges: Array) -> None:
    """Name runs of phases of one stage in their middle, with lines between."""
    starts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    ends = [*starts[1:], len(stages)]
    middles = [(edges[start] + edges[end]) / 2 for start, end in zip(starts, ends, strict=True)]
    axes.set_xticks(middles, [stages[start] for start in starts])
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.grid(visible=False, axis="x")
    for start in starts[1:]:
        axes.axvline(edges[start], color=MUTED, linewidth=0.5)
