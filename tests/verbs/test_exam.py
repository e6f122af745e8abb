"""Scoring a finished run: what it costs."""

import json
from pathlib import Path

import pytest

from chinchilla.models import hub
from chinchilla.verbs import load


def test_evaluate_reads_the_model_once(train_tiny, chinchilla, monkeypatch: pytest.MonkeyPatch):
    trained = train_tiny("budget.time=1h", "train.steps=3", "train.probes=false", "train.compile=false")
    read: list[Path] = []

    def counted(folder: Path) -> hub.Loaded:
        read.append(folder)
        return hub.read_model(folder)

    monkeypatch.setattr(load, "read_model", counted)
    code, out, _ = chinchilla("evaluate", trained["run"], "--json")
    assert code == 0
    assert json.loads(out)["metrics"] == trained["metrics"]
    assert read == [Path(trained["run"]) / "model"]
