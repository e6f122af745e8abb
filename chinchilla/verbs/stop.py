"""SIGINT and SIGTERM while a run trains: the first one asks it to stop in good order, the next ends it at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Listens inside its `with` block; `asked()` says whether a signal came.

    The first signal gives both back to whoever handled them before, so that a second one has its usual effect: it ends
    the process. In another thread than the main one, where Python allows no handlers, nothing is listened to.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._came: signal.Signals | None = None

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._came is not None

    @property
    def exit_code(self) -> int:
        """What a process ended by that signal gives: 128 and its number."""
        return 128 + (self._came or signal.SIGINT)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Listen no longer."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = signal.Signals(number)
        self.release()
