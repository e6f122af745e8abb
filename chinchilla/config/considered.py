"""What a plan keeps of its choice: the shapes that were weighed, and the law that it was made by."""

from typing import Self

from pydantic import Field, model_validator

from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen
from chinchilla.config.shape import Shape


class Considered(Frozen):
    """A shape that was weighed for the budget, and what training it is thought to come to.

    `loss` is validation loss in nats a token, `latency_s` one typical answer, `memory_bytes` the peak of training. The
    chosen shape's are the plan's; another's are the chosen one's times a ratio, and their source is the ratio's:
    of the loss `measured` or `guess` as the probes reach, `law` within a law's range. `on_front`: no other is as good
    in loss, size, latency and memory, and better in one.
    """

    shape: Shape
    num_params: int
    size_bytes: int
    loss: Estimate
    latency_s: Estimate
    memory_bytes: Estimate
    on_front: bool


class Frontier(Frozen):
    """The law L = E + A/N^alpha + B/D^beta of a choice, and its best sizes by compute 6·N·D.

    `best` parameters at each of `flops`, with p10 `low` and p90 `high`; the law was fitted from `fitted[0]` to
    `fitted[1]` FLOPs. D counts fresh tokens.
    """

    name: str
    irreducible: float
    param_scale: float
    token_scale: float
    param_exponent: float
    token_exponent: float
    fitted: tuple[float, float]
    flops: tuple[float, ...] = Field(min_length=2)
    low: tuple[float, ...]
    best: tuple[float, ...]
    high: tuple[float, ...]

    @model_validator(mode="after")
    def _even(self) -> Self:
        if not len(self.flops) == len(self.low) == len(self.best) == len(self.high):
            raise ValueError("a best size, low and high for each compute")
        return self
