"""The charts: whole SVG, the right points, nothing from outside, the same bytes every time."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from reporting_fakes import MEASURED, PREDICTED, make_compression, make_plan, make_probe, make_shape

from chinchilla.config.plan import TOKEN
from chinchilla.reporting import curves
from chinchilla.reporting.canvas import PALETTE, drawable

STEPS = [
    {
        "step": step,
        "tokens": step * 100,
        "loss": 9 / step**0.3,
        "learning_rate": 0.001 * step,
        "tokens_per_s": 20_000.0,
        "peak_fraction": 0.4,
    }
    for step in range(1, 60)
]
VALID = [{"step": step, "tokens": step * 100, "valid_loss": 8 / step**0.3} for step in (20, 40)]
LEDGER = [{"name": name, "predicted": PREDICTED[name].model_dump(), "measured": MEASURED[name]} for name in PREDICTED]
CHARTS: dict[str, Callable[[], str]] = {
    "loss": lambda: curves.loss_curve([*STEPS, *VALID], PREDICTED["loss"], TOKEN),
    "rate": lambda: curves.learning_rate_curve(STEPS, TOKEN),
    "speed": lambda: curves.speed_curve(STEPS, TOKEN),
    "peak": lambda: curves.peak_curve(STEPS, TOKEN),
    "probes": lambda: curves.probe_chart(make_plan().probes, make_plan().shape, TOKEN),
    "ledger": lambda: curves.ledger_chart(LEDGER),
    "compression": lambda: curves.compression_chart(make_compression("../translate-1")),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_whole_svg_element_with_its_own_ids(name: str) -> None:
    root = ET.fromstring(CHARTS[name]())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("role") == "img"
    assert root.get("aria-label")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(mark).startswith(f"{name}-") for mark in ids)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_refers_only_to_itself(name: str) -> None:
    svg = CHARTS[name]()
    root = ET.fromstring(svg)
    ids = {element.get("id") for element in root.iter()}
    links = {
        element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter("{http://www.w3.org/2000/svg}use")
    }
    assert links or name == "compression"
    assert {str(link).removeprefix("#") for link in links} <= ids
    assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= ids
    assert not re.search(r"<(script|image|style|foreignObject)", svg)
    assert not re.search(r"url\((?!#)", svg)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_bytes_again(name: str) -> None:
    assert CHARTS[name]() == CHARTS[name]()


@pytest.mark.parametrize("name", CHARTS)
def test_every_colour_follows_the_page(name: str) -> None:
    bare = re.sub(r"var\(--chart-[a-z]+, #[0-9a-f]{6}\)", "", CHARTS[name]())
    assert not re.findall(r"(?:fill|stroke): #(?!ffffff)[0-9a-f]{6}", bare)


def test_the_palette_can_be_told_apart_and_read() -> None:
    light, dark = zip(*PALETTE.values(), strict=True)
    assert len(set(light)) == len(light)
    for colours, page in ((light, "#ffffff"), (dark, "#1b2027")):
        named = dict(zip(PALETTE, colours, strict=True))
        for name in ("ink", "muted", "first", "second", "predicted", "miss"):
            assert contrast(named[name], page) >= 4.5, (name, page)


def contrast(one: str, other: str) -> float:
    """The WCAG 2 contrast ratio of two colours."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    "empty",
    [
        lambda: curves.loss_curve([], PREDICTED["loss"], TOKEN),
        lambda: curves.loss_curve([{"tokens": 5, "loss": None}], None, TOKEN),
        lambda: curves.learning_rate_curve([], TOKEN),
        lambda: curves.speed_curve(VALID, TOKEN),
        lambda: curves.peak_curve([], TOKEN),
        lambda: curves.probe_chart((), make_shape(192), TOKEN),
        lambda: curves.ledger_chart([LEDGER[0] | {"measured": None}]),
        lambda: curves.compression_chart({"before": {"size_bytes": None}, "after": {}}),
    ],
)
def test_nothing_to_draw_gives_no_chart(empty: Callable[[], str]) -> None:
    assert empty() == ""


def test_one_point_is_enough() -> None:
    for draw in (curves.learning_rate_curve, curves.speed_curve, curves.peak_curve):
        assert draw(STEPS[:1], TOKEN)
    assert curves.loss_curve(VALID[:1], None, TOKEN)
    assert curves.probe_chart((make_probe(192, 8.0, 5.0),), make_shape(256), TOKEN)
    assert curves.ledger_chart(LEDGER[:1])


