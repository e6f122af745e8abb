"""Int8 against fp32, in turns in one process: single layers, and one sentence at a time through whole models.

    python bench/int8.py        writes bench/results/int8.csv; takes under a minute on a quiet machine

Medians of alternating blocks; wall and CPU time. `asked` is the same engine, called without telling torch not to look
for `__torch_function__` (see EngineKernel). The models are random and barred from ending, so that both sides decode
the same number of tokens. `load` is the machine's at the end: above 1, distrust the wall times.
"""

import argparse
import copy
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chinchilla.config.shape import Shape
from chinchilla.models.generate import translate
from chinchilla.models.quantized import EngineKernel, Int8Linear, matrices, replace_, to_rows
from chinchilla.models.transformer import Transformer

SIZES = [(64, 64), (128, 128), (192, 192), (192, 768), (256, 256), (256, 1024), (512, 512), (512, 2048)]
SIZES += [(192, 8192), (256, 8192), (512, 8192)]
MODELS = {"192 x 3+3": (192, 3, 6), "256 x 3+3": (256, 3, 4), "512 x 4+4": (512, 4, 8)}
SOURCE_TOKENS, ANSWER_TOKENS = 24, 20
Call = Callable[[], object]
Row = dict[str, Any]


def measure(calls: dict[str, Call], repeats: int, block_s: float) -> Row:
    """Median wall and CPU microseconds a call, by side; the sides take turns, block by block."""
    counts = {}
    for side, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        counts[side] = max(1, int(block_s / (time.perf_counter() - start)))
    walls: dict[str, list[float]] = {side: [] for side in calls}
    cpus: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(repeats):
        for side, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(counts[side]):
                call()
            walls[side].append((time.perf_counter() - wall) / counts[side])
            cpus[side].append((time.process_time() - cpu) / counts[side])
    found: Row = {}
    for side in calls:
        found[f"{side}_wall_us"] = round(statistics.median(walls[side]) * 1e6, 1)
        found[f"{side}_cpu_us"] = round(statistics.median(cpus[side]) * 1e6, 1)
    found["faster_wall"] = round(found["fp32_wall_us"] / found["int8_wall_us"], 2)
    found["faster_cpu"] = round(found["fp32_cpu_us"] / found["int8_cpu_us"], 2)
    return found


def layer_rows(repeats: int) -> Iterator[Row]:
    """Products of 1, 4 and 32 tokens with matrices of the sizes that models have."""
    for columns, rows in SIZES:
        linear = nn.Linear(columns, rows, bias=False)
        int8 = Int8Linear(to_rows(linear.weight))
        packed = EngineKernel(to_rows(linear.weight)).packed
        for tokens in (1, 4, 32):
            x = torch.randn(1, tokens, columns)
            calls = {
                "fp32": lambda x=x, layer=linear: layer(x),
                "int8": lambda x=x, layer=int8: layer(x),
                "asked": lambda x=x, packed=packed: torch.ops.quantized.linear_dynamic(x, packed),
            }
            yield {"what": f"layer {columns} to {rows}", "tokens": tokens} | measure(calls, repeats, 0.002)


def model_rows(repeats: int) -> Iterator[Row]:
    """One sentence at a time, greedy and with beams."""
    for name, (dim, layers, heads) in MODELS.items():
        model = random_model(dim, layers, heads)
        int8 = copy.deepcopy(model)
        replace_(int8, matrices(int8))
        source = torch.randint(3, 8192, (1, SOURCE_TOKENS))
        for search, beams in (("greedy", 1), ("beam 4", 4)):
            calls = {
                side: lambda each=each, beams=beams, source=source: translate(
                    each, source, None, [ANSWER_TOKENS], beams
                )
                for side, each in (("fp32", model), ("int8", int8))
            }
            yield {"what": f"model {name} {search}", "tokens": ANSWER_TOKENS} | measure(calls, repeats, 0.0)


def random_model(dim: int, layers: int, heads: int) -> Transformer:
    """An encoder-decoder with 8,192 tokens that never ends a sentence by itself."""
    shape = Shape(
        vocab_size=8192,
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )
    model = Transformer(shape).eval()
    with torch.no_grad():
        model.embed.tokens.weight[shape.eos_id] = 0
    return model


def processor() -> str:
    """The processor's name and what of it torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return " ".join([names[0] if names else platform.processor(), *known])


def run(threads: Sequence[int], repeats: int) -> Iterator[Row]:
    """All rows, each printed as it comes."""
    for count in threads:
        torch.set_num_threads(count)
        for rows in (layer_rows(repeats), model_rows(repeats)):
            for row in rows:
                done = {"processor": processor(), "torch": torch.__version__, "threads": count} | row
                done["load"] = round(os.getloadavg()[0], 1)
                print(*(value for key, value in done.items() if key not in ("processor", "torch")), flush=True)
                yield done


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.csv")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = list(run(arguments.threads, arguments.repeats))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
