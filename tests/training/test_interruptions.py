"""Processes that are killed, asked to stop, or out of disk while they train end with what they would have."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fakes import digest, make_trainer, weights

from chinchilla.config.errors import FaultError, StoppedError
from chinchilla.store import checkpoint, journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.monitor import Silent
from chinchilla.training.records import Records
from chinchilla.training.rollback import newest_good
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.stop import StopSignals
from chinchilla.verbs.train import _run

TIMES = {"time_s", "tokens_per_s", "peak_fraction"}
SETTINGS: dict[str, Any] = {"dropout": 0.2, "accumulation": 2, "ema_decay": 0.9, "checkpoint_every": 3, "eval_every": 7}


class Slowed(Silent):
    """Steps of some milliseconds are too short to be hit."""

    def step(self, step: int, *rest: float) -> None:
        time.sleep(0.004)


def unexpected(path: Path, why: str) -> None:
    raise AssertionError(f"{path}: {why}")


def go_on(folder: Path, steps: int, **settings: Any) -> None:
    """What `chinchilla train --resume` does, from the newest checkpoint to the end or to a signal."""
    torch.set_num_threads(1)
    saved = checkpoint.latest(folder / "checkpoints", unexpected)
    # Another process would have other weights at first.
    trainer = make_trainer(folder, os.getpid() if saved else 0, steps=steps, monitor=Slowed(), **SETTINGS | settings)
    if saved:
        trainer.resume(saved)
    trainer.folder.cut_metrics(trainer.progress.step)
    with trainer.folder.lock(), StopSignals() as stop:
        trainer.should_stop = stop.asked
        try:
            trainer.run()
        except StoppedError:
            sys.exit(stop.exit_code)


def start(folder: Path, steps: int, **settings: Any) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    # The optimizers' first step imports torch._dynamo, which takes seconds.
    context.set_forkserver_preload(["chinchilla.training.trainer", "torch._dynamo", "pytest"])
    process = context.Process(target=go_on, args=(folder, steps), kwargs=settings)
    process.start()
    return process


def finish(folder: Path, steps: int) -> tuple[Any, ...]:
    """Go on to the end without a save on the way (disks are slow); give what the run ends with, bit for bit."""
    process = start(folder, steps, checkpoint_every=steps)
    process.join()
    assert process.exitcode == 0
    saved = checkpoint.load(folder / "checkpoints" / f"step-{steps:06d}")
    groups = {name: digest(tensors) for name, tensors in saved.tensors.items() if name != "random"}
    lines = journal.read(folder / "metrics.jsonl")
    curve = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return groups, digest({"worker": saved.tensors["random"]["worker0"]}), curve


def newest(folder: Path) -> int:
    found = sorted((folder / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def is_saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".saving-*"))


def wait_until_saved(process: BaseProcess, folder: Path, before: int) -> None:
    while newest(folder) == before and process.is_alive():
        time.sleep(0.005)


def kill_while_training(folder: Path, kills: int, steps: int) -> int:
    """Kill the run so often, every second time inside a save; give how many hit one."""
    inside, chosen = 0, random.Random(0)
    for number in range(kills):
        before = newest(folder)
        process = start(folder, steps)
        wait_until_saved(process, folder, before)
        if number % 2:
            while not is_saving(folder) and process.is_alive():
                time.sleep(0.0005)
        else:
            time.sleep(chosen.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run came to its end before it was killed"
        assert newest(folder) > before
        inside += is_saving(folder)
    return inside


def check_kills(tmp_path: Path, kills: int, steps: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = finish(tmp_path / "whole", steps)
    assert kill_while_training(tmp_path / "killed", kills, steps) >= kills * 0.3
    assert finish(tmp_path / "killed", steps) == whole


def test_ten_kills_half_inside_saves_change_no_bit(tmp_path):
    check_kills(tmp_path, 10, 130)


@pytest.mark.slow
def test_a_hundred_kills_half_inside_saves_change_no_bit(tmp_path):
    check_kills(tmp_path, 100, 1300)


def check_stops(tmp_path: Path, stops: int, steps: int) -> None:
    chosen = random.Random(1)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "stopped"
    whole = finish(tmp_path / "whole", steps)
    for _ in range(stops):
        before = newest(folder)
        process = start(folder, steps)
        wait_until_saved(process, folder, before)
        time.sleep(chosen.uniform(0, 0.05))
        begun = time.perf_counter()
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        assert time.perf_counter() - begun < 10
        assert process.exitcode == 143, "the run came to its end before it was stopped"
        last = journal.read(folder / "metrics.jsonl")[-1]
        assert newest(folder) == last["step"], "no step is lost"
        event = journal.read(folder / "events.jsonl")[-1]
        assert (event["kind"], event["step"]) == ("stopped", last["step"])
    assert finish(folder, steps) == whole


def test_three_sigterms_save_and_lose_no_step(tmp_path):
    check_stops(tmp_path, 3, 50)


@pytest.mark.slow
def test_fifty_sigterms_save_and_lose_no_step(tmp_path):
    check_stops(tmp_path, 50, 700)


class Hook(Silent):
    """Calls functions when the run comes to their steps."""

    def __init__(self, **hooks: Any) -> None:
        self.hooks = hooks

    def step(self, step: int, *rest: float) -> None:
        if action := self.hooks.get(f"at{step}"):
            action()


def limit_files(size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def train_with_limited_files(folder: Path, until: str) -> None:
    def limit(size_bytes: int) -> None:
        trainer.saver.wait()  # saves are written aside: that of step 4 ends before the limit, that of step 8 meets it
        limit_files(size_bytes)

    hooks = {"at6": lambda: limit(20_000), until: lambda: limit(resource.RLIM_INFINITY)}
    trainer = make_trainer(folder, monitor=Hook(**hooks))
    try:
        trainer.run()
    except FaultError as error:
        (folder / "error").write_text(str(error))
        sys.exit(error.exit_code)


@pytest.mark.parametrize(("until", "code"), [("at9", 0), ("never", 5)])
def test_a_limit_on_file_size_while_saving_is_survived_or_ends_clearly(tmp_path, until, code):
    folder = tmp_path / "limited"
    folder.mkdir()
    process = multiprocessing.get_context("forkserver").Process(target=train_with_limited_files, args=(folder, until))
    process.start()
    process.join()
    assert process.exitcode == code
    unsaved = [event["step"] for event in journal.read(folder / "events.jsonl") if event["kind"] == "unsaved"]
    assert unsaved == ([8] if code == 0 else [8, 12])
    assert_ends_as_usual(tmp_path, folder)
    if code:
        assert "step 12 could not be saved, the one of step 4 stands" in (folder / "error").read_text()


def assert_ends_as_usual(tmp_path: Path, folder: Path) -> None:
    """What is on the disk is whole, has each step once, and going on from it ends as an undisturbed run."""
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    other = make_trainer(folder, model_seed=3)
    saved = checkpoint.latest(other.folder.checkpoints, unexpected)
    assert saved is not None
    other.resume(saved)
    other.folder.cut_metrics(saved.step)
    other.run()
    assert digest(weights(other.model)) == digest(weights(whole.model))
    steps = [line["step"] for line in journal.read(other.folder.metrics) if "loss" in line]
    assert steps == list(range(1, 13))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk can be mounted only by root")
    yield path
    subprocess.run(["umount", path], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (disk / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


@pytest.mark.parametrize("emptied", [True, False])
def test_a_full_disk_is_survived_or_ends_clearly(tmp_path, small_disk, emptied):
    """Not a byte is free from step 6 on: no checkpoint, and no line of a journal."""

    def fill_up() -> None:
        trainer.saver.wait()  # saves are written aside: that of step 4 ends before the disk is full
        fill(small_disk)

    def empty() -> None:
        trainer.saver.wait()  # that of step 8 meets it
        (small_disk / "other").unlink()

    hooks = {"at6": fill_up} | ({"at10": empty} if emptied else {})
    trainer = make_trainer(small_disk / "run", monitor=Hook(**hooks))
    if emptied:
        trainer.run()
        kinds = [(event["kind"], event["step"]) for event in journal.read(trainer.folder.events)]
        assert kinds == [("checkpoint", 4), ("unsaved", 8), ("checkpoint", 12)]
    else:
        with pytest.raises(FaultError, match=r"step 12 could not be saved, the one of step 4 stands: .*train --resume"):
            trainer.run()
        assert newest(trainer.folder.path) == 4
        (small_disk / "other").unlink()
    assert_ends_as_usual(tmp_path, trainer.folder.path)


def test_a_run_asked_to_stop_before_its_first_step_writes_no_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, should_stop=lambda: True)
    with pytest.raises(
        StoppedError, match=r"stopped after step 0 of 12; go on with: chinchilla train --resume"
    ) as stop:
        trainer.run()
    assert stop.value.exit_code == 130
    assert not trainer.folder.checkpoints.exists()


def test_a_signal_during_the_last_step_is_written_down_too(tmp_path):
    trainer = make_trainer(tmp_path, monitor=Hook(at12=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with StopSignals() as stop, pytest.raises(StoppedError, match="stopped after the last step, before the test") as e:
        _run(trainer, stop)
    assert e.value.exit_code == 143
    event = journal.read(trainer.folder.events)[-1]
    assert (event["kind"], event["step"]) == ("stopped", 12)


def test_a_stop_that_cannot_be_saved_is_a_fault(tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise checkpoint.DiskFullError("disk full")

    monkeypatch.setattr("chinchilla.training.saver.checkpoint.save", full)
    trainer: Trainer = make_trainer(tmp_path)
    trainer.should_stop = lambda: trainer.progress.step == 3
    with pytest.raises(FaultError, match="step 3 could not be saved, there is none before it: disk full"):
        trainer.run()


def test_a_stop_is_not_what_a_later_return_goes_back_to(tmp_path):
    """The run that was not stopped has no checkpoint there."""
    trainer = make_trainer(tmp_path, keep_checkpoints=3)
    trainer.should_stop = lambda: trainer.progress.step == 6
    with pytest.raises(StoppedError):
        trainer.run()
    states = {path.name: checkpoint.load(path).state for path in RunFolder(tmp_path).checkpoints.iterdir()}
    assert {name: state["scheduled"] for name, state in states.items()} == {"step-000004": True, "step-000006": False}
    found = newest_good(trainer.folder, Records(trainer.folder))
    assert found is not None and found.step == 4
