"""Memory as counted against what the allocator saw: training steps and answers of many kinds of model.

    python bench/memory.py        writes bench/results/memory.csv; a minute and a half of a processor

One row a case: bytes counted and measured, and their ratio. `saved`: what autograd keeps (parameters left out).
`step`: the most bytes of tensors alive while the trainer's worker makes the gradients of one micro-batch, with weights
and an optimizer's state (AdamW's) in both. `serve`: the same while prompts are answered, weights included. `int8`: what
packing all matrices takes of the C library's memory, modules and all. Bytes, not times: a busy machine does no harm.
"""

import csv
import ctypes
import gc
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from chinchilla.config.machine import Precision
from chinchilla.config.shape import Shape
from chinchilla.models.generate import translate
from chinchilla.models.quantized import matrices, replace_
from chinchilla.models.transformer import Transformer
from chinchilla.planning.activations import saved_bytes
from chinchilla.planning.count import Batch
from chinchilla.planning.memory import memory
from chinchilla.planning.serve_memory import serve_memory, weight_bytes
from chinchilla.serving.answerer import Prompt
from chinchilla.serving.decoding import TokenDecoding
from chinchilla.tasks.task import Loss
from chinchilla.training.workers import Workers

RESULTS = Path(__file__).parent / "results" / "memory.csv"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
Row = dict[str, Any]

BASE = Shape(
    vocab_size=4000, dim=192, num_heads=6, num_kv_heads=6, head_dim=32, ffn_dim=768, num_decoder_layers=3, max_len=1024,
    norm="layer",
)  # fmt: skip
ENCODER = {"num_encoder_layers": 3, "num_decoder_layers": 0}
WIDE = {"dim": 384, "num_heads": 6, "num_kv_heads": 6, "head_dim": 64, "ffn_dim": 1536}
STEPS: dict[str, tuple[dict[str, Any], Batch]] = {
    "decoder": ({}, Batch(8, 0, 128)),
    "decoder, long": ({}, Batch(1, 0, 1024)),
    "decoder, wide": (WIDE, Batch(4, 0, 128)),
    "decoder, RMSNorm, SwiGLU": ({"norm": "rms", "activation": "swiglu"}, Batch(8, 0, 128)),
    "decoder, normed queries, grouped": ({"qk_norm": True, "num_kv_heads": 2}, Batch(8, 0, 128)),
    "decoder, gated": ({"attention": "gated"}, Batch(4, 0, 256)),
    "decoder, blocks": ({"attention": "block", "block_len": 32}, Batch(1, 0, 1024)),
    "decoder, blocks, no summaries": (
        {"attention": "block", "block_len": 24, "block_summaries": False}, Batch(2, 0, 500),
    ),
    "encoder-decoder": ({"num_encoder_layers": 3}, Batch(16, 60, 64)),
    "encoder-decoder, packed": ({"num_encoder_layers": 3}, Batch(8, 128, 128, packed=True)),
    "encoder-decoder, Marian-like": (
        {"num_encoder_layers": 3, "position": "sinusoidal", "norm_order": "post", "bias": True, "embed_scale": True,
         "head_bias": True, "activation": "silu"}, Batch(16, 60, 64),
    ),
    "encoder, BERT-like": (
        ENCODER | {"position": "learned", "norm_order": "post", "bias": True, "embed_norm": True, "activation": "gelu"},
        Batch(8, 128),
    ),
    "encoder, blocks": (ENCODER | {"attention": "block", "block_len": 16}, Batch(2, 512)),
}  # fmt: skip
ANSWERS: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "decoder": ({}, 4, 100, 40, 1),
    "decoder, grouped": ({"num_kv_heads": 1}, 4, 300, 10, 1),
    "decoder, blocks": ({"attention": "block", "block_len": 16}, 3, 300, 10, 1),
    "encoder-decoder, greedy": ({"num_encoder_layers": 3}, 4, 60, 12, 1),
    "encoder-decoder, beams": ({"num_encoder_layers": 3}, 4, 60, 20, 4),
    "encoder, BERT-like": (ENCODER | {"bias": True, "activation": "gelu", "norm_order": "post"}, 8, 128, 1, 1),
}


def main() -> None:
    """Measure all and write the table."""
    if len(sys.argv) > 1:
        print(packed_bytes(int(sys.argv[1])))
        return
    rows = list(measured())
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for what in ("saved", "step", "serve", "int8"):
        errors = sorted(abs(row["counted_over_measured"] - 1) for row in rows if row["what"] == what)
        print(f"{what}: {len(errors)} cases, median error {errors[len(errors) // 2]:.2%}, most {errors[-1]:.2%}")


def measured() -> Iterator[Row]:
    """Every row of the table."""
    for name, (variant, batch) in STEPS.items():
        shape = BASE.model_copy(update=variant)
        for precision in PRECISIONS:
            yield row("saved", name, precision, "", *saved(shape, batch, precision))
            for recompute in (False, True):
                way = "recomputed" if recompute else "kept"
                yield row("step", name, precision, way, *step(shape, batch, precision, recompute))
    for name, (variant, *sizes) in ANSWERS.items():
        for precision in PRECISIONS:
            shape = BASE.model_copy(update=variant)
            yield row("serve", name, precision, "", *serve(shape, precision, *sizes))
    for dim in (192, 256, 512):
        found = subprocess.run([sys.executable, __file__, str(dim)], capture_output=True, text=True, check=True).stdout
        yield row(
            "int8", f"encoder-decoder, width {dim}", "int8", "", weight_bytes(int8_shape(dim), "int8"), int(found)
        )


