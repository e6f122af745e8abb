"""The charts of `chinchilla fit`: loss contours with the efficient frontier, IsoFLOP valleys, profiles of exponents.

Each chart is one `<svg>` element, as those of `curves` are. Compute is 6·N·D throughout, also where runs bring a count
of their own: contours and valleys are the law's, which is fitted in N and D.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from chinchilla.config.considered import Frontier
from chinchilla.config.plan import Label
from chinchilla.config.units import show_count
from chinchilla.planning.fit import Best, Fit, best
from chinchilla.planning.huber import Array
from chinchilla.planning.identify import Profile, Study
from chinchilla.planning.isoflop import LEVEL_WIDTH, Allocation
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.runs import Runs
from chinchilla.reporting.canvas import FIRST, INK, MUTED, PREDICTED, SECOND, drawing, figure, svg
from chinchilla.reporting.scales import log_axis, power

NUM_BUDGETS = 24
NUM_CONTOURS = 8
MOST_VALLEYS = 6

WIDEST = 30.0
"""Factor beyond the best sizes up to which their band is shown."""

APART = 1.8
"""Budgets whose valleys are drawn differ by at least this factor."""

NATS_95 = 1.92
"""Half the 95th percentile of chi-squared with one degree of freedom: where a profile's 95 % interval ends."""

TALLEST_NATS = 6.0


@dataclass(frozen=True, eq=False)
class Valley:
    """Loss over parameters at one compute: a curve, each (points,), the runs of that compute, and the lowest point.

    `low` to `high` is the lowest point's interval; equal to it where none is known.
    """

    flops: float
    num_params: Array
    loss: Array
    runs: Runs
    lowest: tuple[float, float]
    low: float
    high: float


def law_charts(found: Study | Allocation) -> list[tuple[str, str, str]]:
    """Title, chart and caption of each chart of a fit, by whichever approach."""
    if isinstance(found, Allocation):
        growth = "Diamonds: the best of a compute; line: N = k C^a; band: the ends of a's 95 % interval."
        parabolas = "Parabolas through runs of one compute (±8 %), named at the right; diamond: the lowest point."
        drawn = [("Best size by compute", growth_chart(found), growth)]
        valleys = level_valleys(found)
        return [*drawn, ("IsoFLOP valleys", valley_chart(valleys, found.runs.counted), parabolas)] if valleys else drawn
    contours = (
        "Line: the best size for a compute, dashed beyond the runs; band: p10 to p90 over the bootstrap's optima."
    )
    valleys_told = (
        "Curves: the law at the compute beside them; dots: runs of it (±8 %); diamond: best size, p10 to p90."
    )
    profiles = "Dotted: where the 95 % interval ends; bar: the bootstrap's 95 %; line: the fit."
    return [
        ("Loss and the efficient frontier", contour_chart(found), contours),
        ("IsoFLOP valleys", valley_chart(law_valleys(found.fitted), found.fitted.runs.counted), valleys_told),
        ("Profile likelihood of the exponents", profile_chart(found), profiles),
    ]


def contour_chart(study: Study) -> str:
    """Contours of the law's loss over compute and size, the runs, and the frontier with its band."""
    with drawing("contours"):
        drawn, (axes,) = figure(height_in=3.4)
        _contours(axes, study.fitted, frontier(study))
        return svg(drawn, "contours", "Loss by the law over compute and parameters, the runs, and the best size")


def frontier(study: Study) -> list[Best]:
    """The law's advice for budgets from the cheapest run's compute to the largest shown ahead."""
    flops = study.fitted.runs.six_nd
    last = max(float(flops.max()), *(each.flops for each in study.ahead))
    return [best(study.fitted, budget) for budget in np.geomspace(flops.min(), last, NUM_BUDGETS).tolist()]


def law_losses(law: ChinchillaLaw, num_params: Array, tokens: Array) -> Array:
    """The law's loss of many runs."""
    by_size = law.param_scale.value * num_params**-law.param_exponent.value
    return law.irreducible.value + by_size + law.token_scale.value * tokens**-law.token_exponent.value


def plan_contour_chart(kept: Frontier, num_params: float, tokens: float, runs: Runs | None = None) -> str:
    """Contours of the loss by a plan's law over compute and size, the frontier with its band, its runs, the plan."""
    with drawing("plan-contours"):
        drawn, (axes,) = figure(height_in=3.4)
        flops, low, best, high = (np.array(getattr(kept, name)) for name in ("flops", "low", "best", "high"))
        # A band that runs away, of a law that its runs leave open, is cut off.
        least, most = max(low.min(), best.min() / WIDEST), min(high.max(), best.max() * WIDEST)
        shown = [num_params, *(runs.num_params if runs is not None else ())]
        ends = min(least, *shown) / 2, max(most, *shown) * 2

        def loss(sizes: Array, seen: Array) -> Array:
            by_size = kept.param_scale * sizes**-kept.param_exponent
            return kept.irreducible + by_size + kept.token_scale * seen**-kept.token_exponent

        _map(axes, loss, flops, ends, loss(best, flops / FLOPS_PER_PARAM_TOKEN / best).tolist())
        inside = (flops >= kept.fitted[0] * 0.99) & (flops <= kept.fitted[1] * 1.01)
        _frontier(axes, flops, (low, best, high), inside)
        if runs is not None:
            axes.plot(
                runs.six_nd, runs.num_params, color=FIRST, marker="o", markersize=3, linestyle="none", label="runs"
            )
        compute = FLOPS_PER_PARAM_TOKEN * num_params * tokens
        axes.plot(compute, num_params, color=INK, marker="D", markersize=5, linestyle="none", label="the plan")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        return svg(drawn, "plan-contours", "Loss by the law over compute and parameters, the best size, and the plan")


