"""What past runs taught about one kind of prediction, put on a new one and taken off again."""

from pydantic import PositiveFloat

from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen


class Correction(Frozen):
    """A factor on p50, and an exponent on how far, as ratios, p10 and p90 lie from it (1 and 1 change nothing)."""

    factor: PositiveFloat
    widening: PositiveFloat

    def apply(self, raw: Estimate) -> Estimate:
        """The prediction after the correction; its quantiles must be more than 0."""
        return self._moved(raw, raw.p50 * self.factor, self.widening)

    def undo(self, told: Estimate) -> Estimate:
        """The prediction before the correction."""
        return self._moved(told, told.p50 / self.factor, 1 / self.widening)

    @staticmethod
    def _moved(old: Estimate, p50: float, exponent: float) -> Estimate:
        low, high = (old.p10 / old.p50) ** exponent, (old.p90 / old.p50) ** exponent
        return old.model_copy(update={"p10": p50 * low, "p50": p50, "p90": p50 * high})
