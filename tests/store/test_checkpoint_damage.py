"""Whatever happens to the files, a damaged checkpoint is found, named and passed over."""

import hashlib
import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint, manifest

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of which the newest, step 3, is to be damaged."""
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        tensors = {
            "model": {"weight": torch.randn(8, 9, generator=generator), "bias": torch.zeros(8)},
            "optimizer": {"momentum": torch.randn(8, 9, generator=generator).bfloat16()},
        }
        checkpoint.save(tmp_path, step, tensors, {"step": step, "note": "x" * 40}, keep=3)
    return tmp_path


def assert_found_and_named(folder: Path, name: str) -> None:
    told = []
    found = checkpoint.latest(folder, lambda path, reason: told.append((path, reason)))
    assert found is not None and found.step == found.state["step"] == 2
    ((path, reason),) = told
    assert path == folder / "step-000003"
    assert reason.startswith(str(path / name)), reason
    with pytest.raises(FaultError):
        manifest.verify(path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(folder, name):
    file = folder / "step-000003" / name
    good = file.read_bytes()
    chosen = random.Random(name)
    for bit in chosen.sample(range(8 * len(good)), 125):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert_found_and_named(folder, name)
    file.write_bytes(good)
    assert checkpoint.load(folder / "step-000003").step == 3


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_or_grown_is_found(folder, name):
    file = folder / "step-000003" / name
    good = file.read_bytes()
    for length in {0, 1, 7, 8, 9, len(good) - 1, *random.Random(name).sample(range(len(good)), 45)}:
        file.write_bytes(good[:length])
        assert_found_and_named(folder, name)
    if name != "manifest.json":  # white space after JSON is no damage
        file.write_bytes(good + b"\n")
        assert_found_and_named(folder, name)
    file.write_bytes(bytes(len(good)))  # what a power cut may leave
    assert_found_and_named(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(folder, name):
    (folder / "step-000003" / name).unlink()
    assert_found_and_named(folder, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stand_in", ["link", "folder", "pipe"])
def test_what_is_not_a_plain_file_is_refused(folder, name, stand_in):
    file = folder / "step-000003" / name
    file.rename(folder / "kept")
    if stand_in == "link":
        file.symlink_to(folder / "kept")  # the content would verify
    elif stand_in == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    assert_found_and_named(folder, name)


def test_a_checkpoint_that_is_a_link_or_a_file_is_refused(folder):
    path = folder / "step-000003"
    path.rename(folder / "kept")
    path.symlink_to(folder / "kept")
    with pytest.raises(FaultError, match="a link"):
        checkpoint.load(path)
    path.unlink()
    path.write_text("")
    assert_found_and_named(folder, "manifest.json")


def test_a_checkpoint_of_another_step_is_refused(folder):
    shutil.rmtree(folder / "step-000003")
    shutil.copytree(folder / "step-000001", folder / "step-000003")
    assert_found_and_named(folder, "manifest.json")


def test_all_damaged_is_a_fault_and_never_a_fresh_start(folder):
    for step in (1, 2, 3):
        (folder / f"step-00000{step}" / "model.safetensors").unlink()
    told = []
    with pytest.raises(FaultError, match=r"all 3 checkpoints are damaged; restore one"):
        checkpoint.latest(folder, lambda path, reason: told.append(path.name))
    assert told == ["step-000003", "step-000002", "step-000001"]


def test_an_empty_checkpoint_folder_is_damage_too(tmp_path):
    (tmp_path / "step-000001").mkdir()
    with pytest.raises(FaultError, match="all 1 checkpoints are damaged"):
        checkpoint.latest(tmp_path, lambda path, reason: None)


def forge(path: Path, files: dict[str, bytes], listed: dict[str, bytes] | None = None, **changed: object) -> None:
    """A checkpoint whose manifest matches its files, as an attacker would make it."""
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    entries = {
        name: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in (listed or files).items()
    }
    content = {"step": 1, "files": entries}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({"format": 1, **content, "sha256": digest, **changed}))


def test_a_forged_checkpoint_of_good_files_loads(tmp_path):
    forge(tmp_path / "step-000001", {"state.json": b'{"a": 1}'})
    assert checkpoint.load(tmp_path / "step-000001").state == {"a": 1}


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "model.pt",
        "model.safetensors\n",
        "manifest.json",
        "MODEL.safetensors",
        ".\\x.safetensors",
    ],
)
def test_names_with_path_parts_or_other_endings_are_refused(tmp_path, name):
    (tmp_path / "secret.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    listed = {"state.json": b"{}", name: b"\x02\0\0\0\0\0\0\0{}"}
    forge(tmp_path / "step-000001", {"state.json": b"{}"}, listed)
    with pytest.raises(FaultError, match=r"manifest\.json: damaged: files"):
        checkpoint.load(tmp_path / "step-000001")


@pytest.mark.parametrize("changed", [{"format": 2}, {"extra": 1}, {"step": -1}, {"step": 2}, {"sha256": "0" * 64}])
def test_a_manifest_of_another_kind_is_refused(tmp_path, changed):
    forge(tmp_path / "step-000001", {"state.json": b"{}"}, **changed)
    with pytest.raises(FaultError, match=r"manifest\.json: damaged"):
        checkpoint.load(tmp_path / "step-000001")


def test_a_manifest_without_a_state_or_of_great_size_is_refused(tmp_path):
    forge(tmp_path / "step-000001", {"model.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    with pytest.raises(FaultError, match=r"does not list state\.json"):
        checkpoint.load(tmp_path / "step-000001")
    (tmp_path / "step-000001" / "manifest.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(FaultError, match="too large for a manifest"):
        checkpoint.load(tmp_path / "step-000001")


def test_a_header_bomb_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    header = b"{}".ljust(9 << 20)
    forge(tmp_path / "step-000001", {"state.json": b"{}", "model.safetensors": struct.pack("<Q", len(header)) + header})
    monkeypatch.setattr(checkpoint, "parse_safetensors", lambda data: pytest.fail("parsed"))
    with pytest.raises(FaultError, match=r"model\.safetensors: a header of \d+ bytes; at most .*; restore it"):
        checkpoint.load(tmp_path / "step-000001")


def test_a_type_of_number_that_torch_lacks_is_a_fault(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(8)
    forge(tmp_path / "step-000001", {"state.json": b"{}", "model.safetensors": data})
    with pytest.raises(FaultError, match=r"model\.safetensors: not safetensors: .*; restore it"):
        checkpoint.load(tmp_path / "step-000001")


def test_more_tensors_than_a_header_holds_are_refused_when_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MAX_HEADER_BYTES", 1000)
    with pytest.raises(ValueError, match="20 tensors are too many"):
        checkpoint.save(tmp_path, 1, {"model": {f"t{n}": torch.zeros(1) for n in range(20)}}, {}, keep=1)
    assert list(tmp_path.iterdir()) == []


HEADERS = st.builds(
    lambda header, data: struct.pack("<Q", len(header)) + header + data,
    st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F4", "F8_E8M0", "F6_E2M3", "X", ""]),
                "shape": st.lists(st.integers(-1, 2**63), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 2**63), max_size=3),
            }
        )
        | st.integers(),
        max_size=3,
    ).map(lambda tree: json.dumps(tree).encode()),
    st.binary(max_size=64),
)


@settings(max_examples=150)
@given(model=st.binary(max_size=80) | HEADERS, state=st.binary(max_size=40) | st.just(b"[" * 100_000))
def test_hostile_files_with_a_matching_manifest_are_faults_and_nothing_else(tmp_path_factory, model, state):
    path = tmp_path_factory.mktemp("forged") / "step-000001"
    forge(path, {"model.safetensors": model, "state.json": state})
    try:
        checkpoint.load(path)
    except FaultError as error:
        assert str(path) in str(error)


@settings(max_examples=150)
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_a_hostile_manifest_is_a_fault_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("forged") / "step-000001"
    path.mkdir()
    (path / "manifest.json").write_bytes(data)
    with pytest.raises(FaultError, match=r"manifest\.json: damaged"):
        checkpoint.load(path)
