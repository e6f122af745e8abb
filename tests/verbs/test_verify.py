"""`chinchilla verify`: a whole run passes and stays untouched; whatever was damaged or forged is named, exit code 5."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from chinchilla.store import checkpoint, journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.replay import NEAR, _Course, first_difference
from chinchilla.verbs.train import rebuild
from chinchilla.verbs.verify import verify

FAULT, USAGE = 5, 2


@pytest.fixture(scope="module")
def settled(train_tiny) -> Path:
    """A finished run whose steps and checkpoints do not hang on the machine's speed."""
    return Path(
        train_tiny("budget.time=60", "train.steps=100", "train.checkpoint_every=20", "train.probes=false")["run"]
    )


@pytest.fixture
def run(settled, tmp_path) -> Path:
    """A copy of it of one's own."""
    shutil.copytree(settled, tmp_path / "translate-1")
    return tmp_path / "translate-1"


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def kept(run: Path) -> list[Path]:
    """Its checkpoints, oldest first."""
    return sorted((run / "checkpoints").iterdir())


def edit_lines(file: Path, change) -> None:
    records = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None))


def test_a_whole_run_passes_and_is_left_as_it_is(run, chinchilla):
    before = state_of(run)
    code, out, err = chinchilla("verify", run, "--json")
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["ok"] and all(check["ok"] for check in told["checks"])
    names = {check["name"] for check in told["checks"]}
    assert {"run.toml", "plan.json", "tokenizer.json", "env.json", "results.json", "model", "replay"} <= names
    assert {"metrics.jsonl", "events.jsonl", "ledger.jsonl"} <= names
    assert {f"checkpoints/{path.name}" for path in kept(run)} <= names
    older, newer = (int(path.name.removeprefix("step-")) for path in kept(run)[-2:])
    assert told["replay"]["start"] == older
    assert told["replay"]["difference"] is None
    assert f"the weights of step {newer}" in told["replay"]["compared"]
    assert "Verification" in err and "bit for bit" in " ".join(err.split())
    assert state_of(run) == before


def test_the_table_goes_to_standard_output(run, chinchilla):
    code, out, _ = chinchilla("verify", run, "--steps", "0")
    assert code == 0
    assert "plan.json" in out and "not asked for" in out


