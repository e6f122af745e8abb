"""Files that are the old ones or the new ones, never half of each."""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chinchilla.config.errors import FaultError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(FaultError):
    """A write that found no room: the disk, a quota or a limit on file size is full. What was there stands."""


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn an operating system's error inside the block into a FaultError that names `path`.

    Raises:
        DiskFullError: there was no room.
        FaultError: anything else that the system refused.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        kind = DiskFullError if error.errno in _FULL else FaultError
        raise kind(
            f"{where}: {error.strerror or error}; check the disk's free space and the folder's permissions"
        ) from error


def require_place(option: str, path: Path | None, *endings: str) -> None:
    """Refuse, before any work, a file that a user names where none can be written; None is none.

    Raises:
        UsageError: another ending than these, or its folder is not there; begins with the `option`.
    """
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option} {path}: give a file that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")


def sync_folder(path: Path) -> None:
    """Make the names in a folder (files made, renamed or removed) last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and the parents it lacks, to last through a power cut; fine if it is there.

    Raises:
        OSError: it cannot be made, or a file has its name.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file that must not exist yet and fsync it; give the size in bytes and SHA-256 of what was meant.

    The name itself lasts only after `sync_folder` on the file's folder.

    Raises:
        OSError: the file exists or cannot be written.
    """
    size_bytes, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size_bytes, digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`: whoever reads it, also after a kill or a power cut, sees all of it or what was before.

    Raises:
        FaultError: the disk is full, the folder is missing or cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with failures_named(path):
        try:
            write_new(beside, [data])
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))
