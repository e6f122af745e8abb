"""Checkpoints written aside: the step's thread takes a snapshot, one other thread writes, hashes and verifies it."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from threading import Thread
from typing import Any, NamedTuple

from torch import Tensor

from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint
from chinchilla.store.atomic import DiskFullError
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.monitor import Monitor
from chinchilla.training.records import Records


class Snapshot(NamedTuple):
    """Tensors that nobody changes any more, and the state that belongs to them."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def is_good(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of this state is one to return to: taken while all was well, and by any repetition too.

    Checkpoints of the first release say neither, and are.
    """
    return bool(state.get("calm", True) and state.get("scheduled", True))


@dataclass(frozen=True)
class _Save:
    """A save in flight; `written` gives the seconds that it took, or raises what went wrong."""

    step: int
    good: bool
    snapshot_s: float
    written: "Future[float]"


class Saver:
    """Saves checkpoints, one at a time; a full disk costs that checkpoint and not the run.

    `stands` is the step of the newest checkpoint that is known to be whole, and `good` whether one stands that training
    would return to. `unsaved` says why a newer one is missing; it is empty while nothing is. Its methods are called
    from one thread.
    """

    def __init__(self, folder: RunFolder, keep: int, records: Records, monitor: Monitor) -> None:
        self._folder, self._keep = folder, keep
        self._records, self._monitor = records, monitor
        self._flying: _Save | None = None
        self.stands: int | None = None
        self.good = False
        self.unsaved = ""

    def save(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Take a snapshot and write it aside, once the save before is done.

        Raises:
            FaultError: the save before failed for another reason than a full disk.
        """
        begun = time.perf_counter()
        waits = self._flying is not None and not self._flying.written.done()
        # Before the snapshot: two of them would take twice the memory.
        self.settle()
        ready = time.perf_counter()
        if waits:
            self._records.event("save_waited", step=step, waited_s=ready - begun)
        snapshot = take()
        written: Future[float] = Future()
        self._flying = _Save(step, is_good(snapshot.state), time.perf_counter() - ready, written)
        # A daemon: a run that is to end at once does not wait for it, and half a save harms nothing.
        Thread(target=self._write, args=(step, snapshot, written), name="checkpoint", daemon=True).start()

    def poll(self) -> None:
        """Tell how the save in flight went if it is done; raises as `settle`."""
        if self._flying is not None and self._flying.written.done():
            self.settle()

    def settle(self) -> None:
        """Wait for the save in flight, and tell how it went.

        Raises:
            FaultError: it failed for another reason than a full disk.
        """
        save, self._flying = self._flying, None
        if save is None:
            return
        try:
            write_s = save.written.result()
        except DiskFullError as error:
            self._tell_unsaved(save.step, error)
        else:
            self.stands, self.good, self.unsaved = save.step, self.good or save.good, ""
            self._records.event("checkpoint", step=save.step, snapshot_s=save.snapshot_s, write_s=write_s)

    def wait(self) -> None:
        """Wait for the save in flight, whatever comes of it."""
        if self._flying is not None:
            wait_for([self._flying.written])

    def require_saved(self) -> None:
        """Wait, and insist that the last checkpoint is on the disk.

        Raises:
            FaultError: it is not; the message says which one stands, and how to go on.
        """
        self.settle()
        if self.unsaved:
            raise FaultError(
                f"{self.unsaved}. Make room and go on with `chinchilla train --resume {self._folder.path}`: "
                "the steps since are done again"
            )

    def _tell_unsaved(self, step: int, error: DiskFullError) -> None:
        stands = "there is none before it" if self.stands is None else f"the one of step {self.stands} stands"
        self.unsaved = f"the checkpoint of step {step} could not be saved, {stands}: {error}"
        self._records.event("unsaved", step=step, stands=self.stands, why=str(error))
        self._monitor.note(self.unsaved)

    def _write(self, step: int, snapshot: Snapshot, written: "Future[float]") -> None:
        begun = time.perf_counter()
        try:
            # Saving makes the folders it lacks, and a run that was moved must not come back half at its old place.
            self._folder.require_there()
            checkpoint.save(self._folder.checkpoints, step, snapshot.tensors, snapshot.state, self._keep, is_good)
        except BaseException as error:  # noqa: BLE001 (handed to the step's thread, which raises it)
            written.set_exception(error)
        else:
            written.set_result(time.perf_counter() - begun)
