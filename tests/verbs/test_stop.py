"""Signals: a real `chinchilla train` saves, says how to go on, and ends as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import SETTINGS
from safetensors.torch import load_file

from chinchilla.config.errors import UsageError
from chinchilla.store import checkpoint, journal
from chinchilla.store.run_folder import RunFolder, require_writable
from chinchilla.verbs.stop import StopSignals

TRAIN = """
import sys
import chinchilla.verbs.plan
from chinchilla.cli import main
from chinchilla.config.machine import Machine

machine = Machine.model_validate_json(sys.argv.pop(1))
chinchilla.verbs.plan.cached_measure = lambda *args, **kwargs: machine
sys.exit(main(sys.argv[1:]))
"""

FIXED = (
    *SETTINGS,
    "budget.time=600",
    "train.steps=60",
    "train.probes=false",
    "train.precision=fp32",
    "train.eval_every=16",
    "train.checkpoint_every=12",
)


@pytest.fixture(scope="module")
def command(small_machine):
    """`chinchilla` in a process of its own, without measuring the machine."""
    return [sys.executable, "-c", TRAIN, small_machine.model_dump_json()]


@pytest.fixture(scope="module")
def undisturbed(command, numbers, tmp_path_factory):
    """What `train --json` tells of a run that nobody stopped."""
    words = [
        "train",
        *FIXED,
        f"data.train={numbers / 'train.tsv'}",
        f"runs={tmp_path_factory.mktemp('runs')}",
        "--json",
    ]
    return told_by([*command, *words])


def told_by(command: list[str]) -> dict:
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def stop_at_work(command: list[str], run: Path, number: signal.Signals) -> tuple[int, str, float]:
    """Start it, send the signal once the first checkpoint is there; give exit code, standard error, seconds to end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints" / "step-000012").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        begun = time.perf_counter()
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        return process.returncode, told, time.perf_counter() - begun


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_ends_in_the_same_bits(
    command, numbers, undisturbed, tmp_path, number, code
):
    run = tmp_path / "translate-1"
    words = ["train", *FIXED, f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path}"]
    found, told, time_s = stop_at_work([*command, *words], run, number)
    assert found == code and time_s < 10, told
    assert told.splitlines()[-1].endswith(f"of 60; go on with: chinchilla train --resume {run}")
    assert "Traceback" not in told
    last = journal.read(run / "metrics.jsonl")[-1]["step"]
    saved = checkpoint.latest(run / "checkpoints", lambda path, why: pytest.fail(why))
    assert 12 <= saved.step == last < 60
    event = journal.read(run / "events.jsonl")[-1]
    assert (event["kind"], event["step"]) == ("stopped", last)
    resumed = told_by([*command, "train", "--resume", str(run), "--json"])
    assert resumed["metrics"] == undisturbed["metrics"]
    files = (Path(each["run"]) / "model" / "model.safetensors" for each in (resumed, undisturbed))
    ours, theirs = map(load_file, files)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_signal_while_planning_leaves_no_run_folder(command, numbers, tmp_path):
    words = [f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path / 'runs'}", "budget.time=300"]
    with subprocess.Popen([*command, "train", *SETTINGS, *words], stderr=subprocess.PIPE, text=True) as process:
        while "probe 1/" not in (line := process.stderr.readline()):
            assert line, "it ended before it probed"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (tmp_path / "runs").exists()


def test_two_processes_on_one_run_are_refused(command, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained["run"], run)
    with RunFolder(run).lock():
        process = subprocess.run([*command, "train", "--resume", run], capture_output=True, text=True)
    assert process.returncode == 2
    assert f"{run}: another process is at work in this run" in process.stderr


def test_the_first_signal_is_kept_and_the_second_is_the_usual_one():
    with StopSignals() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked() and stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._take
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_is_listened_to():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with StopSignals() as stop:
            seen.append((stop.asked(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(chinchilla, tmp_path):
    """The data is missing too, which would be told first if it were looked at."""
    (tmp_path / "file").write_text("")
    words = ["task=translate", f"data.train={tmp_path / 'absent.tsv'}", "budget.time=1h", f"runs={tmp_path / 'file'}"]
    code, _, err = chinchilla("train", *words)
    assert code == 2 and "choose another with runs=FOLDER" in err


def test_a_read_only_folder_of_runs_is_refused():
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o555)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)  # permissions bind everyone but root
        try:
            with pytest.raises(UsageError, match=r"no run folder can be made in .*runs: Permission denied"):
                require_writable(Path(made) / "deep" / "runs")
        finally:
            os.seteuid(was)
        Path(made).chmod(0o755)


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_folder_is_made(
    chinchilla, numbers, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 50_000, 50_000)
    monkeypatch.setattr("chinchilla.store.run_folder.shutil.disk_usage", lambda path: usage)
    words = [*FIXED, f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path / 'runs'}"]
    code, _, err = chinchilla("train", *words)
    assert code == 5
    assert "3 checkpoints and the model take" in err and "has 50 kB free; make room" in err
    assert not (tmp_path / "runs").exists()
