"""Parameters and matrix products of a model shape, counted without building it.

Every number equals what PyTorch finds on the real module: `parameters` names and sizes each tensor of
`models.Transformer`, `products` lists each matrix product of its forward pass.

FLOPs come with the convention they are counted by; one multiply-add is two.

- `paper6nd`: six a parameter and token (Kaplan 2020; Hoffmann 2022), with the N that was meant.
- `matmul`: matrix products alone, attention and logits counted whole (no discount for causal masks), and no
  recomputation: a backward pass costs twice its forward pass.
- `hardware`: what is really executed (`executed`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.planning.stems import OUT, PIECES, convs, stem_parameters

Convention = Literal["paper6nd", "matmul", "hardware"]

Side = Literal["encoder", "decoder"]

ROUND_TOKENS = 128
"""`models.head.ROUND_TOKENS`."""

PIECE_BYTES = 2**21
"""`models.block_attention.PIECE_BYTES`."""

TILE_KEYS = 512
"""Keys that torch's fused kernel for CPUs takes at one time (FlashAttentionKernel.cpp, 2.13)."""


@dataclass(frozen=True)
class Batch:
    """The sizes of one micro-batch: `size` rows of `source_len` and `target_len` positions, padding included.

    `packed` rows hold several examples one after the other, so that every attention needs a whole mask. `labelled`
    counts the positions that carry a loss (all of the output side's when absent); `masked_source` and
    `masked_target` those to reconstruct.
    """

    size: int
    source_len: int = 0
    target_len: int = 0
    labelled: int | None = None
    packed: bool = False
    masked_source: int = 0
    masked_target: int = 0

    @property
    def source_rows(self) -> int:
        """Positions the encoder works on, padding included."""
        return self.size * self.source_len

    @property
    def target_rows(self) -> int:
        """Positions the decoder works on, padding included."""
        return self.size * self.target_len

    @property
    def loss_rows(self) -> int:
        """Positions that carry a loss."""
        return (self.target_rows or self.source_rows) if self.labelled is None else self.labelled

    @property
    def head_rows(self) -> int:
        """Positions whose logits are made: those with a loss, filled up as `models.head` fills them."""
        return -(-self.loss_rows // ROUND_TOKENS) * ROUND_TOKENS


@dataclass(frozen=True)
class Product:
    """`count` products of an (m, k) by a (k, n) matrix in a forward pass.

    What is `of_data` has no gradient for its first factor: its backward pass costs as much as its forward pass.
    """

    name: str
    m: int
    k: int
    n: int
    count: int = 1
    of_data: bool = False

    @property
    def flops(self) -> int:
        """FLOPs of all `count` products."""
        return 2 * self.m * self.k * self.n * self.count


@dataclass(frozen=True)
class Flops:
    """FLOPs of a training step, with the convention they are counted by.

    `update` is the optimizer's, where the convention counts it; `num_params` the N of `paper6nd`.
    """

    forward: int
    backward: int
    convention: Convention = "matmul"
    update: int = 0
    num_params: int | None = None

    @property
    def step(self) -> int:
        """Forward, backward and update."""
        return self.forward + self.backward + self.update


def parameters(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and sizes of every parameter tensor, in the order of `Transformer(shape).named_parameters()`."""
    return dict(_parameters(shape))


def num_params(shape: Shape) -> int:
    """Trained numbers in the model; tied embeddings count once."""
    return sum(prod(sizes) for sizes in parameters(shape).values())


def matrix_params(shape: Shape) -> int:
    """Trained numbers without the vocabulary's and the positions' tables: N as Kaplan and the Step Law count it."""
    return sum(prod(sizes) for name, sizes in parameters(shape).items() if not name.startswith(("embed.", "head.")))


def products(shape: Shape, batch: Batch) -> list[Product]:
    """Every matrix product of a forward pass with its loss, in order of execution."""
    return list(_products(shape, batch))


def flops(shape: Shape, batch: Batch) -> Flops:
    """FLOPs of a training pass over `batch`, forward with loss and backward."""
    found = products(shape, batch)
    forward = sum(product.flops for product in found)
    return Flops(forward, 2 * forward - sum(product.flops for product in found if product.of_data))


def paper_flops(shape: Shape, batch: Batch, tables: bool = True) -> Flops:
    """6·N·D: D the labelled tokens of `batch`, N all parameters, or those without vocabulary and positions.

    Neither attention nor padding counts; embeddings count as if they were multiplied with, unless left out of N.
    """
    params = num_params(shape) if tables else matrix_params(shape)
    forward = 2 * params * batch.loss_rows
    return Flops(forward, 2 * forward, "paper6nd", num_params=params)


def flops_per_token(shape: Shape, batch: Batch) -> float:
    """Training FLOPs for each labelled token of `batch`."""
    return flops(shape, batch).step / batch.loss_rows


def typical_batch(tokens: float, source_len: float, target_len: float) -> Batch:
    """A batch of about `tokens` labelled tokens made of examples of these mean lengths.

    `source_len` is 0 without an encoder, `target_len` without a decoder. Attention grows with the square of a length,
    so examples of unequal lengths cost a little more than this batch of equal ones.
    """
    size = max(1, round(tokens / (target_len or source_len)))
    return Batch(size=size, source_len=round(source_len), target_len=round(target_len))


def stacks(shape: Shape) -> Iterator[tuple[Side, int]]:
    """The sides of the model and their numbers of layers, in order of execution."""
    if shape.num_encoder_layers:
        yield "encoder", shape.num_encoder_layers
    if shape.num_decoder_layers:
        yield "decoder", shape.num_decoder_layers


def has_cross(shape: Shape) -> bool:
    """Whether the decoder looks at an encoder."""
    return shape.num_encoder_layers > 0 and shape.num_decoder_layers > 0


def block_keys(shape: Shape, length: int, causal: bool) -> tuple[int, int]:
    """Blocks of a sequence under block attention, and the keys each of their queries sees."""
    blocks = -(-length // shape.block_len)
    return blocks, (2 if causal else 3) * shape.block_len + (blocks if shape.block_summaries else 0)


def tile_queries(queries: int) -> int:
    """Queries that the fused kernel takes at one time."""
    return 256 if queries >= 768 else 64 if queries >= 192 else 32


@dataclass(frozen=True)
class BlockPiece:
    """Blocks of each row that block attention takes at one time; each sees `near` keys and `far` summaries."""

    blocks: int
    near: int
    far: int


def block_pieces(shape: Shape, size: int, length: int, causal: bool, number_bytes: int) -> Iterator[BlockPiece]:
    """The pieces in which `models.block_attention` takes `size` sequences on a CPU, of numbers of that many bytes."""
    blocks, keys = block_keys(shape, length, causal)
    near = (2 if causal else 3) * shape.block_len
    numbers = shape.num_heads * shape.block_len * keys + 2 * shape.num_kv_heads * near * shape.head_dim
    step = max(1, PIECE_BYTES // (size * numbers * number_bytes))
    for start in range(0, blocks, step):
        end = min(start + step, blocks)
        summaries = keys - near
        yield BlockPiece(end - start, near, min(summaries, max(end - 2, 0)) if causal else summaries)


def _parameters(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    if shape.stem is None:
        yield "embed.tokens.weight", (shape.vocab_size, shape.dim)
    else:
        yield from stem_parameters(shape, shape.stem)
    if shape.position == "learned":
        yield "embed.position.table", (shape.max_len, shape.dim)
    if shape.embed_norm:
        yield from _norm("embed.norm", shape)
    for side, num_layers in stacks(shape):
        for index in range(num_layers):
            yield from _block(f"{side}.layers.{index}", shape, side == "decoder" and has_cross(shape))
        if shape.norm_order == "pre":
            yield from _norm(f"{side}.norm", shape)
    if not shape.tied_head:
        yield "head.weight", (shape.num_outputs, shape.dim)
    if shape.head_bias:
        yield "head.bias", (shape.num_outputs,)
    if shape.boxes:
        yield from _linear("box_head.hidden", shape.dim, shape.dim, True)
        yield from _linear("box_head.out", shape.dim, 4, True)
    if shape.reconstruct:
        for side, _ in stacks(shape):
            yield from _linear(f"{side}_reconstruction.map", shape.dim, shape.dim, True)


def _block(name: str, shape: Shape, cross: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield from _norm(f"{name}.attention_norm", shape)
    yield from _linear(f"{name}.attention.qkv", shape.dim, width + 2 * kv_width, shape.bias)
    yield from _linear(f"{name}.attention.out", width, shape.dim, shape.bias)
    if shape.qk_norm:
        yield f"{name}.attention.query_norm.weight", (shape.head_dim,)
        yield f"{name}.attention.key_norm.weight", (shape.head_dim,)
    if shape.attention == "gated":
        yield from _linear(f"{name}.attention.gate", shape.dim, shape.num_heads, True)
    if cross:
        yield from _norm(f"{name}.cross_norm", shape)
        yield from _linear(f"{name}.cross.query", shape.dim, width, shape.bias)
        yield from _linear(f"{name}.cross.kv", shape.dim, 2 * kv_width, shape.bias)
        yield from _linear(f"{name}.cross.out", width, shape.dim, shape.bias)
    yield from _norm(f"{name}.mlp_norm", shape)
    yield from _linear(f"{name}.mlp.up", shape.dim, up_width(shape), shape.bias)
    yield from _linear(f"{name}.mlp.down", shape.ffn_dim, shape.dim, shape.bias)


def up_width(shape: Shape) -> int:
    """Outputs of the first feed-forward map: SwiGLU makes a gate and a value."""
    return 2 * shape.ffn_dim if shape.activation == "swiglu" else shape.ffn_dim


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (shape.dim,)
    if shape.norm == "layer":
        yield f"{name}.bias", (shape.dim,)


def _products(shape: Shape, batch: Batch) -> Iterator[Product]:
    cross = has_cross(shape)
    if isinstance(shape.stem, ImageStem):
        for index, conv in enumerate(convs(shape.dim, shape.stem)):
            yield Product(conv.name, batch.size * conv.positions, conv.inputs, conv.outputs, of_data=index == 0)
        yield Product(OUT, batch.size * shape.stem.num_patches, conv.outputs, shape.dim)
    if isinstance(shape.stem, TableStem) and shape.stem.pieces:
        yield Product(PIECES, batch.size, shape.stem.pieces, shape.dim, shape.stem.num_numeric, of_data=True)
    for index in range(shape.num_encoder_layers):
        yield from _self_attention(f"encoder.layers.{index}", shape, batch.size, batch.source_len, False)
        yield from _mlp(f"encoder.layers.{index}", shape, batch.source_rows)
    for index in range(shape.num_decoder_layers):
        yield from _self_attention(f"decoder.layers.{index}", shape, batch.size, batch.target_len, True)
        if cross:
            yield from _cross_attention(f"decoder.layers.{index}", shape, batch)
        yield from _mlp(f"decoder.layers.{index}", shape, batch.target_rows)
    if shape.reconstruct:
        for side, _ in stacks(shape):
            rows = batch.masked_source if side == "encoder" else batch.masked_target
            yield Product(f"{side}_reconstruction.map", rows, shape.dim, shape.dim)
    if shape.boxes and isinstance(shape.stem, ImageStem):
        # Every patch has classes and a box.
        rows = batch.size * shape.stem.num_patches
        yield Product("box_head.hidden", rows, shape.dim, shape.dim)
        yield Product("box_head.out", rows, shape.dim, 4)
        yield Product("head", rows, shape.dim, shape.num_outputs)
        return
    yield Product("head", batch.head_rows, shape.dim, shape.num_outputs)


def _self_attention(name: str, shape: Shape, size: int, length: int, causal: bool) -> Iterator[Product]:
    rows, width = size * length, shape.num_heads * shape.head_dim
    yield Product(f"{name}.attention.qkv", rows, shape.dim, width + 2 * shape.num_kv_heads * shape.head_dim)
    if shape.attention == "block":
        blocks, keys = block_keys(shape, length, causal)
        yield from _attend(f"{name}.attention", shape, size * blocks, shape.block_len, keys)
    else:
        yield from _attend(f"{name}.attention", shape, size, length, length)
    if shape.attention == "gated":
        yield Product(f"{name}.attention.gate", rows, shape.dim, shape.num_heads)
    yield Product(f"{name}.attention.out", rows, width, shape.dim)


def _cross_attention(name: str, shape: Shape, batch: Batch) -> Iterator[Product]:
    width = shape.num_heads * shape.head_dim
    yield Product(f"{name}.cross.query", batch.target_rows, shape.dim, width)
    yield Product(f"{name}.cross.kv", batch.source_rows, shape.dim, 2 * shape.num_kv_heads * shape.head_dim)
    yield from _attend(f"{name}.cross", shape, batch.size, batch.target_len, batch.source_len)
    yield Product(f"{name}.cross.out", batch.target_rows, width, shape.dim)


def _attend(name: str, shape: Shape, size: int, queries: int, keys: int) -> Iterator[Product]:
    yield Product(f"{name}.scores", queries, shape.head_dim, keys, size * shape.num_heads)
    yield Product(f"{name}.values", queries, keys, shape.head_dim, size * shape.num_heads)


def _mlp(name: str, shape: Shape, rows: int) -> Iterator[Product]:
    yield Product(f"{name}.mlp.up", rows, shape.dim, up_width(shape))
    yield Product(f"{name}.mlp.down", rows, shape.ffn_dim, shape.dim)
