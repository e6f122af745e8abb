"""Charts of a classifier's answers: drawn from what results.json holds, or left out."""

import xml.etree.ElementTree as ET

import pytest

from chinchilla.reporting.class_plots import MOST_CLASSES, WRITTEN, calibration_chart, confusion_chart, cost_chart


def confusion(size: int) -> dict:
    counts = [[90 * (row == column) + (column == 0) for column in range(size)] for row in range(size)]
    return {"confusion": {"classes": [f"class {number}" for number in range(size)], "counts": counts}}


@pytest.mark.parametrize("size", [2, WRITTEN, MOST_CLASSES])
def test_a_confusion_matrix_has_a_square_for_every_count(size):
    drawn = confusion_chart(confusion(size))
    ET.fromstring(drawn)
    right = (90 * size + 1) / (91 * size)
    assert f"{right:.1%} on its diagonal" in drawn
    # Not a square more than there are counts: on the diagonal, and below it in the first column.
    assert drawn.count("var(--chart-first") == 2 * size - 1
    # 90 on the diagonal: the names of the classes hold no such number.
    assert (">90</text>" in drawn) == (size <= WRITTEN)


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"confusion": 3},
        confusion(1),
        confusion(MOST_CLASSES + 1),
        {"confusion": {"classes": ["a", "b"], "counts": [[1]]}},
    ],
)
def test_no_matrix_where_none_can_be_read(details):
    assert confusion_chart(details) == ""


def test_calibration_weighs_bins_by_their_answers():
    drawn = calibration_chart({"calibration": [[0.6, 0.5, 30], [0.9, 0.9, 70]]})
    ET.fromstring(drawn)
    assert "differ by 0.030 on average" in drawn


@pytest.mark.parametrize("rows", [None, [], [[0.5]], [[float("nan"), 0.5, 3]], "x"])
def test_no_curve_of_nothing(rows):
    assert calibration_chart({"calibration": rows}) == ""


PRICES = {"positive": "bad", "false_negative": 5.0, "false_positive": 1.0}


def test_costs_are_drawn_with_the_one_that_is_paid():
    curve = [[0.0, 0.7], [0.1, 0.6], [1 / 6, 0.55], [0.5, 0.9], [1.0, 1.5]]
    drawn = cost_chart({"costs": {**PRICES, "curve": curve}})
    ET.fromstring(drawn)
    assert "0.550 at 0.167" in drawn
    assert "bad is answered from this probability on" in drawn


@pytest.mark.parametrize(
    "costs",
    [
        None,
        "x",
        {},
        {**PRICES},
        {**PRICES, "curve": None},
        {**PRICES, "curve": [[0.5]]},
        {**PRICES, "curve": [[0.5, float("nan")]]},
        {**PRICES, "false_negative": None, "curve": [[0.0, 0.7], [1.0, 1.5]]},
        {**PRICES, "false_positive": -5, "curve": [[0.0, 0.7], [1.0, 1.5]]},
    ],
)
def test_no_costs_where_none_can_be_read(costs):
    assert cost_chart({"costs": costs}) == ""
