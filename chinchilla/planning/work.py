"""What one optimizer step asks of machines: FLOPs, gradients, activations across a cut, memory."""

from collections import Counter
from dataclasses import dataclass

from chinchilla.config.estimate import Source
from chinchilla.config.machine import Precision
from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import BYTES, FP32
from chinchilla.planning.count import Batch, flops, num_params, products
from chinchilla.planning.memory import memory


@dataclass(frozen=True)
class Work:
    """One optimizer step, as the planner of layouts sees it.

    `layer_shares` are each layer's share of the FLOPs, in order, and sum to 1; `boundary_bytes` the activations that
    cross a cut between two layers in a whole step; `saved_bytes` those kept for the backward pass of one of the
    `micro_batches`; `state_bytes` what lives all through training; `peak_bytes` the most at one time on one device.
    `rows` is the number of examples that a step can be divided into; None: any share will do. `efficiency` is the
    share of a node's FLOP/s that training reaches, `source` and `spread` what a time rests on and how sure it is.
    """

    flops: float
    num_params: int
    precision: Precision
    layer_shares: tuple[float, ...]
    boundary_bytes: float
    state_bytes: float
    saved_bytes: float
    peak_bytes: float
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
    rows = batch.source_rows + batch.target_rows
    return Work(
        flops=training.accumulation * flops(shape, batch).step,
        num_params=num_params(shape),
        precision=training.precision,
        layer_shares=_layer_shares(shape, batch),
        boundary_bytes=training.accumulation * BYTES[training.precision] * rows * shape.dim,
        state_bytes=held.state.total,
        saved_bytes=held.saved,
        peak_bytes=held.peak,
        rows=training.accumulation * batch.size,
        micro_batches=training.accumulation,
        efficiency=efficiency,
        source=source,
        spread=spread,
    )


def _layer_shares(shape: Shape, batch: Batch) -> tuple[float, ...]:
    """Each layer's share of the FLOPs in order of execution; what belongs to no layer goes with the last one."""
    totals: Counter[str] = Counter()
    for product in products(shape, batch):
        side, _, rest = product.name.partition(".layers.")
        last = next(reversed(totals), "")
        totals[f"{side}.{rest.split('.')[0]}" if rest else last] += product.flops
    return tuple(size / totals.total() for size in totals.values())