def row(what: str, name: str, precision: str, way: str, counted: int, found: int) -> Row:
    """One line of the table."""
    print(f"{what:6} {name:34} {precision} {way:10} {counted / 1e6:9.3f} MB {counted / found:.4f}", file=sys.stderr)
    return {
        "what": what, "case": name, "precision": precision, "activations": way, "counted_bytes": counted,
        "measured_bytes": found, "counted_over_measured": round(counted / found, 5), "torch": torch.__version__,
        "cpu": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def inputs(shape: Shape, batch: Batch) -> dict[str, Tensor]:
    """Ids and segments of this size."""
    found: dict[str, Tensor] = {}
    if shape.num_encoder_layers:
        found["source"] = torch.randint(3, shape.vocab_size, (batch.size, batch.source_len))
        found["source_segments"] = torch.ones_like(found["source"], dtype=torch.int64 if batch.packed else torch.bool)
    if shape.num_decoder_layers:
        found["target"] = torch.randint(3, shape.vocab_size, (batch.size, batch.target_len))
        if batch.packed:
            found["target_segments"] = torch.ones_like(found["target"])
    return found


def loss(model: Transformer, batch: Batch, precision: Precision) -> Loss:
    """As the text tasks have it."""
    found = inputs(model.shape, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return Loss(*model.head.loss(model(**found).hidden, found.get("target", found.get("source")), 0.1))


def saved(shape: Shape, batch: Batch, precision: Precision) -> tuple[int, int]:
    """Bytes kept for a backward pass, counted and found."""
    model = Transformer(shape)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(model, batch, precision)
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known)
    del total
    return saved_bytes(shape, batch, precision), found


def step(shape: Shape, batch: Batch, precision: Precision, recompute: bool) -> tuple[int, int]:
    """The peak of forward and backward with the state, counted and found."""
    model = Transformer(shape)
    model.recompute_(recompute)
    workers = Workers(model, 1, 0)
    counted = memory(shape, batch, precision, "adamw", recompute=recompute)
    passes = max(size for name, size in counted.phases.items() if name.startswith(("forward", "backward")))
    peak = tensor_peak(lambda: workers.gradients([{}], lambda model, nothing: loss(model, batch, precision)))
    return passes, counted.state.total - counted.state.gradients + peak


class Silence:
    """A token stream that shows no text."""

    def push(self, token: int) -> str:
        """Nothing."""
        return ""

    def finish(self) -> str:
        """Nothing."""
        return ""


def serve(shape: Shape, precision: Precision, rows: int, length: int, new: int, beams: int) -> tuple[int, int]:
    """The peak of answering, weights included, counted and found."""
    model = Transformer(shape).eval()
    if precision == "bf16":
        model.bfloat16()
    counted = serve_memory(shape, rows, length, new, beam_size=beams, weights=precision)
    ids = torch.randint(3, shape.vocab_size, (rows, length))
    if not shape.num_decoder_layers:
        with torch.inference_mode():
            return counted.peak, counted.weights + tensor_peak(lambda: model.encode(ids))
    if shape.num_encoder_layers:
        model.logits = endless(model)  # type: ignore[method-assign]  # of this one model
        real = torch.ones_like(ids, dtype=torch.bool)
        return counted.peak, counted.weights + tensor_peak(lambda: translate(model, ids, real, [new] * rows, beams))
    decoding = TokenDecoding(model, lambda text: [3] * length, Silence, frozenset())

    def answer() -> None:
        decoding.join([Prompt("", new, temperature=0)] * rows)
        for _ in range(new - 1):
            decoding.step()

    return counted.peak, counted.weights + tensor_peak(answer)


def endless(model: Transformer) -> Callable[[Tensor], Tensor]:
    """Logits under which no answer ends."""
    logits = model.logits

    def barred(hidden: Tensor) -> Tensor:
        found = logits(hidden)
        found[..., model.shape.eos_id] = -1e9
        return found

    return barred


def tensor_peak(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at one time during a call, over those alive before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def int8_shape(dim: int) -> Shape:
    """An encoder-decoder of 3+3 layers."""
    return Shape(
        vocab_size=8000, dim=dim, num_heads=dim // 64, num_kv_heads=dim // 64, head_dim=64, ffn_dim=4 * dim,
        num_encoder_layers=3, num_decoder_layers=3, norm="layer",
    )  # fmt: skip


_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Held(ctypes.Structure):
    """glibc's `mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


def packed_bytes(dim: int) -> int:
    """What an int8 model takes of the C library once each layer has packed its matrix; in a process of its own."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Held

    def held() -> int:
        gc.collect()
        found = libc.mallinfo2()
        return found.uordblks + found.hblkhd

    torch.nn.Linear(8, 8)(torch.zeros(1, 8))
    before = held()
    model = Transformer(int8_shape(dim)).eval()
    replace_(model, matrices(model))
    with torch.inference_mode():
        ids = torch.randint(3, 100, (1, 8))
        model.logits(model(ids, ids).hidden)
    return held() - before


if __name__ == "__main__":
    main()
