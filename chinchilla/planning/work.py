"""What one optimizer step asks of machines: FLOPs, gradients, activations across a cut, memory."""

from collections import Counter
from dataclasses import dataclass

from chinchilla.config.estimate import Source
from chinchilla.config.machine import Precision
from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import BYTES, FP32
from chinchilla.planning.count import Batch, flops, has_cross, num_params, products
from chinchilla.planning.exchange_memory import gradient_buckets
from chinchilla.planning.memory import memory
from chinchilla.planning.stages import Piece, beside, cuts, pieces


@dataclass(frozen=True)
class Work:
    """One optimizer step, as the planner of layouts sees it.

    `layer_shares` are each layer's share of the FLOPs, in order, and sum to 1; `cut_bytes` the activations that cross
    the cut after each layer but the last, one way, in a whole step; `pieces` what stages hold, and `beside_bytes` what
    each layer needs beside on its way back (`stages`); `layer_exchanges` the sizes of each layer's all-reduces in a
    whole step under tensor parallelism; `saved_bytes` the activations kept for the backward pass of one of the
    `micro_batches`; `peak_bytes` the most at one time on one device, to which data parallelism adds `buckets` of
    gradients (`exchange_memory`).
    `rows` is the number of examples that a step can be divided into; None: any share will do. `efficiency` is the
    share of a node's FLOP/s that training reaches, `source` and `spread` what a time rests on and how sure it is.
    """

    flops: float
    num_params: int
    precision: Precision
    layer_shares: tuple[float, ...]
    cut_bytes: tuple[float, ...]
    pieces: tuple[Piece, ...]
    beside_bytes: tuple[float, ...]
    layer_exchanges: tuple[tuple[float, ...], ...]
    saved_bytes: float
    peak_bytes: float
    buckets: tuple[int, ...]
    rows: int | None = None
    micro_batches: int = 1
    efficiency: float = 1.0
    source: Source = "datasheet"
    spread: float = 0.25

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients, which are fp32."""
        return FP32 * self.num_params

    @property
    def num_layers(self) -> int:
        """Layers that a pipeline can be cut between."""
        return len(self.layer_shares)


def step_work(shape: Shape, batch: Batch, training: Training, efficiency: float, source: Source, spread: float) -> Work:
    """The work of a step of `training.accumulation` micro-batches like `batch`."""
    held = memory(
        shape,
        batch,
        training.precision,
        training.optimizer,
        ema=training.ema_decay > 0,
        dropout=training.dropout > 0,
        drop_path=training.drop_path > 0,
        accumulation=training.accumulation,
        recompute=training.recompute,
    )
    number_bytes = training.accumulation * BYTES[training.precision]
    return Work(
        flops=training.accumulation * flops(shape, batch).step,
        num_params=num_params(shape),
        precision=training.precision,
        layer_shares=layer_shares(shape, batch),
        cut_bytes=cuts(shape, batch, number_bytes),
        pieces=pieces(shape, batch, training, held),
        beside_bytes=beside(shape, batch, training, held),
        layer_exchanges=layer_exchanges(shape, batch, number_bytes),
        saved_bytes=held.saved,
        peak_bytes=held.peak,
        buckets=tuple(gradient_buckets(shape)),
        rows=training.accumulation * batch.size,
        micro_batches=training.accumulation,
        efficiency=efficiency,
        source=source,
        spread=spread,
    )


def layer_exchanges(shape: Shape, batch: Batch, number_bytes: int) -> tuple[tuple[float, ...], ...]:
    """Sizes of each layer's all-reduces under tensor parallelism (Shoeybi 2019, §3), in order of execution.

    Each of a layer's blocks adds up its output going forward, and the gradient of its input going backward. A
    cross-attention reads two inputs: its gradient of the encoder's output is added up too.
    """
    source, target = (float(number_bytes * rows * shape.dim) for rows in (batch.source_rows, batch.target_rows))
    encoder = (source,) * 4
    decoder = (*(target,) * 6, source) if has_cross(shape) else (target,) * 4
    return (encoder,) * shape.num_encoder_layers + (decoder,) * shape.num_decoder_layers


def layer_shares(shape: Shape, batch: Batch) -> tuple[float, ...]:
    """Each layer's share of the FLOPs in order of execution; what belongs to no layer goes with the one before it.

    A stem, before which there is none, goes with the first.
    """
    totals: Counter[str] = Counter()
    for product in products(shape, batch):
        side, _, rest = product.name.partition(".layers.")
        last = next(reversed(totals), "")
        totals[f"{side}.{rest.split('.')[0]}" if rest else last] += product.flops
    stem = totals.pop("", 0)
    totals[next(iter(totals))] += stem
    return tuple(size / totals.total() for size in totals.values())
