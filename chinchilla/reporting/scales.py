"""Log axes with ticks that people read, and several charts as one."""

import html
import re
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

MOST_TICKS = 7
GAP = 12
_STEPS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def log_axis(axes: Axes, which: str, name: Callable[[float], str], most: int = MOST_TICKS) -> None:
    """Make the x or y axis logarithmic within its present limits, with at most so many ticks, named by `name`."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = (float(end) for end in (axes.get_xlim() if which == "x" else axes.get_ylim()))
    axis = axes.xaxis if which == "x" else axes.yaxis
    ticks = _ticks(low, high, most)
    axis.set_ticks(ticks, [name(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, as many as allowed; whole powers of ten, with gaps where there are many."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in _STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: -(-len(ticks) // most)]


def power(value: float) -> str:
    """A large count for an axis: "3e15"."""
    digits, _, exponent = f"{value:.2g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def stacked(charts: Sequence[str], description: str) -> str:
    """Several `<svg>` charts as one, each below the other."""
    sizes = [tuple(map(float, match.groups())) for chart in charts if (match := _BOX.search(chart))]
    width, height, parts = max(size[0] for size in sizes), 0.0, []
    for chart, size in zip(charts, sizes, strict=True):
        parts.append(chart.replace("<svg", f'<svg y="{height:g}" width="{size[0]:g}" height="{size[1]:g}"', 1))
        height += size[1] + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
    return f'{head} aria-label="{html.escape(description)}">\n' + "\n".join(parts) + "\n</svg>"
