"""The charts of fits: the numbers drawn are those of the fit."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from chinchilla.planning.fit import best
from chinchilla.planning.identify import Study, study
from chinchilla.planning.isoflop import Allocation, envelope, isoflop
from chinchilla.planning.runs import make_runs
from chinchilla.reporting import law_plots
from chinchilla.reporting.scales import _ticks, power, stacked


@pytest.fixture(scope="module")
def found() -> Study:
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(2e7, 6e8, 4)))
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(16))
    return study(make_runs(n, d, (1.7 + 400 / n**0.35 + 1500 / d**0.37) * noise), 100)


@pytest.fixture(scope="module")
def levels() -> Allocation:
    """Six levels of compute, nine sizes each; exact, so that every lowest point is known: alpha is beta."""
    middle = np.geomspace(1e6, 3e7, 6)[:, None]
    n = middle * np.geomspace(0.2, 5, 9)
    d = 20 * middle**2 / n
    return isoflop(make_runs(n.ravel(), d.ravel(), (1.7 + 130 / n**0.35 + 380 / d**0.35).ravel()), 100)


def line(axes, label):
    return next(each for each in axes.lines if each.get_label() == label)


def test_the_frontier_is_the_laws_own_optimum_and_its_band_the_bootstraps(found: Study) -> None:
    axes, drawn = Figure().subplots(), law_plots.frontier(found)
    law_plots._contours(axes, found.fitted, drawn)
    flops, sizes = line(axes, "best size").get_data()
    assert sizes == pytest.approx([best(found.fitted, each).num_params.p50 for each in flops])
    law_line = np.array([found.fitted.law.optimum(each.flops)[0] for each in drawn])
    assert (np.array([each.num_params.p10 for each in drawn]) < law_line).all()
    assert (law_line < np.array([each.num_params.p90 for each in drawn])).all()
    band = axes.collections[-1].get_paths()[0].vertices
    for each in (drawn[0], drawn[-1]):
        heights = band[np.isclose(band[:, 0], each.flops), 1]
        assert (heights.min(), heights.max()) == pytest.approx((each.num_params.p10, each.num_params.p90))
    assert drawn[-1].flops == pytest.approx(found.ahead[-1].flops)


def test_every_run_is_drawn_at_its_compute(found: Study) -> None:
    axes = Figure().subplots()
    law_plots._contours(axes, found.fitted, law_plots.frontier(found))
    flops, sizes = line(axes, "runs").get_data()
    runs = found.fitted.runs
    assert flops == pytest.approx(6 * runs.num_params * runs.tokens)
    assert sizes == pytest.approx(runs.num_params)


def test_a_contour_joins_runs_of_its_loss(found: Study) -> None:
    axes, drawn = Figure().subplots(), law_plots.frontier(found)
    law_plots._contours(axes, found.fitted, drawn)
    contours = axes.collections[0]
    level = contours.levels[3]
    flops, sizes = contours.get_paths()[3].vertices.T
    law = found.fitted.law
    losses = [law.loss(n, c / 6 / n) for c, n in zip(flops, sizes, strict=True)]
    assert losses == pytest.approx([level] * len(losses), rel=0.01)
    assert drawn[-1].loss.p50 < level < drawn[0].loss.p50


def test_valleys_are_the_law_at_one_compute_and_hold_its_runs(found: Study) -> None:
    law, valleys = found.fitted.law, law_plots.law_valleys(found.fitted)
    assert 3 <= len(valleys) <= law_plots.MOST_VALLEYS
    for valley in valleys:
        tokens = valley.flops / 6 / valley.num_params
        expected = [law.loss(n, d) for n, d in zip(valley.num_params, tokens, strict=True)]
        assert valley.loss == pytest.approx(expected)
        assert valley.lowest[1] == valley.loss.min()
        assert valley.low < valley.lowest[0] < valley.high
        assert len(valley.runs) > 0
        assert 6 * valley.runs.num_params * valley.runs.tokens == pytest.approx(valley.flops, rel=0.09)
        assert valley.num_params[0] < valley.runs.num_params.min() <= valley.runs.num_params.max()
        assert valley.runs.num_params.max() < valley.num_params[-1]


def test_a_level_is_drawn_as_its_parabola(levels: Allocation) -> None:
    valleys = law_plots.level_valleys(levels)
    assert len(valleys) == 6
    for valley, level in zip(valleys, levels.levels, strict=True):
        coarse = np.polyval(np.polyfit(np.log(level.runs.num_params), level.runs.loss, 2), np.log(valley.num_params))
        assert valley.loss == pytest.approx(coarse)
        assert valley.lowest == (level.optimum.num_params, level.optimum.loss)
        assert valley.lowest[1] == pytest.approx(valley.loss.min(), rel=1e-4)


def test_profiles_cross_the_line_where_their_intervals_end(found: Study) -> None:
    for name, profile in found.identified.profiles.items():
        axes = Figure().subplots()
        law_plots._profile(axes, name, profile, found.fitted)
        values, lost = axes.lines[0].get_data()
        assert values == pytest.approx(profile.values)
        inside = (values >= profile.low) & (values <= profile.high)
        assert (lost[inside] <= law_plots.NATS_95 + 1e-6).all()
        assert (lost[~inside] > law_plots.NATS_95).all()
        assert lost.min() == pytest.approx(0, abs=0.05)


def test_growth_goes_through_the_optima(levels: Allocation) -> None:
    assert law_plots.growth_chart(levels)
    axes = Figure().subplots()
    law_plots._growth(axes, levels)
    flops, sizes = line(axes, f"a = {levels.a:.3f}").get_data()
    assert sizes == pytest.approx([levels.optimum(each)[0] for each in flops])


def test_each_approach_has_its_charts(found: Study, levels: Allocation) -> None:
    assert [title for title, _, _ in law_plots.law_charts(found)] == [
        "Loss and the efficient frontier",
        "IsoFLOP valleys",
        "Profile likelihood of the exponents",
    ]
    assert len(law_plots.law_charts(levels)) == 2
    assert len(law_plots.law_charts(envelope(levels.runs, 100))) == 1


def test_charts_are_whole_and_the_same_again_and_stack_into_one(found: Study) -> None:
    charts = [svg for _, svg, _ in law_plots.law_charts(found)]
    assert charts == [svg for _, svg, _ in law_plots.law_charts(found)]
    for svg in charts:
        bare = re.sub(r"var\(--chart-[a-z]+, #[0-9a-f]{6}\)", "", svg)
        assert not re.findall(r"(?:fill|stroke): #(?!ffffff)[0-9a-f]{6}", bare)
    root = ET.fromstring(stacked(charts, "three <charts>"))
    inner = list(root)
    assert len(inner) == 3
    assert root.get("aria-label") == "three <charts>"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    bottoms = [float(each.get("y")) + float(each.get("height")) for each in inner]
    assert all(float(after.get("y")) > bottom for after, bottom in zip(inner[1:], bottoms, strict=False))
    assert bottoms[-1] <= float(root.get("viewBox").split()[3])


@pytest.mark.parametrize(("low", "high"), [(1.1, 1.9), (3, 40), (1e3, 1e9), (2e14, 1e28)])
def test_ticks_of_a_log_axis_are_few_and_inside(low: float, high: float) -> None:
    ticks = _ticks(low, high, 6)
    assert 1 <= len(ticks) <= 6
    assert low <= min(ticks) <= max(ticks) <= high


def test_large_counts_are_short() -> None:
    assert [power(value) for value in (3e15, 1.2e21, 5.0)] == ["3e15", "1.2e21", "5"]