def _contours(axes: Axes, fitted: Fit, line: list[Best]) -> None:
    flops = np.array([each.flops for each in line])
    low, sizes, high = (np.array([getattr(each.num_params, q) for each in line]) for q in ("p10", "p50", "p90"))
    runs = fitted.runs.six_nd
    ends = min(low.min(), fitted.runs.num_params.min()) / 2, max(high.max(), fitted.runs.num_params.max()) * 2
    _map(axes, partial(law_losses, fitted.law), flops, ends, [each.loss.p50 for each in line])
    _frontier(axes, flops, (low, sizes, high), flops <= runs.max())
    axes.plot(runs, fitted.runs.num_params, color=FIRST, marker="o", markersize=3, linestyle="none", label="runs")
    axes.legend(loc="upper left")


def _map(
    axes: Axes, loss: Callable[[Array, Array], Array], flops: Array, ends: tuple[float, float], along: list[float]
) -> None:
    """Contours of `loss` (parameters, tokens) over compute and parameters, at values taken `along` the frontier."""
    bottom, top = ends
    x, y = np.meshgrid(np.geomspace(flops[0] / 2, flops[-1] * 1.5, 80), np.geomspace(bottom, top, 80))
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = loss(y, x / FLOPS_PER_PARAM_TOKEN / y)
    drawn = axes.contour(x, y, values, levels=_levels(along), colors=MUTED, linewidths=0.7, alpha=0.8)
    axes.clabel(drawn, fontsize=7.5, fmt=lambda value: f"{value:.3g}")
    axes.set(xlabel="compute 6·N·D, FLOPs", ylabel="parameters")
    axes.set(xlim=(x.min(), x.max() * 1.2), ylim=(bottom / 1.4, top))  # room for losses written at a contour's end
    log_axis(axes, "x", power, 6)
    log_axis(axes, "y", show_count)
    axes.grid(visible=False)


def _frontier(axes: Axes, flops: Array, sizes: tuple[Array, Array, Array], inside: NDArray[np.bool_]) -> None:
    """The best sizes with their band (low, best, high); dashed but where the law's runs are `inside`."""
    low, best, high = sizes
    axes.fill_between(flops, low, high, color=SECOND, alpha=0.18, linewidth=0)
    axes.plot(flops, best, color=SECOND, linestyle="--")
    axes.plot(flops[inside], best[inside], color=SECOND, label="best size")


def _levels(along: list[float]) -> list[float]:
    """Losses of contours: those along the frontier, evenly in the logarithm of compute, to three figures."""
    inner = np.linspace(0, len(along) - 1, NUM_CONTOURS + 2)[1:-1]
    return sorted({float(f"{value:.3g}") for value in np.interp(inner, np.arange(len(along)), along)})


def valley_chart(valleys: list[Valley], counted: Label) -> str:
    """Loss over parameters, a curve for each compute, with runs and lowest points."""
    with drawing("valleys"):
        drawn, (axes,) = figure(height_in=3.4)
        for valley in valleys:
            _valley(axes, valley)
        lowest = np.array([valley.lowest for valley in valleys])
        axes.plot(*lowest.T, color=SECOND, linewidth=1, linestyle=":", zorder=1)
        axes.set(xlabel="parameters", ylabel=f"loss, nats {counted.a}")
        axes.margins(x=0.02)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.16)  # room for the names of the curves
        log_axis(axes, "x", show_count, 6)
        return svg(drawn, "valleys", "Loss over parameters at several computes, each with the size of least loss")


def _valley(axes: Axes, valley: Valley) -> None:
    axes.set_xscale("log")
    axes.plot(valley.num_params, valley.loss, color=FIRST, linewidth=1.1, alpha=0.75)
    axes.plot(valley.runs.num_params, valley.runs.loss, color=FIRST, marker="o", markersize=3, linestyle="none")
    size, loss = valley.lowest
    axes.plot([valley.low, valley.high], [loss, loss], color=SECOND, linewidth=5, alpha=0.3)
    axes.plot(size, loss, color=SECOND, marker="D", markersize=4)
    axes.annotate(
        power(valley.flops),
        (valley.num_params[-1], valley.loss[-1]),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=MUTED,
    )


def law_valleys(fitted: Fit) -> list[Valley]:
    """The law's own valleys at computes that the runs have, cheapest first."""
    return [_law_valley(fitted, flops) for flops in levels(fitted.runs.six_nd)]


