"""What every task promises: it learns, resumes, compresses, serves and reports, and all of these tell the same."""

import base64
import copy
import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract_data
import httpx
import pytest
import torch
from markupsafe import escape
from torch import nn

from chinchilla.config.errors import StoppedError
from chinchilla.config.load import Loaded, load_run
from chinchilla.config.plan import FAMILIES, Plan, TaskName
from chinchilla.models.generate import Sampling
from chinchilla.models.hub import write_model
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import own_tensors
from chinchilla.planning import count
from chinchilla.planning.rows import facts_of
from chinchilla.reporting.values import PER_CENT, label, metric
from chinchilla.serving.forms import CONTINUED, FORMS, PATHS
from chinchilla.serving.limits import Limits
from chinchilla.serving.server import bind, make_server, url_of
from chinchilla.store import checkpoint, journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.task import Objective, num_tokens
from chinchilla.training.monitor import Silent
from chinchilla.verbs.compress import compress
from chinchilla.verbs.draft import LEARNING_RATE, LOW_RATES
from chinchilla.verbs.exam import RunExam, evaluate, open_exam
from chinchilla.verbs.load import Model, load
from chinchilla.verbs.plan import plan
from chinchilla.verbs.predict import in_words as answer_in_words
from chinchilla.verbs.predict import predict
from chinchilla.verbs.prepare import KINDS
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.report import report
from chinchilla.verbs.train import TrainResult, begin, resume
from chinchilla.verbs.verify import verify

STEPS, EVERY = 24, 8
"""Of a run, and between two checkpoints."""

SETTINGS = (
    "budget.flops=1e11",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    f"train.eval_every={EVERY}",
    "train.keep_checkpoints=3",
    "train.probes=false",
    "train.threads=1",
    "train.accumulation=2",
    "train.dropout=0.1",
    "train.compile=false",
    "model.dim=32",
    "evaluate.beam_size=2",
    "evaluate.max_examples=12",
)

BATCH_LABELS = {"translate": 256, "summarise": 96, "generate": 512, "dialogue": 192, "recommend": 256}
"""Tokens a step; else examples."""

WITHOUT_TOKENIZER = ("classify_image", "detect", "classify_table", "recommend")

SAMPLED = Sampling(8, temperature=0.7, top_k=40, seed=3)


def settings_of(task: TaskName) -> Iterator[str]:
    yield from SETTINGS
    yield f"task={task}"
    yield f"train.batch_tokens={BATCH_LABELS.get(task, 24)}"
    if FAMILIES[task] != "decoder":
        yield "model.num_encoder_layers=1"
    if FAMILIES[task] != "encoder":
        yield "model.num_decoder_layers=1"
    if task not in WITHOUT_TOKENIZER:
        yield "tokenizer.vocab_size=300"
    if task in LOW_RATES:
        yield f"train.learning_rate={LEARNING_RATE}"  # the planned ones are for many more steps


class Quiet(Silent):
    """A whole command's progress, told to nobody."""

    def stage(self, text: str) -> None:
        pass

    def start(self, *given: object) -> None:
        pass

    def stop(self) -> None:
        pass


@dataclass(frozen=True)
class Trained:
    """A finished run, all that it was made from, and the model as it stood in memory."""

    task: TaskName
    loaded: Loaded
    plan: Plan
    prepared: Prepared
    result: TrainResult
    model: Transformer

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(self.result.run)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.result.run / "results.json").read_text(encoding="utf-8"))

    def opened(self) -> Model:
        return load(self.result.run, self.loaded.run)

    def values(self) -> list[Any]:
        """The test examples' questions as a client sends them."""
        task = self.prepared.task
        return [contract_data.asked(self.task, task.question(example)) for example in self.prepared.test]

    def options(self) -> dict[str, Any]:
        """How they are to be answered."""
        if self.task in CONTINUED:
            return {"sampling": SAMPLED}
        return {"translate": {"beam_size": 3}, "summarise": {"beam_size": 3}, "recommend": {"k": 3}}.get(self.task, {})


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory, small_machine) -> Iterator[Trained]:
    """Each task, trained once."""
    task, folder, threads = request.param, tmp_path_factory.mktemp(request.param), torch.get_num_threads()
    kept: list[Transformer] = []

    def keeping(path: Path, model: Transformer, *rest: Any) -> None:
        kept.append(copy.deepcopy(model))
        write_model(path, model, *rest)

    settings = [*settings_of(task), *contract_data.write(task, folder), f"runs={folder / 'runs'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chinchilla.verbs.plan.cached_measure", lambda *args, **kwargs: small_machine)
        patch.setattr("chinchilla.verbs.train.write_model", keeping)
        loaded = load_run(None, settings)
        made, prepared = plan(loaded.run)
        result = begin(loaded, made, prepared, Quiet())
    yield Trained(task, loaded, made, prepared, result, kept[0])
    torch.set_num_threads(threads)


