"""Hashes of the files of a folder, such as model/, in a `SHA256SUMS` beside them, which `sha256sum -c` reads too.

Unlike a checkpoint's manifest it is optional: a folder that others made may have none, and then nothing is checked.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from chinchilla.config.errors import FaultError
from chinchilla.store.atomic import failures_named, write_text
from chinchilla.store.manifest import hash_file

SUMS = "SHA256SUMS"

_MAX_BYTES = 1 << 20
# Plain names only: the list never leads outside its folder.
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9_][A-Za-z0-9._-]{0,254})")
_MEND = f"restore it from a copy; if you changed it on purpose, delete {SUMS} beside it"


def write_sums(folder: Path) -> None:
    """Hash every file of `folder` as it lies there, and write or replace its `SHA256SUMS`.

    Raises:
        FaultError: the disk fails.
    """
    with failures_named(folder):
        names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
        lines = [f"{hash_file(folder / name).sha256}  {name}\n" for name in names]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path, names: Iterable[str] | None = None) -> tuple[str, ...] | None:
    """Hash the files of `folder` that its list names, or those of `names` that are there.

    Gives the names that were compared; None where the folder has no list.

    Raises:
        FaultError: a file is missing, damaged, a link, or one of `names` that is not listed; or the list itself is
            damaged. The message names the file.
    """
    if not _is_there(folder / SUMS):
        return None
    listed = _read(folder / SUMS)
    chosen = list(listed) if names is None else [name for name in names if name in listed or _is_there(folder / name)]
    for name in chosen:
        if name not in listed:
            raise FaultError(f"{folder / name}: is not in {SUMS}: it came later, or the list was cut; {_MEND}")
        with failures_named(folder / name):
            _require_file(folder / name)
            found = hash_file(folder / name).sha256
        if found != listed[name]:
            raise FaultError(f"{folder / name}: damaged: its SHA-256 is not the one in {SUMS}; {_MEND}")
    return tuple(chosen)


def _read(file: Path) -> dict[str, str]:
    """Name → SHA-256."""
    with failures_named(file):
        _require_file(file)
        if file.stat().st_size > _MAX_BYTES:
            raise FaultError(f"{file}: damaged: too large for a list of hashes; {_MEND}")
        lines = file.read_bytes().decode("ascii", "replace").splitlines()
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise FaultError(f"{file}: damaged: line {number} is not a hash and a plain name; {_MEND}")
        listed[match[2]] = match[1]
    if not listed:
        raise FaultError(f"{file}: damaged: it is empty; {_MEND}")
    return listed


def _require_file(path: Path) -> None:
    if not _is_there(path):
        raise FaultError(f"{path}: missing; {_MEND}")
    if path.is_symlink() or not path.is_file():
        raise FaultError(f"{path}: not a regular file; links and devices are refused")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
