import hashlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.store import atomic


@settings(max_examples=50)
@given(chunks=st.lists(st.binary(max_size=100)))
def test_write_new_reports_size_and_hash_of_what_it_wrote(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("new") / "file"
    size_bytes, sha256 = atomic.write_new(path, chunks)
    assert path.read_bytes() == b"".join(chunks)
    assert (size_bytes, sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def test_write_new_refuses_a_file_that_is_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileExistsError):
        atomic.write_new(tmp_path / "file", [b"new"])
    assert (tmp_path / "file").read_text() == "old"


def test_write_text_replaces_and_leaves_nothing_beside(tmp_path):
    atomic.write_text(tmp_path / "file", "grün")
    atomic.write_text(tmp_path / "file", "日本")
    assert (tmp_path / "file").read_text("utf-8") == "日本"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stays_when_the_new_one_fails(tmp_path, monkeypatch):
    atomic.write_text(tmp_path / "file", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FaultError, match=r"file: No space left on device; check the disk's free space"):
        atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_rename_comes_after_the_file_is_synced_and_before_its_folder(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(descriptor: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".tmp")[0][:5])
        fsync(descriptor)

    def logged_replace(source, target) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    folder = tmp_path / "there"
    folder.mkdir()
    atomic.write_text(folder / "file", "text")
    assert done == ["sync .file", "rename", "sync there"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FaultError, match="absent"):
        atomic.write_text(tmp_path / "absent" / "file", "text")


def test_a_file_that_a_user_names_is_refused_before_any_work(tmp_path):
    for path in (None, tmp_path / "a.html", tmp_path / "a.SVG"):
        atomic.require_place("--plot", path, ".html", ".svg")
    told = re.escape(f"--plot {tmp_path / 'a.pdf'}: give a file that ends in .html or .svg")
    with pytest.raises(UsageError, match=told):
        atomic.require_place("--plot", tmp_path / "a.pdf", ".html", ".svg")
    with pytest.raises(UsageError, match=re.escape(f"--out {tmp_path / 'no' / 'a.json'}: there is no folder")):
        atomic.require_place("--out", tmp_path / "no" / "a.json", ".json")


def test_make_folder_makes_parents_and_accepts_what_is_there(tmp_path):
    atomic.make_folder(tmp_path / "a" / "b" / "c")
    atomic.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        atomic.make_folder(tmp_path / "file")