def test_every_parameter_learns(trained: Trained):
    model, training = copy.deepcopy(trained.model).train(), trained.plan.training
    batches = trained.prepared.batches(training)
    for rows in batches.order(0)[:6]:  # several, since few rows of a table lack any one cell
        batch = batches.batch(rows)
        loss = trained.prepared.task.loss(model, batch, Objective(training.label_smoothing))
        assert num_tokens(batch) > 0 and math.isfinite(float(loss.total.detach())) and math.isfinite(float(loss.plain))
        loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_the_loss_falls(trained: Trained):
    losses = [line["loss"] for line in journal.read(trained.folder.metrics) if "loss" in line]
    assert len(losses) == STEPS and trained.results["valid_loss"] < 0.9 * losses[0]


def test_fresh_models_are_near_chance(trained: Trained):
    """Four of them: a few words make up most of so little text, and one draw may favour the wrong ones."""
    if trained.task == "detect":
        pytest.skip("matched boxes have a loss of their own kind")
    batches = trained.prepared.batches(trained.plan.training)
    batch, losses = batches.batch(batches.order(0)[0]), []
    for seed in range(4):
        torch.manual_seed(seed)
        model = Transformer(trained.plan.shape)
        losses.append(float(trained.prepared.task.loss(model, batch, Objective(0.0)).plain) / num_tokens(batch))
    chance = math.log(trained.plan.shape.num_outputs)
    assert chance - 0.1 < sum(losses) / len(losses) < chance + 0.7


def test_the_folder_answers_as_the_model_in_memory(trained: Trained):
    opened, prepared = trained.opened(), trained.prepared
    task, examples = prepared.task, prepared.test
    assert opened.codec.settings == prepared.codec.settings and opened.codec.form == prepared.codec.form
    score = opened.task.score(opened.model, opened.codec, examples)
    assert score == task.score(trained.model, prepared.codec, examples)
    for question in map(task.question, examples[:4]):
        found = opened.task.reply(opened.model, opened.codec, question)
        assert found == task.reply(trained.model, prepared.codec, question)


def test_evaluation_finds_the_results_again(trained: Trained):
    score, results = evaluate(trained.result.run), trained.results
    assert score.metrics == results["metrics"] == trained.result.metrics
    assert json.loads(json.dumps(score.details)) == results["details"]
    assert [vars(sample) for sample in score.samples[: len(results["samples"])]] == results["samples"]
    assert all(map(math.isfinite, score.metrics.values()))


class Interrupted(Quiet):
    """Ends the run when it comes to a step: as asked by a signal, or as one that is killed."""

    def __init__(self, step: int, signalled: bool) -> None:
        self.at, self.signalled = step, signalled

    def step(self, step: int, *rest: float) -> None:
        if step == self.at and self.signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == self.at:
            raise KeyboardInterrupt


