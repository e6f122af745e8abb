"""The run's journals while it trains: a full disk delays lines, and loses none."""

import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from chinchilla.config.errors import FaultError
from chinchilla.store.atomic import DiskFullError
from chinchilla.store.run_folder import RunFolder

log = logging.getLogger("chinchilla")


class Records:
    """`metrics.jsonl` and `events.jsonl`; lines that find no room wait here, in order, and are tried with the next."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._waiting: deque[Callable[[], object]] = deque()

    def metrics(self, **values: Any) -> None:
        """Add a line of metrics. Raises FaultError when the disk fails otherwise than by being full."""
        self._add(partial(self._folder.log_metrics, **values))

    def event(self, kind: str, **values: Any) -> None:
        """Add an event, with the time of now also when it is written later. Raises FaultError as `metrics`."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._add(partial(self._folder.log_event, kind, time=now, **values))

    def fault(self, step: int, error: FaultError) -> None:
        """Add what ends the run; a warning where the disk takes no line any more."""
        try:
            self.event("fault", step=step, why=str(error))
        except FaultError as other:
            log.warning("the fault could not be written down: %s", other)

    def cut(self, step: int) -> None:
        """Drop the metrics of later steps than `step`, in turn with the lines. Raises FaultError as `metrics`."""
        self._add(partial(self._folder.cut_metrics, step))

    def flush(self) -> None:
        """Write what waits.

        Raises:
            DiskFullError: there is still no room.
            FaultError: the disk is failing, or the run folder is gone.
        """
        while self._waiting:
            self._waiting[0]()
            self._waiting.popleft()

    def _add(self, write: Callable[[], object]) -> None:
        self._waiting.append(write)
        try:
            self.flush()
        except DiskFullError as error:
            if len(self._waiting) == 1:
                log.warning("%s; lines are kept in memory until there is room", error)
