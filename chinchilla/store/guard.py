"""Before a run folder is read or written: is it what it looks like, and is anybody at work in it?"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.store.atomic import failures_named

LOCK = ".lock"

WRITTEN = ("metrics.jsonl", "events.jsonl", "ledger.jsonl", "checkpoints", "model", "tensorboard", "wandb", LOCK)
"""What is opened to be written in place, appended to or cleared away; all else is replaced by a rename."""


def refuse_links(path: Path) -> None:
    """Refuse a run folder from elsewhere in which a link would have us write or delete outside of it.

    Raises:
        FaultError: one of the places that are written to is a link; it is named.
    """
    for name in WRITTEN:
        if (path / name).is_symlink():
            raise FaultError(
                f"{path / name}: a link: what is written to it would go elsewhere; put the file or folder itself there"
            )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the run folder at `path` for writing; the lock goes with the process, also when it is killed.

    Raises:
        UsageError: another process holds it.
    """
    with failures_named(path):
        file = (path / LOCK).open("ab")
    with file:
        _take(file, path, fcntl.LOCK_EX)
        yield


@contextmanager
def undisturbed(path: Path) -> Iterator[None]:
    """Read the run folder at `path` while nobody writes to it; several may read. Nothing is written for it.

    Raises:
        UsageError: a process is at work in the run.
    """
    if not (path / LOCK).exists():
        yield
        return
    with failures_named(path):
        file = (path / LOCK).open("rb")
    with file:
        _take(file, path, fcntl.LOCK_SH)
        yield


def _take(file: BinaryIO, path: Path, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another process is at work in this run; wait or stop it") from None
