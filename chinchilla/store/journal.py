"""Files of one JSON object a line that only grow: metrics, events, the ledger."""

import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from chinchilla.config.errors import FaultError
from chinchilla.store.atomic import failures_named, sync_folder, write_bytes

_log = logging.getLogger("chinchilla")
_TAIL_BYTES = 4096


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line; it is on the disk when this returns. NaN and infinities, which JSON lacks, become null.

    A last line torn by a kill is removed first, so that two records never end up on one line.

    Raises:
        FaultError: the disk is full or the file cannot be written.
    """
    line = _encode(record)
    with failures_named(path):
        is_new = not path.exists()
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(file, path)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """Every record, oldest first; none when there is no such file yet. A torn last line is left out, with a warning.

    Raises:
        FaultError: a line before the last is damaged; the message gives its number.
    """
    if not path.exists():
        return []
    with failures_named(path):
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    records = [_decode(line) for line in lines]
    if records[-1] is None:
        records.pop()
        if lines != [b""]:
            _log.warning("%s: line %d is torn, left out", path, len(lines))
    return [_whole(record, path, number) for number, record in enumerate(records, 1)]


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite the journal atomically with only the records for which `keep` says so; give how many went.

    Raises:
        FaultError: a damaged line before the last, or a disk that is full.
    """
    records = read(path)
    kept = [record for record in records if keep(record)]
    if len(kept) < len(records):
        write_bytes(path, b"".join(_encode(record) for record in kept))
    return len(records) - len(kept)


def _encode(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    # A lone surrogate has no UTF-8; backslashreplace writes it as JSON's own escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _decode(line: bytes) -> dict[str, Any] | None:
    """The record, or None when the line is not one; no proper prefix of a record is a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _whole(record: dict[str, Any] | None, path: Path, number: int) -> dict[str, Any]:
    if record is None:
        raise FaultError(f"{path}: line {number} is damaged; restore the file from a copy or delete that line")
    return record


def _mend(file: BinaryIO, path: Path) -> None:
    """Leave the file empty or ending in a whole line."""
    start, line = _last_line(file)
    if line and _decode(line) is None:
        _log.warning("%s: its last line is torn, removed", path)
        file.truncate(start)
    elif line and not line.endswith(b"\n"):
        file.write(b"\n")


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last line starts, and the line."""
    end, length = file.seek(0, os.SEEK_END), _TAIL_BYTES
    while True:
        start = max(0, end - length)
        file.seek(start)
        tail = file.read(end - start)
        cut_at = tail.rfind(b"\n", 0, max(0, len(tail) - 1)) + 1
        if cut_at or start == 0:
            return start + cut_at, tail[cut_at:]
        length *= 2
