"""Which checkpoint a run returns to where its loss went wrong, and when it is given up."""

from pathlib import Path
from typing import Any

from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.records import Records
from chinchilla.training.watch import DivergedError

MOST_ROLLBACKS = 3
"""Returns to an earlier checkpoint, each at half the rate, after which a run is given up."""


def newest_good(folder: RunFolder, records: Records) -> checkpoint.Checkpoint | None:
    """The newest checkpoint worth returning to; None where there is none at all.

    Raises:
        FaultError: there are checkpoints, and all are damaged.
    """

    def damaged(path: Path, why: str) -> None:
        records.event("damaged", path=str(path), why=why)

    return checkpoint.latest(folder.checkpoints, damaged, _rank)


def _rank(state: dict[str, Any]) -> int:
    """Checkpoints taken while the loss was calm come first, and those that any repetition of the run takes."""
    return 2 * state.get("calm", True) + state.get("scheduled", True)


def given_up(path: Path, error: DivergedError, step: int) -> FaultError:
    """What to raise when no return helped."""
    return FaultError(
        f"{path}: {error.why} after {step} steps; {MOST_ROLLBACKS} returns to an earlier checkpoint, each at half "
        "the rate, did not help; train anew with a lower train.learning_rate"
    )
