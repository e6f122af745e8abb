"""Where a run returns to when its loss went wrong, and when it is given up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.records import Records
from chinchilla.training.saver import Saver, Snapshot, is_good
from chinchilla.training.watch import DivergedError

MOST_ROLLBACKS = 3
"""Returns to an earlier checkpoint, each at half the rate, after which a run is given up."""


class Returns:
    """The place to return to: the newest good checkpoint, and the start, which is held until there is one."""

    def __init__(self, folder: RunFolder, records: Records, saver: Saver) -> None:
        self._folder, self._records, self._saver = folder, records, saver
        self._start: Snapshot | None = None

    def begin(self, start: Snapshot) -> None:
        """Hold the start."""
        self._start = start

    def resume(self, saved: checkpoint.Checkpoint, start: Callable[[], Snapshot]) -> None:
        """Going on from `saved`: hold the start again where a run left alone would still hold it."""
        self._saver.stands = saved.step
        self._saver.good = is_good(saved.state) or checkpoint.has_any(self._folder.checkpoints, is_good)
        if not self._saver.good:
            self._start = start()

    def let_go(self) -> None:
        """Free the start's memory once there is a good checkpoint."""
        if self._saver.good:
            self._start = None

    def take(self) -> checkpoint.Checkpoint | Snapshot:
        """The newest good checkpoint, the start, or the best checkpoint of another kind, in this order.

        Raises:
            FaultError: there is none of them, or all checkpoints are damaged.
        """
        found = newest_good(self._folder, self._records)
        # A checkpoint of a stop is not there in a run left alone, which returns to the start.
        if self._start is not None and not (found and is_good(found.state)):
            self._saver.stands, self._saver.good = None, False
            return self._start
        if found is None:
            raise FaultError(
                f"{self._folder.checkpoints}: the checkpoints of this run are gone, and the loss went wrong; "
                "restore one from a copy, or train anew with a lower train.learning_rate"
            )
        self._saver.stands, self._saver.good = found.step, is_good(found.state)
        return found


def newest_good(folder: RunFolder, records: Records) -> checkpoint.Checkpoint | None:
    """The newest checkpoint worth returning to; None where there is none at all.

    Raises:
        FaultError: there are checkpoints, and all are damaged.
    """

    def damaged(path: Path, why: str) -> None:
        records.event("damaged", path=str(path), why=why)

    return checkpoint.latest(folder.checkpoints, damaged, _rank)


def _rank(state: dict[str, Any]) -> int:
    """Good ones come first, then those taken while the loss was calm."""
    return 2 * is_good(state) + state.get("calm", True)


def given_up(path: Path, error: DivergedError, step: int) -> FaultError:
    """What to raise when no return helped."""
    return FaultError(
        f"{path}: {error.why} after {step} steps; {MOST_ROLLBACKS} returns to an earlier checkpoint, each at half "
        "the rate, did not help; train anew with a lower train.learning_rate"
    )
