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
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from speed_sides import BATCHES, CONTENDERS, STEPS, TRANSLATOR, Contender, Plain, make_shape, their_step

from chinchilla.planning.count import Batch, flops
from chinchilla.planning.memory import memory
from chinchilla.training.allocator import peak_bytes, reset_peak, used_bytes

MB = 1e6
WARM_STEPS, HOPELESS = 3, 1.4
PEAK_SHAPES = ((2048, 384, 1536), (2048, 512, 2048), (512, 384, 8192), (1024, 1024, 1024), (2048, 2048, 2048))
Row = dict[str, Any]


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
    counted = memory(shape, rows, contender.precision, contender.optimizer, accumulation=threads, workers=threads)
    return counted.peak - counted.state.copies


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
