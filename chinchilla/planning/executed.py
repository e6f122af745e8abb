"""FLOPs that a training step really executes: the `hardware` convention.

Matrix products alone, eager, on a CPU. What differs from `matmul`: the head's gradients are made in the forward pass,
fused and block attention make their scores again, the fused kernel skips tiles that a causal mask hides, block
attention's pieces leave out later summaries, activations may be computed again, and Muon has Newton-Schulz products.
Padding and the filled-up rows of the head are executed, and counted in both.
"""

from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.count import (
    TILE_KEYS,
    Batch,
    Flops,
    Side,
    block_pieces,
    has_cross,
    parameters,
    products,
    stacks,
    tile_queries,
)
from chinchilla.planning.machine import newton_schulz_flops
from chinchilla.planning.memory import muon_matrices
from chinchilla.planning.operators import BYTES, LONGEST_PLAIN


def executed(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    optimizer: OptimizerKind,
    *,
    dropout: bool = False,
    drop_path: bool = False,
    accumulation: int = 1,
    recompute: bool = False,
) -> Flops:
    """FLOPs of one optimizer step over `accumulation` micro-batches like `batch`."""
    plain = [product for product in products(shape, batch) if not product.name.endswith(("scores", "values"))]
    linear, head = sum(product.flops for product in plain), plain[-1].flops
    attend, attend_back = _attention(shape, batch, precision)
    backward = 2 * (linear - head) - sum(product.flops for product in plain if product.of_data) + attend_back
    if recompute:
        changed = dropout or drop_path
        backward += attend + sum(p.flops for p in plain if ".layers." in p.name and _again(shape, p.name, changed))
    return Flops(
        forward=accumulation * (linear + 2 * head + attend),
        backward=accumulation * backward,
        convention="hardware",
        update=_update(shape) if optimizer == "muon" else 0,
    )


def _again(shape: Shape, name: str, changed: bool) -> bool:
    """Whether a product is made again: a block's last is not where nothing that follows it is kept."""
    return not name.endswith("mlp.down") or changed or shape.norm_order == "post"


def _attention(shape: Shape, batch: Batch, precision: Precision) -> tuple[int, int]:
    """FLOPs of all attention, forward and backward."""
    forward = backward = 0
    for side, num_layers in stacks(shape):
        for cross in (False, True) if side == "decoder" and has_cross(shape) else (False,):
            pairs, remade = _pairs(shape, batch, precision, side, cross)
            one = 2 * shape.head_dim * shape.num_heads * batch.size * pairs * num_layers
            forward += 2 * one
            backward += (5 if remade else 4) * one
    return forward, backward


def _pairs(shape: Shape, batch: Batch, precision: Precision, side: Side, cross: bool) -> tuple[int, bool]:
    """Pairs of a query and a key in one example and head, and whether their scores are made again going backward."""
    queries = batch.source_len if side == "encoder" else batch.target_len
    keys = batch.source_len if cross else queries
    causal = side == "decoder" and not cross
    if shape.attention == "block" and not cross:
        pieces = block_pieces(shape, batch.size, queries, causal, BYTES[precision])
        return sum(piece.blocks * shape.block_len * (piece.near + piece.far) for piece in pieces), True
    if precision == "bf16" and keys <= LONGEST_PLAIN:
        return queries * keys, False
    if not causal or batch.packed:
        return queries * keys, True
    return _causal_pairs(queries), True


def _causal_pairs(length: int) -> int:
    """Pairs that the fused kernel looks at under a causal mask: whole tiles, up to the last that is not all masked."""
    tile = tile_queries(length)
    pairs = 0
    for start in range(0, length, tile):
        end = min(start + tile, length)
        pairs += (end - start) * min(length, -(-end // TILE_KEYS) * TILE_KEYS)
    return pairs


def _update(shape: Shape) -> int:
    return sum(newton_schulz_flops(*sizes) for sizes in muon_matrices(parameters(shape)))
