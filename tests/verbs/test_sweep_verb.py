"""`chinchilla sweep` on a tiny real task: small runs, the law, the plan by it; going on, and what is refused."""

import contextlib
import io
import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from chinchilla.cli import main
from chinchilla.planning.own_law import read_law
from chinchilla.planning.runs import read_runs
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.small_runs import unfinished

SETTINGS = (
    "task=translate", "train.threads=1", "tokenizer.vocab_size=300", "model.num_encoder_layers=1",
    "model.num_decoder_layers=1", "train.batch_tokens=256", "evaluate.beam_size=1", "train.precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def small_runs(numbers, small_machine, tmp_path_factory):
    """Words of a sweep whose runs are of a few steps, within `quickly`."""
    return (*SETTINGS, f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path_factory.mktemp('runs')}")


@contextlib.contextmanager
def quickly(small_machine):
    """Six runs of a few steps, in a budget that is large enough on a busy machine too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chinchilla.verbs.plan.cached_measure", lambda *args, **kwargs: small_machine)
        patch.setattr("chinchilla.verbs.small_runs.OVERHEAD_S", 0.0)
        patch.setattr("chinchilla.planning.design.lengths", lambda step_time_s, most_s: [8, 16, 24])
        patch.setattr("chinchilla.planning.design.LEAST_TOKENS_A_PARAMETER", 0.0)
        patch.setattr("chinchilla.planning.design.MOST_RUNS", 6)
        patch.setattr("chinchilla.planning.design.SWEEP_DIMS", (16, 32, 48, 64))
        yield patch


def call(*words):
    """(exit code, standard output, standard error) of the command line."""
    out, err = io.StringIO(), io.StringIO()
    handlers = logging.getLogger().handlers[:]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.captureWarnings(False)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def swept(small_runs, small_machine):
    """A finished sweep: what `--json` printed."""
    with quickly(small_machine):
        code, out, err = call("sweep", *small_runs, "--budget", "20d", "--target", "40s", "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_small_runs_end_their_schedules_and_come_to_a_law(swept):
    assert len(swept["runs"]) == 6
    assert len({run["params"] for run in swept["runs"]}) >= 2
    for run in swept["runs"]:
        training = RunFolder(Path(run["run"])).read_plan().training
        assert (training.steps, training.eval_every, training.schedule) == (run["steps"], run["steps"], "wsd")
    law = read_law(Path(swept["law"]))
    assert law.law.irreducible.value == swept["E"]
    big = swept["big"]
    assert big["loss"] == law.predict(big["params"]["p50"], big["tokens"]).model_dump()
    assert big["width_90"] > 0
    assert json.loads((Path(swept["sweep"]) / "sweep.json").read_text()) == swept


def test_what_was_made_of_a_small_run_is_none(swept, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(swept["runs"][0]["run"], out / "small-1")
    for name in ("small-1-int8-1", "small-1 (copy)"):
        shutil.copytree(out / "small-1", out / name)
        (out / name / "results.json").unlink()
    assert unfinished(out) == []
    shutil.copytree(out / "small-1-int8-1", out / "small-2")
    assert unfinished(out) == [out / "small-2"]


def test_the_folder_can_be_read_as_runs_of_a_fit(swept):
    runs = read_runs(Path(swept["sweep"]))
    assert sorted(runs.loss.tolist()) == sorted(run["loss"] for run in swept["runs"])
    assert sorted(runs.num_params.tolist()) == sorted(run["params"] for run in swept["runs"])


def test_a_sweep_has_a_report(swept):
    code, out, err = call("report", swept["sweep"], "--json")
    assert code == 0, err
    page = Path(json.loads(out)["report"])
    assert page == Path(swept["sweep"]).resolve() / "report.html"
    text = page.read_text("utf-8")
    assert "IsoFLOP valleys" in text and all(f"{run['loss']:.3f}" in text for run in swept["runs"])


def test_the_report_of_a_sweep_that_is_not_finished_says_how_to_go_on(swept, tmp_path):
    out = tmp_path / "begun"
    shutil.copytree(Path(swept["runs"][0]["run"]), out / "small-1")
    code, _, err = call("report", out)
    assert code == 2
    assert f"--out {out}" in err


def test_later_small_runs_are_predicted_by_those_before(swept):
    first, *later = (RunFolder(Path(run["run"])).read_plan().predicted for run in swept["runs"])
    assert "loss" not in first
    assert all(predicted["loss"].p10 < predicted["loss"].p90 for predicted in later)


def test_a_finished_sweep_trains_no_more(swept, small_runs, small_machine):
    def never(*args, **kwargs):
        raise AssertionError("a run was made again")

    with quickly(small_machine) as patch:
        patch.setattr("chinchilla.verbs.sweep.begin", never)
        code, out, err = call("sweep", *small_runs, "--budget", "20d", "--target", "40s", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["runs"] == swept["runs"]


def test_an_interrupted_run_is_gone_on_with(swept, small_runs, small_machine, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(swept["sweep"], out)
    last = out / Path(swept["runs"][-1]["run"]).name
    (last / "results.json").unlink()
    shutil.rmtree(last / "checkpoints")
    with quickly(small_machine):
        code, printed, err = call("sweep", *small_runs, "--budget", "20d", "--target", "40s", "--out", out, "--json")
    assert code == 0, err
    again = json.loads(printed.splitlines()[-1])["runs"]
    assert [run["loss"] for run in again] == [run["loss"] for run in swept["runs"]]
    assert "going on with" in err


def test_a_plan_takes_the_law(swept, small_runs, monkeypatch):
    # Several sizes to weigh, for few sentences.
    monkeypatch.setattr("chinchilla.planning.search.MOST_EPOCHS", 10**6)
    monkeypatch.setattr("chinchilla.planning.search.DIMS", (32, 64, 96))
    code, out, err = call("plan", *small_runs, "--law", swept["law"], "--budget", "30s", "--json")
    assert code == 0, err
    plan = json.loads(out.splitlines()[-1])
    law = read_law(Path(swept["law"]))
    assert plan["predicted"]["loss"] == law.predict(plan["num_params"], plan["predicted"]["tokens"]["p50"]).model_dump()
    assert any("own law" in decision["reason"] for decision in plan["decisions"])
    assert len(plan["considered"]) == 3
    (ours,) = (each for each in plan["considered"] if each["num_params"] == plan["num_params"])
    assert ours["on_front"] and ours["loss"] == plan["predicted"]["loss"]
    assert all(each["loss"]["p50"] >= ours["loss"]["p50"] for each in plan["considered"])
    assert plan["frontier"]["name"] == "own"
    assert plan["training"]["batch_tokens"] == law.settings.batch_tokens


def test_a_dry_run_shows_the_design_and_does_nothing(small_runs, small_machine, tmp_path):
    with quickly(small_machine):
        code, out, err = call("sweep", *small_runs, "--budget", "20d", "--out", tmp_path / "new", "--dry-run", "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    assert len(made["runs"]) == 6
    assert sum(run["time_s"] for run in made["runs"]) == pytest.approx(made["time_s"])
    assert not (tmp_path / "new").exists()


def test_too_small_a_budget_says_what_it_would_need(small_runs, tmp_path):
    code, _, err = call("sweep", *small_runs, "--budget", "8s", "--target", "1h", "--out", tmp_path / "new")
    assert code == 4, err
    (needed,) = re.findall(r"give --budget (\w+) or more", err)
    code, _, err = call(
        "sweep", *small_runs, "--budget", needed, "--target", "1h", "--out", tmp_path / "new", "--dry-run"
    )
    assert code == 0, err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "code", "wrong"),
    [
        (["budget.flops=1e15"], 2, "--budget"),
        (["budget.time=30m", "model.dim=64"], 2, "model.dim"),
        (["budget.time=30m", "--target", "soon"], 2, "--target"),
        (["budget.time=30m", "--target", "0"], 2, "--target"),
        (["budget.time=30m", "--target", "-1h"], 2, "--target"),
        (["budget.time=30m", "limits.size=1kB"], 2, "limits.size"),
        (["budget.time=30m", "limits.latency=1ns"], 4, "limits.latency"),
    ],
)
def test_what_cannot_be_swept_is_refused(small_runs, more, code, wrong):
    found, _, err = call("sweep", *small_runs, *more)
    assert (found, wrong in err) == (code, True), err


def test_other_settings_want_another_folder(swept, small_runs, small_machine):
    with quickly(small_machine):
        code, _, err = call("sweep", *small_runs, "train.learning_rate=0.001", "--budget", "20d", "--target", "40s")
    assert (code, "--out" in err) == (2, True), err


def test_a_law_of_other_data_is_refused(swept, small_runs):
    code, _, err = call("plan", *small_runs, "tokenizer.vocab_size=310", "--law", swept["law"], "--budget", "30s")
    assert (code, "law.json" in err) == (3, True), err


def test_the_tables_go_to_standard_output(swept, small_runs, small_machine):
    with quickly(small_machine):
        code, out, err = call("sweep", *small_runs, "--budget", "20d", "--target", "40s")
    assert code == 0, err
    for text in ("Small runs", "Your own law", "validation loss", "alpha", "90 %"):
        assert text in out
