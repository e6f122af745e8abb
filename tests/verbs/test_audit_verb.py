"""`chinchilla audit` on made-up run folders and a real one: what it prints, keeps, draws and refuses."""

import json
import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from chinchilla.config.estimate import Estimate
from chinchilla.config.load import load_run
from chinchilla.planning import audit as history
from chinchilla.planning.audit import Outcome
from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.audit import audit

PREDICTED = {
    "step_time_s": Estimate.around(0.5, 0.1, "s", "measured"),
    "loss": Estimate.around(3.0, 0.2, "nats/token", "guess"),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def finished(train_tiny):
    """A real run of some steps: what `train --json` printed."""
    return train_tiny("budget.time=60", "train.steps=40", "train.probes=false")


@pytest.fixture(scope="module")
def made_plan(finished):
    """A real plan."""
    return RunFolder(Path(finished["run"])).read_plan()


@pytest.fixture
def make_run(tmp_path, made_plan):
    """Make a finished run whose measurements are the predictions times a factor."""

    def make(factor, plan=made_plan, predicted=PREDICTED):
        folder = RunFolder.create(tmp_path / "runs", "translate")
        folder.write_run(load_run(None, ["task=translate", "data.train=x.tsv", "budget.time=10m"]))
        folder.write_plan(plan)
        for name, estimate in predicted.items():
            folder.log_prediction(name, estimate, factor * estimate.p50, estimate.unit)
        return folder

    return make


def told(out):
    return json.loads(out.splitlines()[-1])


def test_bias_and_coverage_of_a_folder_of_runs(make_run, chinchilla, tmp_path, cache):
    for factor in (1.05, 1.15, 1.15, 1.18, 1.3):
        make_run(factor)
    code, out, _ = chinchilla("audit", tmp_path / "runs", "--json")
    assert code == 0
    scores = {score["name"]: score for score in told(out)["scores"]}
    assert scores["step_time_s"]["bias"] == pytest.approx(0.1397619)  # log 1.15
    assert scores["step_time_s"]["coverage"] == 0.2
    assert scores["loss"]["coverage"] == 0.8
    assert (scores["step_time_s"]["honest"], scores["loss"]["honest"]) == (False, True)
    assert not cache.exists()
    code, out, _ = chinchilla("audit", tmp_path / "runs")
    assert code == 0
    assert "+15.0%" in out and "recalibration" in out.lower()


def test_a_real_run_is_audited(finished, chinchilla, cache):
    code, out, _ = chinchilla("audit", finished["run"], "--json")
    assert code == 0
    fixed = {"tokens", "flops"}  # by train.steps
    known = set(finished["predicted"]) - fixed
    assert {score["name"] for score in told(out)["scores"]} == known | {f"fixed_{name}" for name in fixed}
    (found,) = told(out)["recalibrations"]
    assert (found["threads"], found["num_runs"]) == (1, 1)
    assert {learnt["name"] for learnt in found["corrections"]} == known


def test_what_a_budget_fixes_is_scored_apart_and_neither_teaches_nor_learns(make_run, made_plan, tmp_path):
    """Ten runs were half as long again as thought: those of so many steps took the time, the others saw less."""
    predicted = {
        "tokens": Estimate.around(1e6, 0.2, "tokens", "measured"),
        "train_time_s": Estimate.around(100.0, 0.2, "s", "measured"),
    }
    timed = made_plan.model_copy(update={"budget_time_s": 120.0, "predicted": predicted})
    stepped = timed.model_copy(update={"budget_time_s": None})
    for _ in range(10):
        make_run(1 / 1.5, timed, {"tokens": predicted["tokens"]})
        make_run(1.0, timed, {"train_time_s": predicted["train_time_s"]})
        make_run(1.0, stepped, {"tokens": predicted["tokens"]})
        make_run(1.5, stepped, {"train_time_s": predicted["train_time_s"]})
    audited = audit([tmp_path / "runs"])
    bias = {score.name: math.exp(score.bias) for score in audited.scores}
    assert bias == pytest.approx({"tokens": 1 / 1.5, "fixed_train_time_s": 1, "fixed_tokens": 1, "train_time_s": 1.5})
    (learnt,) = audited.recalibrations
    assert history.recalibrated(timed, learnt).corrections.keys() == {"tokens"}
    assert history.recalibrated(stepped, learnt).corrections.keys() == {"train_time_s"}


def test_later_plans_use_what_is_kept_and_say_so(make_run, chinchilla, tmp_path, cache, numbers, small_machine):
    for _ in range(30):
        make_run(1.5)
    assert chinchilla("audit", tmp_path / "runs", "--save")[0] == 0
    (kept,) = cache.glob("recalibration-*.json")
    words = [
        "task=translate",
        f"data.train={numbers / 'train.tsv'}",
        "budget.time=30",
        "train.threads=1",
        "model.dim=32",
    ]
    words += ["model.num_encoder_layers=1", "model.num_decoder_layers=1", "tokenizer.vocab_size=300", "--json"]
    code, out, _ = chinchilla("plan", *words)
    plan = told(out)
    assert code == 0
    assert plan["decisions"][-1]["name"] == "recalibration"
    assert "30 runs" in plan["decisions"][-1]["value"]
    assert plan["corrections"]["step_time_s"]["factor"] == pytest.approx(1.5 ** (30 / 36))
    # Nothing but the two kinds that the runs told of is corrected.
    assert set(plan["corrections"]) <= {"step_time_s", "loss"}
    kept.unlink()
    code, out, _ = chinchilla("plan", *words)
    assert not told(out)["corrections"]
    assert "recalibration" not in {line["name"] for line in told(out)["decisions"]}


def test_runs_that_were_planned_with_a_correction_are_not_corrected_twice(make_run, made_plan, tmp_path):
    raw = {"step_time_s": PREDICTED["step_time_s"]}
    outcomes = [Outcome("step_time_s", raw["step_time_s"], 1.4 * 0.5)] * 50
    found = history.recalibration(outcomes, made_plan.machine, 50, "2026-11-22T00:00:00+00:00")
    plan = history.recalibrated(made_plan.model_copy(update={"predicted": raw}), found)
    rng = random.Random(0)
    for _ in range(4):
        make_run(1.4 * 0.5 / plan.predicted["step_time_s"].p50 * rng.uniform(0.999, 1.001), plan, plan.predicted)
    audited = audit([tmp_path / "runs"])
    (score,) = audited.scores
    assert abs(score.bias) < 0.06  # as told, little is left
    for run in audited.runs:
        assert run.raw[0].predicted.p50 == pytest.approx(0.5)
        assert run.raw[0].predicted.p90 == pytest.approx(0.55)


def test_the_later_line_of_a_quantity_counts(make_run, tmp_path):
    folder = make_run(1.0)
    folder.log_prediction("loss", PREDICTED["loss"], 6.0, "nats/token")
    (run,) = audit([folder.path]).runs
    assert {outcome.name: outcome.measured for outcome in run.told} == {"step_time_s": 0.5, "loss": 6.0}


def test_the_same_run_counts_once(make_run, tmp_path):
    folder = make_run(1.0)
    assert len(audit([tmp_path / "runs", folder.path, folder.path]).runs) == 1


def test_each_machine_learns_from_its_own_runs(make_run, made_plan, tmp_path):
    other = made_plan.model_copy(update={"machine": made_plan.machine.model_copy(update={"name": "another"})})
    make_run(1.0)
    make_run(2.0, other)
    factors = {found.machine: found.corrections[0].factor for found in audit([tmp_path / "runs"]).recalibrations}
    assert factors == {made_plan.machine.name: 1.0, "another": pytest.approx(2 ** (1 / 7))}


def test_a_plot_is_one_svg_file_with_a_dot_a_run(make_run, chinchilla, tmp_path):
    for factor in (0.9, 1.0, 1.4):
        make_run(factor)
    code, _, _ = chinchilla("audit", tmp_path / "runs", "--plot", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert code == 0
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text and "step time, measured" in text
    for wrong in (tmp_path / "none" / "a.svg", tmp_path / "a.png"):
        code, out, err = chinchilla("audit", tmp_path / "runs", "--plot", wrong)
        assert (code, out, f"--plot {wrong}" in err) == (2, "", True)


def test_a_machine_that_costs_nothing_is_no_damage(make_run, chinchilla):
    folder = make_run(1.0)
    folder.log_prediction("money", Estimate.around(0.0, 0.1, "money", "measured"), 0.0, "money")
    code, out, _ = chinchilla("audit", folder.path, "--json")
    assert code == 0
    assert {score["name"] for score in told(out)["scores"]} == {"step_time_s", "loss"}


def test_what_has_no_ledger_is_left_out_and_told(make_run, chinchilla, tmp_path):
    make_run(1.0)
    make_run(1.0, predicted={})
    code, out, err = chinchilla("audit", tmp_path / "runs", "--json")
    assert code == 0
    assert len(told(out)["runs"]) == 1
    assert "translate-2: left out" in err


def test_no_ledger_at_all_is_an_error(make_run, chinchilla):
    folder = make_run(1.0, predicted={})
    code, _, err = chinchilla("audit", folder.path)
    assert (code, "has a ledger" in err, "--resume" in err) == (3, True, True)


def test_folders_that_are_no_runs_are_refused(chinchilla, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "inner").mkdir(parents=True)
    assert chinchilla("audit", tmp_path / "empty")[0] == 2
    assert chinchilla("audit", tmp_path / "other")[0] == 2
    code, _, err = chinchilla("audit", tmp_path / "gone")
    assert (code, "no such run folder" in err) == (2, True)
    assert chinchilla("audit")[0] == 2


GOOD = {"name": "loss", "predicted": PREDICTED["loss"].model_dump(), "measured": 3.0, "unit": "nats/token"}


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[1]",
        '{"name": "loss", "predicted": {"p10": 1}, "measured": 1}',
        json.dumps(GOOD | {"measured": "much"}),
        json.dumps(GOOD | {"measured": -1}),
        json.dumps(GOOD | {"measured": 0}),
        json.dumps(GOOD | {"measured": float("nan")}),
        json.dumps(GOOD | {"measured": float("inf")}),
        json.dumps(GOOD | {"predicted": GOOD["predicted"] | {"p10": 0}}),
        json.dumps(GOOD | {"predicted": GOOD["predicted"] | {"p10": 9}}),
        json.dumps(GOOD | {"predicted": GOOD["predicted"] | {"source": "hearsay"}}),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(make_run, chinchilla, line):
    folder = make_run(1.0)
    folder.ledger.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    code, _, err = chinchilla("audit", folder.path)
    assert code == 5
    assert "ledger.jsonl: line 2" in err


def test_a_loss_that_was_not_a_number_is_left_out_and_told(make_run, chinchilla):
    folder = make_run(1.0)
    journal.append(folder.ledger, GOOD | {"measured": float("nan")})
    code, out, err = chinchilla("audit", folder.path, "--json")
    assert code == 0
    assert {score["name"] for score in told(out)["scores"]} == {"step_time_s"}
    assert "loss was not measured" in err
