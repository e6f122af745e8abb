"""Costs of errors from the recipe to the run folder, the model card, the report and the answers."""

import json
from pathlib import Path

import pytest
from contract_data import write

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.verbs.load import load
from chinchilla.verbs.prepare import prepare

COSTS = ("data.positive=high", "costs.false_negative=9", "costs.false_positive=1")
SMALL = ("model.dim=16", "model.num_encoder_layers=1", "train.steps=8", "train.batch_tokens=32")
QUICK = ("train.threads=1", "train.probes=false", "train.compile=false", "train.precision=fp32")


def test_three_classes_are_refused_before_planning(tmp_path):
    data = write("classify_table", tmp_path)
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    rows[:20] = [row.rpartition(",")[0] + ",middling" for row in rows[:20]]
    (tmp_path / "train.csv").write_text("\n".join([header, *rows]))
    run = load_run(None, ["task=classify_table", "budget.time=1m", *data, *COSTS]).run
    with pytest.raises(
        UsageError, match=r"data\.positive: 'high' is for two classes, and column label has 3; leave it out, or join"
    ):
        prepare(run)


def test_a_run_answers_by_its_costs_and_says_so(tmp_path, chinchilla):
    data = write("classify_table", tmp_path)
    words = ["task=classify_table", "budget.time=1h", f"runs={tmp_path}", *data]
    code, out, err = chinchilla("train", *words, *SMALL, *QUICK, *COSTS, "--json")
    assert code == 0, err
    told = json.loads(out)
    run = Path(told["run"])
    results = json.loads((run / "results.json").read_text())
    assert told["metrics"] == results["metrics"]
    (missed_none, missed), (raised, raised_none) = _by_class(results["details"]["confusion"])
    count = missed_none + missed + raised + raised_none
    assert results["metrics"]["threshold"] == 0.1
    assert results["metrics"]["cost"] == pytest.approx((9 * missed + raised) / count)
    trivial = min(9 * (missed_none + missed), raised + raised_none) / count
    assert results["metrics"]["trivial_cost"] == pytest.approx(trivial)
    assert "It answers `high` from a probability of 0.1 on" in (run / "model" / "README.md").read_text()
    model = load(run)
    assert (model.card.form["positive"], model.card.form["threshold"]) == ("high", 0.1)
    for age in (18, 50, 80):
        [answer] = model.answer([model.read({"age": age}).question])
        chance = answer.content["probabilities"]["high"]
        assert answer.content["label"] == ("high" if chance >= 0.1 else "low")
    code, out, _ = chinchilla("evaluate", run)
    assert code == 0
    assert f"cost {results['metrics']['cost']:.3f}  trivial_cost {trivial:.3f}  threshold 0.100" in out
    code, _, err = chinchilla("report", run)
    assert code == 0, err
    assert "Cost over threshold" in (run / "report.html").read_text()


def _by_class(confusion: dict) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of high: answered high, and low; of low: answered high, and low."""
    assert confusion["classes"] == ["high", "low"]
    high, low = confusion["counts"]
    return tuple(high), tuple(low)
