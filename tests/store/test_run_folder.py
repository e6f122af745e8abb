import importlib.metadata
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import load_run
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.plan import Decision, Plan, Probe, Training
from chinchilla.config.shape import Shape
from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder

SHAPE = Shape(
    vocab_size=500,
    dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
SECONDS = Estimate(p10=0.8, p50=1.0, p90=1.3, unit="s", source="measured")


def some_plan() -> Plan:
    training = Training(
        steps=10,
        batch_tokens=256,
        accumulation=1,
        optimizer="muon",
        learning_rate=0.02,
        embedding_learning_rate=1e-3,
        weight_decay=0.1,
        schedule="wsd",
        warmup_steps=2,
        decay_fraction=0.2,
        clip_norm=1.0,
        label_smoothing=0.1,
        dropout=0.0,
        ema_decay=0.0,
        reconstruct_weight=0.0,
        mask_rate=0.15,
        precision="fp32",
        compile=False,
        threads=2,
        eval_every=5,
        checkpoint_every=5,
        keep_checkpoints=2,
        log_every=1,
        seed=7,
    )
    rate = MatmulRate(m=64, k=64, n=64, precision="fp32", flops_per_s=1e10 / 3)
    machine = Machine(
        name="ours",
        device="cpu",
        threads=2,
        memory_bytes=1 << 33,
        torch_version="2.13",
        measured_at="2026-01-01",
        noise=0.1,
        matmul=(rate,),
        bytes_per_s=1e10,
        op_overhead_s=1e-6,
        has_compiler=True,
    )
    probe = Probe(
        shape=SHAPE,
        precision="fp32",
        compile=False,
        num_params=123,
        tokens=456,
        time_s=1.5,
        step_time_s=0.1,
        loss=5.0,
    )
    return Plan(
        task="translate",
        shape=SHAPE,
        training=training,
        num_params=12345,
        flops_per_token=6.5e4,
        unique_tokens=10_000,
        tokens_per_step=250.5,
        bytes_per_token=4.2,
        machine=machine,
        predicted={"step_time_s": SECONDS},
        decisions=(Decision(name="dim", value="32", reason="weil „klein“ reicht"),),
        probes=(probe,),
    )


def test_folders_are_numbered_on_and_parents_are_made(tmp_path):
    runs = tmp_path / "deep" / "runs"
    assert RunFolder.create(runs, "translate").path == runs / "translate-1"
    assert RunFolder.create(runs, "translate").path == runs / "translate-2"
    (runs / "translate-9").mkdir()
    (runs / "translate-2").rmdir()
    (runs / "translate-x").mkdir()
    assert RunFolder.create(runs, "translate").path == runs / "translate-10"
    assert RunFolder.create(runs, "t.anslate").path == runs / "t.anslate-1"
    assert list((runs / "translate-10").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b", "a\n", "ä"])
def test_a_name_with_path_parts_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a run folder"):
        RunFolder.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_runs_under_a_file_is_refused_with_the_key_to_change(tmp_path):
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UsageError, match=r"no run folder can be made in .*; choose another with runs=FOLDER"):
            RunFolder.create(runs, "translate")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions bind everyone but root, so step down while inside."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_a_read_only_folder_is_refused():
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o555)
        with unprivileged(), pytest.raises(UsageError, match="Permission denied"):
            RunFolder.create(folder / "runs", "translate")
        with unprivileged(), pytest.raises(UsageError, match="Permission denied"):
            RunFolder.create(folder, "translate")
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)


def _create_many(runs: Path, names: "multiprocessing.Queue[str]") -> None:
    for _ in range(20):
        names.put(RunFolder.create(runs, "translate").path.name)


def test_processes_that_create_at_once_get_different_folders(tmp_path):
    context = multiprocessing.get_context("forkserver")
    names = context.Queue()
    creators = [context.Process(target=_create_many, args=(tmp_path / "runs", names)) for _ in range(4)]
    for creator in creators:
        creator.start()
    got = [names.get(timeout=60) for _ in range(80)]
    for creator in creators:
        creator.join()
    assert sorted(got) == sorted(f"translate-{number}" for number in range(1, 81))
    assert len(list((tmp_path / "runs").iterdir())) == 80


