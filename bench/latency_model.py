"""The time of one answer: predicted from what the machine was measured to do, against the engine itself.

    OMP_NUM_THREADS=1 python bench/latency_model.py [--out bench/results/latency_model.csv]

Four shapes that the model's constants were not fitted to, random weights, an answer of a fixed length: translations
greedy and with four beams, and completions. One thread; times are CPU time, as is the measuring of the machine.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from chinchilla.config.machine import Machine
from chinchilla.config.shape import Shape
from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.parallel import measure
from chinchilla.planning.count import num_params
from chinchilla.planning.latency import Request, answer_time

SIZES = ((192, 3, 6_000), (320, 5, 10_000), (640, 6, 16_000), (960, 10, 24_000))
"""Width, layers a side, vocabulary."""

REPEATS = 3


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

    model.logits = logits  # type: ignore[method-assign]
    return model


def answering(shape: Shape, request: Request) -> Callable[[], object]:
    torch.manual_seed(0)
    model = endless(Transformer(shape).eval())
    prompt = torch.randint(4, shape.vocab_size, (1, request.prompt_len))
    if shape.num_encoder_layers:
        return lambda: translate(model, prompt, None, [request.new_tokens], request.beam_size)
    return lambda: complete(model, prompt[0].tolist(), Sampling(request.new_tokens), frozenset())


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
    measure.time = clock  # type: ignore[attr-defined, assignment]
    return measure.measure(threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/latency_model.csv"))
    out = parser.parse_args().out
    machine, rows = machine_by_cpu_time(), []
    for dim, layers, vocab_size in SIZES:
        for task, request in (
            ("translate", Request(24, 24)),
            ("translate", Request(24, 24, 4)),
            ("generate", Request(16, 40)),
        ):
            shape = shape_of(task, dim, layers, vocab_size)
            predicted, took_s = answer_time(shape, request, machine).estimate(), cpu_time(answering(shape, request))
            rows.append({
                "task": task, "dim": dim, "layers": layers, "vocab_size": vocab_size, "num_params": num_params(shape),
                "prompt_len": request.prompt_len, "new_tokens": request.new_tokens, "beam_size": request.beam_size,
                "predicted_ms": f"{1e3 * predicted.p50:.1f}", "measured_ms": f"{1e3 * took_s:.1f}",
                "error": f"{predicted.p50 / took_s - 1:+.3f}", "inside": predicted.p10 <= took_s <= predicted.p90,
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