DAMAGE = {
    "run.toml": "run.toml",
    "plan.json": "plan.json",
    "tokenizer.json": "tokenizer.json",
    "env.json": "env.json",
    "results.json": "results.json",
    "metrics.jsonl": "metrics.jsonl",
    "events.jsonl": "events.jsonl",
    "ledger.jsonl": "ledger.jsonl",
    "model/model.safetensors": "model",
    "model/config.json": "model",
    "model/README.md": "model",
    "model/SHA256SUMS": "model",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(run, chinchilla, name):
    file = run / name
    data = file.read_bytes()
    file.write_bytes(b"\xff\xfe" + data[2:])
    code, out, err = chinchilla("verify", run, "--steps", "0", "--json")
    assert code == FAULT
    told = json.loads(out.splitlines()[-1])
    assert [check["name"] for check in told["checks"] if not check["ok"]] == [DAMAGE[name]]
    assert f"error: {run}: {DAMAGE[name]}: " in err and str(file) in err


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_in_a_checkpoint_is_named(run, chinchilla, name, which):
    file = kept(run)[which] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    code, out, err = chinchilla("verify", run, "--steps", "0", "--json")
    assert code == FAULT
    assert str(file) in err
    wrong = [check["name"] for check in json.loads(out.splitlines()[-1])["checks"] if not check["ok"]]
    assert wrong == [f"checkpoints/{file.parent.name}"]


def test_a_loss_that_was_changed_in_its_last_digit_is_named(run, chinchilla):
    start = int(kept(run)[-2].name.removeprefix("step-"))
    lines = [line for line in journal.read(run / "metrics.jsonl") if line.get("loss") and line["step"] > start]
    step, loss = lines[0]["step"], lines[0]["loss"]
    other = float(torch.nextafter(torch.tensor(loss, dtype=torch.float64), torch.tensor(9.0, dtype=torch.float64)))

    def forge(record):
        return record | {"loss": other} if record["step"] == step and "loss" in record else record

    edit_lines(run / "metrics.jsonl", forge)
    code, out, err = chinchilla("verify", run, "--json")
    assert code == FAULT
    assert f"replay: step {step}: the loss is {loss!r}, metrics.jsonl says {other!r}" in err
    assert json.loads(out.splitlines()[-1])["replay"]["difference"].startswith(f"step {step}: ")


def forge_newest(run: Path) -> str:
    """Change one weight of the newest checkpoint, with a manifest that fits; give the weight's name."""
    path = kept(run)[-1]
    saved = checkpoint.load(path)
    name = "decoder.norm.weight"
    saved.tensors["model"][name][3] += 0.5
    shutil.rmtree(path)
    checkpoint.save(run / "checkpoints", saved.step, saved.tensors, saved.state, keep=9)
    return name


def test_a_weight_that_the_steps_do_not_give_is_named(run, chinchilla):
    name = forge_newest(run)
    before = state_of(run)
    code, _, err = chinchilla("verify", run)
    assert code == FAULT
    step = int(kept(run)[-1].name.removeprefix("step-"))
    assert f"step {step}: tensor {name} differs in 1 of 32 values, the first at 3: " in err
    assert "this is not what the run was made on" not in err
    assert state_of(run) == before


def test_another_torch_is_named_as_a_likely_cause(run, chinchilla):
    forge_newest(run)
    env = json.loads((run / "env.json").read_text())
    env["packages"]["torch"] = "1.0"
    (run / "env.json").write_text(json.dumps(env))
    _, _, err = chinchilla("verify", run)
    assert "this is not what the run was made on: torch 1.0 then, " in err


def test_without_anything_to_compare_with_it_replays_twice(run):
    shutil.rmtree(kept(run)[-1])
    edit_lines(run / "metrics.jsonl", lambda record: None)
    result = verify(run, 2)
    assert result.ok and result.replay is not None
    assert result.replay.compared == ("a second replay of the same steps",)


def test_a_run_that_went_back_to_its_start_is_replayed_at_the_rate_it_has_since(run):
    """Its checkpoint of step 0 holds what the beginning does not: the return, which halved the rate."""
    shutil.rmtree(run / "checkpoints")
    edit_lines(run / "metrics.jsonl", lambda record: None)
    trainer = rebuild(RunFolder(run))
    trainer.progress.rollbacks = 1
    trainer.save()
    trainer.saver.settle()
    result = verify(run, 3)
    assert result.replay is not None and (result.replay.start, result.replay.stop) == (0, 3)
    assert result.replay.difference is None


def test_a_second_replay_that_differs_is_named(run, monkeypatch):
    """As where threads or the machine decide in which order numbers are added."""
    shutil.rmtree(kept(run)[-1])
    edit_lines(run / "metrics.jsonl", lambda record: None)
    resume = Trainer.resume
    times = []

    def other(trainer, saved):
        times.append(saved.step)
        resume(trainer, saved)
        if len(times) == 2:
            with torch.no_grad():
                next(trainer.model.parameters()).mul_(1.01)

    monkeypatch.setattr(Trainer, "resume", other)
    (check,) = [check for check in verify(run, 2).checks if not check.ok]
    assert check.name == "replay" and f"step {times[0] + 1}: the loss is " in check.found
    assert "the first time" in check.found


def test_a_damaged_checkpoint_is_told_and_the_others_replayed(run):
    (kept(run)[-1] / "model.safetensors").unlink()
    result = verify(run)
    assert not result.ok and result.replay is not None and result.replay.difference is None


def test_a_finished_run_with_one_checkpoint_is_replayed_from_the_beginning(run):
    for path in kept(run)[:-1]:
        shutil.rmtree(path)
    result = verify(run)
    assert result.ok and result.replay is not None
    assert result.replay.start == 0
    assert "the loss of step 1" in result.replay.compared


def test_a_run_without_checkpoints_is_replayed_from_the_beginning(run):
    shutil.rmtree(run / "checkpoints")
    result = verify(run, 2)
    assert result.ok and result.replay is not None
    assert (result.replay.start, result.replay.stop) == (0, 2)


def test_no_step_is_replayed_over_a_turn_of_the_run(run):
    shutil.rmtree(run / "checkpoints")
    RunFolder(run).log_event("rollback", step=9, to_step=0)
    result = verify(run)
    assert result.ok and result.replay is None


def test_a_compressed_run_has_no_steps_to_do_again(run, chinchilla):
    code, out, _ = chinchilla("compress", run, "--json")
    assert code == 0
    compressed = json.loads(out.splitlines()[-1])["run"]
    code, out, _ = chinchilla("verify", compressed, "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["ok"], told["replay"]) == (0, True, None)
    assert "compression.json" in {check["name"] for check in told["checks"]}
    assert next(check["found"] for check in told["checks"] if check["name"] == "model").startswith("loads; 4 files")


def test_data_that_is_gone_is_named(run, chinchilla):
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace("train.tsv", "gone.tsv"))
    code, out, err = chinchilla("verify", run, "--json")
    assert code == FAULT
    assert "replay: not done: " in err and "gone.tsv" in err
    assert sum(not check["ok"] for check in json.loads(out.splitlines()[-1])["checks"]) == 1


def test_a_run_at_work_is_left_alone(run, chinchilla):
    with RunFolder.open(run).lock():
        code, _, err = chinchilla("verify", run)
        assert code == USAGE and "another process is at work" in err
    (run / ".lock").unlink()
    assert chinchilla("verify", run, "--steps", "0")[0] == 0
    assert not (run / ".lock").exists()


def test_what_is_no_run_folder_is_refused(tmp_path, chinchilla):
    assert chinchilla("verify", tmp_path)[0] == USAGE
    assert chinchilla("verify", tmp_path / "none")[0] == USAGE


def test_lines_out_of_order_are_named(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[::-1]))
    (run / "ledger.jsonl").write_text('{"predicted": 3}\n')
    (run / "events.jsonl").write_text('{"time": "now"}\n')
    wrong = {check.name: check.found for check in verify(run, 0).checks if not check.ok}
    assert wrong.keys() == {"metrics.jsonl", "ledger.jsonl", "events.jsonl"}
    assert "a line was lost or moved" in wrong["metrics.jsonl"]
    assert "line 1 holds no prediction" in wrong["ledger.jsonl"]
    assert all("restore the file from a copy or delete that line" in found for found in wrong.values())


