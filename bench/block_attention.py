"""Block attention against full attention: one self-attention layer, forward and backward, 256 to 8,192 tokens.

    python bench/block_attention.py      writes bench/results/block_attention.csv; about a minute on a quiet machine

One row a length and direction; `full`, `block` (with summaries), `wide` (the same with blocks of twice `block_len`) and
`local` (blocks without summaries) take turns on one thread. `ms` is the median CPU time; `speedup` is full's time over
theirs; `saved_mb` is what the forward pass keeps for the backward; `peak_mb` is how far the peak resident memory of a
process of its own rises during one step. `error` is the largest difference from full attention under block attention's
mask, checked up to 1,024 tokens.
"""

import argparse
import csv
import math
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from chinchilla.config.shape import Shape
from chinchilla.models.attention import SelfAttention, attend
from chinchilla.models.block_attention import block_mask, with_summaries

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
KINDS = ("full", "block", "wide", "local")
DIM, HEADS, MB = 256, 4, 1e6
CHECKED, CLOSE = 1024, 1e-4
Row = dict[str, Any]


def best_block_len(length: int, causal: bool) -> int:
    """√(n/2) causal and √(n/3) bidirectional, rounded to a power of two."""
    return 2 ** round(math.log2(math.sqrt(length / (2 if causal else 3))))


def make_layer(kind: str, length: int, causal: bool) -> SelfAttention:
    """A layer of 4 heads over 256 channels; the same weights for every kind."""
    torch.manual_seed(0)
    shape = Shape(
        vocab_size=1,
        dim=DIM,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=DIM // HEADS,
        ffn_dim=1,
        num_decoder_layers=1,
        attention="full" if kind == "full" else "block",
        block_len=best_block_len(length, causal) * (2 if kind == "wide" else 1),
        block_summaries=kind != "local",
    )
    return SelfAttention(shape, causal)


def make_input(length: int) -> Tensor:
    """One sequence, `(1, length, 256)`."""
    return torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()


def step(layer: SelfAttention, x: Tensor) -> None:
    """Forward and backward."""
    layer(x).square().sum().backward()


def cpu_ms(layer: SelfAttention, x: Tensor) -> float:
    """CPU milliseconds of one step."""
    start = time.process_time()
    step(layer, x)
    return (time.process_time() - start) * 1e3


def saved_mb(layer: SelfAttention, x: Tensor) -> float:
    """Megabytes kept from the forward to the backward pass, weights and input apart; shared storage counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x)
    del out
    return sum(size for pointer, size in kept.items() if pointer not in own) / MB


def peak_mb(kind: str, length: int, causal: bool) -> float:
    """Megabytes by which one step lifts the peak resident memory of a fresh process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(sender, kind, length, causal))
    child.start()
    found = receiver.recv()
    child.join()
    return found


def _send_peak(sender: Connection, kind: str, length: int, causal: bool) -> None:
    layer, x = make_layer(kind, length, causal), make_input(length)
    step(layer, make_input(8))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step(layer, x)
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / MB)


@torch.no_grad()
def error(layer: SelfAttention, x: Tensor, causal: bool) -> float:
    """The largest difference from full attention with the summaries appended, under the published mask."""
    query, key, value = layer._project(x, None)
    length = x.shape[1]
    keys, values = with_summaries(key, value, None, layer.block_len)
    keep = block_mask(torch.arange(length)[None], length, None, layer.block_len, causal, layer.block_summaries)
    wanted = layer.out(attend(query, keys, values, keep, causal=False).transpose(1, 2).flatten(2))
    return float((layer(x) - wanted).abs().max())


def measure(length: int, causal: bool, repeats: int, peaks: dict[str, float]) -> Row:
    """One row; the kinds take turns."""
    layers, x = {kind: make_layer(kind, length, causal) for kind in KINDS}, make_input(length)
    errors = [error(layers[kind], x, causal) for kind in KINDS[1:]] if length <= CHECKED else []
    if any(found > CLOSE for found in errors):
        raise SystemExit(f"length {length}: block attention is off by {max(errors)}")
    saved = {kind: saved_mb(layer, x) for kind, layer in layers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for layer in layers.values():
        step(layer, x)
    for _ in range(repeats):
        for kind, layer in layers.items():
            times[kind].append(cpu_ms(layer, x))
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    row: Row = {"length": length, "causal": causal, "block_len": best_block_len(length, causal)}
    row |= {f"{kind}_ms": round(medians[kind], 2) for kind in KINDS}
    row |= {f"{kind}_speedup": round(medians["full"] / medians[kind], 2) for kind in KINDS[1:]}
    row |= {f"{kind}_saved_mb": round(saved[kind], 2) for kind in KINDS}
    row |= {f"{kind}_peak_mb": round(peaks[kind], 1) for kind in KINDS}
    return row | {"error": f"{max(errors):.1e}" if errors else ""}


def machine() -> str:
    """The processor's name and how many cores of it there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def run(repeats: int) -> Iterator[Row]:
    """All rows, each printed as it comes."""
    cases = [(length, causal) for causal in (True, False) for length in LENGTHS]
    # Before anything else: what this process has freed, its children could use again without growing.
    peaks = {case: {kind: peak_mb(kind, *case) for kind in KINDS} for case in cases}
    for case in cases:
        row = measure(*case, repeats, peaks[case])
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)
        yield {"machine": machine(), "torch": torch.__version__, "threads": 1} | row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "block_attention.csv")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(run(arguments.repeats))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
