"""A predicted number: never bare, always with its spread and where it comes from."""

from typing import Literal, Self

from pydantic import model_validator

from chinchilla.config.frozen import Frozen

Source = Literal["measured", "law", "datasheet", "guess"]


class Estimate(Frozen):
    """A prediction as three quantiles.

    `source` says what it rests on: `measured` (a probe or a benchmark on this machine), `law` (a published
    scaling law inside its range), `datasheet`, or `guess` (outside every range; a weak prior).
    """

    p10: float
    p50: float
    p90: float
    unit: str
    source: Source

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.p10 <= self.p50 <= self.p90:
            raise ValueError(f"quantiles out of order: {self.p10}, {self.p50}, {self.p90}")
        return self

    @classmethod
    def around(cls, p50: float, spread: float, unit: str, source: Source) -> Self:
        """An estimate whose p10 and p90 lie a factor `1 + spread` below and above `p50` (p50 ≥ 0)."""
        return cls(p10=p50 / (1 + spread), p50=p50, p90=p50 * (1 + spread), unit=unit, source=source)

    def scaled(self, factor: float, unit: str) -> Self:
        """The same estimate times a number that is known (≥ 0), in another unit."""
        ends = {name: factor * getattr(self, name) for name in ("p10", "p50", "p90")}
        return self.model_copy(update=ends | {"unit": unit})