def test_open_says_what_is_missing_and_what_is_there(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    with pytest.raises(UsageError, match=r"not a run folder, run\.toml and plan\.json missing; .*train.*compress"):
        RunFolder.open(folder.path)
    folder.write_run(load_run(None, ["task=translate", "data.train=a.tsv", "budget.time=1m"]))
    with pytest.raises(UsageError, match=r"not a run folder, plan\.json missing"):
        RunFolder.open(folder.path)
    folder.write_plan(some_plan())
    assert RunFolder.open(folder.path) == folder
    with pytest.raises(UsageError, match=r"translate-2: no such run folder; .* holds translate-1"):
        RunFolder.open(tmp_path / "translate-2")
    with pytest.raises(UsageError, match=r"not a run folder, .*; .* holds translate-1"):
        RunFolder.open(tmp_path)
    with pytest.raises(UsageError, match=r"run\.toml: a file, not a run folder"):
        RunFolder.open(next(tmp_path.rglob("run.toml")))
    with pytest.raises(UsageError, match=r"no such run folder$"):
        RunFolder.open(tmp_path / "absent" / "folder")


def test_plan_round_trip_is_exact(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    folder.write_plan(some_plan())
    assert folder.read_plan() == some_plan()


def test_a_damaged_plan_is_named_with_the_place(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    with pytest.raises(FaultError, match=r"plan\.json: No such file"):
        folder.read_plan()
    folder.write_plan(some_plan())
    text = folder.plan_json.read_text()
    folder.plan_json.write_text(text.replace('"steps": 10', '"steps": "many"'))
    with pytest.raises(FaultError, match=r"plan\.json: damaged at training\.steps"):
        folder.read_plan()
    folder.plan_json.write_text(text[:-30])
    with pytest.raises(FaultError, match=r"plan\.json: damaged"):
        folder.read_plan()


def test_run_toml_loads_back_wherever_it_is_read_from(tmp_path, monkeypatch):
    recipe = tmp_path / "grün recipe.toml"
    recipe.write_text('task="translate"\n[data]\ntrain=["a.en", "a.de"]\n[budget]\ntime="10m"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    loaded = load_run(recipe, ["train.trackers=['wandb']"])
    folder = RunFolder.create(loaded.run.runs, loaded.run.task)
    folder.write_run(loaded)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert folder.read_run().run == loaded.run
    assert load_run(folder.run_toml).run.runs == tmp_path / "runs"


def test_env_says_what_a_repetition_must_match(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    folder.write_env(seed=7, threads=2)
    env = json.loads(folder.env_json.read_text())
    assert (env["seed"], env["threads"]) == (7, 2)
    assert env["packages"]["torch"] == importlib.metadata.version("torch")
    assert env["packages"]["safetensors"] == importlib.metadata.version("safetensors")
    assert env["python"] == sys.version.split()[0]


def test_journals_hold_what_the_contract_says(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    folder.log_metrics(step=1, time_s=0.5, loss=3.25)
    folder.log_event("save", step=1)
    folder.log_prediction("step_time_s", SECONDS, 1.1, "s")
    assert journal.read(folder.metrics) == [{"step": 1, "time_s": 0.5, "loss": 3.25}]
    (event,) = journal.read(folder.events)
    assert event.keys() == {"time", "kind", "step"}
    (line,) = journal.read(folder.ledger)
    time = line.pop("time")
    assert time.endswith("+00:00")
    predicted = {"p10": 0.8, "p50": 1.0, "p90": 1.3, "unit": "s", "source": "measured"}
    assert line == {"name": "step_time_s", "predicted": predicted, "measured": 1.1, "unit": "s"}
    with pytest.raises(ValueError, match="predicted in s, measured in ms"):
        folder.log_prediction("step_time_s", SECONDS, 1100, "ms")


def test_a_resumed_run_has_each_step_once(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    folder.log_metrics(note="start")
    for step in range(1, 8):
        folder.log_metrics(step=step, loss=float(step))
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 8, "lo')  # killed here; the newest checkpoint is of step 5
    assert folder.cut_metrics(5) == 2
    for step in range(6, 9):
        folder.log_metrics(step=step, loss=float(step))
    steps = [line.get("step") for line in journal.read(folder.metrics)]
    assert steps == [None, 1, 2, 3, 4, 5, 6, 7, 8]
    assert RunFolder.create(tmp_path, "translate").cut_metrics(5) == 0


HOLD = """
import sys, time
from pathlib import Path
from chinchilla.store.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    with subprocess.Popen([sys.executable, "-c", HOLD, folder.path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process is at work in this run"), folder.lock():
            pytest.fail("the lock was given twice")
        holder.kill()
        holder.wait()
    with folder.lock():
        pass
    with folder.lock():
        pass


def test_the_room_needs_no_torch_but_for_checkpoints():
    code = "import chinchilla.store.run_folder, chinchilla.store.manifest, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_run_toml_is_toml_with_an_origin_on_every_line(tmp_path):
    folder = RunFolder.create(tmp_path, "translate")
    folder.write_run(load_run(None, ["task=translate", "data.train=a.tsv", "budget.time=1m"]))
    text = folder.run_toml.read_text()
    assert tomllib.loads(text)["budget"] == {"time": 60.0}
    lines = [line for line in text.splitlines() if "=" in line]
    assert all(line.endswith(("# default", "# command line")) for line in lines)
    assert 'task = "translate"  # command line' in lines
    shutil.rmtree(folder.path)
