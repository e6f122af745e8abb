"""`compress` on a real run folder with a small random model: what it writes, measures and refuses."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from chinchilla.compression.compare import Comparison
from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.cache import KVCache
from chinchilla.models.hub import read_model, write_model
from chinchilla.models.quantized import is_quantized
from chinchilla.models.transformer import Transformer
from chinchilla.store import journal
from chinchilla.verbs.compress import compress, preview

SHAPE = Shape(
    vocab_size=600,
    dim=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    ffn_dim=192,
    num_encoder_layers=1,
    num_decoder_layers=1,
    max_len=64,
)


class ByteExam:
    """Answers with the bytes of a greedy search; scores by the mean logit."""

    questions = ("hello", "a longer sentence", "c")

    def show(self, index):
        return self.questions[index], ("bonjour", "une phrase plus longue", "c")[index]

    @torch.inference_mode()
    def answer(self, model, text):
        memory, cache = model.encode(torch.tensor([list(text.encode())])), KVCache(1)
        tokens = [1]
        for _ in range(6):
            hidden = model.decode(torch.tensor([tokens[-1:]]), memory, cache=cache)
            tokens.append(model.logits(hidden).argmax(-1).item())
        return " ".join(map(str, tokens))

    @torch.inference_mode()
    def evaluate(self, model):
        ids = torch.arange(3, 33)[None]
        return {"score": model.logits(model(ids, ids).hidden).abs().mean().item()}


class BrokenExam(ByteExam):
    def evaluate(self, model):
        raise DataError("test.tsv: row 3 has one column")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "translate-1"
    folder.mkdir(parents=True)
    toml = 'task = "translate"\nseed = 5\n[data]\ntrain = "train.tsv"\n[budget]\ntime = "1m"\n'
    (folder / "run.toml").write_text(toml)
    (folder / "plan.json").write_text("{}")
    torch.manual_seed(0)
    write_model(
        folder / "model",
        Transformer(SHAPE),
        '{"tokens": "é"}',
        "# A card\n",
        {"task": "translate", "metrics": {"score": 9}},
    )
    return folder


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_folder_of_the_same_form(run):
    result = compress(run, ByteExam())
    assert result.run == run.parent / "translate-1-int8-1"
    assert visible(result.run) == ["compression.json", "env.json", "ledger.jsonl", "model", "plan.json", "run.toml"]
    assert visible(run.parent) == ["translate-1", "translate-1-int8-1"]
    for name in ("run.toml", "plan.json", "model/tokenizer.json"):
        assert (result.run / name).read_bytes() == (run / name).read_bytes()
    loaded = read_model(result.run / "model")
    assert is_quantized(loaded.model) and loaded.config["task"] == "translate" and loaded.shape == SHAPE
    assert json.loads((result.run / "env.json").read_text())["seed"] == 5
    assert compress(run, ByteExam()).run.name == "translate-1-int8-2"


def test_what_is_measured(run):
    result = compress(run, ByteExam())
    found = result.comparison
    assert Comparison.model_validate_json((result.run / "compression.json").read_text()) == found
    assert (result.run / found.parent).resolve() == run
    assert found.scheme == "int8-dynamic"
    weights = [folder / "model" / "model.safetensors" for folder in (run, result.run)]
    assert [found.before.size_bytes, found.after.size_bytes] == [file.stat().st_size for file in weights]
    assert found.ratios.size > 3.5
    assert 0 < found.after.latency_p50_s <= found.after.latency_p90_s
    exam = ByteExam()
    for folder, side in ((run, found.before), (result.run, found.after)):
        assert side.metrics == exam.evaluate(read_model(folder / "model").model)
    assert found.before.metrics != found.after.metrics
    assert read_model(result.run / "model").config["metrics"] == found.after.metrics
    card = (result.run / "model" / "README.md").read_text()
    assert card.startswith("# A card\n")
    assert f"| score | {found.before.metrics['score']:.4g} | {found.after.metrics['score']:.4g} |" in card
    sample = found.samples[1]
    assert (sample.source, sample.reference) == ("a longer sentence", "une phrase plus longue")
    assert sample.before == exam.answer(read_model(run / "model").model, sample.source)
    assert sample.after == exam.answer(read_model(result.run / "model").model, sample.source)
    (line,) = journal.read(result.run / "ledger.jsonl")
    assert line["measured"] == found.after.size_bytes
    assert line["predicted"]["p10"] <= line["measured"] <= line["predicted"]["p90"] * 1.03


def test_the_parent_is_left_as_it_was(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    compress(run, ByteExam())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_folder_that_was_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = compress(run.relative_to(tmp_path), ByteExam(), out=tmp_path / "elsewhere" / "small")
    assert result.run == tmp_path / "elsewhere" / "small"
    assert (result.run / result.comparison.parent).resolve() == run
    with pytest.raises(UsageError, match="exists already"):
        compress(run, ByteExam(), out=result.run)


def test_preview_writes_nothing(run):
    record = preview(run)
    assert visible(run.parent) == ["translate-1"]
    measured = compress(run, ByteExam()).comparison.after.size_bytes
    assert record.size_after_bytes == pytest.approx(measured, rel=0.03)
    assert "decoder.layers.0.cross.kv" in record.layers_int8


def test_failures_leave_no_folder(run):
    with pytest.raises(DataError, match="row 3"):
        compress(run, BrokenExam())
    assert visible(run.parent) == ["translate-1"]


def test_a_kill_leaves_no_run_folder(run):
    """Killed while it measures, with the model written already: what stays is hidden, and no run folder."""
    script = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from test_compress import ByteExam
        from chinchilla.verbs.compress import compress

        class Killer(ByteExam):
            def evaluate(self, model):
                os.kill(os.getpid(), 9)

        compress(Path(sys.argv[1]), Killer())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(run), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -9
    assert [name for name in visible(run.parent) if not name.startswith(".")] == ["translate-1"]
    assert compress(run, ByteExam()).run.name == "translate-1-int8-1"


def test_a_compressed_run_is_refused(run):
    small = compress(run, ByteExam()).run
    for attempt in (lambda: compress(small, ByteExam()), lambda: preview(small)):
        with pytest.raises(UsageError, match="compressed already"):
            attempt()
    assert visible(run.parent) == ["translate-1", "translate-1-int8-1"]


def test_folders_that_are_no_finished_runs_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="no such run folder"):
        compress(tmp_path / "nothing", ByteExam())
    with pytest.raises(UsageError, match="not a run folder"):
        compress(run / "model", ByteExam())
    (run / "model").rename(tmp_path / "model")
    with pytest.raises(UsageError, match="no finished model"):
        compress(run, ByteExam())
    assert visible(run.parent) == ["translate-1"]


def test_a_damaged_model_is_named(run):
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FaultError, match=r"model\.safetensors"):
        compress(run, ByteExam())
    assert visible(run.parent) == ["translate-1"]
