"""Memory of a training step, counted without running it: state, saved activations by operator, peak.

Activations are counted as the eager model on a CPU saves them for its backward pass, in fp32 or under bf16 autocast
(which also keeps a copy of every matrix). A compiled model recomputes some and saves less: these counts are then an
upper bound. What the process holds besides (interpreter, libraries, data) comes on top.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, Side, block_keys, has_cross, parameters, stacks, up_width

FP32 = 4
INT64 = 8
BYTES = {"fp32": 4, "bf16": 2}

PIECE_TOKENS = 512
"""Positions whose logits exist at one time: `models.head.PIECE_TOKENS`."""

LONGEST_PLAIN = 512
"""Longest bf16 sequence whose attention is made of plain products: `models.attention.LONGEST_PLAIN`."""


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
class Saved:
    """Bytes kept for the backward pass by one operator of one part of the model.

    Parts, in order of execution: `encoder.embed`, `encoder.0.attention`, `encoder.0.mlp`, …, `encoder.norm`,
    `decoder.embed`, `decoder.0.attention`, `decoder.0.cross`, …, `head`.
    """

    part: str
    operator: str
    size_bytes: int


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


def saved_bytes(shape: Shape, batch: Batch, precision: Precision, dropout: bool = False) -> int:
    """Bytes saved for the backward pass of one micro-batch."""
    return sum(item.size_bytes for item in saved(shape, batch, precision, dropout))


def saved(shape: Shape, batch: Batch, precision: Precision, dropout: bool = False) -> list[Saved]:
    """What each operator saves for the backward pass of one micro-batch, in order of execution."""
    items: list[Saved] = []
    for side, num_layers in stacks(shape):
        rows = _Rows(shape, batch, precision, dropout, side)
        items += _named(f"{side}.embed", rows.embed())
        for index in range(num_layers):
            items += _named(f"{side}.{index}.attention", rows.self_attention())
            if rows.cross:
                items += _named(f"{side}.{index}.cross", rows.cross_attention())
            items += _named(f"{side}.{index}.mlp", rows.mlp())
        items += _named(f"{side}.norm", rows.closing())
    return items + _named("head", _head(shape, batch, BYTES[precision]))


def memory(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    optimizer: OptimizerKind,
    *,
    ema: bool = False,
    dropout: bool = False,
    accumulation: int = 1,
) -> Memory:
    """Tensors of a training step, and their peak over its phases.

    Phases: the forward pass, the backward pass of each part, the update, and a validation that finds new best weights.
    """
    held = state(shape, optimizer, ema)
    items = saved(shape, batch, precision, dropout)
    logits = _logits(shape, batch, precision)
    kept = held.total if accumulation > 1 else held.total - held.gradients
    total = sum(item.size_bytes for item in items)
    phases = dict(_backward(shape, batch, precision, items, kept, accumulation))
    phases["forward"] = kept + total + logits
    phases["update"] = held.total + 2 * FP32 * max(map(prod, parameters(shape).values()))
    phases["validation"] = held.total - held.gradients + 2 * held.weights
    phase = max(phases, key=lambda name: phases[name])
    return Memory(state=held, saved=total, logits=logits, peak=phases[phase], phase=phase)


def _named(part: str, operators: Iterator[tuple[str, int]]) -> list[Saved]:
    sizes: Counter[str] = Counter()
    for operator, size_bytes in operators:
        sizes[operator] += size_bytes
    return [Saved(part, operator, size_bytes) for operator, size_bytes in sizes.items() if size_bytes]


@dataclass(frozen=True)
class _Rows:
    """What one side of the model saves; numbers are bytes."""

    shape: Shape
    batch: Batch
    precision: Precision
    dropout: bool
    side: Side

    @property
    def size(self) -> int:
        return BYTES[self.precision]

    @property
    def length(self) -> int:
        return self.batch.source_len if self.side == "encoder" else self.batch.target_len

    @property
    def rows(self) -> int:
        return self.batch.size * self.length

    @property
    def cross(self) -> bool:
        return self.side == "decoder" and has_cross(self.shape)

    @property
    def low(self) -> bool:
        return self.precision == "bf16"

    def embed(self) -> Iterator[tuple[str, int]]:
        shape, rows = self.shape, self.rows
        yield "ids", INT64 * rows
        if shape.position == "learned":
            yield "ids", INT64 * (rows if self.batch.packed else self.length)
        if shape.embed_norm:
            yield from self._norm()
        if self.dropout:
            yield "dropout", self.size * rows * shape.dim
        if shape.position == "rotary" and not self.low:
            yield "rotation", FP32 * self.length * shape.head_dim

    def closing(self) -> Iterator[tuple[str, int]]:
        if self.shape.norm_order == "pre":
            yield from self._norm()
        if self.side == "encoder" and has_cross(self.shape):
            # Every decoder layer keeps the same encoder states.
            yield "linear", self.size * self.rows * self.shape.dim

    def _norm(self) -> Iterator[tuple[str, int]]:
        """Input and statistics; RMSNorm, which PyTorch composes, raises its input to fp32 and keeps more of it."""
        dim = self.shape.dim
        if self.shape.norm == "layer":
            yield "norm", self.rows * (self.size * dim + 2 * FP32)
            return
        yield "norm", FP32 * self.rows * (2 * dim + 1)
        yield "matrix copy", self.size * dim if self.low else 0

    def _linear(self, rows: int, inputs: int, outputs: int) -> Iterator[tuple[str, int]]:
        yield "linear", self.size * rows * inputs
        yield from self._copy(inputs, outputs)

    def _copy(self, inputs: int, outputs: int) -> Iterator[tuple[str, int]]:
        if self.low:
            yield "matrix copy", self.size * inputs * outputs

    def _branch(self) -> Iterator[tuple[str, int]]:
        if self.dropout:
            yield "dropout", self.size * self.rows * self.shape.dim

    def self_attention(self) -> Iterator[tuple[str, int]]:
        shape, rows = self.shape, self.rows
        yield from self._norm()
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        yield from self._linear(rows, shape.dim, width + 2 * kv_width)
        if shape.position == "rotary" and self.low:
            yield "rotation", self.size * self.length * shape.head_dim
        if shape.qk_norm:
            # Normalised values and statistics, and under autocast the inputs raised to fp32.
            yield "norm", FP32 * rows * (width + kv_width) * (2 if self.low else 1)
            yield "norm", FP32 * rows * (shape.num_heads + shape.num_kv_heads)
            yield "matrix copy", 2 * self.size * shape.head_dim if self.low else 0
        if shape.attention == "block":
            yield from self._blocks()
        else:
            yield from self._attend(rows, self.length, self._mask_rows(), shape.position == "rotary" or shape.qk_norm)
        if shape.attention == "gated":
            yield from self._copy(shape.dim, shape.num_heads)
            if self._plain(self.length):
                yield "attention", self.size * rows * width
            yield "attention", self.size * rows * shape.num_heads
        yield from self._copy(width, shape.dim)
        copied = self._plain(self.length) or shape.attention != "full" or shape.qk_norm
        yield "linear", self.size * rows * width if copied else 0
        yield from self._branch()

    def cross_attention(self) -> Iterator[tuple[str, int]]:
        shape, rows = self.shape, self.rows
        yield from self._norm()
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        yield from self._linear(rows, shape.dim, width)
        yield from self._copy(shape.dim, 2 * kv_width)
        mask_rows = rows if self.batch.packed else self.batch.size
        yield from self._attend(self.batch.source_rows, self.batch.source_len, mask_rows, False)
        yield from self._linear(rows if self._plain(self.batch.source_len) else 0, width, shape.dim)
        yield from self._branch()

    def _mask_rows(self) -> int:
        """Rows of a mask over the keys: one a query when packed, one an example for padding, none if only causal."""
        if self.batch.packed:
            return self.rows
        if self.side == "encoder":
            return self.batch.size
        return self.length if self._plain(self.length) else 0

    def _plain(self, keys: int) -> bool:
        return self.low and keys <= LONGEST_PLAIN

    def _attend(self, key_rows: int, keys: int, mask_rows: int, fresh: bool) -> Iterator[tuple[str, int]]:
        """Queries, keys, values, output and what belongs to the softmax.

        `fresh` queries and keys were made after the projection; the projection's own output is kept for the values,
        and holds queries and keys as well where they are not fresh.
        """
        shape = self.shape
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        heads = shape.num_heads * self.rows
        if self._plain(keys):
            yield "attention", self.size * width * (self.rows + 2 * key_rows)
            yield "scores", heads * keys * (FP32 + self.size)
            yield "mask", mask_rows * keys
            return
        yield "attention", self.size * (self.rows * width + 2 * key_rows * kv_width)
        if fresh:
            yield "attention", self.size * (self.rows * width + key_rows * kv_width)
        yield "attention", self.size * self.rows * width
        yield "scores", FP32 * heads
        yield "mask", self.size * mask_rows * keys

    def _blocks(self) -> Iterator[tuple[str, int]]:
        """Block attention keeps its gathered queries, keys, values, output and mask; see `models.block_attention`."""
        shape = self.shape
        blocks, keys = block_keys(shape, self.length, self.side == "decoder")
        rows = self.batch.size * blocks * shape.block_len
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        if shape.qk_norm and not self.low:
            yield "attention", FP32 * self.rows * (width + 2 * kv_width)
        yield "attention", self.size * (2 * rows * width + 2 * self.batch.size * blocks * keys * kv_width)
        yield "scores", FP32 * rows * shape.num_heads
        yield "mask", self.size * rows * keys
        if shape.block_summaries:
            yield "mask", 2 * self.size * (rows + self.batch.size * blocks)

    def mlp(self) -> Iterator[tuple[str, int]]:
        shape, rows = self.shape, self.rows
        yield from self._norm()
        yield from self._linear(rows, shape.dim, up_width(shape))
        before = {"swiglu": 3, "relu": 0}.get(shape.activation, 1)
        yield "activation", self.size * rows * shape.ffn_dim * before
        yield from self._linear(rows, shape.ffn_dim, shape.dim)
        yield from self._branch()


def _head(shape: Shape, batch: Batch, size: int) -> Iterator[tuple[str, int]]:
    """The token loss keeps its gradients, ready made, instead of the logits."""
    yield "ids", INT64 * batch.loss_rows
    yield "gradients", size * batch.loss_rows * shape.dim
    yield "gradients", FP32 * shape.vocab_size * (shape.dim + (1 if shape.head_bias else 0))


def _logits(shape: Shape, batch: Batch, precision: Precision) -> int:
    """What lives while a piece of the logits does, beside what is saved: the piece before it lives on until then."""
    piece = min(PIECE_TOKENS, batch.loss_rows) * shape.vocab_size
    following = min(PIECE_TOKENS, batch.loss_rows - min(PIECE_TOKENS, batch.loss_rows)) * shape.vocab_size
    table = shape.vocab_size * shape.dim
    states = BYTES[precision] * (batch.loss_rows + (batch.target_rows or batch.source_rows)) * shape.dim
    if precision == "bf16":
        return states + 2 * table + max((FP32 + 2) * (piece + following), (FP32 + 2) * (piece + table))
    return states + max(FP32 * (piece + following), FP32 * (piece + table))


def _backward(
    shape: Shape, batch: Batch, precision: Precision, items: list[Saved], kept: int, accumulation: int
) -> Iterator[tuple[str, int]]:
    """What lives while each part's backward pass runs: its activations and all below, gradients of all above."""
    sizes: Counter[str] = Counter()
    for item in items:
        sizes[item.part] += item.size_bytes
    below, made = sum(sizes.values()), 0
    for part in reversed(sizes):
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
        return FP32 * shape.vocab_size * shape.dim + BYTES[precision] * batch.loss_rows * shape.dim
    if kind == "embed":
        return FP32 * shape.vocab_size * shape.dim + 2 * stream
    if kind == "norm":
        return 3 * stream
    if kind == "mlp":
        return 2 * stream + BYTES[precision] * rows * up_width(shape)
    projected = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    length = batch.target_len if part.startswith("decoder") and kind == "attention" else batch.source_len
    scores = (FP32 + 2) * rows * shape.num_heads * length if precision == "bf16" and length <= LONGEST_PLAIN else 0
    return 2 * stream + max(scores, 2 * BYTES[precision] * rows * projected)


def by_operator(items: list[Saved]) -> dict[str, int]:
    """Bytes saved by each kind of operator over all layers."""
    totals: Counter[str] = Counter()
    for item in items:
        totals[item.operator] += item.size_bytes
    return dict(totals)
