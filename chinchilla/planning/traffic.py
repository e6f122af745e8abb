"""Bytes that each operator of a step moves, and its FLOPs: the points of a roofline plot (Williams 2009).

An operator reads what it takes once and writes what it gives once; nothing stays in a cache between two operators. What
a fused or a chunked loop keeps in cache (scores, chances of the logits) isn't moved. Copies of weights under autocast,
masks and what is a number a row are left out, as are gathers of single rows, and all of a table's stem.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from chinchilla.config.machine import Machine, Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.config.units import show_bytes, show_count
from chinchilla.planning.count import Batch, Product, has_cross, parameters, products, stacks
from chinchilla.planning.latency import Request
from chinchilla.planning.machine import newton_schulz_flops
from chinchilla.planning.memory import muon_matrices
from chinchilla.planning.operators import BYTES, FP32, INT64, LONGEST_PLAIN
from chinchilla.planning.stems import convs
from chinchilla.planning.step_model import NEWTON_SCHULZ_STEPS

ADAMW_PASSES = 7
"""Numbers that a fused AdamW reads and writes for one: weight, gradient and two moments; weight and moments."""

CLIP_PASSES = 3
"""Reading a gradient for its norm; reading and writing it to scale it."""

MUON_PASSES = 8
"""Momentum (two read, one written), its blend (two, one), and the update of the weight (one and one)."""


@dataclass(frozen=True)
class Traffic:
    """What one kind of operator does in a step, forward and backward: `flops` of products, `size_bytes` moved."""

    operator: str
    flops: int
    size_bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte: left of a machine's ratio of the two rates, its memory is what limits the operator."""
        return self.flops / self.size_bytes


def step_traffic(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    optimizer: OptimizerKind,
    *,
    dropout: bool = False,
    accumulation: int = 1,
) -> list[Traffic]:
    """Traffic of one optimizer step over `accumulation` micro-batches like `batch`, by operator, the most first.

    FLOPs are by the `matmul` convention, with Muon's products under `optimizer`.
    """
    moved, done = Counter[str](), Counter[str]()
    for product in products(shape, batch):
        done[_operator(product)] += 3 * accumulation * product.flops
        moved[_operator(product)] += 3 * accumulation * _moved(product, precision)
    for operator, size_bytes in _elementwise(shape, batch, BYTES[precision], dropout):
        moved[operator] += accumulation * size_bytes
    moved["optimizer"], done["optimizer"] = _update(shape, optimizer, precision)
    return _sorted(moved, done)


def told_step(found: Sequence[Traffic], machine: Machine, precision: Precision) -> tuple[str, str]:
    """What a step does and moves, and which of a machine's two rates is the narrower for it, in words."""
    done, moved = sum(each.flops for each in found), sum(each.size_bytes for each in found)
    even = machine.flops_per_s(precision) / machine.bytes_per_s
    narrow = f"at {even:.3g} {precision} products and memory are even here; " + (
        "products limit it" if done / moved > even else "memory limits it"
    )
    most = f"{found[0].operator} moves {found[0].size_bytes / moved:.0%}"
    return f"{show_count(done)} FLOP, {show_bytes(moved)} moved", f"{done / moved:.3g} FLOP a byte; {narrow}; {most}"


def decoding_traffic(
    shape: Shape, rows: int, past: int, *, source_len: int = 0, number_bytes: int = FP32
) -> list[Traffic]:
    """Traffic of one decoding step: a new position in each of `rows`, after `past` others, by operator.

    Weights are read once for all rows, the cache once for each: why small batches decode at memory's speed. Block
    attention reads its cache whole.
    """
    moved, done = Counter[str](), Counter[str]()
    for product in _decoded(shape, rows):
        done[_operator(product)] += product.flops
        moved[_operator(product)] += number_bytes * _numbers(product)
    keys = past + 1 + (source_len if has_cross(shape) else 0)
    queries = rows * shape.num_decoder_layers * shape.num_heads * shape.head_dim
    done["attention"] = 4 * queries * keys
    held = rows * shape.num_decoder_layers * shape.num_kv_heads * shape.head_dim * keys
    moved["attention"] = 2 * number_bytes * (queries * (2 if has_cross(shape) else 1) + held)
    return _sorted(moved, done)


def token_bytes(shape: Shape, request: Request) -> int:
    """Bytes that a pass of the decoder moves halfway through a typical answer in fp32; 0 where nothing is decoded."""
    if not request.new_tokens:
        return 0
    past, source_len = request.new_tokens // 2, request.prompt_len
    if not has_cross(shape):
        past, source_len = past + source_len, 0
    found = decoding_traffic(shape, request.beam_size, past, source_len=source_len)
    return sum(each.size_bytes for each in found)


def _decoded(shape: Shape, rows: int) -> Iterator[Product]:
    """Products of one decoding step but attention's own; an encoder's keys and values are cached."""
    for product in products(shape, Batch(rows, 1, 1, labelled=rows)):
        name = product.name
        if name == "head":
            yield Product(name, rows, product.k, product.n)
        elif name.startswith("decoder.") and not name.endswith(("scores", "values", "cross.kv")):
            yield product


def _operator(product: Product) -> str:
    """The kind of operator that a product belongs to."""
    name = product.name.rpartition(".")[2]
    if name in ("scores", "values"):
        return "attention"
    return {"head": "logits", "map": "reconstruction", "query": "cross.query", "kv": "cross.kv"}.get(name, name)


def _numbers(product: Product) -> int:
    return product.count * (product.m * product.k + product.k * product.n + product.m * product.n)


