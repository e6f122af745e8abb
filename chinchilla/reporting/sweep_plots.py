"""The charts of a sweep's own law: loss contours with its runs, IsoFLOP valleys, profiles of the exponents.

Each chart is one `<svg>` element, as those of `curves` are. Tokens are effective ones, as the law has them, and compute
is 6·N·D of those.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla.config.plan import Label
from chinchilla.planning.frontier import drawn_optima, frontier
from chinchilla.planning.halving import Prior
from chinchilla.planning.huber import Array, Points
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.posterior import profile
from chinchilla.planning.runs import Runs
from chinchilla.reporting.canvas import FIRST, INK, MUTED, PREDICTED, drawing, figure, svg
from chinchilla.reporting.law_plots import (
    NATS_95,
    TALLEST_NATS,
    Valley,
    law_losses,
    level_of,
    levels,
    plan_contour_chart,
    valley_chart,
)

EXPONENTS = {"alpha": 3, "beta": 4}
"""Where a draw has them, and `planning.posterior`'s phi."""

NUM_VALUES = 41

BESIDE = 3.0
"""Factor in size beyond the runs' and the advised model's to which valleys are drawn."""


def sweep_charts(
    law: OwnLaw, runs: Runs, prior: Prior, best: tuple[float, float], counted: Label
) -> list[tuple[str, str, str]]:
    """Title, chart and caption of each; `runs` are the small ones, `best` the advised parameters and tokens."""
    contours = "Line: the best size for a compute, dashed beyond the runs; band: p10 to p90 of the law's draws."
    valleys = (
        "Curves: the law at the compute beside them; dots: runs of it (±8 %); diamond: best size, p10 to p90, as far "
        "as it lies in the picture."
    )
    profiles = (
        "With the exponent held, all else chosen anew; grey: what the prior alone would lose, which few runs may not "
        "outweigh. Dotted: where a 95 % interval ends; bar: the draws' 95 %; line: the law."
    )
    kept = frontier(law, FLOPS_PER_PARAM_TOKEN * best[0] * best[1])
    return [
        ("Loss and the efficient frontier", plan_contour_chart(kept, *best, runs), contours),
        ("IsoFLOP valleys", valley_chart(own_valleys(law, runs, best[0]), counted), valleys),
        ("Profile of the exponents", profile_chart(law, runs, prior), profiles),
    ]


def own_valleys(law: OwnLaw, runs: Runs, best: float) -> list[Valley]:
    """The law's valleys at computes that the runs have, over their sizes and the advised one; cheapest first."""
    ends = min(best, float(runs.num_params.min())) / BESIDE, max(best, float(runs.num_params.max())) * BESIDE
    return [_valley(law, runs, flops, ends) for flops in levels(runs.six_nd)]


def _valley(law: OwnLaw, runs: Runs, flops: float, ends: tuple[float, float]) -> Valley:
    sizes = np.geomspace(*ends, 121)
    loss = law_losses(law.law, sizes, flops / FLOPS_PER_PARAM_TOKEN / sizes)
    optimum = np.array([law.law.optimum(flops)[0]])
    low, high = (float(np.clip(each[0], *ends)) for each in drawn_optima(law, np.array([flops]), optimum))
    size = float(np.clip(optimum[0], *ends))
    least = float(law_losses(law.law, np.array([size]), np.array([flops / FLOPS_PER_PARAM_TOKEN / size]))[0])
    return Valley(flops, sizes, loss, level_of(runs, flops), (size, least), low, high)


def profile_chart(law: OwnLaw, runs: Runs, prior: Prior) -> str:
    """How much less likely the law is with an exponent held elsewhere, for alpha and beta."""
    with drawing("own-profiles"):
        drawn, panels = figure(columns=2, height_in=2.3, sharey=True)
        for axes, name in zip(panels, EXPONENTS, strict=True):
            _profile(axes, name, law, runs, prior)
        panels[0].set_ylabel("log density lost, nats")
        return svg(drawn, "own-profiles", "Profile of alpha and beta, with runs and by the prior alone")


def _profile(axes: Axes, name: str, law: OwnLaw, runs: Runs, prior: Prior) -> None:
    draws = np.array(law.draws)[:, EXPONENTS[name]]
    values = _around(draws)
    lost, before = profile(Points.of(runs.num_params, runs.tokens), runs.loss, prior, EXPONENTS[name], values)
    axes.plot(values, before, color=MUTED, linewidth=1, label="prior")
    axes.plot(values, lost, color=FIRST, label="with the runs")
    axes.axhline(NATS_95, color=MUTED, linestyle=":", linewidth=1)
    axes.axvline(law.constants[name].value, color=INK, linewidth=0.8)
    axes.plot(np.percentile(draws, (2.5, 97.5)), [-0.45, -0.45], color=PREDICTED, linewidth=4, alpha=0.6)
    axes.set(ylim=(-0.9, TALLEST_NATS), xlabel=name, yticks=[0, 2, 4, 6])
    axes.locator_params(axis="x", nbins=4)


def _around(draws: Array) -> Array:
    """Values from below to above nearly all draws."""
    low, high = np.percentile(draws, (0.5, 99.5)).tolist()
    return np.geomspace(low / (high / low) ** 0.2, high * (high / low) ** 0.2, NUM_VALUES)


def swept_runs(rows: Sequence[tuple[float, float, float]], source: str) -> Runs:
    """Small runs of parameters, effective tokens and loss; nothing is refused, however it came out."""
    sizes, tokens, losses = np.array(rows, dtype=float).T
    places = tuple(f"{source}, run {number}" for number in range(1, len(sizes) + 1))
    return Runs(sizes, tokens, losses, FLOPS_PER_PARAM_TOKEN * sizes * tokens, places, source, "paper6nd")
