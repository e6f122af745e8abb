"""Activations that a forward pass saves for its backward pass, counted by operator without running it.

Counted as the eager model on a CPU saves them, in fp32 or under bf16 autocast (which keeps a copy of every matrix too).
A compiled model recomputes some and saves less: these counts are then an upper bound.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla.config.machine import Precision
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, Side, has_cross, stacks, up_width

FP32 = 4
INT64 = 8
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}

LONGEST_PLAIN = 512
"""Longest bf16 sequence whose attention is made of plain products: `models.attention.LONGEST_PLAIN`."""


@dataclass(frozen=True)
class Saved:
    """Bytes kept for the backward pass by one operator of one part of the model.

    Parts, in order of execution: `encoder.embed`, `encoder.0.attention`, `encoder.0.mlp`, …, `encoder.norm`,
    `decoder.embed`, `decoder.0.attention`, `decoder.0.cross`, …, `head`.
    """

    part: str
    operator: str
    size_bytes: int


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


def by_operator(items: list[Saved]) -> dict[str, int]:
    """Bytes saved by each kind of operator over all layers."""
    totals: Counter[str] = Counter()
    for item in items:
        totals[item.operator] += item.size_bytes
    return dict(totals)


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
        if shape.attention == "block" and self.side == "encoder":
            # One boolean mask, which every layer keeps.
            yield "mask", rows

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
        fresh = shape.position == "rotary" or shape.qk_norm
        if shape.attention == "block":
            yield from self._blocks(fresh)
        else:
            yield from self._attend(rows, self.length, self._mask_rows(), fresh)
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
        return self.batch.size if self.side == "encoder" else 0

    def _plain(self, keys: int) -> bool:
        return self.low and keys <= LONGEST_PLAIN

    def _attend(self, key_rows: int, keys: int, mask_rows: int, fresh: bool) -> Iterator[tuple[str, int]]:
        """Queries, keys, values, output and what belongs to the softmax."""
        width, heads = self.shape.num_heads * self.shape.head_dim, self.shape.num_heads * self.rows
        if self._plain(keys):
            yield "attention", self.size * width * (self.rows + 2 * key_rows)
            yield "scores", self.size * heads * keys
            return
        yield from self._projected(key_rows, fresh)
        yield "attention", self.size * self.rows * width
        yield "scores", FP32 * heads
        yield "mask", self.size * mask_rows * keys

    def _blocks(self, fresh: bool) -> Iterator[tuple[str, int]]:
        """Block attention makes its scores again: it keeps queries, keys, values and the summaries of its blocks."""
        shape = self.shape
        yield from self._projected(self.rows, fresh)
        if shape.block_summaries:
            blocks = self.batch.size * -(-self.length // shape.block_len)
            yield "attention", 2 * self.size * blocks * shape.num_kv_heads * shape.head_dim

    def _projected(self, key_rows: int, fresh: bool) -> Iterator[tuple[str, int]]:
        """Queries, keys and values.

        `fresh` queries and keys were made after the projection; the projection's own output is kept for the values,
        and holds queries and keys as well where they are not fresh.
        """
        width, kv_width = self.shape.num_heads * self.shape.head_dim, self.shape.num_kv_heads * self.shape.head_dim
        yield "attention", self.size * (self.rows * width + 2 * key_rows * kv_width)
        if fresh:
            yield "attention", self.size * (self.rows * width + key_rows * kv_width)

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
    yield "ids", INT64 * batch.head_rows
    yield "gradients", size * batch.head_rows * shape.dim
    yield "gradients", FP32 * shape.vocab_size * (shape.dim + (1 if shape.head_bias else 0))
