"""What a plan is made from beside the data, checked before data is read or anything is run; and dry runs."""

import json
import shutil
from pathlib import Path

import pytest

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.load import load_run
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import num_params
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.plan import plan

USAGE, DATA, BUDGET, FAULT = 2, 3, 4, 5
NODE = 'flops_per_s = { fp32 = "1T" }\nmemory_bytes = "64GB"\nbytes_per_s = "10GB/s"\n'
LINK = '[[link]]\nbetween = ["a", "{}"]\nbytes_per_s = "1GB/s"\nlatency_s = "1ms"\n'
TWO = "".join(f'[[node]]\nname = "{name}"\n{NODE}' for name in ("a", "b"))


@pytest.fixture
def words(numbers, tmp_path):
    data = (f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path / 'runs'}")
    return ["task=translate", *data, "tokenizer.vocab_size=300", "train.threads=1", "budget.time=30m"]


@pytest.fixture
def unread(monkeypatch):
    """Fails where data is read."""
    for verb in ("plan", "whatif", "small_runs"):
        monkeypatch.setattr(f"chinchilla.verbs.{verb}.prepare", lambda *args: pytest.fail("data were read"))


def cluster(tmp_path, text):
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return f"cluster.file={path}"


@pytest.mark.parametrize("verb", ["plan", "train", "sweep", "whatif"])
@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        (TWO, (), "no path of links leads from 'a' to 'b'"),
        (TWO + LINK.format("c"), (), "no node is named 'c'"),
        (TWO + LINK.format("b") + LINK.format("b"), (), "joined by link 1 already"),
        (TWO + LINK.format("b"), ("train.precision=bf16",), "node 'a' has no bf16 rate"),
    ],
    ids=["unreached", "unknown", "twice", "unpriced"],
)
def test_a_bad_cluster_is_refused_before_data_is_read(verb, text, settings, told, words, unread, chinchilla, tmp_path):
    code, _, err = chinchilla(verb, *words, cluster(tmp_path, text), *settings)
    assert (code, told in err) == (USAGE, True), err


def test_a_missing_cluster_file_is_named_before_data_is_read(words, unread, chinchilla):
    for verb in ("sweep", "whatif"):
        code, _, err = chinchilla(verb, *words, "cluster.file=none.toml")
        assert (code, "no such cluster file" in err) == (USAGE, True), err


def test_a_rate_that_the_planned_precision_needs_is_asked_for_before_probes(words, tmp_path, monkeypatch):
    """The recipe leaves the precision open, so that it is known once the machine is."""
    monkeypatch.setattr("chinchilla.config.machine.Machine.fastest_precision", lambda machine: "bf16")
    monkeypatch.setattr("chinchilla.verbs.plan.choose", lambda *args: pytest.fail("shapes were probed"))
    run = load_run(None, [*words, cluster(tmp_path, TWO + LINK.format("b"))]).run
    with pytest.raises(UsageError, match="node 'a' has no bf16 rate: add one"):
        plan(run)


@pytest.fixture
def start(numbers, tmp_path):
    """A model to start from, and its shape."""
    tokenizer = Tokenizer.train((numbers / "train.tsv").read_text("utf-8").splitlines()[:200], "bpe", 300)
    shape = Shape(
        vocab_size=tokenizer.vocab_size, dim=48, num_heads=2, num_kv_heads=2, head_dim=24, ffn_dim=96,
        num_encoder_layers=2, num_decoder_layers=1, max_len=512,
    )  # fmt: skip
    write_model(tmp_path / "old", Transformer(shape), tokenizer.to_json())
    return tmp_path / "old", shape


def test_whatif_prices_the_model_that_a_run_starts_from(words, start, chinchilla):
    folder, shape = start
    code, out, err = chinchilla("whatif", *words, "--against", f"model.start={folder}", "--json")
    assert code == 0, err
    fresh, taken = json.loads(out.splitlines()[-1])["cases"]
    assert taken["num_params"] == num_params(shape) != fresh["num_params"]
    assert taken["shape"] == shape.model_dump()
    assert taken["training"]["learning_rate"] < fresh["training"]["learning_rate"]
    assert set(fresh["predicted"]) - set(taken["predicted"]) == {"loss"}
    assert f"the shape of {folder}; nothing here says what loss" in taken["basis"]
    assert f"[tokenizer] vocab_size: not used, since model.start {folder} brings its own" in err


