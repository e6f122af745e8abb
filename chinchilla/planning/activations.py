"""What each operator keeps for the backward pass, and what lives while it goes backward, without running it.

Counted as the eager model on a CPU does it, in fp32 or under bf16 autocast (which keeps a copy of every matrix too).
A compiled model recomputes some and saves less: these counts are then an upper bound.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla.config.machine import Precision
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, stacks
from chinchilla.planning.operators import BYTES as BYTES
from chinchilla.planning.operators import FP32 as FP32
from chinchilla.planning.operators import Op, Rows


@dataclass(frozen=True)
class Part:
    """Operators in order of execution.

    Names: `encoder.embed`, `encoder.0.attention`, `encoder.0.mlp`, …, `encoder.norm`, `decoder.embed`,
    `decoder.0.attention`, `decoder.0.cross`, …, `head`, `encoder.reconstruction`, `decoder.reconstruction`.
    """

    name: str
    ops: tuple[Op, ...]

    @property
    def kept(self) -> int:
        """Bytes that all its operators keep."""
        return sum(op.kept for op in self.ops)


@dataclass(frozen=True)
class Saved:
    """Bytes kept for the backward pass by one kind of operator of one part of the model."""

    part: str
    operator: str
    size_bytes: int


def saved_bytes(
    shape: Shape, batch: Batch, precision: Precision, dropout: bool = False, drop_path: bool = False
) -> int:
    """Bytes saved for the backward pass of one micro-batch."""
    return sum(part.kept for part in parts(shape, batch, precision, dropout, drop_path))


def saved(shape: Shape, batch: Batch, precision: Precision, dropout: bool = False) -> list[Saved]:
    """What each operator saves for the backward pass of one micro-batch, in order of execution."""
    return [item for part in parts(shape, batch, precision, dropout) for item in saved_in(part)]


def saved_in(part: Part) -> list[Saved]:
    """What each kind of operator of one part saves."""
    sizes: Counter[str] = Counter()
    for op in part.ops:
        sizes[op.operator] += op.kept
    return [Saved(part.name, operator, size_bytes) for operator, size_bytes in sizes.items() if size_bytes]


def by_operator(items: list[Saved]) -> dict[str, int]:
    """Bytes saved by each kind of operator over all layers."""
    totals: Counter[str] = Counter()
    for item in items:
        totals[item.operator] += item.size_bytes
    return dict(totals)


def parts(
    shape: Shape, batch: Batch, precision: Precision, dropout: bool = False, drop_path: bool = False
) -> list[Part]:
    """Every part of a forward pass with its loss, in order of execution."""
    sides = [(Rows(shape, batch, precision, dropout, side, drop_path), layers) for side, layers in stacks(shape)]
    return [Part(name, tuple(ops)) for name, ops in _parts(shape, sides)]


def _parts(shape: Shape, sides: list[tuple[Rows, int]]) -> Iterator[tuple[str, Iterator[Op]]]:
    for rows, num_layers in sides:
        yield f"{rows.side}.embed", rows.embed()
        for index in range(num_layers):
            yield f"{rows.side}.{index}.attention", rows.self_attention()
            if rows.cross:
                yield f"{rows.side}.{index}.cross", rows.cross_attention(index == 0, index == num_layers - 1)
            yield f"{rows.side}.{index}.mlp", rows.mlp()
        if shape.norm_order == "pre":
            yield f"{rows.side}.norm", rows.norm(residual=False)
    last = sides[-1][0]
    yield "head", last.head()
    for rows, _ in sides:
        if rows.masked:
            yield f"{rows.side}.reconstruction", rows.reconstruction()
