"""The lowest point of a function with one valley, and how far from it something still holds."""

import math
from collections.abc import Callable


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search between `low` and `high` (Kiefer 1953); the two ends must hold the valley."""
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


def last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Bisection for how far `holds` is true from `low`, where it is, towards `high`; it must not come back."""
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
