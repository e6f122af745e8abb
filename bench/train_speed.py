"""Training steps of ours against `transformers` and a plain loop: a 13.9 M decoder and a 29.4 M encoder-decoder.

    python bench/train_speed.py      writes bench/results/train_speed.csv; seven minutes on a quiet machine
    python bench/train_speed.py --compiled --tasks decoder --threads 1 --append      compiled ones too: minutes more

Each contender lives in a process of its own, and they take turns of a few steps: the machine's speed drifts, so all
ratios are medians over turns. Every step is whole: forward, loss, backward, clipping, AdamW. All see the same ids and
as many labelled tokens. `graph` contenders of ours have the reference's operators (GPT-2: learned positions, biases,
GELU; Marian: post-norm, sinusoids); `plan` ones what our planner would build at this width. One thread is measured by
CPU time, two by wall time. `peak_share` is the matmul FLOPs of our counts for that shape over the rate of the fastest
product, which takes its turn too. `peak_mb` is the peak resident memory of three steps above what was there before the
model; `planned_mb` what the plan says it is, without the copies that a validation makes. A contender far behind its own
side's best in another precision stops after a turn.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, MarianMTModel

from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.models import marian
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import Batch, flops
from chinchilla.planning.memory import memory
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.translate import Translate
from chinchilla.training.allocator import keep_freed_memory, peak_bytes, reset_peak, used_bytes
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer

MB = 1e6
VOCAB, RATE, CLIP = 8192, 3e-4, 1.0
WARM_STEPS, HOPELESS = 3, 1.4
PEAK_SHAPES = ((2048, 384, 1536), (2048, 512, 2048), (512, 384, 8192), (1024, 1024, 1024), (2048, 2048, 2048))
Step = Callable[[], object]
Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One side of the comparison: `side` is ours, plain or transformers."""

    side: str
    precision: str
    compiled: bool = False
    optimizer: str = "adamw"
    kind: str = "graph"

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"ours, {self.kind}, {self.optimizer}" if self.side == "ours" else self.side


CONTENDERS = (
    Contender("ours", "bf16"),
    Contender("transformers", "bf16"),
    Contender("plain", "bf16"),
    Contender("ours", "bf16", kind="plan"),
    Contender("transformers", "bf16", compiled=True),
    Contender("plain", "bf16", compiled=True),
    Contender("ours", "bf16", optimizer="muon", kind="plan"),
    Contender("transformers", "fp32"),
    Contender("plain", "fp32"),
    Contender("ours", "fp32"),
)

DECODER = Shape(
    vocab_size=VOCAB, dim=384, num_heads=6, num_kv_heads=6, head_dim=64, ffn_dim=1536, num_decoder_layers=6,
    max_len=256, norm="layer",
)  # fmt: skip
TRANSLATOR = Shape(
    vocab_size=VOCAB, dim=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=2048, num_encoder_layers=4,
    num_decoder_layers=3, max_len=128, norm="layer",
)  # fmt: skip
BATCHES = {"decoder": Batch(8, target_len=256), "encoder-decoder": Batch(16, source_len=128, target_len=128)}


def make_shape(task: str, kind: str) -> Shape:
    """The model as our planner builds it (`plan`), or with the reference's operators (`graph`)."""
    if task == "decoder":
        gpt2 = {"position": "learned", "bias": True, "activation": "gelu"}
        return DECODER.model_copy(update=gpt2 if kind == "graph" else {})
    theirs = {"position": "sinusoidal", "bias": True, "activation": "gelu", "norm_order": "post", "embed_scale": True}
    return TRANSLATOR.model_copy(update=theirs if kind == "graph" else {})


def make_batch(task: str, rows: int, seed: int) -> dict[str, Tensor]:
    """Ids without padding, as our data gives them; a translation's with its segments, one to a row."""
    random = torch.Generator().manual_seed(seed)
    sizes = BATCHES[task]
    batch = {name: torch.randint(4, VOCAB, (rows, sizes.target_len), generator=random) for name in ("target", "labels")}
    if task == "encoder-decoder":
        batch["source"] = torch.randint(4, VOCAB, (rows, sizes.source_len), generator=random)
        batch["source_segments"] = torch.ones_like(batch["source"])
        batch["target_segments"] = torch.ones_like(batch["target"])
    return batch