def last_weights(run: Path) -> str:
    saved = checkpoint.load(run / "checkpoints" / f"step-{STEPS:06d}").tensors["model"]
    found = hashlib.sha256()
    for name in sorted(saved):
        found.update(name.encode() + saved[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def test_stopped_and_killed_it_ends_in_the_same_bits(trained: Trained):
    with pytest.raises(StoppedError, match="after step 5 of"):
        begin(trained.loaded, trained.plan, trained.prepared, Interrupted(5, signalled=True))
    run = max(trained.loaded.run.runs.iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert run != trained.result.run
    with pytest.raises(KeyboardInterrupt):
        resume(run, Interrupted(EVERY + 5, signalled=False))
    result = resume(run, Quiet())
    resumed = [line["step"] for line in journal.read(run / "events.jsonl") if line["kind"] == "resumed"]
    assert resumed == [5, EVERY]
    assert last_weights(run) == last_weights(trained.result.run)
    files = [each / "model" / "model.safetensors" for each in (run, trained.result.run)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert result.metrics == trained.result.metrics


def test_it_can_be_verified(trained: Trained):
    found = verify(trained.result.run)
    assert all(check.ok for check in found.checks), found.checks
    assert found.replay is not None and f"the weights of step {STEPS}" in found.replay.compared


def most_change(name: str, value: float) -> float:
    """How far int8 may move a metric of twelve answers: a loss by a little, any other by two answers or so."""
    if name in ("bits_per_byte", "perplexity", "log_loss", "brier"):
        return 0.01 + 0.1 * value
    return 20.0 if name in PER_CENT else 0.2


def int8_ratio(trained: Trained, compressed: Path) -> float:
    """How many times smaller: layers and tables of tokens at a byte with a scale for each row, all else fp32."""
    layers = {name for name, each in trained.model.named_modules() if isinstance(each, nn.Linear | nn.Embedding)}
    before = after = 0
    for name, tensor in own_tensors(trained.model).items():
        before += 4 * tensor.numel()
        after += tensor.numel() + 4 * len(tensor) if name.removesuffix(".weight") in layers else 4 * tensor.numel()
    return (header_bytes(trained.result.run) + before) / (header_bytes(compressed) + after)


def header_bytes(run: Path) -> int:
    """What safetensors writes before the weights: a length of eight bytes, and that."""
    with (run / "model" / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_compressed_it_says_nearly_the_same(trained: Trained):
    found = compress(trained.result.run, open_exam(trained.result.run))
    before, after = found.comparison.before.metrics, found.comparison.after.metrics
    assert before == trained.results["metrics"]
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert abs(after[name] - value) <= most_change(name, value), name
    assert load(found.run).card.precision == "int8-dynamic"
    assert evaluate(found.run).metrics == after
    assert found.comparison.ratios.size == pytest.approx(int8_ratio(trained, found.run), rel=0.02)
    exam = RunExam(trained.prepared.task, trained.prepared.codec, trained.prepared.test)
    assert found.comparison.samples[0].source == exam.show(0)[0]


@contextmanager
def served(model: Model) -> Iterator[httpx.Client]:
    """A client of a real server on a free port."""
    with bind("127.0.0.1", 0) as sock:
        server = make_server(model, sock, Limits())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            with httpx.Client(base_url=url_of(sock), timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def told(trained: Trained, client: httpx.Client, values: list[Any]) -> list[dict[str, Any]]:
    """What the server answers."""

    def post(body: dict[str, Any]) -> dict[str, Any]:
        answer = client.post(PATHS[trained.task], json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    sampling = {"max_tokens": SAMPLED.max_new, "temperature": SAMPLED.temperature}
    sampling |= {"top_k": SAMPLED.top_k, "seed": SAMPLED.seed}
    match trained.task:
        case "generate":
            return [{"text": post({"prompt": text} | sampling)["choices"][0]["text"]} for text in values]
        case "dialogue":
            replies = [post({"messages": value["messages"]} | sampling)["choices"][0]["message"] for value in values]
            return [{"text": reply["content"]} for reply in replies]
        case "recommend":
            answers = [post({"items": items} | trained.options()) for items in values]
            return [{"recommendations": answer["recommendations"]} for answer in answers]
        case "classify_image" | "detect":
            values = [base64.b64encode(data).decode() for data in values]
    form = FORMS[trained.task]
    return post({form.asked: values} | trained.options())[form.answered]


def test_served_it_answers_as_asked_directly(trained: Trained):
    model, values = trained.opened(), trained.values()[:6]
    questions = [model.read(value).question for value in values]
    direct = model.task.serve(model.model, model.codec, questions, **trained.options())
    with served(model) as client:
        assert client.get("/v1/models").json()["data"][0]["task"] == trained.task
        answers = told(trained, client, values)
    assert [{name: answer[name] for name in one} for one, answer in zip(direct, answers, strict=True)] == direct


def in_words(value: Any, folder: Path) -> str:
    """A question as it is given to `chinchilla predict`."""
    if isinstance(value, bytes):
        (folder / "asked.png").write_bytes(value)
        return str(folder / "asked.png")
    if isinstance(value, dict) and "messages" in value:
        return value["messages"][-1]["content"]
    return value if isinstance(value, str) else json.dumps(value)


def test_predict_answers_as_asked_directly(trained: Trained, tmp_path):
    model, value = trained.opened(), trained.values()[0]
    if trained.task == "dialogue":  # its words are a conversation of their own
        value = {"messages": value["messages"][-1:], "room": None}
    options = trained.options() | ({"k": 10} if trained.task == "recommend" else {})
    direct = model.task.serve(model.model, model.codec, [model.read(value).question], **options)
    found = list(predict(trained.result.run, [in_words(value, tmp_path)], 3, SAMPLED))
    assert found == direct
    assert isinstance(answer_in_words(found[0]), str)


def test_the_report_shows_it(trained: Trained):
    text, results = report(trained.result.run).read_text(encoding="utf-8"), trained.results
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    for name, value in list(results["metrics"].items())[:4]:
        assert escape(label(name)) in text and metric(name, value) in text, name
    for sample in results["samples"][:3]:
        assert escape(sample["source"]) in text


def test_the_plan_counts_what_is_trained(trained: Trained):
    sizes = {name: tuple(parameter.shape) for name, parameter in trained.model.named_parameters()}
    assert list(count.parameters(trained.plan.shape).items()) == list(sizes.items())
    assert trained.plan.num_params == sum(parameter.numel() for parameter in trained.model.parameters())
    assert facts_of(trained.folder.read_plan()) == trained.prepared.facts
