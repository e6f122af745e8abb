"""The verbs from the command line, on a tiny real run: what they print, write and return."""

import json
from pathlib import Path

import pytest

from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder


def test_train_prints_one_json_object_with_predictions_and_measurements(trained):
    assert set(trained) == {"run", "metrics", "predicted", "measured"}
    assert set(trained["metrics"]) == {"bleu", "chrf"}
    for name, predicted in trained["predicted"].items():
        assert predicted["p10"] <= predicted["p50"] <= predicted["p90"], name
        assert predicted["source"] in ("measured", "law", "datasheet", "guess")
        assert trained["measured"][name] > 0


def test_the_run_folder_holds_everything(trained):
    folder = RunFolder.open(Path(trained["run"]))
    for path in (folder.run_toml, folder.plan_json, folder.metrics, folder.events, folder.ledger, folder.env_json):
        assert path.is_file(), path
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (folder.model / name).is_file(), name
    assert {line["name"] for line in journal.read(folder.ledger)} == set(trained["predicted"])
    kinds = [event["kind"] for event in journal.read(folder.events)]
    assert kinds[0] == "planned"
    assert kinds[-1] == "finished"


def test_the_loss_fell(trained):
    lines = journal.read(RunFolder.open(Path(trained["run"])).metrics)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert min(losses) < 0.8 * losses[0]


def test_evaluate_gives_the_same_scores_again(trained, chinchilla):
    code, out, _ = chinchilla("evaluate", trained["run"], "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["metrics"] == pytest.approx(trained["metrics"])


def test_predict_answers_a_text_and_each_line_of_a_file(trained, chinchilla, tmp_path):
    code, one, _ = chinchilla("predict", trained["run"], "one two three")
    assert code == 0
    lines = tmp_path / "lines.txt"
    lines.write_text("one two three\n\nfour\n", encoding="utf-8")
    code, out, _ = chinchilla("predict", trained["run"], "--file", lines, "--json")
    answers = json.loads(out.splitlines()[-1])["answers"]
    assert code == 0
    assert len(answers) == 3
    assert answers[0] == one.strip()
    assert answers[1] == ""


def test_compress_then_report(trained, chinchilla):
    code, out, _ = chinchilla("compress", trained["run"], "--json")
    assert code == 0
    told = json.loads(out.splitlines()[-1])
    assert told["ratios"]["size"] > 2
    assert (Path(told["run"]) / "model" / "model.safetensors").is_file()
    code, out, _ = chinchilla("report", told["run"])
    assert code == 0
    page = Path(out.strip()).read_text(encoding="utf-8")
    assert "int8" in page
    code, _, err = chinchilla("compress", told["run"])
    assert (code, "compressed already" in err) == (2, True)


def test_dry_runs_spend_nothing(numbers, trained, chinchilla, tmp_path):
    data = f"data.train={numbers / 'train.tsv'}"
    code, out, _ = chinchilla(
        "train", "task=translate", data, "budget.time=1h", f"runs={tmp_path / 'runs'}", "--dry-run"
    )
    assert code == 0
    assert "1,3" in out and 'task = "translate"' in out  # about 1,300 training examples are left after the cut
    assert not (tmp_path / "runs").exists()
    code, out, _ = chinchilla("compress", trained["run"], "--dry-run")
    assert code == 0
    assert "would make" in out
    code, out, _ = chinchilla("compress", trained["run"], "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["scheme"]) == (0, "int8-dynamic") and told["layers_int8"]
    assert told["size_before_bytes"] > 2 * told["size_after_bytes"] > 0
    code, out, _ = chinchilla("evaluate", trained["run"], "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"examples": 20})


def test_plan_gives_reasons_and_the_plan_as_json(numbers, chinchilla, tmp_path):
    code, out, err = chinchilla(
        "plan",
        "task=translate",
        "train.threads=1",
        f"data.train={numbers / 'train.tsv'}",
        "model.dim=32",
        "model.num_encoder_layers=1",
        "model.num_decoder_layers=1",
        "--budget",
        "10",
        "--json",
    )
    assert code == 0
    plan = json.loads(out.splitlines()[-1])
    assert plan["shape"]["dim"] == 32
    assert all(decision["reason"] for decision in plan["decisions"])
    assert "learning rate" in err


def test_generate_runs_the_same_way(numbers, chinchilla, tmp_path):
    texts = tmp_path / "texts.jsonl"
    rows = (numbers / "train.tsv").read_text(encoding="utf-8").splitlines()
    texts.write_text("".join(json.dumps({"text": row.split("\t")[0]}) + "\n" for row in rows), encoding="utf-8")
    code, out, err = chinchilla(
        "train",
        "task=generate",
        f"data.train={texts}",
        f"runs={tmp_path / 'runs'}",
        "train.threads=1",
        "tokenizer.vocab_size=300",
        "model.dim=32",
        "model.num_decoder_layers=1",
        "train.batch_tokens=512",
        "model.max_len=64",
        "evaluate.max_examples=20",
        "budget.time=8",
        "--json",
    )
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert 0 < told["metrics"]["bits_per_byte"] < 8
    code, out, _ = chinchilla("predict", told["run"], "one two", "--max-tokens", "5", "--temperature", "0")
    assert code == 0


def test_schema_and_version(chinchilla):
    code, out, _ = chinchilla("schema")
    assert code == 0
    assert "budget" in json.loads(out)["properties"]
    assert chinchilla("--version")[0] == 0


def test_importing_the_package_imports_no_torch():
    import subprocess
    import sys

    code = "import chinchilla, chinchilla.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plan_from_the_laws_above_their_range(numbers, chinchilla, tmp_path, monkeypatch):
    monkeypatch.setattr("chinchilla.planning.by_law.LEAST_TOKENS", 0)  # as if so few words were text enough
    texts = tmp_path / "texts.txt"
    rows = (numbers / "train.tsv").read_text(encoding="utf-8").splitlines()
    texts.write_text("\n\n".join(row.split("\t")[0] for row in rows), encoding="utf-8")
    code, out, err = chinchilla(
        "plan", "task=generate", f"data.train={texts}", "train.threads=1", "tokenizer.vocab_size=300",
        "budget.flops=1e20", "--json",
    )  # fmt: skip
    assert code == 0, err
    plan = json.loads(out.splitlines()[-1])
    assert plan["probes"] == []
    assert plan["num_params"] < 1e7  # so little text has no use for more, whatever the budget
    assert plan["predicted"]["loss"]["source"] == "guess"  # a text repeated so often is outside every law
    reasons = {decision["name"]: decision["reason"] for decision in plan["decisions"]}
    assert "Step Law" in reasons["learning rate"]
    assert "besiroglu" in reasons["model"].lower()
