"""Memory of a training step, counted without running it: state, saved activations, logits, peak.

What the process holds besides tensors (interpreter, libraries, data) comes on top.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import BYTES, FP32, LONGEST_PLAIN, Saved, saved
from chinchilla.planning.count import Batch, parameters, up_width

PIECE_TOKENS = 1024
"""Positions whose logits exist at one time: `models.head.PIECE_TOKENS`."""

CHUNK_ROWS = 32
"""Positions whose chances exist at one time: `models.head.CHUNK_ROWS`."""


@dataclass(frozen=True)
class State:
    """Bytes that live through the whole of training; gradients from the first backward pass on.

    `copies` are the weights that did best on the validation data, and their running average where there is one.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.copies


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in a training step; `peak` is the most that lives at one time, and `phase` when."""

    state: State
    saved: int
    logits: int
    peak: int
    phase: str


def state(shape: Shape, optimizer: OptimizerKind, ema: bool) -> State:
    """Weights, gradients, optimizer state and copies of the weights, exactly as PyTorch holds them, in fp32.

    AdamW keeps two moments and a step count a tensor; Muon one momentum for each matrix, and AdamW does the rest.
    """
    tensors = parameters(shape)
    numbers = sum(map(prod, tensors.values()))
    muon = [prod(sizes) for name, sizes in tensors.items() if optimizer == "muon" and takes_muon(name, sizes)]
    adamw = 2 * (numbers - sum(muon)) + len(tensors) - len(muon)
    return State(
        weights=FP32 * numbers,
        gradients=FP32 * numbers,
        optimizer=FP32 * (adamw + sum(muon)),
        copies=FP32 * numbers * (2 if ema else 1),
    )


def takes_muon(name: str, sizes: tuple[int, ...]) -> bool:
    """Whether Muon trains this parameter: matrices do, but not the vocabulary's and the positions' tables."""
    return len(sizes) == 2 and not name.startswith(("embed.", "head."))


def memory(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    optimizer: OptimizerKind,
    *,
    ema: bool = False,
    dropout: bool = False,
    accumulation: int = 1,
    recompute: bool = False,
) -> Memory:
    """Tensors of a training step, and their peak over its phases.

    Phases: the forward pass, the backward pass of each part, the update, and a validation that finds new best weights.
    With `recompute` a block's activations live during its own backward pass only, and its input all the time.
    """
    held = state(shape, optimizer, ema)
    items = saved(shape, batch, precision, dropout)
    logits = _logits(shape, batch, precision)
    kept = held.total if accumulation > 1 else held.total - held.gradients
    freed = _freed(shape, batch, precision, items) if recompute else {}
    total = sum(item.size_bytes for item in items) - sum(freed.values())
    phases = dict(_backward(shape, batch, precision, items, kept, accumulation, freed))
    phases["forward"] = kept + total + logits + (_cast(items) if recompute else 0)
    phases["update"] = held.total + 2 * FP32 * max(map(prod, parameters(shape).values()))
    phases["validation"] = held.total - held.gradients + 2 * held.weights
    phase = max(phases, key=lambda name: phases[name])
    return Memory(state=held, saved=total, logits=logits, peak=phases[phase], phase=phase)


def _logits(shape: Shape, batch: Batch, precision: Precision) -> int:
    """What lives while a piece of the logits does, beside what is saved: `models.head`, loop by loop.

    A piece of the logits, whose place its gradient takes, stands beside either a chunk's chances (fp32) or the table's
    gradient from this piece; the sum of those is among what is saved. In bf16 there is a copy of the table.
    """
    low, size = precision == "bf16", BYTES[precision]
    piece = size * min(PIECE_TOKENS, batch.head_rows) * shape.vocab_size
    table = shape.vocab_size * shape.dim
    states = size * (batch.head_rows + (batch.target_rows or batch.source_rows)) * shape.dim
    several = batch.head_rows > PIECE_TOKENS
    chunk = (FP32 * CHUNK_ROWS * shape.vocab_size if low else 0) - (0 if several else FP32 * table)
    # What is added to fp32 sums from bf16 is raised to fp32 before.
    product = (size * table if low or several else 0) + (FP32 * table if low and several else 0)
    return states + piece + (size * table if low else 0) + max(chunk, product)


def _cast(items: list[Saved]) -> int:
    """Autocast's copies of the blocks' matrices, which it keeps until the loss is made, whoever computes again."""
    return sum(item.size_bytes for item in items if item.operator == "matrix copy" and item.part.count(".") == 2)


def _freed(shape: Shape, batch: Batch, precision: Precision, items: list[Saved]) -> dict[str, int]:
    """What each block does not keep where it is computed again: all but its input; by the part it ends with."""
    freed: Counter[str] = Counter()
    for item in items:
        side, _, rest = item.part.partition(".")
        if "." in rest:
            freed[f"{side}.{rest.split('.')[0]}.mlp"] += item.size_bytes
    for part in freed:
        rows = batch.source_rows if part.startswith("encoder") else batch.target_rows
        freed[part] -= BYTES[precision] * rows * shape.dim
    return freed


def _backward(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    items: list[Saved],
    kept: int,
    accumulation: int,
    freed: dict[str, int],
) -> Iterator[tuple[str, int]]:
    """What lives while each part's backward pass runs: its activations and all below, gradients of all above."""
    sizes: Counter[str] = Counter()
    for item in items:
        sizes[item.part] += item.size_bytes
    below, made = sum(sizes.values()) - sum(freed.values()), 0
    for part in reversed(sizes):
        below += freed.get(part, 0)
        yield f"backward of {part}", kept + below + made + _workspace(shape, batch, precision, part)
        below -= sizes[part]
        made += _gradients(shape, part) if accumulation == 1 else 0


def _gradients(shape: Shape, part: str) -> int:
    """Bytes of the gradients that a part's backward pass leaves behind."""
    if part == "head":
        return FP32 * shape.vocab_size * shape.dim
    side, _, rest = part.partition(".")
    prefix = f"{side}.{rest}." if rest == "norm" else f"{side}.layers.{rest}"
    return FP32 * sum(prod(sizes) for name, sizes in parameters(shape).items() if name.startswith(prefix))


def _workspace(shape: Shape, batch: Batch, precision: Precision, part: str) -> int:
    """Gradients in flight inside a part's backward pass, roughly: its widest tensors and the residual stream."""
    rows = batch.source_rows if part.startswith("encoder") else batch.target_rows
    stream = BYTES[precision] * rows * shape.dim
    kind = part.rpartition(".")[2]
    if kind == "head":
        return FP32 * shape.vocab_size * shape.dim + BYTES[precision] * batch.head_rows * shape.dim
    if kind == "embed":
        return FP32 * shape.vocab_size * shape.dim + 2 * stream
    if kind == "norm":
        return 3 * stream
    if kind == "mlp":
        return 2 * stream + BYTES[precision] * rows * up_width(shape)
    projected = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    length = batch.target_len if part.startswith("decoder") and kind == "attention" else batch.source_len
    scores = 4 * rows * shape.num_heads * length if precision == "bf16" and length <= LONGEST_PLAIN else 0
    return 2 * stream + max(scores, 2 * BYTES[precision] * rows * projected)
