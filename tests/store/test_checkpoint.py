import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.store import checkpoint
from chinchilla.store.manifest import verify

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
STATE = {"epoch": 3, "best": float("inf"), "seen": [1, 2], "name": "grün", "inner": {"x": None, "y": 0.1}}


def unexpected(path: Path, reason: str) -> None:
    pytest.fail(f"{path}: {reason}")


def filled(value: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((4, 5), float(value))}, "optimizer": {"step": torch.tensor(value)}}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@st.composite
def named_tensors(draw):
    found = {}
    for name in draw(st.lists(st.text(min_size=1), unique=True, max_size=5)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        bytes_ = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
        found[name] = (bytes_.squeeze(-1) > 127) if dtype == torch.bool else bytes_.view(dtype).reshape(shape)
        if len(shape) > 1 and draw(st.booleans()):
            found[name] = found[name].transpose(0, 1)
    return found


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        # Compared as bytes: NaNs are not equal to themselves, and NumPy has no bfloat16.
        assert torch.equal(
            tensor.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
        )


@settings(max_examples=60)
@given(model=named_tensors(), optimizer=named_tensors())
def test_every_bit_comes_back_and_safetensors_reads_the_files(tmp_path_factory, model, optimizer):
    folder = tmp_path_factory.mktemp("checkpoints")
    path = checkpoint.save(folder, 7, {"model": model, "optimizer": optimizer}, STATE, keep=1)
    found = checkpoint.load(path)
    assert (found.step, found.state) == (7, STATE)
    for group, tensors in (("model", model), ("optimizer", optimizer)):
        assert_same_bits(tensors, found.tensors[group])
        assert_same_bits(tensors, load_file(path / f"{group}.safetensors"))


def test_the_folder_is_laid_out_as_promised(tmp_path):
    path = checkpoint.save(tmp_path, 500, filled(1) | {"ema": {}}, STATE, keep=2)
    assert path == tmp_path / "step-000500"
    assert steps(path) == [
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 500
    for name, stored in manifest["files"].items():
        hashed = subprocess.run(["sha256sum", path / name], capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
        assert stored == {"size_bytes": (path / name).stat().st_size, "sha256": hashed}


def test_tied_viewed_expanded_and_trained_tensors_are_saved_whole(tmp_path):
    weight = torch.nn.Parameter(torch.randn(6, 8))
    model = {
        "embed": weight,
        "head": weight,
        "rows": weight[2:4],
        "columns": weight[:, ::3],
        "turned": weight.t(),
        "every_other": weight[0, ::2],
        "one_value": torch.tensor(7.0).expand(5),
        "repeated": weight[0].expand(3, 8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    found = checkpoint.load(checkpoint.save(tmp_path, 1, {"model": model}, {}, keep=1)).tensors["model"]
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert torch.equal(found[name], tensor), name
    found["embed"].zero_()  # loaded tensors are the caller's own, and apart
    assert torch.equal(found["head"], weight)


def test_every_tensor_lies_aligned_in_its_file(tmp_path):
    tensors = {str(dtype): torch.ones(3, dtype=dtype) for dtype in DTYPES}
    data = (checkpoint.save(tmp_path, 1, {"model": tensors}, {}, keep=1) / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.keys() == tensors.keys()
    for name, entry in header.items():
        assert (start + entry["data_offsets"][0]) % tensors[name].element_size() == 0


def test_names_come_back_in_one_order_in_every_process(tmp_path):
    names = [f"layer.{number}" for number in range(40)]
    path = checkpoint.save(tmp_path, 1, {"model": {name: torch.zeros(1) for name in names}}, {}, keep=1)
    code = "import sys; from pathlib import Path; from chinchilla.store.checkpoint import load\n"
    code += "print(*load(Path(sys.argv[1])).tensors['model'], sep=',')"
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert out.strip().split(",") == sorted(names) == list(checkpoint.load(path).tensors["model"])


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, step, filled(step), {}, keep=2)
    assert steps(tmp_path) == ["step-1000000", "step-1000001"]
    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None and found.step == 1_000_001


def test_those_that_do_not_count_push_none_out_and_stay_until_the_next(tmp_path):
    def save(step: int, counts: bool = True) -> None:
        checkpoint.save(tmp_path, step, filled(step), {"counts": counts}, 2, lambda state: state["counts"])

    for step in (1, 2):
        save(step)
    save(3, counts=False)
    assert steps(tmp_path) == ["step-000001", "step-000002", "step-000003"]
    save(4, counts=False)
    assert steps(tmp_path) == ["step-000001", "step-000002", "step-000004"]
    save(5)
    assert steps(tmp_path) == ["step-000002", "step-000005"]
    (tmp_path / "step-000005" / "state.json").write_text("{}")
    assert checkpoint.has_any(tmp_path, lambda state: state["counts"])
    assert not checkpoint.has_any(tmp_path, lambda state: not state["counts"])
    assert not checkpoint.has_any(tmp_path / "absent", lambda state: True)


def test_no_checkpoints_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "absent", unexpected) is None
    (tmp_path / ".saving-step-000001").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert checkpoint.latest(tmp_path, unexpected) is None


def test_what_a_killed_save_left_is_cleared_by_the_next(tmp_path):
    checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    for name in (".saving-step-000002", ".saving-step-000009", ".trash-step-000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path, 2, filled(2), {}, keep=1)
    assert steps(tmp_path) == ["step-000002"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 5, filled(1), {}, keep=1)
    checkpoint.save(tmp_path, 5, filled(2), {}, keep=1)
    assert steps(tmp_path) == ["step-000005"]
    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None and found.tensors["model"]["weight"][0, 0] == 2


@pytest.mark.parametrize("replacement", ["absent", "damaged", "whole"])
def test_a_replacement_killed_half_way_is_resolved(tmp_path, replacement):
    checkpoint.save(tmp_path, 5, filled(1), {"tag": "old"}, keep=1)
    (tmp_path / "step-000005").rename(tmp_path / ".old-step-000005")
    if replacement != "absent":
        checkpoint.save(tmp_path / "other", 5, filled(2), {"tag": "new"}, keep=1)
        (tmp_path / "other" / "step-000005").rename(tmp_path / "step-000005")
        (tmp_path / "other").rmdir()
    if replacement == "damaged":
        (tmp_path / "step-000005" / "model.safetensors").unlink()
    damaged = []
    found = checkpoint.latest(tmp_path, lambda path, reason: damaged.append(path.name))
    assert found is not None and found.state["tag"] == ("new" if replacement == "whole" else "old")
    assert damaged == (["step-000005"] if replacement == "damaged" else [])
    checkpoint.save(tmp_path, 6, filled(6), {}, keep=2)
    assert steps(tmp_path) == ["step-000005", "step-000006"]
    assert checkpoint.load(tmp_path / "step-000005").state["tag"] == ("new" if replacement == "whole" else "old")


def test_the_old_one_is_pruned_only_after_the_new_one_verifies(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    commit = checkpoint._commit

    def commit_and_damage(building: Path, final: Path) -> None:
        commit(building, final)
        data = bytearray((final / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (final / "model.safetensors").write_bytes(data)

    monkeypatch.setattr(checkpoint, "_commit", commit_and_damage)
    with pytest.raises(FaultError, match=r"step-000002/model\.safetensors: damaged"):
        checkpoint.save(tmp_path, 2, filled(2), {}, keep=1)
    named = []
    found = checkpoint.latest(tmp_path, lambda path, reason: named.append(path.name))
    assert found is not None and (found.step, named) == (1, ["step-000002"])
    with pytest.raises(FaultError):
        checkpoint.save(tmp_path, 1, filled(9), {}, keep=1)  # the same step, which was whole, fails as well
    monkeypatch.undo()
    found = checkpoint.latest(tmp_path, lambda path, reason: None)
    assert found is not None and found.tensors["model"]["weight"][0, 0] == 1


def test_a_damaged_later_checkpoint_is_lost_work_and_goes(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, filled(step), {}, keep=3)
    (tmp_path / "step-000003" / "state.json").write_text("[]")
    checkpoint.save(tmp_path, 2, filled(20), {}, keep=2)
    assert steps(tmp_path) == ["step-000001", "step-000002"]


def test_going_back_behind_a_whole_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path, 9, filled(9), {}, keep=1)
    with pytest.raises(UsageError, match=r"step 3 would be saved after step-000009; resume from it or use a new run"):
        checkpoint.save(tmp_path, 3, filled(3), {}, keep=1)
    assert steps(tmp_path) == ["step-000009"]


def test_a_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=50))
    with pytest.raises(FaultError, match=r"needs 88 B, the disk has 50 B free"):
        checkpoint.save(tmp_path, 2, filled(2), {}, keep=1)
    assert steps(tmp_path) == ["step-000001"]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from chinchilla.config.errors import FaultError
from chinchilla.store import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(Path(sys.argv[1]), 2, {"model": {"weight": torch.zeros(100_000)}}, {}, keep=1)
except FaultError as error:
    print(error)
"""


def test_a_disk_that_fills_up_during_a_save_costs_that_save_only(tmp_path):
    checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    out = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True).stdout
    assert ".saving-step-000002: File too large; check the disk's free space" in out
    assert steps(tmp_path) == ["step-000001"]
    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None and found.step == 1


@pytest.mark.parametrize("group", ["", "../model", "Model", "a/b", "model.safetensors", "1x"])
def test_a_group_that_is_no_plain_name_is_refused(tmp_path, group):
    with pytest.raises(ValueError, match="cannot name a group"):
        checkpoint.save(tmp_path / "c", 1, {group: {}}, {}, keep=1)
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path):
    checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    for tensors, state in [
        ({"model": {"z": torch.zeros(2, dtype=torch.complex64)}}, {}),
        ({"model": {"__metadata__": torch.zeros(2)}}, {}),
        ({}, {"thing": object()}),
    ]:
        with pytest.raises(TypeError):
            checkpoint.save(tmp_path, 2, tensors, state, keep=1)
    with pytest.raises(ValueError, match="keep"):
        checkpoint.save(tmp_path, 2, {}, {}, keep=0)
    with pytest.raises(ValueError):
        checkpoint.save(tmp_path / "other", -1, {}, {}, keep=1)
    assert steps(tmp_path) == ["other", "step-000001"] and steps(tmp_path / "other") == []


def test_verify_reads_what_load_reads(tmp_path):
    path = checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
    assert verify(path).step == 1
    (path / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(FaultError, match=r"optimizer\.safetensors: damaged: 0 bytes where"):
        verify(path)


def test_the_newest_of_those_that_rank_highest_is_taken(tmp_path):
    for step, good in ((1, True), (2, True), (3, False)):
        checkpoint.save(tmp_path, step, filled(step), {"good": good}, keep=3)
    found = checkpoint.latest(tmp_path, unexpected, lambda state: int(state["good"]))
    assert found is not None and found.step == 2
    told = []
    (tmp_path / "step-000002" / "state.json").write_text("{}")
    found = checkpoint.latest(tmp_path, lambda path, why: told.append(path.name), lambda state: int(state["good"]))
    assert found is not None and found.step == 1 and told == ["step-000002"]
    (tmp_path / "step-000001" / "model.safetensors").unlink()
    found = checkpoint.latest(tmp_path, lambda path, why: told.append(path.name), lambda state: int(state["good"]))
    assert found is not None and found.step == 3 and told == ["step-000002"] * 2 + ["step-000001"]


def test_what_came_after_a_step_can_be_dropped(tmp_path):
    checkpoint.drop_after(tmp_path / "absent", 1)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, filled(step), {}, keep=3)
    checkpoint.drop_after(tmp_path, 1)
    assert steps(tmp_path) == ["step-000001"]
    checkpoint.save(tmp_path, 1, filled(7), {}, keep=3)
    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None and found.tensors["model"]["weight"][0, 0] == 7


def test_a_full_disk_is_told_from_a_failing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(checkpoint.DiskFullError, match="disk full: a checkpoint needs"):
        checkpoint.save(tmp_path, 1, filled(1), {}, keep=1)