def _moved(product: Product, precision: Precision) -> int:
    """Bytes that one pass of a product moves: both factors and the result; attention's are counted with its own."""
    return 0 if _operator(product) == "attention" else BYTES[precision] * _numbers(product)


def _elementwise(shape: Shape, batch: Batch, size: int, dropout: bool) -> Iterator[tuple[str, int]]:
    """Bytes of all that is no product, forward and backward, and of attention's own loops."""
    table = FP32 * (0 if shape.stem else shape.vocab_size) * shape.dim
    if isinstance(shape.stem, ImageStem):
        yield "stem", batch.size * _stem(shape.dim, shape.stem, size)
    for side, num_layers in stacks(shape):
        rows, length = (
            (batch.source_rows, batch.source_len) if side == "encoder" else (batch.target_rows, batch.target_len)
        )
        cross = side == "decoder" and has_cross(shape)
        yield "embedding", 3 * FP32 * rows * shape.dim + 2 * table
        norms = num_layers * (3 if cross else 2) + (shape.norm_order == "pre")
        yield "norm", norms * _norm(shape, rows, size)
        for _ in range(num_layers):
            yield from _layer(shape, rows, length, size)
            yield "attention", _attention(shape, rows, rows, length, size)
            if cross:
                yield "attention", _attention(shape, rows, batch.source_rows, batch.source_len, size)
                yield "split", 2 * 2 * 2 * size * batch.source_rows * shape.num_kv_heads * shape.head_dim
            # The sum, the gradients' sum, and dropout with its mask.
            yield "residual", (3 if cross else 2) * (6 + (7 if dropout else 0)) * size * rows * shape.dim
    states, rows = size * batch.head_rows * shape.dim, size * (batch.target_rows or batch.source_rows) * shape.dim
    # Chances are made of logits, and gradients in their place, chunk by chunk in cache; states gathered and scattered.
    matrix = FP32 * shape.num_outputs * shape.dim
    yield "logits", 2 * size * batch.head_rows * shape.num_outputs + 6 * states + rows + 2 * matrix


def _stem(dim: int, stem: ImageStem, size: int) -> int:
    """What an image's convolutions are normed, pooled and cut off by: ReLU and LayerNorm take five passes each.

    Pooling reads all and writes what it keeps, and where that was; going backward it writes all.
    """
    moved = 0
    for conv in convs(dim, stem):
        moved += (10 if stem.pooled else 5) * size * conv.kept * conv.outputs
        if conv.kept < conv.positions:
            moved += (2 * size * conv.positions + 2 * (size + INT64) * conv.kept) * conv.outputs
    return moved


def _layer(shape: Shape, rows: int, length: int, size: int) -> Iterator[tuple[str, int]]:
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    both = size * rows * (width + kv_width)
    if shape.position == "rotary":
        # Each half is written, then read and written again with the other's part; the same going backward.
        yield "rotation", 10 * both
    if shape.qk_norm:
        yield "norm", 31 * FP32 * rows * (width + kv_width)
    # Gradients are put together twice, and copied into the projection's order.
    yield "split", 2 * both + 2 * 2 * size * rows * (width + 2 * kv_width)
    if shape.attention == "gated":
        yield "gate", 9 * size * rows * width
    passes = {"relu2": 9, "swiglu": 18}.get(shape.activation, 5)
    yield "activation", passes * size * rows * shape.ffn_dim


def _norm(shape: Shape, rows: int, size: int) -> int:
    """LayerNorm reads and writes, then reads two and writes one; RMSNorm is composed, in fp32, of 31 passes."""
    if shape.norm == "layer":
        return 5 * size * rows * shape.dim
    casts = 0 if size == FP32 else 4 * (size + FP32) // 2
    return (31 * FP32 + casts) * rows * shape.dim


def _attention(shape: Shape, rows: int, key_rows: int, keys: int, size: int) -> int:
    """Two queries' worth and two of keys forward, four and four backward; scores too where they are not in cache."""
    queries = size * rows * shape.num_heads * shape.head_dim
    own = size * key_rows * shape.num_kv_heads * shape.head_dim
    if shape.attention == "block" or size == FP32 or keys > LONGEST_PLAIN:
        return 6 * queries + 6 * own
    repeated = size * key_rows * shape.num_heads * shape.head_dim
    scores = size * rows * shape.num_heads * keys
    # Copies for the products, the products themselves, mask and softmax; the same going backward.
    return 18 * queries + 12 * repeated + 13 * scores


def _update(shape: Shape, optimizer: OptimizerKind, precision: Precision) -> tuple[int, int]:
    """Bytes and FLOPs of clipping and one update."""
    tensors = parameters(shape)
    muon = muon_matrices(tensors) if optimizer == "muon" else []
    numbers, muon_numbers = sum(map(prod, tensors.values())), sum(map(prod, muon))
    moved = FP32 * ((CLIP_PASSES + ADAMW_PASSES) * numbers + (MUON_PASSES - ADAMW_PASSES) * muon_numbers)
    for rows, columns in muon:
        short = min(rows, columns)
        # Rounds of three products, with factors and result.
        moved += NEWTON_SCHULZ_STEPS * BYTES[precision] * 5 * (rows * columns + short * short)
    return moved, sum(newton_schulz_flops(*sizes) for sizes in muon)


def _sorted(moved: Counter[str], done: Counter[str]) -> list[Traffic]:
    return [Traffic(operator, done[operator], size) for operator, size in moved.most_common() if size]
