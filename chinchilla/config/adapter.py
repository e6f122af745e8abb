"""What is trained beside a frozen model."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from chinchilla.config.frozen import Frozen

AdapterKind = Literal["lora", "adalora", "bottleneck"]
Target = Literal["attention.qkv", "attention.out", "cross.query", "cross.kv", "cross.out", "mlp.up", "mlp.down"]

TARGETS: tuple[Target, ...] = (
    "attention.qkv",
    "attention.out",
    "cross.query",
    "cross.kv",
    "cross.out",
    "mlp.up",
    "mlp.down",
)
BRANCH_ENDS: tuple[Target, ...] = ("attention.out", "cross.out", "mlp.down")
"""The maps whose output is a residual branch's: where a bottleneck can stand."""

_IN_BLOCK = re.compile(r"(?:encoder|decoder)\.layers\.\d+\.(.+)")


class Allotment(Frozen):
    """How AdaLoRA comes from its first ranks down to its budget."""

    first_rank: PositiveInt | None = Field(None, description="of every map at the start; 1.5 times the rank if absent")
    orthogonality: NonNegativeFloat = Field(0.1, description="weight of the penalty on directions that are not")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.85, description="how much of the last step's importance and of its uncertainty is kept"
    )
    hold: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of the steps before ranks are taken away")
    settle: Annotated[float, Field(gt=0, lt=1)] = Field(0.4, description="share of the steps after the last of them")
    every: PositiveInt = Field(10, description="steps between two allotments, in which what was cut may come back")

    @model_validator(mode="after")
    def _leaves_time(self) -> Self:
        if self.hold + self.settle >= 1:
            raise ValueError(f"hold ({self.hold}) and settle ({self.settle}) leave no steps to take ranks away in")
        return self


class Adapter(Frozen):
    """A small part to train, the rest of the model frozen.

    `lora`: low-rank additions to linear maps (Hu 2021); `adalora`: the same, their ranks allotted by importance
    (Zhang 2023); `bottleneck`: a narrow layer behind each residual branch (Houlsby 2019).
    """

    kind: AdapterKind = "lora"
    rank: PositiveInt = Field(8, description="of each addition; AdaLoRA's mean at the end; a bottleneck's width")
    alpha: PositiveFloat | None = Field(
        None, description="LoRA and AdaLoRA: additions are scaled by alpha / rank; twice the rank if absent"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="on what goes into the adapter")
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] | None = Field(
        None, description="maps to adapt; absent, all in the blocks (a bottleneck: all that end a branch)"
    )
    also: tuple[Literal["norms", "head"], ...] = Field(
        (), description="what else is trained, in full; the head of a new task has to be"
    )
    allot: Allotment = Field(Allotment(), description="AdaLoRA's allotment of ranks")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "bottleneck" and self.alpha is not None:
            raise ValueError("a bottleneck is not scaled: leave out alpha")
        if self.kind == "bottleneck" and not set(self.targets or ()) <= set(BRANCH_ENDS):
            raise ValueError(f"a bottleneck stands where a branch ends: targets are of {', '.join(BRANCH_ENDS)}")
        if self.kind == "adalora" and self.first_rank < self.rank:
            raise ValueError(f"allot.first_rank ({self.first_rank}) is below the rank ({self.rank}) to come down to")
        return self

    @property
    def maps(self) -> tuple[Target, ...]:
        """The targets, by the kind where none are named."""
        return self.targets or (BRANCH_ENDS if self.kind == "bottleneck" else TARGETS)

    @property
    def scale(self) -> float:
        """What an addition is multiplied by."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def first_rank(self) -> int:
        """The rank that an addition begins with."""
        if self.kind != "adalora":
            return self.rank
        return self.allot.first_rank or (3 * self.rank + 1) // 2

    def adapts(self, name: str) -> bool:
        """Whether a linear map gets an adapter; `name` is as in `Transformer.named_modules()`."""
        found = _IN_BLOCK.fullmatch(name)
        return found is not None and found[1] in self.maps

    def trains(self, name: str) -> bool:
        """Whether a parameter of the model itself is trained; `name` is as in `Transformer.named_parameters()`."""
        return ("norms" in self.also and "norm" in name) or ("head" in self.also and name.startswith("head."))
