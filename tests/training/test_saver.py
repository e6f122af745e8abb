"""Saving aside: the step goes on, nothing is torn, one save at a time, and no failure is lost."""

import errno
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fakes import digest, make_trainer, weights

from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint, journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.monitor import Silent
from chinchilla.training.records import Records
from chinchilla.training.saver import Saver, Snapshot
from chinchilla.training.trainer import Trainer


class Notes(Silent):
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_saver(folder: Path, keep: int = 2) -> Saver:
    run = RunFolder(folder)
    return Saver(run, keep, Records(run), Notes())


def snapshot(step: int) -> Snapshot:
    return Snapshot({"model": {"weight": torch.full((50, 50), float(step))}}, {"step": step})


def events(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    return [event for event in journal.read(trainer.folder.events) if event["kind"] == kind]


def slow_down(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    """Saves that wait for the gate before they write."""
    real = checkpoint.save

    def save(*args: Any) -> Path:
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr("chinchilla.training.saver.checkpoint.save", save)


def break_saves(monkeypatch: pytest.MonkeyPatch, at: set[int], code: int) -> None:
    """Saves of these steps that the system refuses half-way, with this error."""
    real = checkpoint.write_new

    def write_new(path: Path, chunks: Any) -> tuple[int, str]:
        if path.name == "optimizer.safetensors" and int(path.parent.name.rpartition("-")[2]) in at:
            path.write_bytes(b"half")
            raise OSError(code, os.strerror(code), str(path))
        return real(path, chunks)

    monkeypatch.setattr(checkpoint, "write_new", write_new)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    slow_down(monkeypatch, gate := threading.Event())
    trainer = make_trainer(tmp_path)
    steps = trainer.steps()
    next(steps)
    saved = digest(weights(trainer.model))
    trainer.save()
    for _ in itertools.islice(steps, 5):
        pass
    assert not trainer.folder.checkpoints.exists()
    gate.set()
    trainer.saver.settle()
    found = checkpoint.load(trainer.folder.checkpoints / "step-000001")
    assert digest(found.tensors["model"]) == saved != digest(weights(trainer.model))
    assert found.state["step"] == 1


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_no_save_is_torn_by_the_steps_beside_it(tmp_path, optimizer):
    """100 saves with each optimizer, every one compared with what the tensors were when it began."""
    trainer = make_trainer(
        tmp_path, optimizer=optimizer, steps=100, checkpoint_every=1, keep_checkpoints=100, ema_decay=0.9, eval_every=7
    )
    expected, take = {}, trainer._snapshot

    def remember(scheduled: bool) -> Snapshot:
        found = take(scheduled)
        live = {"model": weights(trainer.model), "optimizer": trainer.optimizer.state(), "average": trainer.average}
        expected[trainer.progress.step] = {name: digest(tensors) for name, tensors in live.items()}
        return found

    trainer._snapshot = remember  # type: ignore[method-assign]
    trainer.run()
    for step in range(1, 101):
        saved = checkpoint.load(trainer.folder.checkpoints / f"step-{step:06d}")
        assert {name: digest(saved.tensors[name]) for name in expected[step]} == expected[step], step


def test_a_second_save_waits_for_the_first_and_says_so(tmp_path, monkeypatch):
    slow_down(monkeypatch, gate := threading.Event())
    saver, taken = make_saver(tmp_path), []
    saver.save(1, lambda: snapshot(1))
    threading.Timer(0.2, gate.set).start()
    begun = time.perf_counter()
    # Taken only once the first is written: two snapshots would take twice the memory.
    saver.save(2, lambda: (taken.append(saver.stands), snapshot(2))[1])
    assert taken == [1] and time.perf_counter() - begun > 0.15
    saver.settle()
    lines = journal.read(tmp_path / "events.jsonl")
    assert [line["kind"] for line in lines] == ["checkpoint", "save_waited", "checkpoint"]
    assert lines[1]["step"] == 2 and lines[1]["waited_s"] > 0.15
    assert lines[2]["write_s"] > 0 and lines[2]["snapshot_s"] >= 0


def test_a_failing_disk_is_a_fault_at_the_next_step(tmp_path, monkeypatch):
    break_saves(monkeypatch, {8}, errno.EIO)
    trainer = make_trainer(tmp_path, steps=400, eval_every=500, checkpoint_every=4)
    with pytest.raises(FaultError, match=r"optimizer\.safetensors: Input/output error"):
        trainer.run()
    assert 8 < trainer.progress.step <= 12
    assert [path.name for path in trainer.folder.checkpoints.iterdir()] == ["step-000004"]
    assert "Input/output error" in events(trainer, "fault")[0]["why"]


def test_a_failing_disk_at_the_last_save_is_a_fault_too(tmp_path, monkeypatch):
    break_saves(monkeypatch, {12}, errno.EIO)
    with pytest.raises(FaultError, match="Input/output error"):
        make_trainer(tmp_path).run()


def test_a_mistake_in_the_saving_thread_is_raised_too(tmp_path):
    saver = make_saver(tmp_path)
    saver.save(1, lambda: Snapshot({"model": {"x": torch.zeros(1, dtype=torch.complex64)}}, {}))
    with pytest.raises(TypeError, match="cannot be saved"):
        saver.settle()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_costs_that_checkpoint_and_not_the_run(tmp_path, monkeypatch, code):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    break_saves(monkeypatch, {8}, code)
    trainer = make_trainer(tmp_path / "full", monitor=Notes())
    trainer.run()
    assert digest(weights(trainer.model)) == digest(weights(whole.model))
    (event,) = events(trainer, "unsaved")
    assert (event["step"], event["stands"]) == (8, 4) and os.strerror(code) in event["why"]
    (note,) = [note for note in trainer.monitor.notes if "could not be saved" in note]
    assert "step 8 could not be saved, the one of step 4 stands" in note
    assert sorted(path.name for path in trainer.folder.checkpoints.iterdir()) == ["step-000004", "step-000012"]


def test_a_disk_still_full_at_the_end_is_a_fault_that_says_how_to_go_on(tmp_path, monkeypatch):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    break_saves(monkeypatch, {8, 12}, errno.ENOSPC)
    trainer = make_trainer(tmp_path / "full")
    with pytest.raises(
        FaultError, match=r"step 12 could not be saved, the one of step 4 stands.*train --resume"
    ) as fault:
        trainer.run()
    assert fault.value.exit_code == 5 and str(trainer.folder.path) in str(fault.value)
    monkeypatch.undo()
    other = make_trainer(tmp_path / "full", model_seed=5)
    other.resume(checkpoint.latest(other.folder.checkpoints, lambda path, why: pytest.fail(why)))
    other.run()
    assert digest(weights(other.model)) == digest(weights(whole.model))


def test_lines_that_find_the_disk_full_are_written_later_in_order(tmp_path, monkeypatch, caplog):
    records, real = Records(RunFolder(tmp_path)), journal.append

    def full(path: Path, record: Any) -> None:
        raise checkpoint.DiskFullError(f"{path}: No space left on device")

    records.event("first")
    monkeypatch.setattr(journal, "append", full)
    records.event("second", step=1)
    records.metrics(step=1, loss=2.0)
    time.sleep(0.05)
    monkeypatch.setattr(journal, "append", real)
    records.event("third")
    lines = journal.read(tmp_path / "events.jsonl")
    assert [line["kind"] for line in lines] == ["first", "second", "third"]
    assert lines[1]["time"] < lines[2]["time"]
    assert journal.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    assert caplog.text.count("kept in memory until there is room") == 1
    monkeypatch.setattr(journal, "append", full)
    records.event("fourth")
    with pytest.raises(FaultError, match="No space left"):
        records.flush()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_save_in_flight_ends_before_an_error_leaves_the_run_but_a_second_ctrl_c_does_not_wait(
    tmp_path, monkeypatch, error
):
    """Whoever called gives back the run's lock then."""
    slow_down(monkeypatch, gate := threading.Event())

    class Failing(Silent):
        def step(self, step: int, *rest: float) -> None:
            if step == 5:
                raise error

    trainer = make_trainer(tmp_path, monitor=Failing())
    timer = threading.Timer(0.3, gate.set)
    if error is RuntimeError:
        timer.start()
    with pytest.raises(error):
        trainer.run()
    assert (trainer.folder.checkpoints / "step-000004").exists() == (error is RuntimeError)
    gate.set()
    trainer.saver.wait()
    assert (trainer.folder.checkpoints / "step-000004").exists()


def test_a_run_folder_that_is_moved_while_training_is_named_and_not_made_anew(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    folder = tmp_path / "run"

    class Moving(Silent):
        def step(self, step: int, *rest: float) -> None:
            if step == 6:
                trainer.saver.wait()  # that of step 4, written aside: it is to be there
                folder.rename(tmp_path / "elsewhere")

    trainer = make_trainer(folder, monitor=Moving())
    with pytest.raises(FaultError, match=r"run: the run folder is gone; .*--resume RUN"):
        trainer.run()
    assert not folder.exists()
    other = make_trainer(tmp_path / "elsewhere", model_seed=3)
    other.resume(checkpoint.latest(other.folder.checkpoints, lambda path, why: pytest.fail(why)))
    other.run()
    assert digest(weights(other.model)) == digest(weights(whole.model))
