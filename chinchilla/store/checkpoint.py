"""Checkpoints that survive kills and power cuts, and never load damaged.

A checkpoint is a folder `step-000500` of safetensors files, one a group of tensors, `state.json`, and `manifest.json`
with the size and SHA-256 of each. It is built in a hidden folder and appears by one rename. A folder has one writer.
"""

import json
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.units import show_bytes
from chinchilla.store.atomic import DiskFullError, failures_named, make_folder, sync_folder, write_new
from chinchilla.store.manifest import (
    FOLDER,
    GROUP,
    MANIFEST,
    MEND,
    STATE,
    Manifest,
    StoredFile,
    read_file,
    read_manifest,
    verify,
)

State = dict[str, Any]
Judged = TypeVar("Judged")

_MAX_HEADER_BYTES = 8 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `tensors[group][name]` on the CPU, names sorted, and `state` as JSON gives it back."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def _every(state: State) -> bool:
    return True


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    counts: Callable[[State], bool] = _every,
) -> Path:
    """Save `tensors[group][name]` and the JSON-like `state` as `folder/step-<step>`; give that path.

    Tensors may lie on any device, be views, or share memory (each is written in full). When this returns, the
    checkpoint was read back and found whole; only then older ones beyond the newest `keep` are removed, and
    damaged ones of later steps, which are lost work. A checkpoint whose state does not count is kept beside these,
    until the next one stands.

    Raises:
        DiskFullError: there is no room; the checkpoints that were there are untouched.
        FaultError: the disk is failing; they are untouched too.
        UsageError: the folder holds a whole checkpoint of a later step.
        ValueError, TypeError: `keep`, a group's name, a tensor or the state cannot be saved.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    for group in tensors:
        if not re.fullmatch(GROUP, group):
            raise ValueError(f"{group!r} cannot name a group of tensors")
    with failures_named(folder):
        make_folder(folder)
        _tidy(folder)
    _refuse_going_back(folder, step)
    _require_space(folder, tensors)
    building, final = folder / f".saving-step-{step:06d}", folder / f"step-{step:06d}"
    try:
        with failures_named(building):
            _write(building, step, tensors, state)
            _commit(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    verify(final)
    with failures_named(folder):
        _prune(folder, final, step, keep, counts)
    return final


def load(path: Path) -> Checkpoint:
    """Load a checkpoint; the bytes that are used are the bytes that were verified.

    Raises:
        FaultError: something is missing or damaged; the message names the file.
    """
    manifest = read_manifest(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, stored in manifest.files.items():
        data = read_file(path / name, stored)
        if name == STATE:
            state = _parse_state(path / name, data)
        else:
            tensors[name.removesuffix(".safetensors")] = _parse_tensors(path / name, data)
    return Checkpoint(manifest.step, tensors, state)


def latest(
    folder: Path, on_damage: Callable[[Path, str], None], rank: Callable[[State], int] | None = None
) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`; `on_damage(path, reason)` is told of every damaged one passed over.

    With `rank`, the newest of those whose state ranks highest. None only when there is no checkpoint at all.

    Raises:
        FaultError: there are checkpoints and all are damaged.
    """
    found = _committed(folder)
    if rank is not None:
        # Sorting keeps the order of equals: the newest first.
        found.sort(key=lambda item: -_rank(item[1], rank))
    for _, path in found:
        try:
            return load(path)
        except FaultError as error:
            on_damage(path, str(error))
    if found:
        raise FaultError(
            f"{folder}: all {len(found)} checkpoints are damaged; restore one from a copy, or train anew in a new run"
        )
    return None


def has_any(folder: Path, wanted: Callable[[State], bool]) -> bool:
    """Whether a checkpoint's state is `wanted`; tensors are not looked at, and an unreadable state is not."""
    return any(_judged(path, wanted, False) for _, path in _committed(folder))


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps than `step`, of a course that is given up, the newest first.

    Raises:
        FaultError: they cannot be removed.
    """
    later = [path for number, path in _committed(folder) if number > step]
    with failures_named(folder):
        for path in later:
            _remove(path)
        if later:
            sync_folder(folder)


def _rank(path: Path, rank: Callable[[State], int]) -> int:
    """The rank of a checkpoint's state; a damaged one comes first, to be found and told."""
    return _judged(path, rank, sys.maxsize)


