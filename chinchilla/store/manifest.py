"""A checkpoint's manifest: which files belong to it, their sizes and SHA-256; without torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from chinchilla.config.errors import FaultError
from chinchilla.config.frozen import Frozen
from chinchilla.store.atomic import failures_named

MANIFEST = "manifest.json"
STATE = "state.json"
GROUP = r"[a-z][a-z0-9_]*"
FOLDER = re.compile(r"(\.old-)?step-([0-9]{6,18})")

MEND = "restore it from a copy, or delete this checkpoint and use an older one"
"""What to do about a damaged checkpoint."""

_MAX_BYTES = 1 << 20

# Nothing but these plain names: a manifest never leads outside its folder.
FileName = Annotated[str, Field(pattern=rf"^({GROUP}\.safetensors|state\.json)$")]


class StoredFile(Frozen):
    """Size and hash of one file of a checkpoint."""

    size_bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Frozen):
    """The list of a checkpoint's files; `sha256` covers the rest of the manifest itself."""

    format: Literal[1] = 1
    step: NonNegativeInt
    files: dict[FileName, StoredFile]
    sha256: str

    @classmethod
    def of(cls, step: int, files: Mapping[str, StoredFile]) -> Self:
        """The manifest of these files."""
        return cls(step=step, files=dict(files), sha256=_digest(step, files))

    @model_validator(mode="after")
    def _intact(self) -> Self:
        if self.sha256 != _digest(self.step, self.files):
            raise ValueError("its content does not match its own SHA-256")
        if STATE not in self.files:
            raise ValueError(f"it does not list {STATE}")
        return self


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`, found intact and belonging to the step in the folder's name.

    Raises:
        FaultError: it is missing, damaged, a link, or of another step.
    """
    file = path / MANIFEST
    with failures_named(file):
        if path.is_symlink():
            raise FaultError(f"{path}: a link, which a checkpoint must not be")
        if _size(file) > _MAX_BYTES:
            raise FaultError(f"{file}: damaged: too large for a manifest; {MEND}")
        data = file.read_bytes()
    manifest = _parse(file, data)
    match = FOLDER.fullmatch(path.name)
    if match and int(match[2]) != manifest.step:
        raise FaultError(
            f"{file}: belongs to step {manifest.step}, not to {path.name}; give the folder its name back, or delete it"
        )
    return manifest


def read_file(path: Path, stored: StoredFile) -> bytes:
    """The bytes of one file, verified after reading.

    Raises:
        FaultError: it is missing, a link, or its bytes are not the ones that were written.
    """
    with failures_named(path):
        _check_size(path, stored)
        data = path.read_bytes()
    _check_hash(path, stored, hashlib.sha256(data).hexdigest())
    return data


def verify(path: Path) -> Manifest:
    """Read every byte of the checkpoint at `path` and compare it with the manifest.

    Raises:
        FaultError: something is missing or damaged; the message names the file.
    """
    manifest = read_manifest(path)
    for name, stored in manifest.files.items():
        with failures_named(path / name):
            _check_size(path / name, stored)
            found = hash_file(path / name)
        _check_hash(path / name, stored, found.sha256)
    return manifest


def hash_file(path: Path) -> StoredFile:
    """Size and hash of a file as it lies there. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(size_bytes=file.tell(), sha256=sha256)


def _digest(step: int, files: Mapping[str, StoredFile]) -> str:
    content = {"step": step, "files": {name: stored.model_dump() for name, stored in files.items()}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parse(file: Path, data: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        what = first["msg"].removeprefix("Value error, ")
        raise FaultError(f"{file}: damaged: {place}: {what}; {MEND}") from None


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise FaultError(f"{path}: missing; {MEND}") from None
    if not S_ISREG(found.st_mode):
        raise FaultError(f"{path}: not a regular file; links and devices are refused")
    return found.st_size


def _check_size(path: Path, stored: StoredFile) -> None:
    if (size := _size(path)) != stored.size_bytes:
        raise FaultError(f"{path}: damaged: {size} bytes where {stored.size_bytes} were written; {MEND}")


def _check_hash(path: Path, stored: StoredFile, sha256: str) -> None:
    if sha256 != stored.sha256:
        raise FaultError(f"{path}: damaged: its SHA-256 is not the manifest's; {MEND}")