def _law_valley(fitted: Fit, flops: float) -> Valley:
    runs, advice = level_of(fitted.runs, flops), best(fitted, flops)
    size = fitted.law.optimum(flops)[0]
    reach = max(4.0, *(runs.num_params / size), *(size / runs.num_params)) * 1.3
    sizes = np.geomspace(size / reach, size * reach, 81)
    loss = law_losses(fitted.law, sizes, flops / FLOPS_PER_PARAM_TOKEN / sizes)
    lowest = (size, float(loss[len(loss) // 2]))
    return Valley(flops, sizes, loss, runs, lowest, advice.num_params.p10, advice.num_params.p90)


def level_of(runs: Runs, flops: float) -> Runs:
    """The runs of a compute."""
    return runs.pick(np.abs(np.log(runs.six_nd / flops)) <= math.log(LEVEL_WIDTH) / 2)


def levels(flops: Array) -> list[float]:
    """Computes of the runs, those of most runs first chosen, none within a factor `APART` of another; sorted."""
    logs = np.log(flops)
    near = np.abs(logs[:, None] - logs) <= math.log(LEVEL_WIDTH) / 2
    chosen: list[float] = []
    for index in np.argsort(-near.sum(1), kind="stable"):
        level = float(logs[near[index]].mean())
        if all(abs(level - other) >= math.log(APART) for other in chosen):
            chosen.append(level)
    return sorted(map(math.exp, chosen[:MOST_VALLEYS]))


def level_valleys(found: Allocation) -> list[Valley]:
    """Approach 2's levels with their parabolas, cheapest first; without those that have no lowest point inside."""
    valleys = []
    for level in found.levels:
        if not level.trouble:
            logs = np.log(level.runs.num_params)
            at = np.linspace(logs.min(), logs.max(), 81)
            loss, size = np.polyval(level.parabola, at - logs.mean()), level.optimum.num_params
            valleys.append(
                Valley(level.optimum.flops, np.exp(at), loss, level.runs, (size, level.optimum.loss), size, size)
            )
    return valleys


def profile_chart(study: Study) -> str:
    """How much less likely the runs are with an exponent held elsewhere, for alpha and beta."""
    with drawing("profiles"):
        drawn, panels = figure(columns=2, height_in=2.3, sharey=True)
        for axes, (name, profile) in zip(panels, study.identified.profiles.items(), strict=True):
            _profile(axes, name, profile, study.fitted)
        panels[0].set_ylabel("log likelihood lost, nats")
        return svg(drawn, "profiles", "Profile likelihood of alpha and beta, with their 95 % intervals")


def likelihood_lost(profile: Profile, fitted: Fit) -> Array:
    """Nats of log likelihood that holding the exponent at each value costs, (values,), under Laplace errors."""
    least = max(min(fitted.objective, float(profile.objective.min())), 1e-30)
    return len(fitted.runs) * np.log(np.maximum(profile.objective, least) / least)


def _profile(axes: Axes, name: str, profile: Profile, fitted: Fit) -> None:
    lost, draws = likelihood_lost(profile, fitted), fitted.intervals[name]
    axes.plot(profile.values, lost, color=FIRST)
    axes.axvspan(profile.low, profile.high, color=FIRST, alpha=0.1, linewidth=0)
    axes.axhline(NATS_95, color=MUTED, linestyle=":", linewidth=1)
    axes.axvline(float(fitted.theta[3 if name == "alpha" else 4]), color=INK, linewidth=0.8)
    axes.plot([draws.low, draws.high], [-0.45, -0.45], color=PREDICTED, linewidth=4, alpha=0.6)
    axes.set_ylim(-0.9, TALLEST_NATS)
    axes.set_xlabel(name)
    axes.set_yticks([0, 2, 4, 6])
    axes.locator_params(axis="x", nbins=4)


def growth_chart(found: Allocation) -> str:
    """The optima over compute with the line through them, and all runs."""
    with drawing("growth"):
        drawn, (axes,) = figure(height_in=3)
        _growth(axes, found)
        return svg(drawn, "growth", "Best size over compute, with the fitted line")


def _growth(axes: Axes, found: Allocation) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    flops, sizes = (np.array([getattr(each, q) for each in found.optima]) for q in ("flops", "num_params"))
    at = np.geomspace(flops.min(), flops.max(), 50)
    line, away = np.exp(found.log_k) * at**found.a, at / np.exp(np.log(flops).mean())
    ends = found.intervals["a"]
    low, high = (line * away ** (end - found.a) for end in (ends.low, ends.high))
    axes.fill_between(at, low, high, color=SECOND, alpha=0.18, linewidth=0)
    axes.plot(at, line, color=SECOND, label=f"a = {found.a:.3f}")
    axes.plot(found.runs.flops, found.runs.num_params, color=MUTED, marker="o", markersize=2.5, linestyle="none")
    axes.plot(flops, sizes, color=FIRST, marker="D", markersize=4, linestyle="none", label="best of a compute")
    axes.set(xlabel="compute, FLOPs", ylabel="parameters")
    log_axis(axes, "x", power, 6)
    log_axis(axes, "y", show_count)
    axes.legend(loc="upper left")
