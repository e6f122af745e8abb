"""A matplotlib figure as one piece of SVG that lives inside a page: themed by the page, the same bytes every time."""

import html
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from chinchilla.config.units import show_count

# Light and dark value of each colour. The light ones are drawn, then replaced by the page's variables.
PALETTE = {
    "ink": ("#24292f", "#dde3ea"),
    "muted": ("#667080", "#97a3b3"),
    "grid": ("#e2e6ea", "#2c333c"),
    "first": ("#1f66c7", "#6caaff"),
    "second": ("#b5520b", "#f2a057"),
    "predicted": ("#7457b8", "#b9a3f5"),
    "miss": ("#c02d3c", "#ff8088"),
}
INK, MUTED, GRID, FIRST, SECOND, PREDICTED, MISS = (light for light, _ in PALETTE.values())

WIDTH_IN = 4.6
HEIGHT_IN = 2.7

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
}
_NO_DATES = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Draw inside this block, in the page's style, whatever the user's own matplotlib settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": salt})
        yield


def figure(rows: int = 1, columns: int = 1, height_in: float = HEIGHT_IN, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, in reading order, without pyplot's global state."""
    drawn = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False, **grid)
    return drawn, list(axes.flat)


def svg(drawn: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element.

    It has no outside references, ids that start with `name`, a view box instead of a fixed size, and colours as
    `var(--chart-…)` with the light value as fallback. `description` is its text alternative.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata=_NO_DATES)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    attributes = f' class="chart" role="img" aria-label="{html.escape(description)}"'
    text = re.sub(r' width="[^"]*" height="[^"]*"', lambda _: attributes, text, count=1)
    for variable, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--chart-{variable}, {light})")
    return text.strip()


def drawable(text: str, longest: int = 34) -> str:
    """Text that any font can draw: printable ASCII and ×, its end cut off where it is too long."""
    kept = "".join(c if " " <= c <= "~" or c == "×" else "?" for c in text)
    return kept if len(kept) <= longest else kept[: longest - 3] + "..."


def counted(axes: Axes, which: str = "x") -> None:
    """Label an axis in thousands and millions."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value) if value else "0"))


def finite(value: object) -> bool:
    """Whether a value read from a file is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
