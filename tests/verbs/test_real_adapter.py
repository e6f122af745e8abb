"""Slow: an adapter beside SmolLM2-135M learns some conversations, lies alone in a few MB, and answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_real_runs import fetched

from chinchilla.config.run import Data
from chinchilla.data.chat import read_chats
from chinchilla.data.chat_template import CHATML
from chinchilla.models.adapter_files import read_adapter_
from chinchilla.models.generate import Sampling
from chinchilla.models.hub import read_model
from chinchilla.store import journal
from chinchilla.tasks.dialogue import ChatCodec, answer_nats, template_for
from chinchilla.verbs.predict import predict
from chinchilla.verbs.transfer import read_start
from chinchilla.verbs.verify import verify

pytestmark = pytest.mark.slow

STEPS = 4
CHATS = 24


def nats_of(model, codec, chats) -> float:
    """Nats a token of the answers."""
    found = [answer_nats(model, codec, chat) for chat in chats]
    return sum(nats for nats, _, _ in found) / sum(tokens for _, tokens, _ in found)


def test_smollm2_learns_small_talk_by_an_adapter(tmp_path):
    (weights,), chats = fetched("smollm2").glob("*.gguf"), fetched("chatterbot")
    for part, count in (("train", CHATS), ("valid", 4), ("test", 2)):
        lines = (chats / f"{part}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{part}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    recipe = Path(__file__).parents[2] / "recipes" / "dialogue-smollm2.toml"
    settings = [
        *(f"data.{part}={tmp_path / part}.jsonl" for part in ("train", "valid", "test")), f"model.start={weights}",
        f"runs={tmp_path / 'runs'}", f"train.steps={STEPS}", "train.batch_tokens=400", "train.accumulation=1",
        "train.threads=1", "train.probes=false", "train.compile=false", "budget.time=30m",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "chinchilla", "train", str(recipe), *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small-talk-1"

    start = read_start(weights)
    model, codec = start.loaded.model, ChatCodec(start.tokenizer(), template_for(start.tokenizer()))
    assert codec.template == CHATML
    train = list(read_chats(tmp_path / "train.jsonl", Data(train=tmp_path / "train.jsonl")))
    before = nats_of(model, codec, train)
    names = read_adapter_(model, run / "adapter")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert names and trained <= 0.02 * sum(parameter.numel() for parameter in model.parameters())
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size < 10e6
    # The adapter alone, on the model as it was fetched, has learnt; so has the run.
    assert nats_of(model.eval(), codec, train) < 0.95 * before
    losses = [line["loss"] for line in journal.read(run / "metrics.jsonl") if "loss" in line]
    assert len(losses) == STEPS and losses[-1] < losses[0]

    merged = read_model(run / "model").model
    ids = torch.tensor([codec.template.encode(train[0].messages, codec.tokenizer)])
    with torch.inference_mode():
        alone, folded = (each.logits(each(target=ids).hidden) for each in (model, merged))
    torch.testing.assert_close(alone, folded, rtol=0, atol=1e-2)
    (answer,) = predict(run, ["Are you sentient?"], sampling=Sampling(8, temperature=0))
    assert answer["text"]
    assert all(check.ok for check in verify(run, steps=0).checks)
    assert json.loads((run / "results.json").read_text())["samples"][0]["output"]
