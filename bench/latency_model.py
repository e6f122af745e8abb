"""The time of one answer: predicted from what the machine was measured to do, against the engine itself.

    OMP_NUM_THREADS=1 python bench/latency_model.py [--out bench/results/latency_model.csv]
    python bench/latency_model.py --fit         only fits the table that is there

Four sizes, random weights, an answer of a fixed length: translations greedy and with four beams, and completions. One
thread; times are CPU time, as is the measuring of the machine. What an answer is made of is in the table, so that the
model's three constants can be fitted to it: to all rows, and to three sizes, which then predict the fourth.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla.config.machine import Machine
from chinchilla.config.shape import Shape
from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.parallel import measure
from chinchilla.planning.count import num_params
from chinchilla.planning.latency import Request, Work, answer_time, new_token, reading
from chinchilla.planning.step_model import nnls

SIZES = ((192, 3, 6_000), (320, 5, 10_000), (640, 6, 16_000), (960, 10, 24_000))
"""Width, layers a side, vocabulary."""

REPEATS = 3
PARTS = ("weights_ms", "products_ms")


def shape_of(task: str, dim: int, layers: int, vocab_size: int) -> Shape:
    heads = dim // 64
    return Shape(
        vocab_size=vocab_size, dim=dim, num_heads=heads, num_kv_heads=heads, head_dim=64, ffn_dim=4 * dim,
        num_encoder_layers=layers if task == "translate" else 0, num_decoder_layers=layers, norm="layer",
    )  # fmt: skip


def endless(model: Transformer) -> Transformer:
    """The model, never choosing to end."""
    plain = model.logits

    def logits(hidden: Tensor) -> Tensor:
        found = plain(hidden)
        found[..., model.shape.eos_id] = -1e4
        return found

    model.logits = logits  # type: ignore[method-assign]  # of this one model
    return model


def answering(shape: Shape, request: Request) -> Callable[[], object]:
    torch.manual_seed(0)
    model = endless(Transformer(shape).eval())
    prompt = torch.randint(4, shape.vocab_size, (1, request.prompt_len))
    if shape.num_encoder_layers:
        return lambda: translate(model, prompt, None, [request.new_tokens], request.beam_size)
    return lambda: complete(model, prompt[0].tolist(), Sampling(request.new_tokens, temperature=0), frozenset())


def work_of(shape: Shape, request: Request, machine: Machine) -> Work:
    """All that an answer is made of."""
    read, token = reading(shape, request.prompt_len, machine), new_token(shape, request, machine)
    passes = answer_time(shape, request, machine).passes
    return Work(
        read.calls + passes * token.calls,
        read.weights_s + passes * token.weights_s,
        read.products_s + passes * token.products_s,
        read.traffic_s + passes * token.traffic_s,
    )


def cpu_time(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def machine_by_cpu_time() -> Machine:
    clock = SimpleNamespace(perf_counter=time.process_time, process_time=time.process_time)
    measure.time = clock  # type: ignore[attr-defined, assignment]  # CPU time for wall time
    return measure.measure(threads=1)


def fit(rows: list[dict[str, str]]) -> None:
    """Print the constants that fit a table best, by relative errors, and how well each size is told by the others."""
    took = np.array([1e-3 * float(row["measured_ms"]) for row in rows])
    spent = [
        (int(row["calls"]) * 1e-6 * float(row["op_overhead_us"]), *(1e-3 * float(row[name]) for name in PARTS))
        for row in rows
    ]
    work = np.array(spent) / took[:, None]
    rest = 1 - np.array([1e-3 * float(row["traffic_ms"]) for row in rows]) / took
    _tell("all", nnls(work, rest), work, rest)
    sizes, errors = np.array([row["dim"] for row in rows]), np.zeros(len(rows))
    for size in dict.fromkeys(sizes):
        out = sizes == size
        found = nnls(work[~out], rest[~out])
        errors[out] = work[out] @ found - rest[out]
        _tell(f"{size}, fitted to the others", found, work[out], rest[out])
    print(f"sizes left out: median error {np.median(abs(errors)):.1%}, largest {abs(errors).max():.1%}")


def _tell(what: str, found: NDArray[np.float64], work: NDArray[np.float64], rest: NDArray[np.float64]) -> None:
    errors = abs(work @ found - rest)
    print(f"{what}: operator {found[0]:.2f}, weight passes {found[1]:.2f}, thin share {1 / found[2]:.2f}; "
          f"median error {np.median(errors):.1%}, largest {errors.max():.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/latency_model.csv"))
    parser.add_argument("--fit", action="store_true", help="measure nothing: fit the table that is there")
    asked = parser.parse_args()
    if not asked.fit:
        measured(asked.out)
    with asked.out.open(newline="", encoding="utf-8") as file:
        fit(list(csv.DictReader(file)))


def measured(out: Path) -> None:
    """Write the table anew."""
    machine, rows = machine_by_cpu_time(), []
    for dim, layers, vocab_size in SIZES:
        for task, request in (
            ("translate", Request(24, 24)),
            ("translate", Request(24, 24, 4, limit=24)),
            ("generate", Request(16, 40)),
        ):
            shape = shape_of(task, dim, layers, vocab_size)
            work = work_of(shape, request, machine)
            predicted, took_s = answer_time(shape, request, machine).estimate(), cpu_time(answering(shape, request))
            rows.append({
                "task": task, "dim": dim, "layers": layers, "vocab_size": vocab_size, "num_params": num_params(shape),
                "prompt_len": request.prompt_len, "new_tokens": request.new_tokens, "beam_size": request.beam_size,
                "predicted_ms": f"{1e3 * predicted.p50:.1f}", "measured_ms": f"{1e3 * took_s:.1f}",
                "error": f"{predicted.p50 / took_s - 1:+.3f}", "inside": predicted.p10 <= took_s <= predicted.p90,
                "calls": work.calls, "weights_ms": f"{1e3 * work.weights_s:.2f}",
                "products_ms": f"{1e3 * work.products_s:.2f}", "traffic_ms": f"{1e3 * work.traffic_s:.2f}",
                "cpu": machine.name, "op_overhead_us": f"{1e6 * machine.op_overhead_s:.2f}",
                "gbytes_per_s": f"{machine.bytes_per_s / 1e9:.1f}",
            })  # fmt: skip
            print(rows[-1], flush=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    errors = sorted(abs(float(str(row["error"]))) for row in rows)
    print(f"median error {statistics.median(errors):.1%}, largest {errors[-1]:.1%}, "
          f"{sum(bool(row['inside']) for row in rows)} of {len(rows)} inside p10 to p90")  # fmt: skip


if __name__ == "__main__":
    main()
