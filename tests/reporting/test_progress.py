"""Live progress: what is written where, by the clock it is given, and that it never stops a run."""

import errno
import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from reporting_fakes import PREDICTED

from chinchilla.config.plan import LABELS, TOKEN
from chinchilla.reporting.progress import BAR_INTERVAL_S, LINE_INTERVAL_S, NoteHandler, Progress


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A terminal and what was written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError as error:  # Linux: the other end is closed
                assert error.errno == errno.EIO
                return
            if not part:
                return
            self._shown += part

    def close(self) -> str:
        self.file.close()
        self._reader.join()
        os.close(self._master)
        return self._shown.decode()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, no_color: str = "") -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen()
    yield screen


def train(progress: Progress, clock: Clock, steps: int = 100, step_time_s: float = 1.0) -> None:
    progress.start(steps, 2.5e5, TOKEN, PREDICTED["loss"])
    for step in range(1, steps + 1):
        clock.now += step_time_s
        progress.step(step, 5.0 - step / 100, 18_900.0, 0.463, (steps - step) * step_time_s)
    progress.stop()


def test_off_a_terminal_a_line_is_written_every_interval_and_at_both_ends() -> None:
    file, clock = io.StringIO(), Clock()
    train(Progress(file, clock), clock)
    lines = file.getvalue().splitlines()
    assert lines[0] == "> training: 100 steps, 250k tokens"
    steps = [int(re.findall(r"step (\d+)/100", line)[0]) for line in lines[1:]]
    assert steps == [*range(1, 100, int(LINE_INTERVAL_S)), 100]
    assert lines[2] == (
        "  step 11/100 | 11% | 89 s left | loss 4.890 | 18.9k tokens/s | 46% of peak | predicted end 2.38 [2.21 - 2.62]"
    )


def test_off_a_terminal_lines_are_ascii_without_codes() -> None:
    file, clock = io.StringIO(), Clock()
    with Progress(file, clock) as progress:
        progress.stage("planning: probe 2/6")
        train(progress, clock)
        progress.note("3+3×192 \x1b[31mred\r\nnext")
    shown = file.getvalue()
    assert shown.startswith("> planning: probe 2/6\n")
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "3+3x192" in shown
    assert shown.splitlines()[-1].endswith("next")


def test_what_is_not_known_is_left_out() -> None:
    file = io.StringIO()
    with Progress(file, Clock()) as progress:
        progress.start(10, 100, TOKEN, None)
        progress.step(1, 4.0, 50.0)
    assert file.getvalue().splitlines()[1] == "  step 1/10 | 10% | loss 4.000 | 50 tokens/s"


def test_what_is_counted_is_called_as_the_task_calls_it() -> None:
    file = io.StringIO()
    with Progress(file, Clock()) as progress:
        progress.start(10, 100, LABELS["classify_table"], None)
        progress.step(1, 4.0, 50.0)
    assert "10 steps, 100 examples" in file.getvalue() and "50 examples/s" in file.getvalue()


def test_a_run_longer_than_planned_stays_below_a_hundred_and_one_per_cent() -> None:
    file = io.StringIO()
    with Progress(file, Clock()) as progress:
        progress.start(10, 100, TOKEN, None)
        progress.step(12, 4.0, 50.0, None, -3.0)
    assert "step 12/12 | 100% | 0 s left" in file.getvalue()


def test_a_terminal_gets_a_bar_that_moves_no_oftener_than_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        clock = Clock()
        progress = Progress(screen.file, clock)
        train(progress, clock, step_time_s=BAR_INTERVAL_S / 10)
        progress.stage("scoring")
    shown = screen.close()
    assert 10 <= len(re.findall(r"━.*step \d+/100", shown)) <= 13
    assert "· 46% of peak · predicted end 2.38 [2.21 – 2.62]" in shown
    last = shown[shown.rindex("step 100/100") :]
    assert "━" not in last
    assert "scoring" in last
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_notes_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen, Progress(screen.file, Clock()) as progress:
        progress.start(10, 100, TOKEN, None)
        progress.step(1, 4.0, 50.0)
        progress.note("step 1: validation [bold]loss 4.2")
    shown = screen.close()
    assert "validation [bold]loss 4.2" in shown
    assert shown.index("validation") < shown.rindex("━")


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_no_color_is_honoured_on_a_terminal(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, no_color) as screen:
        clock = Clock()
        train(Progress(screen.file, clock), clock, steps=3)
    assert bool(re.search(r"\x1b\[[0-9;]*(3[0-7]|38;5;\d+|9[0-7])m", screen.close())) is coloured


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("TERM", "dumb")
        clock = Clock()
        train(Progress(screen.file, clock), clock, steps=3)
    assert "\x1b" not in screen.close()


def test_the_cursor_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        terminal(monkeypatch) as screen,
        pytest.raises(RuntimeError, match="training failed"),
        Progress(screen.file, Clock()) as progress,
    ):
        progress.start(10, 100, TOKEN, None)
        progress.step(1, 4.0, 50.0)
        raise RuntimeError("training failed")
    assert screen.close().count("\x1b[?25h") == 1


def test_a_reader_that_left_does_not_stop_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    clock = Clock()
    file = os.fdopen(writing, "w", buffering=1)
    train(Progress(file, clock), clock)
    with pytest.raises(BrokenPipeError):  # what the stream itself would have done
        file.close()


def test_a_terminal_that_went_away_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    clock, file = Clock(), os.fdopen(slave, "w", buffering=1)
    progress = Progress(file, clock)
    progress.start(10, 100, TOKEN, None)
    progress.step(1, 4.0, 50.0)
    os.close(master)
    clock.now += 10
    progress.step(2, 4.0, 50.0)
    progress.stop()
    with pytest.raises(OSError, match="Input/output error"):
        file.close()


def test_a_closed_stream_does_not_stop_the_run() -> None:
    file, clock = io.StringIO(), Clock()
    progress = Progress(file, clock)
    file.close()
    train(progress, clock)
    train(Progress(file, clock), clock)


def test_a_full_disk_is_not_hidden() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space left"):
        Progress(Full(), Clock()).note("x")


def test_a_process_without_standard_error_can_tell() -> None:
    code = "from chinchilla.reporting.progress import Progress; Progress().stage('x'); print('done')"
    command = 'exec "$0" -c "$1" 2>&-'
    told = subprocess.run(["sh", "-c", command, sys.executable, code], capture_output=True, text=True, check=True)
    assert told.stdout == "done\n"


def test_standard_error_is_where_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().stage("reading data")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "> reading data\n"


def test_log_records_become_notes() -> None:
    file = io.StringIO()
    log = logging.Logger("reporting-test")
    log.addHandler(NoteHandler(Progress(file, Clock())))
    log.warning("%d rows skipped", 3)
    assert file.getvalue() == "  3 rows skipped\n"


def test_many_threads_write_whole_lines() -> None:
    file = io.StringIO()
    progress = Progress(file, Clock())
    progress.start(1000, 100, TOKEN, None)

    def tell(number: int) -> None:
        for step in range(50):
            progress.note(f"thread {number} at {step}.")
            progress.step(step, 1.0, 1.0)

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.stop()
    notes = [line for line in file.getvalue().splitlines() if "thread" in line]
    assert sorted(notes) == sorted(f"  thread {n} at {step}." for n in range(4) for step in range(50))


def test_starting_again_ends_the_first_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        clock = Clock()
        progress = Progress(screen.file, clock)
        progress.start(10, 100, TOKEN, None)
        progress.step(1, 4.0, 50.0)
        train(progress, clock, steps=5)
    shown = screen.close()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2
