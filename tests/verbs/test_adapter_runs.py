"""A run that trains an adapter, end to end: little is trained, it lies alone, and what answers has it."""

import json
from pathlib import Path

import contract_data
import pytest
import torch
from test_contract import Quiet

from chinchilla.config.load import load_run
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.adapter_files import read_adapter_
from chinchilla.models.bottleneck import CONFIG_KEY, describe
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import num_params
from chinchilla.store import journal
from chinchilla.verbs.compress import compress
from chinchilla.verbs.exam import open_exam
from chinchilla.verbs.load import load
from chinchilla.verbs.plan import plan
from chinchilla.verbs.predict import predict
from chinchilla.verbs.train import begin
from chinchilla.verbs.transfer import new_model, read_start
from chinchilla.verbs.verify import verify

STEPS = 40


def base_model(folder: Path) -> None:
    """An encoder that nothing was taught yet."""
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer.train(texts, "bpe", 300)
    shape = Shape(
        vocab_size=tokenizer.vocab_size, dim=32, num_heads=2, num_kv_heads=2, head_dim=16, ffn_dim=64,
        num_encoder_layers=1, num_decoder_layers=1, max_len=64,
    )  # fmt: skip
    torch.manual_seed(1)
    write_model(folder / "base", Transformer(shape), tokenizer.to_json())


@pytest.fixture(params=["lora", "bottleneck"])
def trained(request, tmp_path):
    files = contract_data.write("classify_text", tmp_path)
    base_model(tmp_path)
    settings = [
        "task=classify_text", *files, f"model.start={tmp_path / 'base'}", f"runs={tmp_path / 'runs'}",
        f"adapter.kind={request.param}", "adapter.rank=4", "budget.flops=1e11", f"train.steps={STEPS}",
        "train.batch_tokens=24", "train.probes=false", "train.threads=1", "train.learning_rate=0.01",
        "train.compile=false", "train.checkpoint_every=20", "noise.drop=0.05", "noise.backoff=0.1",
    ]  # fmt: skip
    loaded = load_run(None, settings)
    made, prepared = plan(loaded.run)
    return made, prepared, begin(loaded, made, prepared, Quiet()).run


def test_little_is_trained_it_lies_alone_and_every_verb_answers_with_it(trained):
    made, prepared, run = trained
    kind = prepared.run.adapter.kind
    losses = [line["loss"] for line in journal.read(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    row = next(decision for decision in made.decisions if decision.name == "adapter")
    assert row.value.startswith(f"{kind} of rank 4") and "the rest stays as it is" in row.reason
    assert made.training.dropout == 0

    opened = load(run)
    assert made.num_params == sum(each.numel() for each in opened.model.parameters())
    assert made.num_params - num_params(made.shape) == (kind == "bottleneck") * (2 * (2 * 4 * 32 + 4 + 32))
    config = json.loads((run / "model" / "config.json").read_text())
    assert (CONFIG_KEY in config) == (kind == "bottleneck")
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == kind.upper()
    alone, whole = (
        path.stat().st_size
        for path in (run / "adapter" / "adapter_model.safetensors", run / "model" / "model.safetensors")
    )
    assert alone < 0.3 * whole
    # The adapter put on the model that it was trained beside is what the run's folder answers with.
    start = read_start(prepared.run.model.start)
    again = new_model(made.shape, 0.0, start, None).eval()
    read_adapter_(again, run / "adapter")
    questions = [prepared.task.question(example) for example in prepared.test[:6]]
    answers = [prepared.task.serve(model, opened.codec, questions) for model in (opened.model, again)]
    assert [each["label"] for each in answers[0]] == [each["label"] for each in answers[1]]
    assert [answer["label"] for answer in predict(run, questions)] == [each["label"] for each in answers[0]]


def test_its_steps_and_their_noise_can_be_taken_again_bit_for_bit(trained):
    _, _, run = trained
    found = verify(run)
    assert all(check.ok for check in found.checks), found.checks
    assert found.replay is not None and f"the weights of step {STEPS}" in found.replay.compared


def test_a_compressed_run_keeps_its_bottlenecks(trained):
    _, prepared, run = trained
    small = compress(run, open_exam(run))
    opened, before = load(small.run), load(run)
    widths = {"encoder.layers.0.attention.out": 4, "encoder.layers.0.mlp.down": 4}
    assert describe(opened.model) == (widths if prepared.run.adapter.kind == "bottleneck" else {})
    questions = [prepared.task.question(example) for example in prepared.test]
    labels = [
        [each["label"] for each in model.task.serve(model.model, model.codec, questions)] for model in (opened, before)
    ]
    assert sum(one == other for one, other in zip(*labels, strict=True)) >= 0.9 * len(questions)