@settings(max_examples=10)
@given(st.lists(st.floats(width=32), min_size=1, max_size=5), st.floats(1e-6, 1e12))
def test_odd_numbers_do_not_stop_a_chart(losses: list[float], measured: float) -> None:
    curves.loss_curve([{"tokens": i, "loss": loss} for i, loss in enumerate(losses)], None, TOKEN)
    curves.ledger_chart([LEDGER[0] | {"measured": measured}])


def test_a_series_is_ordered_finite_and_the_last_of_repeated_steps() -> None:
    records = [
        {"tokens": 200, "loss": 3.0},
        {"tokens": 100, "loss": 4.0},
        {"tokens": 200, "loss": 2.0},
        {"tokens": 300, "loss": float("nan")},
        {"tokens": 400, "loss": "2"},
        {"tokens": 500},
    ]
    xs, ys = curves.series(records, "tokens", "loss")
    assert xs.tolist() == [100, 200]
    assert ys.tolist() == [4, 2]


def test_a_long_series_is_averaged_and_keeps_its_mean() -> None:
    records = [{"tokens": n, "loss": n % 7} for n in range(4 * curves.MAX_POINTS)]
    xs, ys = curves.series(records, "tokens", "loss")
    assert len(xs) == len(ys) == curves.MAX_POINTS
    assert ys.mean() == pytest.approx(np.mean([r["loss"] for r in records]))


def test_the_predicted_loss_is_drawn_as_a_band_at_its_height() -> None:
    with_band = curves.loss_curve([*STEPS, *VALID], PREDICTED["loss"], TOKEN)
    assert "predicted, p10 to p90" in texts(with_band)
    assert "predicted, p10 to p90" not in texts(curves.loss_curve([*STEPS, *VALID], None, TOKEN))


def test_a_miss_is_a_diamond_of_its_own_colour() -> None:
    miss, hit = f"var(--chart-miss, {PALETTE['miss'][0]})", f"var(--chart-first, {PALETTE['first'][0]})"
    inside = [record for record in LEDGER if record["name"] != "memory_bytes"]
    assert miss not in curves.ledger_chart(inside)
    assert hit in curves.ledger_chart(inside)
    assert miss in curves.ledger_chart(LEDGER)


def test_the_ledger_tells_its_coverage_beside_the_nominal_one() -> None:
    assert f"coverage, {len(LEDGER) - 1} of {len(LEDGER)}" in texts(curves.ledger_chart(LEDGER))
    axes = Figure().subplots()
    curves._coverage(axes, 1, 8)
    line, bar, point = axes.lines
    assert list(line.get_xdata()) == [80, 80]
    assert bar.get_xdata() == pytest.approx([2.24, 47.09], abs=0.01)  # Wilson's interval of 1 of 8
    assert (list(point.get_xdata()), point.get_color()) == ([12.5], PALETTE["miss"][0])


@given(st.floats(0.012, 1.0), st.floats(1.0, 90.0))
def test_ticks_of_ratios_stand_apart_with_one_among_them(low: float, high: float) -> None:
    axes = Figure().subplots()
    axes.plot([low, high], [0, 0])
    curves._ratio_axis(axes)
    start, end = np.log(axes.get_xlim())
    ticks = np.sort(np.log(axes.get_xticks()))
    assert 0 in ticks
    assert 2 <= len(ticks) <= 8
    assert (np.diff(ticks) > curves._TICK_ROOM * (end - start)).all()


def test_probed_shapes_are_named_and_the_chosen_one_stands_out() -> None:
    svg = curves.probe_chart(make_plan().probes, make_shape(192), TOKEN)
    assert {"3+3×192, 4.61M", "3+3×384, 9.22M"} <= set(texts(svg))


def test_names_are_text_not_formulas_and_any_script_can_be_given() -> None:
    name = "<b>$\\frac$ 中文\x00"
    svg = curves.ledger_chart([LEDGER[0] | {"name": name}])
    assert "<b>$\\frac$ ???" in texts(svg)


def test_drawable_text_is_short_ascii() -> None:
    assert drawable("3×2 中") == "3×2 ?"
    assert len(drawable("x" * 100)) == 34


def test_matplotlib_settings_of_the_user_are_left_alone_and_have_no_say() -> None:
    before = CHARTS["speed"]()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "text.usetex": True}):
        assert CHARTS["speed"]() == before
        assert matplotlib.rcParams["font.size"] == 30
