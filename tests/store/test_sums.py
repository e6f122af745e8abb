"""A folder's list of hashes: what changed, went or came is found and named, and it leads nowhere else."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from chinchilla.config.errors import FaultError
from chinchilla.store.sums import SUMS, check_sums, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    for name, content in (("config.json", b"{}"), ("model.safetensors", bytes(range(256))), ("README.md", b"# Card")):
        (place / name).write_bytes(content)
    write_sums(place)
    return place


def test_what_was_written_is_compared(folder):
    assert check_sums(folder) == ("README.md", "config.json", "model.safetensors")
    assert check_sums(folder, ["config.json", "tokenizer.json"]) == ("config.json",)
    lines = (folder / SUMS).read_text().splitlines()
    assert lines[1] == f"{hashlib.sha256(b'{}').hexdigest()}  config.json"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_coreutils_reads_it(folder):
    assert subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, check=False, capture_output=True).returncode == 0


def test_writing_again_replaces_it(folder):
    (folder / "config.json").write_text('{"a": 1}')
    with pytest.raises(FaultError, match=r"config\.json: damaged: its SHA-256 .*delete SHA256SUMS"):
        check_sums(folder)
    write_sums(folder)
    assert check_sums(folder) == ("README.md", "config.json", "model.safetensors")


def test_every_flipped_bit_is_found_and_named(folder):
    file = folder / "model.safetensors"
    good = file.read_bytes()
    for place in range(0, 8 * len(good), 16):
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        with pytest.raises(FaultError, match=r"model\.safetensors: damaged"):
            check_sums(folder)


def test_a_folder_without_a_list_is_not_judged(folder):
    (folder / SUMS).unlink()
    (folder / "config.json").write_text("changed")
    assert check_sums(folder) is None


def test_only_what_is_asked_for_is_compared(folder):
    (folder / "README.md").write_text("a card that someone wrote on")
    assert check_sums(folder, ["config.json", "model.safetensors"]) is not None
    with pytest.raises(FaultError, match=r"README\.md: damaged"):
        check_sums(folder)


def test_what_is_missing_or_came_later_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FaultError, match=r"tokenizer\.json: is not in SHA256SUMS"):
        check_sums(folder, ["tokenizer.json"])
    (folder / "config.json").unlink()
    with pytest.raises(FaultError, match=r"config\.json: missing"):
        check_sums(folder)


def test_links_and_pipes_are_refused(folder):
    secret = folder.parent / "secret"
    (folder / "config.json").rename(secret)
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(FaultError, match=r"config\.json: not a regular file"):
        check_sums(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(FaultError, match=r"config\.json: not a regular file"):
        check_sums(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", "a b", "x" * 300, ".hidden"])
def test_a_list_that_names_what_is_elsewhere_is_refused(folder, name):
    (folder.parent / "secret").write_text("secret")
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(FaultError, match="SHA256SUMS: damaged: line 4"):
        check_sums(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"0" * 64, b"\n" * 10, b"x" * (2 << 20)])
def test_a_damaged_list_is_named(folder, content):
    (folder / SUMS).write_bytes(content)
    with pytest.raises(FaultError, match="SHA256SUMS: damaged"):
        check_sums(folder)


def test_a_list_that_is_a_link_or_a_folder_is_refused(folder):
    (folder / SUMS).rename(folder.parent / "sums")
    (folder / SUMS).symlink_to(folder.parent / "sums")
    with pytest.raises(FaultError, match="SHA256SUMS: not a regular file"):
        check_sums(folder)
    (folder / SUMS).unlink()
    (folder / SUMS).mkdir()
    with pytest.raises(FaultError, match="SHA256SUMS: not a regular file"):
        check_sums(folder)
