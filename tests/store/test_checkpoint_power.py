"""Power cuts. A kill keeps what the system had cached, so here the disk is a model that forgets.

Every fsync, rename, unlink, rmdir and mkdir of a series of saves is recorded with a picture of the folder. A power cut
at any of these moments may leave of each file that was not synced any part, and of each folder that was not synced any
of its states since it was.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import FaultError
from chinchilla.store import atomic, checkpoint

Entries = dict[str, int]


@dataclass
class Picture:
    """One moment: the names in each folder and the bytes in each file, by an identity."""

    folders: dict[int, Entries] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Disk:
    """The history of a folder, which is on the disk when it begins."""

    root: Path
    pictures: list[Picture] = field(default_factory=list)
    synced: dict[int, list[int]] = field(default_factory=lambda: {0: [0]})  # identity -> moments
    commits: list[tuple[int, int]] = field(default_factory=list)  # moment, tag
    identities: dict[int, int] = field(default_factory=dict)  # of inodes, which are used again
    seen: int = 0

    def look(self) -> None:
        picture, identities = Picture(), {}
        self._visit(self.root, picture, identities)
        self.identities = identities
        self.pictures.append(picture)

    def _visit(self, path: Path, picture: Picture, identities: dict[int, int]) -> int:
        inode = path.stat().st_ino
        if inode in self.identities:
            identity = self.identities[inode]
        else:
            identity, self.seen = self.seen, self.seen + 1
        identities[inode] = identity
        if path.is_dir():
            picture.folders[identity] = {
                entry.name: self._visit(entry, picture, identities) for entry in path.iterdir()
            }
        else:
            picture.files[identity] = path.read_bytes()
        return identity

    def sync(self, descriptor: int) -> None:
        self.look()
        identity = self.identities[os.fstat(descriptor).st_ino]
        self.synced.setdefault(identity, []).append(len(self.pictures) - 1)

    def restore(self, moment: int, chance: random.Random, path: Path, identity: int = 0) -> None:
        """Write to `path` what may be on the disk after power was lost at `moment`."""
        sure = max((at for at in self.synced.get(identity, []) if at <= moment), default=None)
        since = self.pictures[sure or 0 : moment + 1]
        contents = [picture.files[identity] for picture in since if identity in picture.files]
        if contents:
            path.write_bytes(torn(contents, sure is not None, chance))
            return
        states = [picture.folders[identity] for picture in since if identity in picture.folders]
        path.mkdir(exist_ok=True)
        for name, inner in chance.choice(states + [{}] * (sure is None)).items():
            self.restore(moment, chance, path / name, inner)


def torn(contents: list[bytes], synced: bool, chance: random.Random) -> bytes:
    data = chance.choice(contents)
    if synced and len(set(contents)) == 1:
        return data
    length = chance.randint(0, len(data))
    return chance.choice([data, data[:length], bytes(len(data)), data[:length] + bytes(len(data) - length)])


@contextmanager
def recording() -> Iterator[tuple[Disk, pytest.MonkeyPatch]]:
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        disk = Disk(Path(made))
        fsync = os.fsync

        def recorded_fsync(descriptor: int) -> None:
            disk.look()
            fsync(descriptor)
            disk.sync(descriptor)

        def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                disk.look()
                result = call(*args, **kwargs)
                disk.look()
                return result

            return wrapper

        disk.look()
        patch.setattr(os, "fsync", recorded_fsync)
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, recorded(getattr(os, name)))
        yield disk, patch


def save_six(disk: Disk) -> None:
    """Six saves, two of them of a step that was saved before, keeping one or two."""
    for tag, (step, keep) in enumerate([(1, 1), (2, 1), (2, 1), (3, 2), (4, 2), (4, 1)], 1):
        checkpoint.save(disk.root / "checkpoints", step, tensors_of(tag), {"tag": tag}, keep)
        disk.commits.append((len(disk.pictures), tag))
    disk.look()


def tensors_of(tag: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((30,), float(tag))}, "optimizer": {"step": torch.tensor(tag)}}


def assert_recovers(disk: Disk, moment: int, chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as made:
        disk.restore(moment, chance, Path(made))
        folder = Path(made) / "checkpoints"
        certain = max((tag for at, tag in disk.commits if at <= moment), default=0)
        found = checkpoint.latest(folder, lambda path, reason: None)
        tag = found.state["tag"] if found else 0
        assert tag >= certain
        assert found is None or torch.equal(found.tensors["model"]["weight"], tensors_of(tag)["model"]["weight"])
        step = found.step + 1 if found else 1
        checkpoint.save(folder, step, tensors_of(99), {"tag": 99}, keep=1)
        assert [path.name for path in folder.iterdir()] == [f"step-{step:06d}"]


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with recording() as (disk, patch):
        save_six(disk)
        patch.undo()
        yield disk


@settings(max_examples=200)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_power_cut_at_any_moment_leaves_what_was_committed(disk, data, seed):
    moment = data.draw(st.integers(0, len(disk.pictures) - 1))
    assert_recovers(disk, moment, random.Random(seed))


@pytest.mark.slow
def test_a_thousand_power_cuts(disk):
    for seed in range(1000):
        chance = random.Random(seed)
        assert_recovers(disk, chance.randrange(len(disk.pictures)), chance)


@pytest.mark.parametrize("forgotten", ["files", "folders", "order"])
def test_the_model_finds_a_save_that_forgets_something(forgotten):
    with recording() as (disk, patch):
        fsync = os.fsync
        if forgotten == "files":
            patch.setattr(
                os, "fsync", lambda fd: None if Path(f"/proc/self/fd/{fd}").resolve().is_file() else fsync(fd)
            )
        elif forgotten == "folders":
            patch.setattr(checkpoint, "sync_folder", lambda path: None)
            patch.setattr(atomic, "sync_folder", lambda path: None)
        else:
            commit = checkpoint._commit

            def prune_first(building: Path, final: Path) -> None:
                for path in final.parent.glob("step-*"):
                    checkpoint._remove(path)
                commit(building, final)

            patch.setattr(checkpoint, "_commit", prune_first)
        save_six(disk)
        patch.undo()
        with pytest.raises((AssertionError, FaultError)):
            for seed in range(300):
                chance = random.Random(seed)
                assert_recovers(disk, chance.randrange(len(disk.pictures)), chance)