def _judged(path: Path, judge: Callable[[State], Judged], damaged: Judged) -> Judged:
    """What `judge` says of a checkpoint's state, read without its tensors; `damaged` where that cannot be read."""
    try:
        stored = read_manifest(path).files[STATE]
        return judge(_parse_state(path / STATE, read_file(path / STATE, stored)))
    except FaultError:
        return damaged


def _committed(folder: Path) -> list[tuple[int, Path]]:
    """Step and path, newest first; one that was moved aside comes after the one that replaces it."""
    if not folder.is_dir():
        return []
    matches = [(FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    found = [(int(match[2]), not match[1], path) for match, path in matches if match]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except FaultError:
        return False
    return True


def _tidy(folder: Path) -> None:
    """Clear away what a killed save left behind."""
    for path in list(folder.iterdir()):
        if path.name.startswith((".saving-", ".trash-")):
            _delete(path)
    for aside in list(folder.glob(".old-step-*")):
        final = folder / aside.name.removeprefix(".old-")
        if final.exists() and _is_whole(final):
            _remove(aside)
        else:
            if final.exists():
                _remove(final)
            aside.rename(final)
    sync_folder(folder)


def _remove(path: Path) -> None:
    """Delete a checkpoint; a kill half-way leaves nothing that looks like one."""
    _delete(path.rename(path.with_name(f".trash-{path.name}")))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refuse_going_back(folder: Path, step: int) -> None:
    for later, path in _committed(folder):
        if later > step and _is_whole(path):
            raise UsageError(f"{folder}: step {step} would be saved after {path.name}; resume from it or use a new run")


def _require_space(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    need = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskFullError(
            f"{folder}: disk full: a checkpoint needs {show_bytes(need)}, the disk has {show_bytes(free)} free"
        )


def _write(building: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    building.mkdir()
    contents = {f"{group}.safetensors": _serialize(named) for group, named in tensors.items()}
    contents[STATE] = iter([json.dumps(state, indent=1).encode()])
    files: dict[str, StoredFile] = {}
    for name, chunks in contents.items():
        size_bytes, sha256 = write_new(building / name, chunks)
        files[name] = StoredFile(size_bytes=size_bytes, sha256=sha256)
    manifest = Manifest.of(step, files)
    write_new(building / MANIFEST, [manifest.model_dump_json(indent=1).encode()])
    sync_folder(building)


def _commit(building: Path, final: Path) -> None:
    """Let the checkpoint appear; one of the same step is moved aside until this one is verified."""
    if final.exists():
        final.rename(final.with_name(f".old-{final.name}"))
    building.rename(final)
    sync_folder(final.parent)


def _prune(folder: Path, final: Path, step: int, keep: int, counts: Callable[[State], bool]) -> None:
    older = [path for number, path in _committed(folder) if number <= step and path.name.startswith("step-")]
    kept = [path for path in older if _judged(path, counts, True)][:keep]
    for _, path in _committed(folder):
        if path not in kept and path != final:
            _remove(path)
    sync_folder(folder)


def _serialize(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors format, a tensor at a time, so that saving needs no second copy of the weights.

    Eight bytes of header length, a JSON header padded to eight bytes, then the tensors' bytes. The widest types come
    first, which keeps every tensor aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in ordered:
        if name == "__metadata__" or tensor.dtype not in _DTYPES:
            raise TypeError(f"tensor {name!r} of {tensor.dtype} cannot be saved")
        stop = start + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"{len(tensors)} tensors are too many for one group")
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _parse_state(path: Path, data: bytes) -> dict[str, Any]:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FaultError(f"{path}: not JSON: {error}; {MEND}") from None
    if not isinstance(state, dict):
        raise FaultError(f"{path}: not a JSON object; {MEND}")
    return state


def _parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    (header_bytes,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
        raise FaultError(f"{path}: a header of {header_bytes} bytes; at most {_MAX_HEADER_BYTES} are accepted; {MEND}")
    try:
        # safetensors gives them in an order that changes from process to process.
        return dict(sorted(parse_safetensors(data).items()))
    except (SafetensorError, KeyError) as error:
        raise FaultError(f"{path}: not safetensors: {error}; {MEND}") from None
