"""What a classifier's wrong answers cost: at the threshold that it answers by, and at others."""

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.costs import Costs

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOST_POINTS = 200
"""Of a curve; beyond, thresholds are taken at even shares of the examples."""


def mean_cost(is_positive: Bools, answered: Bools, costs: Costs) -> float:
    """Cost of an example where the positive class was `answered` (examples,)."""
    missed, raised = (is_positive & ~answered).mean(), (answered & ~is_positive).mean()
    return float(costs.false_negative * missed + costs.false_positive * raised)


def cost_metrics(is_positive: Bools, chances: Floats, costs: Costs) -> dict[str, float]:
    """`cost` of an example, the positive class being answered from the chance `threshold` on.

    `trivial_cost` is the lower one of giving every example, or none, the positive class.
    """
    answers = {"cost": chances >= costs.threshold, "all": np.ones_like(is_positive), "none": np.zeros_like(is_positive)}
    found = {name: mean_cost(is_positive, answered, costs) for name, answered in answers.items()}
    return {
        "cost": found["cost"],
        "trivial_cost": min(found["all"], found["none"]),
        "threshold": costs.threshold,
    }


def cost_curve(is_positive: Bools, chances: Floats, costs: Costs) -> list[tuple[float, float]]:
    """Thresholds, rising from 0 to 1, and the mean cost of an example at each; the costs' own is among them.

    A cost holds from above the threshold before its own.
    """
    places = np.quantile(chances, np.linspace(0, 1, MOST_POINTS - 3), method="nearest")
    thresholds = np.unique(np.concatenate([[0.0, costs.threshold, 1.0], places])).tolist()
    return [(each, mean_cost(is_positive, chances >= each, costs)) for each in thresholds]
