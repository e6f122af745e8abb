"""Small random Transformers behind the real HTTP interface: what is served equals what the tasks answer."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_fakes import Running, make_card, running

from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.serving.answerer import Answerer
from chinchilla.serving.server import bind
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.translate import Translate
from chinchilla.verbs.load import Model
from chinchilla.verbs.prepare import kind_of
from chinchilla.verbs.serve import serve

TEXTS = ["Click the button.", "Öffnen Sie die Datei im Menü „Datei“.", "a", "one two three four five six 七 八 九 🐭"]


def make_answerer(task: str, **changes) -> Model:
    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=320)
    layers = {"num_encoder_layers": 2} if task == "translate" else {}
    facts = {"dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48, "max_len": 64}
    facts |= {"num_decoder_layers": 2, "tied_embeddings": False, "vocab_size": tokenizer.vocab_size}
    torch.manual_seed(1)
    model = Transformer(Shape(**(facts | layers | changes))).eval()
    return Model(make_card(task, max_len=model.shape.max_len), model, tokenizer, kind_of(task).make_task(None))


def counted(answerer: Model, texts: list[str]) -> int:
    return sum(answerer.read(text).num_tokens for text in texts)


@pytest.fixture(scope="module")
def translator():
    answerer = make_answerer("translate")
    with running(answerer) as server:
        yield answerer, server


@pytest.fixture(scope="module")
def writer():
    answerer = make_answerer("generate")
    with running(answerer) as server:
        yield answerer, server


def test_a_loaded_model_is_an_answerer():
    answerer: Answerer = make_answerer("generate")
    assert [answerer.read(text).num_tokens for text in ("", "a")] == [1, 2]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translations_are_the_tasks(translator: tuple[Model, Running], beam_size: int):
    answerer, server = translator
    expected = [Translate(beam_size).answer(answerer.model, answerer.tokenizer, [text])[0] for text in TEXTS]
    assert any(expected)
    answer = server.post("/v1/translate", {"text": TEXTS, "beam_size": beam_size}).json()
    assert [item["text"] for item in answer["translations"]] == expected
    assert answer["usage"]["source_tokens"] == counted(answerer, TEXTS)
    assert answer["usage"]["target_tokens"] == counted(answerer, expected)


def test_completions_are_the_tasks_also_side_by_side(writer: tuple[Model, Running]):
    answerer, server = writer

    def served(index: int) -> str:
        body = {"prompt": TEXTS[index], "max_tokens": 12, "temperature": 0.9, "top_k": 50, "seed": index}
        body["stream"] = index % 2 == 0
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            if not body["stream"]:
                return json.loads(response.read())["choices"][0]["text"]
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])

    expected = [
        Generate().answer(answerer.model, answerer.tokenizer, text, Sampling(12, 0.9, 50, seed=index))
        for index, text in enumerate(TEXTS)
    ]
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        assert list(pool.map(served, range(len(TEXTS)))) == expected


def test_a_completion_may_use_the_whole_length_of_the_model(writer: tuple[Model, Running]):
    answerer, server = writer
    tokens = answerer.read("a b c").num_tokens
    fits = {"prompt": "a b c", "max_tokens": 64 - tokens, "temperature": 0}
    answer = server.post("/v1/completions", fits)
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == tokens
    assert server.post("/v1/completions", fits | {"max_tokens": 65 - tokens}).status_code == 422


def test_a_source_may_use_the_whole_length_of_the_model(translator: tuple[Model, Running]):
    answerer, server = translator
    text = "a" * 63
    while answerer.read(text).num_tokens < 64:
        text += "Q"
    assert answerer.read(text).num_tokens == 64
    assert server.post("/v1/translate", {"text": text}).status_code == 200
    assert server.post("/v1/translate", {"text": text + "Q"}).status_code == 422


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30), data=st.data())
def test_no_text_is_too_strange(translator, writer, text: str, data: st.DataObject):
    translate = {"text": [text, data.draw(st.text(max_size=10))], "beam_size": data.draw(st.integers(1, 3))}
    assert translator[1].post("/v1/translate", translate).status_code in (200, 422)
    complete = {
        "prompt": text,
        "max_tokens": data.draw(st.integers(1, 6)),
        "temperature": data.draw(st.floats(0, 2)),
        "top_p": data.draw(st.floats(0, 1, exclude_min=True)),
        "top_k": data.draw(st.integers(0, 2**63)),
        "seed": data.draw(st.integers(-(2**63) + 1, 2**63 - 1)),
    }
    answer = writer[1].post("/v1/completions", complete)
    assert answer.status_code in (200, 422), answer.text


def test_a_model_folder_is_served_by_the_verb(tmp_path: Path):
    answerer = make_answerer("translate")
    write_model(tmp_path / "small", answerer.model, answerer.tokenizer.to_json())
    code = "import logging, sys; from pathlib import Path; from chinchilla.verbs.serve import serve; "
    code += "logging.basicConfig(level=logging.INFO, stream=sys.stdout); serve(Path(sys.argv[1]), port=0)"
    command = [sys.executable, "-c", code, str(tmp_path / "small")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            line = next(line for line in child.stdout if "serving small (translate) at " in line)
            url = line.split(" at ")[1].split(";")[0]
            answer = httpx.post(f"{url}/v1/translate", json={"text": TEXTS[0]}, timeout=60).json()
            facts = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]
            child.terminate()
            assert child.wait(30) == 0
        finally:
            child.kill()
    assert answer["translations"][0]["text"] == Translate().answer(answerer.model, answerer.tokenizer, [TEXTS[0]])[0]
    assert facts["size_bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert facts["num_params"] == sum(parameter.numel() for parameter in answerer.model.parameters())


def test_a_folder_without_a_model_is_refused_and_the_port_given_back(tmp_path: Path):
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            serve(path, port=port)
    with bind("127.0.0.1", port):
        pass
