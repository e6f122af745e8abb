"""How inputs are disturbed: to train against it, and to see what is left of a score."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from chinchilla.config.frozen import Frozen

AttackKind = Literal["fgsm", "pgd"]
"""Attacks that an input's disturbance is sought by, from nothing."""


class Attack(Frozen):
    """The disturbance within reach that raises the loss most, sought by its gradient.

    `fgsm`: one step from a random place (Goodfellow 2015, arXiv 1412.6572; random start: Wong 2020, arXiv 2001.03994).
    `pgd`: several (Madry 2018, arXiv 1706.06083). `free`, to train by: a batch is seen `steps` times in a row, and each
    time's backward pass moves weights and disturbance alike (Shafahi 2019, arXiv 1904.12843, algorithm 1).

    Within reach of `eps` is: of an image each pixel's value by so much, of values from 0 to 1; of a table's row each
    number by so many standard deviations; of a text each token's vector by a length that is so large a share of its own
    (Miyato 2017, arXiv 1605.07725).
    """

    kind: AttackKind | Literal["free"] = "fgsm"
    eps: Annotated[float, Field(gt=0, le=10)] = Field(description="how far an input may be moved (docs/robustness.md)")
    steps: PositiveInt = Field(7, description="of pgd; of free: how often a batch is seen in a row")

    @property
    def num_steps(self) -> int:
        """Gradients taken for each batch to seek its disturbance."""
        return 1 if self.kind == "fgsm" else self.steps

    @property
    def replays(self) -> int:
        """Training steps that see the same batch, one after the other."""
        return self.steps if self.kind == "free" else 1

    @property
    def step_share(self) -> float:
        """Length of a step as a share of the reach: together they go further than it is wide."""
        match self.kind:
            case "fgsm":
                return 1.25
            case "pgd":
                return 2.5 / self.steps
            case "free":
                return 1.0