def test_limits_hold_for_a_model_to_start_from(words, start, chinchilla, monkeypatch):
    folder, shape = start
    more = [f"model.start={folder}", "limits.size=100kB"]
    code, out, _ = chinchilla("whatif", *words, *more, "--json")
    (case,) = json.loads(out.splitlines()[-1])["cases"]
    told = f"model.start {folder}: needs {4 * num_params(shape) / 1e3:.0f} kB, and limits.size allows 100 kB"
    assert (code, case["shape"], told in case["basis"]) == (0, None, True), case["basis"]
    monkeypatch.setattr("chinchilla.verbs.choose.by_probes", lambda *args: pytest.fail("it was probed"))
    with pytest.raises(
        BudgetError, match=r"and budget\.time for train\.steps=90000000 allows .*: start from a smaller"
    ):
        plan(load_run(None, [*words, f"model.start={folder}", "train.steps=90000000"]).run)
    with pytest.raises(BudgetError, match=r"limits\.size allows 100 kB: start from a smaller model"):
        plan(load_run(None, [*words, *more]).run)


def test_what_takes_no_model_to_start_from_says_so_before_data_is_read(words, unread, chinchilla):
    code, _, err = chinchilla("sweep", *words, "model.start=runs/old")
    assert (code, "runs/old: a sweep compares sizes" in err) == (USAGE, True), err
    code, _, err = chinchilla("whatif", *words, "--against", "model.start=runs/old adapter.kind=lora")
    assert (code, "adapter: whatif reckons steps that train every weight" in err) == (USAGE, True), err


@pytest.mark.parametrize("verb", ["plan", "train", "whatif"])
def test_a_shape_beside_a_model_to_start_from_is_refused_before_data_is_read(verb, words, start, unread, chinchilla):
    folder, shape = start
    code, _, err = chinchilla(verb, *words, f"model.start={folder}", "model.dim=64")
    told = f"model.dim: 64 is asked for, and model.start {folder} brings {shape.dim} to this task: leave model.dim out"
    assert (code, told in err) == (USAGE, True), err


def test_reconstruction_is_trained_beside_weights_that_are_taken_over(words, start, monkeypatch):
    """Else inputs would be masked for nothing."""
    shapes = []

    def stop(question, given, probe_s):
        shapes.extend(given)
        raise BudgetError("far enough")

    monkeypatch.setattr("chinchilla.verbs.choose.by_probes", stop)
    for weight in (0, 0.1):
        with pytest.raises(BudgetError, match="far enough"):
            plan(load_run(None, [*words, f"model.start={start[0]}", f"train.reconstruct_weight={weight}"]).run)
    assert [shape.reconstruct for shape in shapes] == [False, True]


@pytest.fixture
def unprobed(monkeypatch):
    """Fails where the machine is measured, or anything probed."""
    for name in ("cached_measure", "choose"):
        monkeypatch.setattr(f"chinchilla.verbs.plan.{name}", lambda *args, **kwargs: pytest.fail("not in a dry run"))


def test_a_dry_run_says_what_there_is_and_leaves_nothing(words, start, unprobed, chinchilla, tmp_path):
    code, out, err = chinchilla("train", *words, "--dry-run")
    assert code == 0, err
    assert "training examples, " in out and "parameters at least" in out and "disk: room for" in err
    more = (f"model.start={start[0]}", "adapter.kind=lora", "adapter.rank=4")
    for verb in ("plan", "train"):
        code, out, err = chinchilla(verb, *words, *more, "--dry-run")
        assert (code, f"# {num_params(start[1]):,} parameters at least" in out) == (0, True), err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_the_same_as_one_json_object(words, unprobed, chinchilla):
    _, text, _ = chinchilla("plan", *words, "--dry-run")
    loaded = load_run(None, words)
    for verb in ("plan", "train"):
        code, out, err = chinchilla(verb, *words, "--dry-run", "--json")
        assert code == 0, err
        told = json.loads(out)  # all of standard output
        assert Run.model_validate(told["recipe"]) == loaded.run and told["origins"] == loaded.origins
        assert f"# {told['examples']:,} training examples, " in text
        assert f" {told['labels']} an epoch, rows of {told['row_len']}\n" in text
        assert f"# {told['least_params']:,} parameters at least\n" in text
        assert told["unique_tokens"] > told["examples"]


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["data.valid=none.tsv"], DATA, "none.tsv"),
        (["tokenizer.file=none.json"], USAGE, "none.json"),
        (["model.start=none"], USAGE, "none"),
        (["model.start=OLD", "model.max_len=600"], USAGE, "takes 512 positions"),
        (["model.start=OLD", "model.num_heads=4"], USAGE, "brings 2 to this task"),
        (["model.start=OLD", "adapter.rank=64"], USAGE, "below the adapter's 64"),
        (["model.attention=block"], USAGE, "model.attention: block"),
        (["limits.size=1kB"], BUDGET, "limits.size is 1 kB, and the smallest model that may be built (2+2 layers"),
        (["limits.serve_memory=1kB"], BUDGET, "limits.serve_memory"),
        (["model.dim=64", "model.num_heads=3", "model.num_kv_heads=2"], USAGE, "[model] contradicts itself"),
        (["budget.money=3"], USAGE, "machine.price_per_hour"),
        (["cluster.file=none.toml"], USAGE, "no such cluster file"),
    ],
)
def test_a_dry_run_refuses_what_the_plan_would(settings, code, told, words, start, unprobed, chinchilla):
    given = [setting.replace("OLD", str(start[0])) for setting in settings]
    kept = [word for word in words if not (word.startswith("budget.") and any("budget." in text for text in given))]
    for verb in ("plan", "train"):
        found, _, err = chinchilla(verb, *kept, *given, "--dry-run")
        assert (found, told in err) == (code, True), err


