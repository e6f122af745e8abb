"""Costs of a classifier's errors: the threshold against a search, the measures by hand, answers by the threshold."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from tasks_fakes import make_model

from chinchilla.config.costs import Costs
from chinchilla.config.errors import FaultError
from chinchilla.config.shape import TableStem
from chinchilla.data.classes import Classes
from chinchilla.data.columns import Columns, NumberColumn
from chinchilla.data.table_classes import TableClasses
from chinchilla.tasks.classify import Classify, class_metrics, probabilities
from chinchilla.tasks.costs import cost_curve, cost_metrics

LOANS = Costs(false_negative=5, false_positive=1)
prices = st.floats(1e-3, 1e3)


def classes(costs: Costs | None = LOANS, positive: str = "bad") -> Classes:
    return Classes(names=("bad", "good"), positive=positive, costs=costs)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and chances of the first class of two that are right: each example is bad as often as is said."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(1, 3, count)
    return (rng.random(count) >= chances).astype(np.int64), np.stack([chances, 1 - chances], 1)


def paid(truth: np.ndarray, chances: np.ndarray, costs: Costs, threshold: float) -> float:
    """Scikit-learn's counts times the costs; bad is class 0."""
    answered = np.where(chances[:, 0] >= threshold, 0, 1)
    (_, missed), (raised, _) = confusion_matrix(truth, answered, labels=[0, 1])
    return float((missed * costs.false_negative + raised * costs.false_positive) / len(truth))


@settings(max_examples=8)
@given(prices, prices, st.integers(0, 99))
def test_costs_are_those_of_scikit_learns_counts(missed: float, raised: float, seed: int):
    costs = Costs(false_negative=missed, false_positive=raised)
    truth, chances = drawn(50, seed)
    found = class_metrics(truth, chances, classes(costs))
    assert found["threshold"] == pytest.approx(raised / (raised + missed))
    assert found["cost"] == pytest.approx(paid(truth, chances, costs, found["threshold"]))
    assert found["trivial_cost"] == pytest.approx(min(paid(truth, chances, costs, end) for end in (0, 1.1)))
    # The curve is the same at every threshold that it names, and its ends are the answers that are the same to all.
    for threshold, cost in cost_curve(truth == 0, chances[:, 0], costs)[::9]:
        assert cost == pytest.approx(paid(truth, chances, costs, threshold))


@pytest.mark.parametrize("missed", [0.2, 1.0, 5.0, 30.0])
def test_no_threshold_is_cheaper_where_chances_are_right(missed: float):
    costs = Costs(false_negative=missed, false_positive=1)
    truth, chances = drawn(100_000)
    own = cost_metrics(truth == 0, chances[:, 0], costs)["cost"]
    least = min(cost for _, cost in cost_curve(truth == 0, chances[:, 0], costs))
    assert least <= own < 1.005 * least
    assert own < cost_metrics(truth == 0, chances[:, 0], costs)["trivial_cost"]


def test_what_is_answered_is_scored_and_which_class_is_positive_counts():
    truth = np.array([0, 1, 1, 0])
    chances = np.array([[0.2, 0.8], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1]])
    assert class_metrics(truth, chances, classes(None))["accuracy"] == 0.75
    assert "cost" not in class_metrics(truth, chances, classes(None))
    found = class_metrics(truth, chances, classes())
    assert (found["accuracy"], found["cost"], found["trivial_cost"]) == (0.75, 0.25, 0.5)
    other = class_metrics(truth, chances, classes(positive="good"))
    assert classes(positive="good").decide(chances).tolist() == [1, 1, 1, 0]
    assert (other["cost"], other["roc_auc"]) == (0.25, found["roc_auc"])
    # Of one class alone the rest of two classes' scores is not there; what it costs is.
    alone = class_metrics(np.array([0, 0]), chances[:2], classes())
    assert (alone["cost"], alone["trivial_cost"]) == (0, 0) and "roc_auc" not in alone


def test_equal_costs_change_no_answer():
    _, chances = drawn(500)
    even = Costs(false_negative=3, false_positive=3)
    assert (
        classes(even).decide(chances).tolist() == classes(None).decide(chances).tolist() == chances.argmax(1).tolist()
    )


def test_a_curve_of_many_examples_is_short_and_holds_the_costs_own_threshold():
    truth, chances = drawn(20_000)
    curve = cost_curve(truth == 0, chances[:, 0], LOANS)
    thresholds = [threshold for threshold, _ in curve]
    assert len(curve) <= 200 and thresholds == sorted(set(thresholds)) and thresholds[0] == 0 and thresholds[-1] == 1
    at_own = dict(curve)[LOANS.threshold]
    assert at_own == cost_metrics(truth == 0, chances[:, 0], LOANS)["cost"]


def table(costs: Costs | None) -> TableClasses:
    age = NumberColumn(column="age", knots=(18.0, 30.0, 42.0, 80.0), count=100)
    return TableClasses(Columns(numbers=(age,), categories=()), classes(costs))


@torch.no_grad()
def test_a_model_answers_by_the_threshold_and_its_folder_keeps_it():
    stem = TableStem(num_numeric=1, cardinalities=())
    model = make_model(num_decoder_layers=0, num_classes=2, vocab_size=4, stem=stem)
    rows = [{"age": age} for age in range(18, 80)]
    chances = probabilities(model, table(None), rows)[:, 0]
    threshold = float(np.median(chances))
    costs = Costs(false_negative=1 - threshold, false_positive=threshold)
    kept = json.loads(json.dumps(table(costs).settings))
    opened = TableClasses.open(kept, None, "here")
    assert opened.classes.costs == costs
    assert opened.form["threshold"] == pytest.approx(threshold) and opened.form["positive"] == "bad"
    task = Classify("classify_table")
    labels = [verdict["label"] for verdict in task.serve(model, opened, rows)]
    assert labels == ["bad" if chance >= costs.threshold else "good" for chance in chances]
    assert 0 < labels.count("bad") < len(rows)
    likeliest = [verdict["label"] for verdict in task.serve(model, table(None), rows)]
    assert labels != likeliest and "threshold" not in table(None).form
    score = task.score(model, opened, [(row, "good", "") for row in rows])
    assert [sample.output for sample in score.samples] == labels
    assert score.details["confusion"]["counts"][1] == [labels.count("bad"), labels.count("good")]
    told = score.details["costs"]
    assert (told["positive"], told["false_negative"]) == ("bad", costs.false_negative)
    assert "costs" not in task.score(model, table(None), [(rows[0], "good", "")]).details
    kept["classes"]["names"] = ["a", "b", "c"]
    with pytest.raises(FaultError, match=r"codec\.classes: .*costs are of two classes"):
        TableClasses.open(kept, None, "here")


@pytest.mark.parametrize("price", [0, -1, math.inf, math.nan])
def test_a_cost_is_a_number_above_nothing(price: float):
    with pytest.raises(ValueError, match="false_positive"):
        Costs(false_negative=1, false_positive=price)
