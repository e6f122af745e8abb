"""What a plan is made from beside the data: checked in every verb before data is read or anything is run."""

import json

import pytest

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.load import load_run
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import num_params
from chinchilla.verbs.plan import plan

USAGE = 2
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


def test_limits_hold_for_a_model_to_start_from(words, start, chinchilla, monkeypatch):
    folder, shape = start
    more = [f"model.start={folder}", "limits.size=100kB"]
    code, out, _ = chinchilla("whatif", *words, *more, "--json")
    (case,) = json.loads(out.splitlines()[-1])["cases"]
    told = f"model.start {folder}: needs {4 * num_params(shape) / 1e3:.0f} kB, and limits.size allows 100 kB"
    assert (code, case["shape"], told in case["basis"]) == (0, None, True), case["basis"]
    monkeypatch.setattr("chinchilla.verbs.probes._by_probes", lambda *args: pytest.fail("it was probed"))
    with pytest.raises(BudgetError, match=r"limits\.size allows 100 kB: start from a smaller model"):
        plan(load_run(None, [*words, *more]).run)


def test_what_takes_no_model_to_start_from_says_so_before_data_is_read(words, unread, chinchilla):
    code, _, err = chinchilla("sweep", *words, "model.start=runs/old")
    assert (code, "runs/old: a sweep compares sizes" in err) == (USAGE, True), err
    code, _, err = chinchilla("whatif", *words, "--against", "model.start=runs/old adapter.kind=lora")
    assert (code, "adapter: whatif reckons steps that train every weight" in err) == (USAGE, True), err
