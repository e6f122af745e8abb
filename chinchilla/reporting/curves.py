"""The report's charts. Each function returns one `<svg>` element, or "" when there is nothing to draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Label, Probe
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning.audit import NOMINAL, wilson
from chinchilla.reporting.canvas import (
    FIRST,
    GRID,
    INK,
    MISS,
    MUTED,
    PREDICTED,
    SECOND,
    counted,
    drawable,
    drawing,
    figure,
    finite,
    svg,
)
from chinchilla.reporting.tables import inside_interval, shape_name
from chinchilla.reporting.values import label, metric

Records = Sequence[Mapping[str, Any]]
Numbers = NDArray[np.float64]

MAX_POINTS = 400
_RATIOS = (1, 0.5, 2, 0.1, 10, 0.2, 5, 0.33, 3, 0.67, 1.5, 0.8, 1.25, 0.9, 1.1, 0.01, 100, 0.05, 20, 0.02, 50)
"""Ticks of a ratio's axis, those that are drawn first where there is not room for all."""

_TICK_ROOM = 0.13
"""Share of an axis that a ratio's name takes."""


def series(records: Records, x: str, y: str) -> tuple[Numbers, Numbers]:
    """The finite (x, y) points, (num_points,) each, in order of `x`.

    A resumed run writes some steps again; the later line counts. More than `MAX_POINTS` are averaged in groups.
    """
    points = {r[x]: r[y] for r in records if finite(r.get(x)) and finite(r.get(y))}
    xs = np.array(sorted(points), dtype=float)
    ys = np.array([points[value] for value in sorted(points)], dtype=float)
    if len(xs) <= MAX_POINTS:
        return xs, ys
    return _thinned(xs), _thinned(ys)


def _thinned(values: Numbers) -> Numbers:
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def loss_curve(records: Records, predicted: Estimate | None, label: Label) -> str:
    """Training and validation loss (nats a token, say) over tokens, with the predicted final loss as a band."""
    train, valid = series(records, "tokens", "loss"), series(records, "tokens", "valid_loss")
    if not len(train[0]) and not len(valid[0]):
        return ""
    with drawing("loss"):
        drawn, (axes,) = figure()
        axes.plot(*train, color=FIRST, linewidth=1.1, label="training")
        axes.plot(*valid, color=SECOND, marker="o", markersize=3, label="validation")
        if predicted is not None:
            axes.axhspan(predicted.p10, predicted.p90, color=PREDICTED, alpha=0.18, linewidth=0)
            axes.axhline(predicted.p50, color=PREDICTED, linestyle="--", linewidth=1, label="predicted, p10 to p90")
        _below_the_start(axes, train[1], valid[1])
        axes.set(xlabel=label.many, ylabel=f"loss, nats {label.a}")
        counted(axes)
        axes.legend(loc="best")
        return svg(drawn, "loss", f"Training and validation loss over {label.many}, with the predicted final loss")


