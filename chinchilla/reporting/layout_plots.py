"""Layouts of a step over several machines: step time, memory, and the Pareto front."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from chinchilla.planning.layout import Layouts
from chinchilla.planning.price import Priced
from chinchilla.reporting.canvas import FIRST, INK, MUTED, PREDICTED, SECOND, drawable, drawing, figure, svg
from chinchilla.reporting.layout_tables import layout_name, layout_nodes, shown_layouts
from chinchilla.reporting.scales import log_axis
from chinchilla.reporting.values import quantity

ROW_IN = 0.34
MOST_LAYOUTS = 12


def layout_chart(found: Layouts) -> str:
    """Step time and memory of layouts with the Pareto front; below, their names and the intervals of their times."""
    items = shown_layouts(found, MOST_LAYOUTS)
    with drawing("layouts"):
        rows = ROW_IN * len(items)
        drawn, (above, below) = figure(rows=2, height_in=2.8 + rows, height_ratios=[2.4, rows], sharex=True)
        _front(above, found, items)
        for number, item in enumerate(items, 1):
            _layout(below, number, item, _color(found, item))
        below.set_ylim(len(items) + 0.5, 0.2)
        below.set_yticks([])
        below.spines["left"].set_visible(False)
        below.set_xlabel("time of a step")
        log_axis(below, "x", lambda value: quantity(value, "s").replace("µ", "u"), 6)
        return svg(drawn, "layouts", "Step time and memory of the layouts, with their Pareto front")


def _color(found: Layouts, item: Priced) -> str:
    if item == found.recommended:
        return SECOND
    return FIRST if item in found.front else MUTED


def _front(axes: Axes, found: Layouts, items: Sequence[Priced]) -> None:
    axes.set_xscale("log")
    line = [(item.step_time_s.p50, item.memory_bytes.p50) for item in items if item in found.front]
    axes.step(*zip(*line, strict=True), where="post", color=PREDICTED, linewidth=1.2)
    for number, item in enumerate(items, 1):
        _numbered(axes, item, number, _color(found, item))
    axes.set_ylabel("memory of a device")
    axes.set_ylim(0, 1.15 * max(item.memory_bytes.p50 for item in items))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "bytes") if value else "0"))


def _numbered(axes: Axes, item: Priced, number: int, color: str) -> None:
    """Odd numbers stand left, even ones right of their point: neighbours in time are often near in memory too."""
    place, side = (item.step_time_s.p50, item.memory_bytes.p50), ("left", "right")[number % 2]
    axes.plot(*place, color=color, marker="o", markersize=4)
    axes.annotate(f"{number}", place, xytext=(0, 5), textcoords="offset points", ha=side, fontsize=8, color=color)


def _layout(axes: Axes, number: int, item: Priced, color: str) -> None:
    time_s = item.step_time_s
    axes.plot([time_s.p10, time_s.p90], [number, number], color=PREDICTED, linewidth=5, alpha=0.3)
    axes.plot(time_s.p50, number, color=color, marker="o", markersize=4)
    told = drawable(f"{number}  {layout_name(item)}: {layout_nodes(item)}", 68)
    where = axes.get_yaxis_transform()
    axes.annotate(told, (0, number), (0, 6), xycoords=where, textcoords="offset points", fontsize=8, color=INK)
