"""A law's constants: each with its uncertainty, where it was read, and how well that was verified."""

import math
from typing import Literal, Self

from pydantic import model_validator

from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.frozen import Frozen

Tag = Literal["verified", "paper", "memory", "fitted"]
"""How sure we are that a constant is what its source says.

`verified`: read in the source's repository or TeX, or reproduced from its data. `paper`: only the paper's text was
read. `memory`: quoted, confirmed by nothing; never the default of a plan. `fitted`: from the user's own runs.
"""

Z80 = 1.2815515594600038
"""Standard deviations from a normal's median to its p10 and p90."""


class Constant(Frozen):
    """A fitted constant: its standard error or 95 % interval where one is known, and where it was read.

    An end of `interval` that is None is unbounded.
    """

    value: float
    error: float | None = None
    interval: tuple[float | None, float | None] | None = None
    source: str
    tag: Tag = "fitted"


class Span(Frozen):
    """A closed interval in which a law was fitted."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} holds nothing")
        return self

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


class Spread(Frozen):
    """How far log N_opt of a budget may lie from the law's: a line in log C, from a bootstrap of the law's runs.

    `level` is the standard deviation at `pivot_flops`, where level and exponent are uncorrelated; `exponent` that of
    a in N_opt ∝ C^a.
    """

    pivot_flops: float
    level: float
    exponent: float

    def deviation(self, flops: float) -> float:
        """The standard deviation of log N_opt at a budget."""
        return math.hypot(self.level, self.exponent * math.log(flops / self.pivot_flops))


def log_normal(p50: float, deviation: float, unit: str, source: Source) -> Estimate:
    """An estimate whose logarithm is normal around log `p50` (> 0) with this standard deviation."""
    return Estimate.around(p50, math.expm1(Z80 * deviation), unit, source)
