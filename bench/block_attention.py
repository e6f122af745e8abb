"""Block attention against full attention: one self-attention layer, forward and backward, 256 to 8,192 tokens.

    python bench/block_attention.py      writes bench/results/block_attention.csv; three to four minutes

One row a direction, length and kind. `full` is PyTorch's fused kernel; `plain` makes all its scores, as the eager
attention of `transformers` does; `block` has summaries, `local` none. The kinds take turns on one thread.

`ms` is the median CPU time; `saved_mb` what the forward pass keeps for the backward; `peak_mb` the most that tensors
take at one time during a step; `rss_mb` how far the peak resident memory of a process of its own rises. `…_to_full` and
`…_to_plain` divide by what those need, `…_growth` by what the same kind needs at 256 tokens. `error` is the largest
difference, of the answers and of the input's gradient, from full attention under block attention's mask, up to 1,024
tokens.
"""

import argparse
import csv
import itertools
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
from torch.profiler import ProfilerActivity, profile

from chinchilla.config.shape import Shape
from chinchilla.models.attention import SelfAttention, attend
from chinchilla.models.block_attention import block_mask, with_summaries

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
BLOCKS = ("block", "local")
KINDS = ("full", "plain", *BLOCKS)
COMPARED = ("ms", "peak_mb", "rss_mb")
DIM, HEADS, MB = 256, 4, 1e6
CHECKED, CLOSE, NOISY = 1024, 1e-4, 1024
Row = dict[str, Any]


class PlainAttention(SelfAttention):
    """Full attention that makes all its scores, as `transformers` does: product, scale, mask, softmax, product."""

    def _full(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(2, 3) * self.head_dim**-0.5
        if self.causal:
            length = query.shape[2]
            scores = scores + torch.full((length, length), torch.finfo(scores.dtype).min).triu(1)
        return scores.softmax(3) @ value


def best_block_len(length: int) -> int:
    """√(n/3), rounded to a power of two: the fastest, or within a tenth of it, of 8 to 128 in both directions."""
    return 2 ** round(math.log2(math.sqrt(length / 3)))


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
        attention="block" if kind in BLOCKS else "full",
        block_len=best_block_len(length),
        block_summaries=kind == "block",
    )
    return (PlainAttention if kind == "plain" else SelfAttention)(shape, causal)


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


def peaks_mb(kind: str, length: int, causal: bool) -> tuple[float, float]:
    """Most megabytes of tensors alive during one step, and the rise of the peak resident memory of a fresh process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peaks, args=(sender, kind, length, causal))
    child.start()
    found = receiver.recv()
    child.join()
    return found


def _send_peaks(sender: Connection, kind: str, length: int, causal: bool) -> None:
    layer, x = make_layer(kind, length, causal), make_input(length)
    _most_alive(layer, make_input(8))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    alive = _most_alive(layer, x)
    sender.send((alive / MB, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / MB))


def _most_alive(layer: SelfAttention, x: Tensor) -> int:
    """Bytes that tensors hold at most during a step, over those that are there before."""
    trace: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with trace:
        step(layer, x)
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes))


def error(layer: SelfAttention, x: Tensor, causal: bool) -> float:
    """The largest difference from full attention with the summaries appended, under the published mask."""
    query, key, value = layer._project(x, None)
    length = x.shape[1]
    keys, values = with_summaries(key, value, None, layer.block_len)
    keep = block_mask(torch.arange(length)[None], length, None, layer.block_len, causal, layer.block_summaries)
    wanted = layer.out(attend(query, keys, values, keep, causal=False).transpose(1, 2).flatten(2))
    found = layer(x)
    gradients = (torch.autograd.grad(answer.square().sum(), x)[0] for answer in (found, wanted))
    return max(float((one - other).detach().abs().max()) for one, other in ((found, wanted), tuple(gradients)))


def times_ms(layers: dict[str, SelfAttention], x: Tensor, repeats: int) -> dict[str, float]:
    """The median CPU time of each kind; they take turns."""
    times: dict[str, list[float]] = {kind: [] for kind in layers}
    for turn in range(repeats):
        for kind, layer in layers.items():
            # Ten seconds a step at 8,192 tokens, beside which the noise is nothing.
            if kind != "plain" or x.shape[1] <= NOISY or turn == 0:
                times[kind].append(cpu_ms(layer, x))
    return {kind: statistics.median(values) for kind, values in times.items()}


def measure(length: int, causal: bool, repeats: int, peaks: dict[str, tuple[float, float]]) -> dict[str, Row]:
    """One row a kind."""
    layers, x = {kind: make_layer(kind, length, causal) for kind in KINDS}, make_input(length)
    rows: dict[str, Row] = {}
    for kind, layer in layers.items():
        off = error(layer, x, causal) if layer.kind == "block" and length <= CHECKED else 0.0
        if off > CLOSE:
            raise SystemExit(f"length {length}: {kind} attention is off by {off}")
        rows[kind] = {"error": f"{off:.1e}" if off else "", "saved_mb": saved_mb(layer, x)}
        rows[kind] |= dict(zip(("peak_mb", "rss_mb"), peaks[kind], strict=True))
    # Short steps are noisier, and cost nothing to repeat.
    for kind, found in times_ms(layers, x, repeats if length > NOISY else 5 * repeats).items():
        rows[kind]["ms"] = found
    return rows


def compared(row: Row, rows: dict[str, Row], shortest: Row) -> Row:
    """Measures, rounded, and their ratios to `full`, to `plain` and to the shortest length's."""
    new: Row = {name: round(row[name], 2) for name in (*COMPARED, "saved_mb")}
    for name in COMPARED:
        short = name.partition("_")[0]
        new[f"{short}_to_full"] = round(row[name] / rows["full"][name], 3)
        new[f"{short}_to_plain"] = round(row[name] / rows["plain"][name], 3)
        new[f"{short}_growth"] = round(row[name] / shortest[name], 1)
    return new | {"error": row["error"]}


def machine() -> str:
    """The processor's name and how many cores of it there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def run(repeats: int) -> Iterator[Row]:
    """All rows, each printed as it comes."""
    cases = [(causal, length) for causal in (True, False) for length in LENGTHS]
    # Before anything else: what this process has freed, its children could use again without growing.
    peaks = {case: {kind: peaks_mb(kind, case[1], case[0]) for kind in KINDS} for case in cases}
    shortest: dict[str, Row] = {}
    for causal, length in cases:
        rows = measure(length, causal, repeats, peaks[causal, length])
        shortest = rows if length == LENGTHS[0] else shortest
        for kind, row in rows.items():
            case = {"causal": causal, "length": length, "kind": kind, "block_len": ""}
            if kind in BLOCKS:
                case["block_len"] = best_block_len(length)
            found = case | compared(row, rows, shortest[kind])
            print(*(f"{name}={value}" for name, value in found.items()), flush=True)
            yield {"machine": machine(), "torch": torch.__version__, "threads": 1} | found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "block_attention.csv")
    parser.add_argument("--repeats", type=int, default=3)
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