def test_a_dry_run_of_train_looks_where_it_would_write(words, unprobed, chinchilla, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    code, _, err = chinchilla("train", *words, f"runs={tmp_path / 'file' / 'runs'}", "--dry-run")
    assert (code, "no run folder can be made" in err) == (USAGE, True), err
    code, _, err = chinchilla("train", *words, 'train.trackers=["wandb"]', "--dry-run")
    assert (code, "wandb is not installed" in err) == (USAGE, True), err
    free = shutil.disk_usage(tmp_path)._replace(free=10**5)
    monkeypatch.setattr("chinchilla.store.run_folder.shutil.disk_usage", lambda path: free)
    code, _, err = chinchilla("train", *words, "--dry-run")
    assert (code, "3 checkpoints and the model, at the smallest size, take" in err) == (FAULT, True), err
    assert chinchilla("plan", *words, "--dry-run")[0] == 0


def test_a_dry_run_with_a_law_reads_it(words, unprobed, chinchilla, tmp_path):
    code, _, err = chinchilla("plan", *words, "--law", tmp_path / "law.json", "--dry-run")
    assert (code, "law.json: cannot be read" in err) == (DATA, True), err


def test_a_sweep_looks_where_it_would_write_before_data_is_read(words, unread, chinchilla, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = chinchilla("sweep", *words, "--out", tmp_path / "file" / "sweep", "--dry-run")
    assert (code, "no run folder can be made" in err) == (USAGE, True), err
    code, _, err = chinchilla("sweep", *words, 'train.trackers=["wandb"]', "--dry-run")
    assert (code, "wandb is not installed" in err) == (USAGE, True), err


def test_a_dry_run_of_resuming_checks_the_run(train_tiny, chinchilla):
    run = Path(train_tiny("budget.time=10m", "train.steps=4", "train.probes=false")["run"])
    before = sorted(path.name for path in run.iterdir())
    code, out, err = chinchilla("train", "--resume", run, "--dry-run")
    assert (code, out) == (0, "would go on from step 4 of 4\n"), err
    code, out, err = chinchilla("train", "--resume", run, "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"run": str(run), "step": 4, "steps": 4}), err
    assert sorted(path.name for path in run.iterdir()) == before
    with RunFolder(run).lock():
        code, _, err = chinchilla("train", "--resume", run, "--dry-run")
    assert (code, "another process is at work" in err) == (USAGE, True), err
    for weights in (run / "checkpoints").rglob("*.safetensors"):
        weights.write_bytes(b"damaged")
    code, _, err = chinchilla("train", "--resume", run, "--dry-run")
    assert (code, "checkpoints are damaged" in err) == (FAULT, True), err
    text = (run / "run.toml").read_text("utf-8")
    (run / "run.toml").write_text(text.replace("train.tsv", "gone.tsv"), "utf-8")
    code, _, err = chinchilla("train", "--resume", run, "--dry-run")
    assert (code, "gone.tsv" in err) == (DATA, True), err
    assert chinchilla("train", "--resume", Path("none"), "--dry-run")[0] == USAGE
