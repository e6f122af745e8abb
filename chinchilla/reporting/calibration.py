"""The chart of `chinchilla audit`: predicted against measured, with coverage."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla.planning.audit import NOMINAL, Outcome, Score, by_kind, scores
from chinchilla.reporting.canvas import FIRST, INK, MISS, MUTED, PREDICTED, drawable, drawing, figure, svg
from chinchilla.reporting.values import label

ROW_IN, MARGINS_IN = 0.34, 0.7
FINE, COARSE = (0.67, 0.8, 1, 1.25, 1.5), (0.33, 0.5, 1, 2, 3)
_VARIABLE = re.compile(r"var\(--chart-\w+, (#[0-9a-f]{6})\)")


def calibration_chart(outcomes: Sequence[Outcome]) -> str:
    """One `<svg>`: measured over predicted of each run above, coverage with its Wilson interval below.

    "" when there is nothing to draw. A kind of prediction is one row, named the same in both.
    """
    kinds = by_kind(outcomes)
    if not kinds:
        return ""
    with drawing("calibration"):
        drawn, (above, below) = figure(rows=2, height_in=2 * (MARGINS_IN + ROW_IN * len(kinds)))
        for row, found in enumerate(kinds.values()):
            _ratios(above, row, found)
        for row, score in enumerate(scores(outcomes)):
            _coverage(below, row, score)
        names = [drawable(f"{label(name)}, {source}") for name, source in kinds]
        _finish(above, names, 1.0, "measured ÷ predicted; bar: p10 to p90")
        _finish(below, names, NOMINAL, "share inside p10 to p90, 95 % interval")
        above.set_xscale("log")
        low, high = above.get_xlim()
        ticks = FINE if high / low < 3 else COARSE
        above.set_xlim(min(low, ticks[0]), max(high, ticks[-1]))
        above.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        above.minorticks_off()
        below.set_xlim(0, 1.02)
        below.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100 %"])
        return svg(drawn, "calibration", "Measured over predicted of past runs, and the coverage of their intervals")


def standalone(chart: str) -> str:
    """A chart as a file of its own: the page's colour variables become colours."""
    return _VARIABLE.sub(r"\1", chart) + "\n"


def _ratios(axes: Axes, row: int, outcomes: Sequence[Outcome]) -> None:
    """A dot a run, spread over the row's height in the order of the runs; misses stand out."""
    middle = [outcome.predicted.p50 for outcome in outcomes]
    low = np.median([outcome.predicted.p10 / p50 for outcome, p50 in zip(outcomes, middle, strict=True)])
    high = np.median([outcome.predicted.p90 / p50 for outcome, p50 in zip(outcomes, middle, strict=True)])
    axes.fill_betweenx([row - 0.4, row + 0.4], low, high, color=PREDICTED, alpha=0.2, linewidth=0)
    places = row + (np.linspace(-0.3, 0.3, len(outcomes)) if len(outcomes) > 1 else np.zeros(1))
    for place, outcome in zip(places, outcomes, strict=True):
        color, marker = (FIRST, "o") if outcome.inside else (MISS, "D")
        axes.plot(outcome.measured / outcome.predicted.p50, place, color=color, marker=marker, markersize=3)


def _coverage(axes: Axes, row: int, score: Score) -> None:
    color = FIRST if score.honest else MISS
    axes.plot([score.low, score.high], [row, row], color=color, linewidth=2)
    axes.plot(score.coverage, row, color=color, marker="o", markersize=5)


def _finish(axes: Axes, names: Sequence[str], line: float, title: str) -> None:
    axes.axvline(line, color=MUTED, linewidth=1, zorder=0)
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(title)
