"""Whether training a shape fits the memory, with its activations kept or computed again."""

from dataclasses import dataclass

from chinchilla.config.adapter import Adapter
from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch
from chinchilla.planning.memory import memory


@dataclass(frozen=True)
class Room:
    """Memory for training's tensors, and how its steps are taken.

    `size_bytes` is what limits and machine leave beside the process. A step has `accumulation` micro-batches like
    `batch`, `workers` of them at one time. `recompute` says whether to compute activations again; None leaves it open.
    """

    size_bytes: int
    batch: Batch
    precision: Precision
    optimizer: OptimizerKind
    accumulation: int = 1
    workers: int = 1
    dropout: bool = False
    drop_path: bool = False
    ema: bool = False
    recompute: bool | None = None
    adapter: Adapter | None = None

    def peak(self, shape: Shape, recompute: bool) -> int:
        """Bytes of tensors at most: a step's, and a checkpoint's copies on their way to the disk."""
        needs = memory(
            shape,
            self.batch,
            self.precision,
            self.optimizer,
            ema=self.ema,
            dropout=self.dropout,
            drop_path=self.drop_path,
            accumulation=self.accumulation,
            recompute=recompute,
            workers=self.workers,
            adapter=self.adapter,
        )
        return needs.peak + needs.state.weights - needs.state.frozen + needs.state.optimizer

    def way(self, shape: Shape) -> bool | None:
        """Whether activations must be computed again; None where the shape does not fit even so.

        Keeping them saves a third of the work, so that they are computed again only where there is no room.
        """
        ways = (False, True) if self.recompute is None else (self.recompute,)
        return next((way for way in ways if self.peak(shape, way) <= self.size_bytes), None)
