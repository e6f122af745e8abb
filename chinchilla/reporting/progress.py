"""Live progress: a bar on a terminal, one line an interval elsewhere. It never stops the run it tells of."""

import errno
import io
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import TOKEN, Label
from chinchilla.config.units import show_count
from chinchilla.reporting.tables import is_terminal
from chinchilla.reporting.values import clean, interval, seconds, typewriter

LINE_INTERVAL_S = 10.0
BAR_INTERVAL_S = 0.2

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)


class Progress:
    """Tells a person where the command stands, on standard error by default.

    On a terminal a bar stays at the bottom and is drawn again at most every `BAR_INTERVAL_S`; elsewhere a line is
    written every `LINE_INTERVAL_S`. Every method may be called from any thread.
    """

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # Python has no sys.stderr when the process was started with it closed.
        stream = file or sys.stderr or io.StringIO()
        self._terminal = is_terminal(stream)
        self._file = cast(TextIO, _Lasting(stream))
        self._clock = clock
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._total_steps = 1
        self._label = TOKEN
        self._loss = ""
        self._last = -LINE_INTERVAL_S
        self._unwritten = ""

    def stage(self, name: str) -> None:
        """Write a line that tells what is done now, such as "planning: probe 2/6"."""
        self._write(f"> {name}", "bold")

    def note(self, text: str) -> None:
        """Write a line worth keeping, above the bar."""
        self._write(f"  {text}", "")

    def total(self, steps: int) -> None:
        """A new plan has this many steps in all."""
        with self._lock:
            self._total_steps = max(1, steps)

    def start(self, total_steps: int, total: float, label: Label, predicted_loss: Estimate | None) -> None:
        """Training begins, on `total` of what `label` calls them.

        `predicted_loss` is the validation loss it is thought to end with.
        """
        with self._lock:
            self.stop()
            self._total_steps, self._label = max(1, total_steps), label
            self._loss = f"predicted end {interval(predicted_loss)}" if predicted_loss else ""
            self._last = -float("inf")
            self._write(f"> training: {total_steps:,} steps, {show_count(total)} {label.many}", "bold")
            if self._terminal:
                console = Console(file=self._file, force_terminal=True, highlight=False, markup=False, emoji=False)
                # No refresh thread: the bar moves with the steps, and the processors are for training.
                self._live = Live(
                    console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True
                )
                self._live.start()

    def step(
        self,
        step: int,
        loss: float,
        tokens_per_s: float,
        peak_fraction: float | None = None,
        time_left_s: float | None = None,
    ) -> None:
        """One step is done; `peak_fraction` is of the machine's measured peak."""
        parts = [f"loss {loss:.3f}", f"{show_count(tokens_per_s)} {self._label.many}/s"]
        if peak_fraction is not None:
            parts.append(f"{peak_fraction:.0%} of peak")
        if self._loss:
            parts.append(self._loss)
        left = "" if time_left_s is None else f"{seconds(max(0, round(time_left_s)))} left"
        with self._lock:
            self._show(step, left, parts)

    def stop(self) -> None:
        """Training has ended: the last state stays as a line, the bar goes."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()
            if self._unwritten:
                self._write(self._unwritten, "")
            self._unwritten = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _show(self, step: int, left: str, parts: list[str]) -> None:
        now = self._clock()
        total = max(step, self._total_steps)
        line = " | ".join(filter(None, [f"  step {step:,}/{total:,}", f"{step / total:.0%}", left, *parts]))
        self._unwritten = line
        if now - self._last < (BAR_INTERVAL_S if self._live else LINE_INTERVAL_S):
            return
        self._last = now
        if self._live:
            self._live.update(_bar(step, total, left, parts), refresh=True)
        else:
            self._write(line, "")
            self._unwritten = ""

    def _write(self, text: str, style: str) -> None:
        """One line, above the bar where there is one. Control characters don't reach the terminal."""
        text = clean(text).replace("\n", " ")
        with self._lock:
            if self._live:
                self._live.console.print(Text(text, style))
            elif self._terminal:
                Console(file=self._file, force_terminal=True, highlight=False, soft_wrap=True).print(Text(text, style))
            else:
                self._file.write(typewriter(text) + "\n")
                self._file.flush()


def _bar(step: int, total: int, left: str, parts: list[str]) -> Group:
    """Two lines: the bar with the step, and below it the numbers."""
    top = Table.grid(padding=(0, 1))
    top.add_row(
        Text(f"  {step / total:4.0%}"),
        ProgressBar(total=total, completed=step, width=32),
        Text(f"step {step:,}/{total:,}"),
        Text(left),
    )
    return Group(top, Text("  " + " · ".join(parts), overflow="ellipsis", no_wrap=True))


class NoteHandler(logging.Handler):
    """Passes log records on as notes, so that they don't cut through the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record above the bar."""
        self._progress.note(self.format(record))


class _Lasting(io.TextIOBase):
    """A text stream that goes silent when nobody is left to read it; what it cannot encode becomes "?"."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = stream.closed

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in typeshed
        return self._stream.encoding or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return not self._gone and self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        known = text if self.encoding.lower().startswith("utf") else typewriter(text)
        self._guarded(lambda: self._stream.write(known.encode(self.encoding, "replace").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, act: Callable[[], object]) -> None:
        if self._gone or self._stream.closed:
            return
        try:
            act()
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._gone = True