def _below_the_start(axes: Axes, train: Numbers, valid: Numbers) -> None:
    """Cut off the first, steep part, which would flatten the rest."""
    if len(train) >= 20:
        top = max(*train[len(train) // 25 :], *valid)
        axes.set_ylim(top=top + 0.05 * abs(top))


def learning_rate_curve(records: Records, label: Label) -> str:
    """The learning rate over tokens."""
    xs, ys = series(records, "tokens", "learning_rate")
    if not len(xs):
        return ""
    with drawing("rate"):
        drawn, (axes,) = figure()
        axes.plot(xs, ys, color=FIRST)
        axes.fill_between(xs, ys, color=FIRST, alpha=0.08, linewidth=0)
        axes.set_xlabel(label.many)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_ylim(bottom=0)
        counted(axes)
        return svg(drawn, "rate", f"Learning rate over {label.many}")


def speed_curve(records: Records, label: Label) -> str:
    """Tokens a second over tokens."""
    return _level("speed", series(records, "tokens", "tokens_per_s"), f"{label.many} a second", label)


def peak_curve(records: Records, label: Label) -> str:
    """Per cent of the machine's measured peak over tokens."""
    tokens, fraction = series(records, "tokens", "peak_fraction")
    return _level("peak", (tokens, fraction * 100), "% of peak", label)


def _level(name: str, points: tuple[Numbers, Numbers], title: str, label: Label) -> str:
    """A quantity that ought to stay where it is, from zero, with its median."""
    if not len(points[0]):
        return ""
    with drawing(name):
        drawn, (axes,) = figure(height_in=2.1)
        median = float(np.median(points[1]))
        axes.plot(*points, color=FIRST, linewidth=1.1)
        axes.axhline(median, color=MUTED, linestyle=":", linewidth=1)
        axes.set(xlabel=label.many, ylabel=title)
        axes.set_ylim(0, 1.25 * max(points[1]) or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        counted(axes)
        counted(axes, "y")
        return svg(drawn, name, f"{title} over {label.many}, median {show_count(median)}")


def probe_chart(probes: Sequence[Probe], chosen: Shape, label: Label) -> str:
    """Loss against time of the probe runs, one line a shape; the chosen shape stands out."""
    shown = [p for p in probes if finite(p.loss)]
    if not shown:
        return ""
    with drawing("probes"):
        drawn, (axes,) = figure()
        for shape in sorted({p.shape for p in shown}, key=lambda shape: shape == chosen):
            runs = sorted((p for p in shown if p.shape == shape), key=lambda p: p.time_s)
            accent, width = (FIRST, 1.8) if shape == chosen else (MUTED, 0.9)
            times, losses = [p.time_s for p in runs], [p.loss for p in runs]
            axes.plot(times, losses, color=accent, linewidth=width, marker="o", markersize=4)
        _name_ends(axes, shown, chosen)
        axes.set(xlabel="seconds of training", ylabel=f"loss, nats {label.a}")
        axes.margins(x=0.04)
        return svg(drawn, "probes", "Loss against training time of each probed shape")


def _name_ends(axes: Axes, probes: Sequence[Probe], chosen: Shape) -> None:
    """Write each shape's name right of its last point, moved apart where two would overlap."""
    last = {p.shape: p for p in sorted(probes, key=lambda p: p.time_s)}
    ends = sorted(last.values(), key=lambda p: p.loss)
    low, high = axes.get_ylim()
    gap, height = (high - low) / 16, -float("inf")
    for probe in ends:
        height = max(probe.loss, height + gap)
        text = drawable(f"{shape_name(probe.shape)}, {show_count(probe.num_params)}")
        axes.annotate(
            text,
            (probe.time_s, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK if probe.shape == chosen else MUTED,
        )


def ledger_chart(records: Records) -> str:
    """Measured over predicted, with the predicted interval, one row a prediction; below, how many intervals held."""
    rows = [r for r in records if _has_ratio(r)]
    if not rows:
        return ""
    with drawing("ledger"):
        ratios = [0.27 * len(rows), 0.27]
        drawn, (axes, below) = figure(rows=2, height_in=1.7 + sum(ratios), height_ratios=ratios)
        axes.axvline(1, color=MUTED, linewidth=1)
        for y, record in enumerate(rows):
            p10, p50, p90 = (record["predicted"][q] for q in ("p10", "p50", "p90"))
            inside = inside_interval(record)
            axes.plot([p10 / p50, p90 / p50], [y, y], color=PREDICTED, linewidth=6, alpha=0.3)
            color, marker = (FIRST, "o") if inside else (MISS, "D")
            axes.plot(record["measured"] / p50, y, color=color, marker=marker, markersize=5)
        names = [drawable(label(str(record["name"]))) for record in rows]
        axes.set_yticks(range(len(rows)), names, color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        _ratio_axis(axes)
        axes.set_xlabel("measured ÷ predicted median; bar: predicted p10 to p90")
        _coverage(below, sum(map(inside_interval, rows)), len(rows))
        return svg(drawn, "ledger", "Measured values relative to the predictions, and the share inside their intervals")


def _coverage(axes: Axes, hits: int, trials: int) -> None:
    """The share of intervals that held, with Wilson's interval about it, and the line where it ought to be."""
    low, high = (100 * end for end in wilson(hits, trials))
    axes.axvline(100 * NOMINAL, color=MUTED, linewidth=1)
    axes.plot([low, high], [0, 0], color=PREDICTED, linewidth=6, alpha=0.3)
    axes.plot(100 * hits / trials, 0, color=FIRST if low <= 100 * NOMINAL <= high else MISS, marker="o", markersize=5)
    axes.set_yticks([0], [f"coverage, {hits} of {trials}"], color=INK)
    axes.set(xlim=(0, 102), ylim=(-0.6, 0.6), xlabel=f"% inside p10 to p90; bar: 95 % interval; line: {NOMINAL:.0%}")
    axes.grid(visible=False, axis="y")


def _has_ratio(record: Mapping[str, Any]) -> bool:
    values = (*(record["predicted"][q] for q in ("p10", "p50", "p90")), record["measured"])
    return all(finite(value) and value > 0 for value in values)


def _ratio_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = (float(limit) for limit in axes.get_xlim())
    low, high = min(low, 0.85), max(high, 1.18)
    ticks: list[float] = []
    for ratio in _RATIOS:
        apart = (abs(math.log(ratio / tick)) / math.log(high / low) for tick in ticks)
        if low <= ratio <= high and min(apart, default=1.0) > _TICK_ROOM:
            ticks.append(ratio)
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def compression_chart(record: Mapping[str, Any]) -> str:
    """Size, latency and the first shared metric, before and after compression, as bars."""
    before, after = record["before"], record["after"]
    panels = [(name, before.get(name), after.get(name)) for name in ("size_bytes", "latency_p50_s")]
    old, new = before.get("metrics") or {}, after.get("metrics") or {}
    panels += [(name, old[name], new[name]) for name in new if name in old][:1]
    panels = [panel for panel in panels if finite(panel[1]) and finite(panel[2])]
    if not panels:
        return ""
    with drawing("compression"):
        drawn, all_axes = figure(rows=len(panels), height_in=0.3 + 0.78 * len(panels))
        for axes, (name, *pair) in zip(all_axes, panels, strict=True):
            _bars(axes, name, pair)
        return svg(drawn, "compression", "Size, latency and quality before and after compression")


def _bars(axes: Axes, name: str, pair: Sequence[float]) -> None:
    axes.barh([0, 1], pair, color=[MUTED, FIRST], height=0.66)
    axes.set_yticks([0, 1], ["before", "after"])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(drawable(label(name)))
    axes.margins(x=0.2)
    for y, value in enumerate(pair):
        text = drawable(metric(name, value))
        axes.annotate(text, (value, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.axvline(0, color=GRID, linewidth=1)
