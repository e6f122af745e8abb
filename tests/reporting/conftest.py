"""Run folders as training and compression leave them, with made-up numbers."""

import json
from pathlib import Path

import pytest
from reporting_fakes import HOSTILE, MEASURED, PREDICTED, make_compression, make_plan, make_results, write_metrics

from chinchilla.config.load import load_run
from chinchilla.store.run_folder import RunFolder


@pytest.fixture
def bare_run(tmp_path: Path) -> RunFolder:
    """Only what every run folder has: run.toml and plan.json."""
    folder = RunFolder.create(tmp_path / "runs", "translate")
    folder.write_run(load_run(None, ["task=translate", f"data.train={HOSTILE}.tsv", "budget.time=10m"]))
    folder.write_plan(make_plan())
    return folder


@pytest.fixture
def run(bare_run: RunFolder) -> RunFolder:
    """A finished training run."""
    write_metrics(bare_run)
    for name, measured in MEASURED.items():
        bare_run.log_prediction(name, PREDICTED[name], measured, PREDICTED[name].unit)
    for step in (500, 1000, 1500, 2000):
        bare_run.log_event("checkpoint", step=step)
    bare_run.log_event("damaged", path="checkpoints/step-001000", why=f"bad sum: {HOSTILE}")
    bare_run.log_event("replan", step=150, steps=2040, step_time_s=0.246)
    bare_run.write_env(seed=0, threads=2)
    (bare_run.path / "results.json").write_text(json.dumps(make_results()), encoding="utf-8")
    return bare_run


@pytest.fixture
def compressed(run: RunFolder) -> RunFolder:
    """The int8 run made from `run`, with its own plan, configuration and comparison."""
    folder = RunFolder.create(run.path.parent, "translate-int8")
    folder.write_run(run.read_run())
    folder.write_plan(run.read_plan())
    record = make_compression(f"../{run.path.name}")
    (folder.path / "compression.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