class Given:
    """The same micro-batches in each epoch."""

    unique_tokens, padding = 0, 0.0

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def num_batches(self, epoch: int) -> int:
        """How many an epoch has."""
        return len(self.batches)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the micro-batches."""
        return [np.array([index]) for index in range(len(self.batches))]

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The one with that number."""
        return self.batches[int(rows[0])]


def make_training(contender: Contender, threads: int) -> Training:
    """The settings of ours: as many micro-batches as threads, so that each thread takes one."""
    return Training(
        steps=10**6, batch_tokens=2048, accumulation=threads, optimizer=contender.optimizer, learning_rate=RATE,
        embedding_learning_rate=RATE, weight_decay=0.1, schedule="wsd", warmup_steps=0, decay_fraction=0.1,
        clip_norm=CLIP, label_smoothing=0.0, dropout=0.0, ema_decay=0.0, reconstruct_weight=0.0, mask_rate=0.15,
        precision=contender.precision, compile=contender.compiled, threads=threads, eval_every=10**6,
        checkpoint_every=10**6, keep_checkpoints=1, log_every=10**6, seed=0,
    )  # fmt: skip


def our_step(task: str, contender: Contender, threads: int) -> Step:
    """The trainer's own step."""
    keep_freed_memory()
    given = Given([make_batch(task, BATCHES[task].size // threads, seed) for seed in range(threads)])
    trainer = Trainer(
        model=Transformer(make_shape(task, contender.kind)),
        task=Generate() if task == "decoder" else Translate(),
        training=make_training(contender, threads),
        batches=given,
        valid=given,
        folder=RunFolder(Path(tempfile.mkdtemp())),
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
    )
    steps = trainer.steps()
    return lambda: next(steps)


def their_step(model: nn.Module, loss: Callable[[], Tensor], precision: str) -> Step:
    """The usual loop around a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    model.train()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return found.item()

    return step


def transformers_step(task: str, contender: Contender, threads: int) -> Step:
    """GPT-2 or Marian of the same shape, without dropout."""
    shape, batch = make_shape(task, "graph"), make_batch(task, BATCHES[task].size, 0)
    if task == "decoder":
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=shape.max_len, n_embd=shape.dim, n_layer=6, n_head=shape.num_heads,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        inputs = {"input_ids": batch["target"]}
    else:
        made = marian.write_config(shape) | {"dropout": 0.0, "use_cache": False}
        model = MarianMTModel(transformers.MarianConfig(**made))
        inputs = {"input_ids": batch["source"], "decoder_input_ids": batch["target"]}
    called = torch.compile(model) if contender.compiled else model
    # Its own `labels` are shifted for a decoder and not for Marian; given apart they are the same for both.
    labels = batch["labels"].flatten()
    return their_step(
        model, lambda: F.cross_entropy(called(**inputs).logits.flatten(0, 1).float(), labels), contender.precision
    )


class PlainBlock(nn.Module):
    """A block as nanoGPT writes it; with `cross` also a decoder's."""

    def __init__(self, shape: Shape, causal: bool, cross: bool) -> None:
        super().__init__()
        dim, self.heads, self.causal = shape.dim, shape.num_heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3 if cross else 2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.kv = (nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)) if cross else (None, None)
        self.cross_out = nn.Linear(dim, dim) if cross else None
        self.mlp = nn.Sequential(nn.Linear(dim, shape.ffn_dim), nn.GELU(), nn.Linear(shape.ffn_dim, dim))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """(batch, length, dim) each → the same."""
        split = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`x` (batch, length, dim) → the same."""
        x = x + self.out(self.attend(*self.qkv(self.norms[0](x)).chunk(3, 2), self.causal))
        if self.query is not None:
            x = x + self.cross_out(self.attend(self.query(self.norms[2](x)), *self.kv(memory).chunk(2, 2), False))
        return x + self.mlp(self.norms[1](x))


class Plain(nn.Module):
    """A GPT-2-style model in the plainest torch, with an encoder where the shape has one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        has_encoder = shape.num_encoder_layers > 0
        self.tokens, self.places = nn.Embedding(shape.vocab_size, shape.dim), nn.Embedding(shape.max_len, shape.dim)
        self.encoder = nn.ModuleList(PlainBlock(shape, False, False) for _ in range(shape.num_encoder_layers))
        self.decoder = nn.ModuleList(PlainBlock(shape, True, has_encoder) for _ in range(shape.num_decoder_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(shape.dim) for _ in range(2))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, length) → (batch, length, dim)."""
        return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))

    def forward(self, target: Tensor, labels: Tensor, source: Tensor | None = None) -> Tensor:
        """Ids (batch, length) → the mean cross-entropy."""
        memory = None
        if source is not None:
            memory = self.embed(source)
            for block in self.encoder:
                memory = block(memory)
            memory = self.norms[0](memory)
        x = self.embed(target)
        for block in self.decoder:
            x = block(x, memory)
        logits = F.linear(self.norms[1](x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def plain_step(task: str, contender: Contender, threads: int) -> Step:
    """The plain model's."""
    model, batch = Plain(make_shape(task, "graph")), make_batch(task, BATCHES[task].size, 0)
    called = torch.compile(model) if contender.compiled else model
    return their_step(model, lambda: called(batch["target"], batch["labels"], batch.get("source")), contender.precision)


STEPS = {"ours": our_step, "transformers": transformers_step, "plain": plain_step}


def best_rate(precision: str) -> float:
    """FLOPs a CPU second (one thread) or a wall second of the best product of several sizes."""
    best = 0.0
    for m, k, n in PEAK_SHAPES:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        x, weight = torch.randn(m, k).to(kind), torch.randn(n, k).to(kind)
        times = []
        for _ in range(6):
            begun = clock()
            F.linear(x, weight)
            times.append(clock() - begun)
        best = max(best, 2 * m * k * n / statistics.median(times[1:]))
    return best


def clock() -> float:
    """CPU seconds of the process when it has one thread, wall seconds else."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def warm_code(precision: str) -> None:
    """One step of a tiny model: the libraries' code that it brings into memory is no model's."""
    tiny = TRANSLATOR.model_copy(update={"vocab_size": 64, "dim": 32, "num_heads": 2, "ffn_dim": 64})
    model, ids = Plain(tiny), torch.ones(2, 16, dtype=torch.int64)
    their_step(model, lambda: model(ids, ids, ids), precision)()


def child(pipe: Connection, task: str, contender: Contender | None, threads: int) -> None:
    """Build a contender (None: the products of the peak), tell its memory, then take turns as the parent asks."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if contender is None:
        pipe.send({})
        while pipe.recv():
            pipe.send({"bf16": best_rate("bf16"), "fp32": best_rate("fp32")})
        return
    warm_code(contender.precision)
    before = used_bytes(torch.device("cpu"))
    reset_peak(torch.device("cpu"))
    begun = time.perf_counter()
    step = STEPS[contender.side](task, contender, threads)
    for _ in range(WARM_STEPS):
        step()
    pipe.send({"peak": peak_bytes(torch.device("cpu")) - before, "warm_s": time.perf_counter() - begun})
    while steps := pipe.recv():
        times = []
        for _ in range(steps):
            begun = clock()
            step()
            times.append(clock() - begun)
        pipe.send({"step_s": statistics.median(times)})


class Child:
    """A contender's process, seen from the parent, which itself computes nothing."""

    def __init__(self, task: str, contender: Contender | None, threads: int) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=child, args=(theirs, task, contender, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.first: Row = {}
        self.times: list[float] = []

    def ask(self, steps: int) -> Row:
        """Let it take its turn."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def close(self) -> None:
        """End it."""
        self.pipe.send(0)
        self.process.join()


def measure(task: str, threads: int, turns: int, steps: int, chosen: list[Contender]) -> list[Row]:
    """All rows of a task and a number of threads."""
    peak = Child(task, None, threads)
    peak.pipe.recv()
    children = {contender: Child(task, contender, threads) for contender in chosen}
    for each in children.values():
        each.first = each.pipe.recv()
    peaks: list[Row] = []
    alive = dict(children)
    for turn in range(turns):
        peaks.append(peak.ask(1))
        for each in alive.values():
            each.times.append(each.ask(steps)["step_s"])
        if turn == 0:
            for contender in [c for c in alive if hopeless(c, alive)]:
                alive.pop(contender).close()
    for each in (peak, *alive.values()):
        each.close()
    return [make_row(task, threads, contender, children, peaks) for contender in chosen]


def hopeless(contender: Contender, children: dict[Contender, Child]) -> bool:
    """Whether its own side has a far better one in another precision, or uncompiled."""
    others = [
        min(child.times)
        for other, child in children.items()
        if other.side == contender.side
        and (other.precision, other.compiled) != (contender.precision, contender.compiled)
    ]
    return bool(others) and min(children[contender].times) > HOPELESS * min(others)


def make_row(task: str, threads: int, contender: Contender, children: dict[Contender, Child], peaks: list[Row]) -> Row:
    """A line of the table."""
    own, shape = children[contender], make_shape(task, contender.kind)
    step_s = statistics.median(own.times)
    work = flops(shape, BATCHES[task]).step
    shares = [work / time_s / peak[contender.precision] for time_s, peak in zip(own.times, peaks, strict=False)]
    return {
        "machine": processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "task": task,
        "contender": contender.name,
        "precision": contender.precision,
        "compiled": contender.compiled,
        "turns": len(own.times),
        "step_ms": round(step_s * 1e3, 1),
        "tokens_per_s": round(BATCHES[task].loss_rows / step_s),
        "peak_gflops_per_s": round(statistics.median(peak[contender.precision] for peak in peaks) / 1e9),
        "peak_share": round(statistics.median(shares), 3),
        "times_transformers": ratio(own, "transformers", children),
        "times_plain": ratio(own, "plain", children),
        "peak_mb": "" if contender.compiled else round(own.first["peak"] / MB),
        "planned_mb": round(planned(task, contender, threads) / MB) if contender.side == "ours" else "",
        "warm_s": round(own.first["warm_s"], 1),
    }


def ratio(own: Child, side: str, children: dict[Contender, Child]) -> float | str:
    """How many times as fast as that side's best: the median over turns."""
    others = [child for contender, child in children.items() if contender.side == side]
    if not others:
        return ""
    # Of those that stayed to the end, the best.
    longest = max(len(child.times) for child in others)
    best = min((c for c in others if len(c.times) == longest), key=lambda child: statistics.median(child.times))
    return round(statistics.median(b / a for a, b in zip(own.times, best.times, strict=False)), 3)


def planned(task: str, contender: Contender, threads: int) -> float:
    """Bytes that the plan gives for the steps: the copy of the best weights only comes with a validation."""
    whole = BATCHES[task]
    rows = Batch(whole.size // threads, whole.source_len, whole.target_len, packed=task == "encoder-decoder")
    shape = make_shape(task, contender.kind)
    counted = memory(shape, rows, contender.precision, contender.optimizer, accumulation=threads)
    side_by_side = (threads - 1) * (counted.saved + counted.logits + counted.state.gradients)
    return counted.peak - counted.state.copies + side_by_side


def processor() -> str:
    """The processor's name and what of it matters here."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([names[0] if names else platform.processor(), f"({os.cpu_count()} cores)", *known])


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """All rows, each printed as it comes."""
    chosen = [contender for contender in CONTENDERS if arguments.compiled or not contender.compiled]
    for threads in arguments.threads:
        for task in arguments.tasks:
            for row in measure(task, threads, arguments.turns, arguments.steps, chosen):
                print(*(value for key, value in row.items() if key not in ("machine", "torch")), flush=True)
                yield row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_speed.csv")
    parser.add_argument("--tasks", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--compiled", action="store_true", help="compile the others too")
    parser.add_argument("--append", action="store_true", help="add to the table that is there")
    arguments = parser.parse_args()
    rows = list(run(arguments))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a" if arguments.append else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if not arguments.append:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
