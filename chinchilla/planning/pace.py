"""How fast a machine really is beside its roofline, from every short run it was timed in.

The speed of a shared or a warm machine swings by a quarter and more from one ten seconds to the next. A step time read
in one short window swings with it; the same windows taken together, each against what the roofline expects of its own
shape, say what a long run is going to see.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla.planning.constants import Z80

LEAST_SPREAD, UNKNOWN_SPREAD = 0.05, 0.2
"""Of a step time: what a quiet machine shows from minute to minute, and what is told of a few steps."""


@dataclass(frozen=True)
class Window:
    """`steps` optimizer steps in `time_s` seconds, of a shape for whose step the roofline expects `roofline_s`."""

    steps: int
    time_s: float
    roofline_s: float

    @property
    def pace(self) -> float:
        """Seconds for each of the roofline's."""
        return self.time_s / (self.steps * self.roofline_s)


def pace(windows: Sequence[Window]) -> float:
    """Seconds for each of the roofline's, over all windows together."""
    return sum(window.time_s for window in windows) / sum(window.steps * window.roofline_s for window in windows)


def spread(windows: Sequence[Window]) -> float:
    """How far, relatively, one window's pace lies from all of theirs together in eight of ten cases: to p10 and p90."""
    if len(windows) < 2:
        return UNKNOWN_SPREAD
    return max(LEAST_SPREAD, Z80 * statistics.stdev(window.pace for window in windows) / pace(windows))
