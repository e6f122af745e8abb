"""A run folder from elsewhere cannot have us write outside of it, and is read only while nobody writes."""

import json
import multiprocessing
from pathlib import Path

import pytest

from chinchilla.cli import main
from chinchilla.config.errors import FaultError, UsageError
from chinchilla.store.guard import WRITTEN, undisturbed
from chinchilla.store.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As much of a run folder as makes it one."""
    path = tmp_path / "run-1"
    path.mkdir()
    (path / "run.toml").write_text('task = "translate"\n[data]\ntrain = "a.tsv"\n[budget]\ntime = "1m"\n')
    (path / "plan.json").write_text("{}")
    return path


def test_all_that_is_written_in_place_is_known():
    assert {"metrics.jsonl", "checkpoints", "model", "tensorboard", "wandb", ".lock"} <= set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_links_that_would_be_written_through_are_refused(run, name, capsys):
    outside = run.parent / "outside"
    is_folder = name in ("checkpoints", "model", "tensorboard", "wandb")
    if is_folder:
        (outside / "step-000001").mkdir(parents=True)
    else:
        outside.write_text("precious")
    for target in (outside, Path("../outside"), run.parent / "nothing"):
        (run / name).symlink_to(target)
        with pytest.raises(FaultError, match=rf"{name}: a link"):
            RunFolder.open(run)
        for words in (["train", "--resume", str(run)], ["verify", str(run)], ["compress", str(run)]):
            assert main(words) == 5
            assert f"{name}: a link" in capsys.readouterr().err
        (run / name).unlink()
    assert (outside / "step-000001").is_dir() if is_folder else outside.read_text() == "precious"
    assert not (run.parent / "nothing").exists()


def test_a_run_folder_that_is_itself_a_link_is_opened(run):
    (run.parent / "short").symlink_to(run)
    assert RunFolder.open(run.parent / "short").path == run.parent / "short"


def test_several_may_read_while_nobody_writes(run):
    folder = RunFolder.open(run)
    with undisturbed(run), undisturbed(run):
        assert not (run / ".lock").exists()
    with folder.lock(), pytest.raises(UsageError, match="another process is at work"), undisturbed(run):
        pass
    with undisturbed(run), undisturbed(run):
        found = multiprocessing.get_context("spawn").Queue()
        process = multiprocessing.get_context("spawn").Process(target=_lock, args=(run, found))
        process.start()
        assert "another process is at work" in found.get(timeout=60)
        process.join()
    with folder.lock():
        pass


def _lock(path: Path, found) -> None:
    try:
        with RunFolder(path).lock():
            found.put("locked")
    except UsageError as error:
        found.put(str(error))


@pytest.mark.parametrize("name", ["../../x", "../../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors"])
def test_a_checkpoint_whose_manifest_leads_out_is_named(run, name, capsys):
    """The manifest's own SHA-256 fits: only the name is hostile."""
    from chinchilla.store.manifest import StoredFile, _digest

    path = run / "checkpoints" / "step-000001"
    path.mkdir(parents=True)
    (run.parent / "x.safetensors").write_bytes(b"secret")
    files = {name: StoredFile(size_bytes=6, sha256="0" * 64), "state.json": StoredFile(size_bytes=2, sha256="0" * 64)}
    told = {"format": 1, "step": 1, "files": {key: value.model_dump() for key, value in files.items()}}
    (path / "manifest.json").write_text(json.dumps(told | {"sha256": _digest(1, files)}))
    assert main(["verify", str(run), "--json"]) == 5
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    found = {check["name"]: check["found"] for check in checks if not check["ok"]}
    assert "manifest.json: damaged: files" in found["checkpoints/step-000001"]
    assert (run.parent / "x.safetensors").read_bytes() == b"secret"
