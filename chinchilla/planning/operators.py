"""The operators of one side of a model: what each keeps for the backward pass, and what lives while it goes backward.

As the eager model on a CPU runs them in torch 2.13, in fp32 or under bf16 autocast.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla.config.machine import Precision
from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.planning.count import TILE_KEYS, Batch, Side, block_pieces, has_cross, tile_queries, up_width
from chinchilla.planning.stems import convs

FP32 = 4
INT64 = 8
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}

LONGEST_PLAIN = 512
"""Longest bf16 sequence whose attention is made of plain products: `models.attention.LONGEST_PLAIN`."""

LEAST_SCRATCH = 1 << 18
"""What oneDNN takes beside a bf16 product of however small a matrix; by the processor it is 0.1 to 0.5 MB."""


@dataclass(frozen=True)
class Op:
    """One operator; all numbers are bytes.

    It has `kept` something from the forward pass. Going backward it `makes` gradients, with something `beside` them
    for as long as it works; then what it kept is let go, and it `drops` the gradients that it took, and its own where
    they were added to others. A matrix's gradient is made and not dropped.
    """

    operator: str
    kept: int = 0
    makes: int = 0
    drops: int = 0
    beside: int = 0


@dataclass(frozen=True)
class Rows:
    """One side of the model. Sizes are bytes in the running precision; generators go in order of execution."""

    shape: Shape
    batch: Batch
    precision: Precision
    dropout: bool
    side: Side
    drop_path: bool = False

    @property
    def size(self) -> int:
        return BYTES[self.precision]

    @property
    def bare(self) -> bool:
        """Whether a branch is added to the residual stream as it is."""
        return not (self.dropout or self.drop_path)

    @property
    def low(self) -> bool:
        return self.precision == "bf16"

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
    def masked(self) -> int:
        masked = self.batch.masked_source if self.side == "encoder" else self.batch.masked_target
        return masked if self.shape.reconstruct else 0

    @property
    def stream(self) -> int:
        return self.size * self.rows * self.shape.dim

    @property
    def wide(self) -> int:
        """Queries, or the output of all heads."""
        return self.size * self.rows * self.shape.num_heads * self.shape.head_dim

    def keys(self, rows: int) -> int:
        """Keys, or values, of as many positions."""
        return self.size * rows * self.shape.num_kv_heads * self.shape.head_dim

    def embed(self) -> Iterator[Op]:
        yield from self._table() if self.shape.stem is None else self._stem(self.shape.stem)
        yield from self._positions()

    def _stem(self, stem: ImageStem | TableStem) -> Iterator[Op]:
        """A stem, and the class token that is put before what it makes."""
        if isinstance(stem, ImageStem):
            yield from self._patches(stem)
            patches = self.size * self.batch.size * stem.num_patches * self.shape.dim
            if stem.class_token:
                yield Op("split", makes=patches + FP32 * self.shape.dim, drops=self.stream)
            return
        yield from self._columns(stem)
        if self.low:
            yield Op("cast", makes=FP32 * self.rows * self.shape.dim, drops=self.stream)

    def _patches(self, stem: ImageStem) -> Iterator[Op]:
        """Convolutions lay out their matrix anew, and its gradient once more for the layout that it is kept in."""
        shape, first = self.shape, True
        for conv in convs(shape.dim, stem):
            numbers = conv.inputs * conv.outputs
            matrix = self.size * numbers
            taken = self.size * self.batch.size * conv.pixels * conv.channels
            made = self.size * self.batch.size * conv.positions * conv.outputs
            if self.low:
                yield Op("matrix copy", matrix, makes=FP32 * numbers)
            yield Op(
                "convolution",
                taken if first else 0,
                makes=matrix + (0 if first else taken),
                drops=made + (matrix if self.low else 0),
                beside=3 * matrix,
            )
            left = self.size * self.batch.size * conv.kept * conv.outputs
            if conv.kept < conv.positions:
                yield Op("pooling", made + left // self.size * INT64, makes=made, drops=left)
            if stem.pooled:
                yield Op("norm", left + 2 * FP32 * self.batch.size * conv.kept, makes=left, drops=left)
            yield Op("activation", left, makes=left, drops=left)
            first = False
        yield from self._linear(self.batch.size * conv.kept, conv.outputs, shape.dim, keeps=False)

    def _columns(self, stem: TableStem) -> Iterator[Op]:
        """In fp32 throughout: numbers, or the vector of what is missing; categories; the columns' own vectors."""
        size, width = self.batch.size, FP32 * self.shape.dim
        numeric, categories = stem.num_numeric, len(stem.cardinalities)
        numbers = size * numeric * width
        yield Op("columns", FP32 * size * numeric, makes=numbers + numeric * width, drops=2 * numbers)
        if stem.pieces:
            yield Op("pieces", FP32 * size * numeric * stem.pieces, makes=numeric * stem.pieces * width)
        yield Op("columns", size * numeric, makes=2 * numbers + numeric * width, drops=numbers + self.rows * width)
        looked_up = size * categories * width
        yield Op("ids", INT64 * size * categories, makes=sum(stem.cardinalities) * width, beside=looked_up)
        yield Op("columns", makes=(numeric + categories + 1) * width)

    def _table(self) -> Iterator[Op]:
        shape, table = self.shape, FP32 * self.shape.vocab_size * self.shape.dim
        # One table's gradients are added to each other; the head's and the decoder's are made first.
        added = shape.tied_head or (self.side == "encoder" and has_cross(shape))
        taken = FP32 * self.rows * shape.dim
        yield Op("ids", INT64 * self.rows, makes=table, drops=taken + (table if added else 0))
        if self.low:
            yield Op("cast", makes=taken, drops=self.stream)
        if shape.embed_scale:
            yield Op("scale", makes=self.stream, drops=self.stream)

    def _positions(self) -> Iterator[Op]:
        shape = self.shape
        if shape.position == "learned":
            positions = self.rows if self.batch.packed else self.length
            # Both sides look up one table.
            first = self.side == "decoder" or not has_cross(shape)
            made = FP32 * shape.max_len * shape.dim
            beside = FP32 * positions * shape.dim
            yield Op("ids", INT64 * positions, makes=made, drops=0 if first else made, beside=beside)
        if shape.embed_norm:
            yield from self.norm(residual=False)
        if self.dropout:
            yield Op("dropout", self.stream, makes=self.stream, drops=self.stream)
        if shape.position == "rotary" and not self.low:
            yield Op("rotation", FP32 * self.length * shape.head_dim)
        if shape.attention == "block" and self.side == "encoder" and shape.stem is None:
            # One boolean mask, which every layer keeps.
            yield Op("mask", self.rows)

    def norm(self, residual: bool) -> Iterator[Op]:
        """Input and statistics; RMSNorm, which PyTorch composes, raises its input to fp32 and keeps more of it.

        With `residual` the gradient is added to the residual stream's.
        """
        if self.shape.norm == "layer":
            kept = self.rows * (self.size * self.shape.dim + 2 * FP32)
            yield Op("norm", kept, makes=self.stream, drops=self.stream * (2 if residual else 1))
            return
        full = FP32 * self.rows * self.shape.dim
        if self.low:
            yield Op("norm", makes=self.stream, drops=full + (self.stream if residual else 0))
            residual = False
        yield from self._rms(full, self.rows, full, full if residual else 0)
        if self.low:
            yield Op("matrix copy", self.size * self.shape.dim, makes=full, drops=self.stream)

    def _rms(self, full: int, rows: int, kept: int, added: int = 0) -> Iterator[Op]:
        """RMSNorm as PyTorch composes it: mean of squares, product with its inverse root, product with the weight."""
        yield Op("norm", kept, makes=full, drops=2 * full, beside=2 * full)
        yield Op("norm", makes=full)
        yield Op("norm", FP32 * rows, makes=full, drops=full + added, beside=full)
        yield Op("norm", full, makes=full, drops=full, beside=full)

    def _linear(self, rows: int, inputs: int, outputs: int, keeps: bool = True, shared: bool = False) -> Iterator[Op]:
        """A linear layer; the gradient that comes in is the residual stream's own where it is `shared`."""
        matrix = self.size * inputs * outputs
        taken, made = (self.size * rows * width for width in (outputs, inputs))
        if self.low:
            # The gradient of the copy is raised to fp32, and takes the copy's place meanwhile.
            yield Op("matrix copy", matrix, makes=FP32 * inputs * outputs)
        drops = (0 if shared else taken) + (matrix if self.low else 0)
        scratch = max(matrix, LEAST_SCRATCH) if self.low else 0
        yield Op("linear", made if keeps else 0, makes=made + matrix, drops=drops, beside=scratch)

    def _branch(self) -> Iterator[Op]:
        if self.dropout:
            yield Op("dropout", self.stream, makes=self.stream, drops=self.stream if self.drop_path else 0)
        if self.drop_path:
            factors = self.rows if self.batch.packed else self.batch.size
            yield Op("drop path", self.size * factors, makes=self.stream)

    def _before(self) -> Iterator[Op]:
        """How a branch begins: with a norm, or straight from the residual stream."""
        if self.shape.norm_order == "pre":
            yield from self.norm(residual=True)
        else:
            yield Op("residual", drops=self.stream)

    def _after(self) -> Iterator[Op]:
        yield from self._branch()
        if self.shape.norm_order == "post":
            yield from self.norm(residual=False)

    def self_attention(self) -> Iterator[Op]:
        shape, rows = self.shape, self.rows
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        both = self.wide + self.keys(rows)
        yield from self._before()
        if shape.attention == "gated":
            yield Op("residual", makes=self.stream, drops=2 * self.stream)
        yield from self._linear(rows, shape.dim, width + 2 * kv_width)
        # Gradients of queries, keys and values are put together in two steps, and copied into the projection's order.
        whole, given = both + self.keys(rows), self._key_gradient()
        yield Op("split", makes=whole, drops=whole)
        yield Op("split", makes=whole, drops=both + given)
        if shape.qk_norm:
            yield Op("split", makes=both, drops=both)
            yield from self._head_norms()
        if shape.position == "rotary":
            yield Op("rotation", self.size * self.length * shape.head_dim if self.low else 0, makes=both, drops=both)
        yield Op("split", makes=both, drops=self.wide + given)
        if shape.attention == "block":
            yield from self._blocks()
        else:
            yield from self._attend(rows, self.length, self._mask_rows(), own=True)
        if shape.attention == "gated":
            yield from self._gate()
        copied = self._plain(self.length) or shape.attention != "full" or shape.qk_norm
        yield from self._linear(rows, width, shape.dim, keeps=copied, shared=self.bare)
        yield from self._after()

    def _key_gradient(self) -> int:
        """Gradient of the keys, or of the values, as attention gives it; block attention's has a rim."""
        if self.shape.attention != "block":
            return self.keys(self.rows)
        blocks, window = -(-self.length // self.shape.block_len), 3 if self.side == "encoder" else 2
        return self.keys(self.batch.size * (blocks + window - 1) * self.shape.block_len)

    def _head_norms(self) -> Iterator[Op]:
        """Norms of queries and keys; under autocast their inputs are raised to fp32, else they are the projection."""
        shape, rows = self.shape, self.rows
        if not self.low:
            yield Op("attention", self._projection())
        both = self.wide + self.keys(rows)
        for heads, drops in ((shape.num_heads, both), (shape.num_kv_heads, 0)):
            full = FP32 * rows * heads * shape.head_dim
            if self.low:
                yield Op("norm", makes=full // 2, drops=full)
            yield from list(self._rms(full, rows * heads, full if self.low else 0))[:-1]
            yield Op("norm", full, makes=full, drops=full if self.low else drops, beside=full)
            if self.low:
                yield Op("matrix copy", self.size * shape.head_dim, makes=full, drops=drops)

    def _gate(self) -> Iterator[Op]:
        shape = self.shape
        chances = self.size * self.rows * shape.num_heads
        yield from self._linear(self.rows, shape.dim, shape.num_heads, keeps=False)
        kept = chances + (self.wide if self._plain(self.length) else 0)
        yield Op("attention", kept, makes=self.wide + chances, drops=self.wide, beside=self.wide)

    def cross_attention(self, first: bool, last: bool) -> Iterator[Op]:
        """`first` and `last` of the decoder's layers: all keep the same encoder states, and add to one gradient."""
        shape, rows, key_rows = self.shape, self.rows, self.batch.source_rows
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        yield from self._before()
        yield from self._linear(rows, shape.dim, width)
        if self.low:
            yield Op("split", makes=self.wide, drops=self.wide)
        begun = not last or (shape.reconstruct and self.batch.masked_source > 0)
        yield Op("residual", drops=self.size * key_rows * shape.dim if begun else 0)
        yield from self._linear(key_rows, shape.dim, 2 * kv_width, keeps=first)
        for _ in range(2):
            yield Op("split", makes=2 * self.keys(key_rows), drops=2 * self.keys(key_rows))
        mask_rows = rows if self.batch.packed else self.batch.size
        yield from self._attend(key_rows, self.batch.source_len, mask_rows, own=False)
        plain = self._plain(self.batch.source_len)
        yield from self._linear(rows, width, shape.dim, keeps=plain, shared=self.bare)
        yield from self._after()

    def _mask_rows(self) -> int:
        """Rows of a mask over the keys: one a query when packed, one an example for padding; else none."""
        if self.batch.packed:
            return self.rows
        return self.batch.size if self.side == "encoder" and self.shape.stem is None else 0

    def _plain(self, keys: int) -> bool:
        return self.low and keys <= LONGEST_PLAIN

    def _attend(self, key_rows: int, keys: int, mask_rows: int, own: bool) -> Iterator[Op]:
        """From queries, keys and values, the layer's `own` or an encoder's, to the output of all heads."""
        if self._plain(keys):
            yield from self._products(key_rows, keys)
            return
        heads = self.shape.num_heads * self.rows
        made = self.wide + 2 * self.keys(key_rows)
        yield Op("mask", self.size * mask_rows * keys)
        yield Op("scores", FP32 * heads)
        kept = self._projected(own, key_rows) + self.wide
        yield Op("attention", kept, makes=made, drops=self.wide, beside=self._tiles(keys))

    def _tiles(self, keys: int) -> int:
        """What one thread of the fused kernel works in: scores and their gradients of some queries and keys."""
        tile = min(tile_queries(self.length), self.length) * min(TILE_KEYS, keys)
        return 2 * tile * (FP32 + (self.size if self.low else 0))

    def _products(self, key_rows: int, keys: int) -> Iterator[Op]:
        """Attention in plain products; keys and values are repeated for each head, and copied."""
        scores = self.size * self.shape.num_heads * self.rows * keys
        repeated = self.size * key_rows * self.shape.num_heads * self.shape.head_dim
        if self.shape.num_kv_heads != self.shape.num_heads:
            for _ in range(2):
                yield Op("attention", makes=self.keys(key_rows), drops=repeated)
        yield Op("attention", makes=self.wide, drops=self.wide)
        yield Op("attention", self.wide + repeated, makes=self.wide + repeated, drops=scores)
        yield Op("scores", scores, makes=scores, drops=scores)
        yield Op("attention", repeated, makes=repeated + scores, drops=self.wide)
        yield Op("attention", makes=self.wide, drops=self.wide)

    def _blocks(self) -> Iterator[Op]:
        """Block attention makes its scores again, piece by piece: it keeps queries, keys, values and summaries."""
        shape = self.shape
        blocks = self.batch.size * -(-self.length // shape.block_len)
        means = 2 * self.keys(blocks) if shape.block_summaries else 0
        pieces = block_pieces(shape, self.batch.size, self.length, self.side == "decoder", self.size)
        beside = max(self._piece(piece.blocks * self.batch.size, piece.near, piece.far) for piece in pieces)
        yield Op(
            "attention",
            self._projected(True, self.rows) + means,
            makes=self.wide + 2 * self._key_gradient(),
            drops=self.wide,
            beside=beside + means * FP32 // self.size,
        )

    def _piece(self, blocks: int, near: int, far: int) -> int:
        """The most that lives beside in a piece's backward pass: keys, values, queries, scores and their gradients."""
        shape = self.shape
        rows = blocks * shape.num_heads * shape.block_len
        queries, seen = self.size * rows * shape.head_dim, self.keys(blocks * near)
        scores, copied = self.size * rows * (near + far), self.size * rows * near if self.low else 0
        return 2 * seen + 2 * queries + scores + max(2 * scores, scores + seen + copied, scores + 2 * queries)

    def _projection(self) -> int:
        return self.wide + 2 * self.keys(self.rows)

    def _projected(self, own: bool, key_rows: int) -> int:
        """Queries, keys and values.

        A layer's own queries and keys may be made after the projection, whose output is kept for the values still.
        """
        shape = self.shape
        if not own:
            return self.wide + 2 * self.keys(key_rows)
        fresh = self.wide + self.keys(key_rows) if shape.position == "rotary" or shape.qk_norm else 0
        # Norms of queries and keys keep the projection for longer.
        return fresh + (0 if shape.qk_norm and not self.low else self._projection())

    def mlp(self) -> Iterator[Op]:
        shape, rows = self.shape, self.rows
        inner = self.size * rows * shape.ffn_dim
        yield from self._before()
        yield from self._linear(rows, shape.dim, up_width(shape))
        if shape.activation == "swiglu":
            yield Op("split", makes=2 * inner, drops=2 * inner)
            yield Op("activation", 2 * inner, makes=inner, drops=inner)
            yield Op("activation", inner, makes=2 * inner, drops=inner)
        else:
            # What ReLU gives is all that it and the next layer keep.
            yield Op("activation", inner, makes=inner, drops=inner)
        keeps = shape.activation != "relu"
        yield from self._linear(rows, shape.ffn_dim, shape.dim, keeps=keeps, shared=self.bare)
        yield from self._after()

    def head(self) -> Iterator[Op]:
        """The token loss keeps its gradients, ready made, instead of the logits."""
        shape, rows = self.shape, self.batch.head_rows
        states, table = self.size * rows * shape.dim, FP32 * shape.num_outputs * shape.dim
        read = self.stream
        if isinstance(shape.stem, ImageStem) and not shape.boxes:
            read = self.size * self.batch.size * shape.dim
            yield Op("read-out", makes=self.stream, drops=read)
        # A reconstruction has made a gradient of the same states.
        yield Op("ids", INT64 * rows, makes=read, drops=states + (self.stream if self.masked else 0))
        kept = states + table + (FP32 * shape.num_outputs if shape.head_bias else 0)
        yield Op("gradients", kept, makes=states + table)

    def reconstruction(self) -> Iterator[Op]:
        """Mean squared error at the masked positions, in fp32, of a linear map."""
        dim, rows = self.shape.dim, self.masked
        full = FP32 * rows * dim
        yield Op("ids", 2 * INT64 * rows, makes=self.stream, drops=self.size * rows * dim)
        yield from self._linear(rows, dim, dim)
        if self.low:
            yield Op("cast", makes=self.size * rows * dim, drops=full)
        yield Op("reconstruction", 2 * full, makes=full)
