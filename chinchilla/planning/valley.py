"""The lowest point of a function with one valley."""

import math
from collections.abc import Callable


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search between `low` and `high` (Kiefer 1953); the two ends must hold the valley."""
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2
