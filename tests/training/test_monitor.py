"""Trackers: opt-in, readable by their own tools, and named when they are missing."""

import errno
import sys
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fakes import make_trainer

from chinchilla.config.errors import UsageError
from chinchilla.store import journal
from chinchilla.training.monitor import Silent, open_trackers


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


def test_a_tracker_whose_disk_is_full_is_given_up_and_ends_no_run(tmp_path, monkeypatch, caplog):
    """TensorBoard's own thread fails first; whoever writes next is told, as here."""

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(Silent):
        def step(self, step: int, *rest: float) -> None:
            if step == 5:
                monkeypatch.setattr(writer, "add_scalar", full)

    trainer = make_trainer(tmp_path, monitor=Filling())
    (tracker,) = trainer.trackers = open_trackers(["tensorboard"], trainer.folder.path)
    writer = tracker._writer
    assert trainer.run().steps == 12
    tracker.close()
    writer.close()
    assert caplog.text.count("tensorboard gets no more of this run: [Errno 28] No space left") == 1
    assert max(line["step"] for line in journal.read(trainer.folder.metrics)) == 12


def test_a_file_that_cannot_be_closed_is_told_too(tmp_path, monkeypatch, caplog):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tracker,) = open_trackers(["tensorboard"], tmp_path)
    writer = tracker._writer
    with monkeypatch.context() as patch:
        patch.setattr(writer, "close", full)
        tracker.close()
    writer.close()
    assert "metrics.jsonl holds all of it" in caplog.text


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
