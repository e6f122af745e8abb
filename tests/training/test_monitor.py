"""Trackers: opt-in, readable by their own tools, and named when they are missing."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fakes import make_trainer

from chinchilla.config.errors import UsageError
from chinchilla.store import journal
from chinchilla.training.monitor import open_trackers


def test_tensorboard_reads_what_the_journal_holds(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.trackers = open_trackers(["tensorboard"], trainer.folder.path)
    trainer.run()
    for tracker in trainer.trackers:
        tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    lines = journal.read(trainer.folder.metrics)
    for name in ("loss", "valid_loss", "learning_rate", "tokens_per_s", "peak_fraction"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        scalars = [(scalar.step, scalar.value) for scalar in found.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in expected]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_no_tracker_unless_asked(tmp_path):
    assert open_trackers([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed .*pip install 'chinchilla-ml\[{name}\]'"):
        open_trackers(["tensorboard", name], tmp_path)


def test_a_missing_tensorboard_names_its_extra(tmp_path, monkeypatch):
    for module in list(sys.modules):
        if module.startswith(("torch.utils.tensorboard", "tensorboard")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'chinchilla-ml\[tensorboard\]'"):
        open_trackers(["tensorboard"], tmp_path)
