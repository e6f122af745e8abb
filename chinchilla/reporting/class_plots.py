"""How a classifier's answers on the test data fell: what was taken for what, and as right as it was sure?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from chinchilla.config.costs import Costs
from chinchilla.reporting.canvas import FIRST, MUTED, SECOND, drawable, drawing, figure, finite, svg

MOST_CLASSES = 30
"""Beyond this a confusion matrix cannot be read."""

WRITTEN = 12
"""Up to so many classes the counts are written into the squares."""


def confusion_chart(details: Mapping[str, Any]) -> str:
    """The confusion matrix, each row as shares of its class; "" where there is none, or none that can be read."""
    found = details.get("confusion")
    if not isinstance(found, dict) or not 2 <= len(found.get("classes", ())) <= MOST_CLASSES:
        return ""
    names = [drawable(str(name), 16) for name in found["classes"]]
    counts = np.array(found["counts"], dtype=float)
    if counts.shape != (len(names), len(names)):
        return ""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with drawing("confusion"):
        drawn, (axes,) = figure(height_in=max(2.7, 0.9 + 0.24 * len(names)))
        axes.grid(visible=False)
        for row, column in np.argwhere(counts):
            # Ink must stay readable on the fullest square, on light pages and on dark ones.
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=FIRST, alpha=0.7 * shares[row, column]))
        axes.set(xlim=(0, len(names)), ylim=(0, len(names)))
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(
            middles, names, rotation=60 if max(map(len, names)) > 3 else 0, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(middles, names)
        axes.invert_yaxis()
        axes.set(xlabel="answered", ylabel="right class")
        if len(names) <= WRITTEN:
            for row, column in np.argwhere(counts):
                axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7.5)
        right = float(np.trace(counts) / max(1.0, counts.sum()))
        return svg(drawn, "confusion", f"Confusion matrix of {len(names)} classes; {right:.1%} on its diagonal")


def calibration_chart(details: Mapping[str, Any]) -> str:
    """Accuracy over confidence, a point a bin whose area is its share of the answers; "" where there is none."""
    rows = details.get("calibration")
    bins = [row for row in rows if len(row) == 3 and all(map(finite, row))] if isinstance(rows, list) else []
    if not bins:
        return ""
    sure, right, counts = np.array(bins, dtype=float).T
    with drawing("sureness"):
        drawn, (axes,) = figure()
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
        axes.plot(sure, right, color=FIRST, linewidth=1)
        axes.scatter(sure, right, s=12 + 160 * counts / counts.sum(), color=FIRST, zorder=3)
        low = min(0.5, float(min(sure.min(), right.min())) - 0.05)
        axes.set(xlabel="how sure", ylabel="how often right", xlim=(low, 1.02), ylim=(low, 1.05))
        gap = float((np.abs(sure - right) * counts).sum() / counts.sum())
        return svg(drawn, "sureness", f"Accuracy over confidence; they differ by {gap:.3f} on average")


def cost_chart(details: Mapping[str, Any]) -> str:
    """Mean cost of an example over the threshold, and where the model answers; "" where errors have no costs."""
    found = details.get("costs")
    if not isinstance(found, dict):
        return ""
    curve = found.get("curve")
    rows = [row for row in curve if len(row) == 2 and all(map(finite, row))] if isinstance(curve, list) else []
    prices: list[Any] = [found.get(name) for name in ("false_negative", "false_positive")]
    if not rows or not all(finite(price) and price > 0 for price in prices):
        return ""
    threshold = Costs(false_negative=prices[0], false_positive=prices[1]).threshold
    thresholds, costs = np.array(rows, dtype=float).T
    paid = float(costs[min(np.searchsorted(thresholds, threshold), len(costs) - 1)])
    with drawing("costs"):
        drawn, (axes,) = figure()
        axes.step(thresholds, costs, where="pre", color=FIRST, linewidth=1.3)
        axes.axhline(min(costs[0], costs[-1]), color=MUTED, linestyle=":", linewidth=1)
        axes.plot(threshold, paid, color=SECOND, marker="o", markersize=6)
        name = drawable(str(found.get("positive")), 16)
        axes.set(xlabel=f"{name} is answered from this probability on", ylabel="cost of an example")
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.05 * max(*costs, paid)))
        return svg(drawn, "costs", f"Cost of an example over the threshold; {paid:.3f} at {threshold:.3f}")