@pytest.mark.parametrize(("steps", "stop"), [(1, 13), (4, 14), (10, 20), (15, 25), (20, 30), (500, 30)])
def test_how_far_a_replay_goes(steps, stop):
    losses = {13: 1.0, 26: 1.0}
    assert _Course(10, 100, losses, None).stop(4) == 14
    saved = checkpoint.Checkpoint(30, {}, {})
    assert _Course(10, 100, {}, saved).stop(4) == 30  # near enough
    assert _Course(10, 12, losses, None).stop(4) == 12
    assert _Course(10, 100, {10 + NEAR: 1.0}, None).stop(4) == 10 + NEAR
    assert _Course(10, 100, {11 + NEAR: 1.0}, None).stop(4) == 14
    far = checkpoint.Checkpoint(10 + NEAR + 1, {}, {})
    assert _Course(10, 100, losses, far).stop(steps) == (stop if steps < NEAR else min(10 + steps, 31))


def test_differences_are_of_bits():
    base = {"a": torch.tensor([0.0, float("nan"), 1.0]), "b": torch.zeros(())}
    assert first_difference(base, {name: tensor.clone() for name, tensor in base.items()}) is None
    signed = base | {"a": torch.tensor([-0.0, float("nan"), 1.0])}
    assert first_difference(base, signed) == ("tensor a differs in 1 of 3 values, the first at 0: 0.0 now, -0.0 kept")
    assert first_difference(base, {"a": base["a"]}) == "tensor b is too many"
    assert first_difference({"a": base["a"]}, base) == "tensor b is missing"
    assert first_difference(base, base | {"b": torch.zeros(1)}) == "tensor b is of another shape or kind"
    assert first_difference(base, base | {"b": torch.zeros((), dtype=torch.int32)}) is not None
