"""Memory of a training step, counted without running it: state, saved activations, logits, peak.

What the process holds besides tensors (interpreter, libraries, data) comes on top, and a bf16 product's scratch beyond
what is counted of it (docs/planning-counts.md).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from chinchilla.config.adapter import Adapter
from chinchilla.config.machine import Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.planning.activations import BYTES, FP32, Part, parts
from chinchilla.planning.adapters import added_params, trained_parameters
from chinchilla.planning.count import Batch, num_params, parameters

PIECE_TOKENS = 1024
"""Positions whose logits exist at one time: `models.head.PIECE_TOKENS`."""

CHUNK_ROWS = 32
"""Positions whose chances exist at one time: `models.head.CHUNK_ROWS`."""


@dataclass(frozen=True)
class State:
    """Bytes that live through the whole of training; gradients from the first backward pass on.

    `copies` are the weights that did best on the validation data, and their running average where there is one.
    `tables` are computed, not trained: sinusoidal positions. `frozen` is the part of `weights` that is not trained
    either, because an adapter is: checkpoints are without it.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    tables: int = 0
    frozen: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.tables

    @property
    def saved(self) -> int:
        """What a checkpoint holds of it."""
        return self.weights - self.frozen + self.optimizer + self.copies


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in a training step; `peak` is the most that lives at one time, and `phase` when.

    `saved` and `logits` are one worker's. `phases` holds the peak of each phase, in order.
    """

    state: State
    saved: int
    logits: int
    peak: int
    phase: str
    phases: dict[str, int]


def state(shape: Shape, optimizer: OptimizerKind, ema: bool, adapter: Adapter | None = None) -> State:
    """Weights, gradients, optimizer state and copies of the weights, exactly as PyTorch holds them, in fp32.

    AdamW keeps two moments and a step count a tensor; Muon one momentum for each matrix, and AdamW does the rest.
    Where an adapter is trained, only the weights are of the whole model.
    """
    tensors = parameters(shape) if adapter is None else trained_parameters(shape, adapter)
    trained = tensor_state(tensors, optimizer, ema)
    weights = trained.weights if adapter is None else FP32 * (num_params(shape) + added_params(shape, adapter))
    tables = FP32 * shape.max_len * shape.dim if shape.position == "sinusoidal" else 0
    return replace(trained, weights=weights, tables=tables, frozen=weights - trained.weights)


def tensor_state(tensors: Mapping[str, tuple[int, ...]], optimizer: OptimizerKind, ema: bool) -> State:
    """What some trained tensors, by their names, take of it."""
    numbers = sum(map(prod, tensors.values()))
    muon = [prod(sizes) for sizes in muon_matrices(tensors)] if optimizer == "muon" else []
    adamw = 2 * (numbers - sum(muon)) + len(tensors) - len(muon)
    return State(
        weights=FP32 * numbers,
        gradients=FP32 * numbers,
        optimizer=FP32 * (adamw + sum(muon)),
        copies=FP32 * numbers * (2 if ema else 1),
    )


def takes_muon(name: str, sizes: tuple[int, ...]) -> bool:
    """Whether Muon trains this parameter: kernels, and matrices but for tables (words, positions) and heads."""
    return len(sizes) == 4 or (len(sizes) == 2 and not name.startswith(("embed.", "head.")))


def muon_matrices(tensors: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    """Rows and columns of all that Muon trains: a convolution's kernel has all that an output sees in a row."""
    return [(sizes[0], prod(sizes[1:])) for name, sizes in tensors.items() if takes_muon(name, sizes)]


def memory(
    shape: Shape,
    batch: Batch,
    precision: Precision,
    optimizer: OptimizerKind,
    *,
    ema: bool = False,
    dropout: bool = False,
    drop_path: bool = False,
    accumulation: int = 1,
    recompute: bool = False,
    workers: int = 1,
    adapter: Adapter | None = None,
) -> Memory:
    """Tensors of a training step, and their peak over its phases.

    Phases: the forward pass, the backward pass of each part, the update, and a validation that finds new best weights.
    With `recompute` a block's activations live during its own backward pass only, and its input all the time.
    `workers` threads each take their share of the `accumulation` micro-batches, all at the same phase at worst. Each
    backward pass makes all gradients anew (`training.workers`), from a worker's second one on beside their sum.
    """
    held = state(shape, optimizer, ema, adapter)
    work = parts(shape, batch, precision, dropout, drop_path)
    again = recomputed(shape, batch, precision, work) if recompute else {}
    saved = sum(part.kept for part in work) - sum(again.values()) + _pixels(shape, batch, precision)
    logits = _logits(shape, batch, precision)
    base = held.total - held.gradients
    summed = held.gradients if accumulation > workers else 0
    cast = sum(op.kept for part in work if _block(part) for op in part.ops if op.operator == "matrix copy")
    phases = {"forward": base + workers * (summed + saved + logits + (cast if recompute else 0))}
    phases |= {name: base + workers * (summed + size) for name, size in _backward(work, saved, again)}
    phases["sum of gradients"] = base + workers * (held.gradients + summed)
    phases["update"] = held.total + _update(shape, optimizer, precision)
    phases["validation"] = base + 2 * (held.weights - held.frozen)
    phase = max(phases, key=lambda name: phases[name])
    return Memory(held, saved, logits, phases[phase], phase, phases)


def _pixels(shape: Shape, batch: Batch, precision: Precision) -> int:
    """Images in fp32 that a micro-batch holds; where it is fp32 that runs, they are what the first operator keeps."""
    if precision == "fp32" or not isinstance(shape.stem, ImageStem):
        return 0
    return FP32 * batch.size * shape.stem.height * shape.stem.width * shape.stem.channels


def _logits(shape: Shape, batch: Batch, precision: Precision) -> int:
    """What lives while a piece of the logits does, beside what is saved: `models.head`, loop by loop."""
    size, rows = BYTES[precision], batch.head_rows
    inputs = size * (rows + (batch.target_rows or batch.source_rows)) * shape.dim
    copy = size * shape.num_outputs * shape.dim if precision == "bf16" else 0
    # The table's gradient is not there yet when its first piece is made, though among what is saved.
    first = _piece(shape, min(PIECE_TOKENS, rows), precision) - FP32 * shape.num_outputs * shape.dim
    second = _piece(shape, min(PIECE_TOKENS, rows - PIECE_TOKENS), precision) if rows > PIECE_TOKENS else 0
    return inputs + copy + max(first, second)


def _piece(shape: Shape, rows: int, precision: Precision) -> int:
    """Logits of some rows, and beside them chances of two chunks, the states' gradient, or a part of the table's."""
    low, size = precision == "bf16", BYTES[precision]
    table, states = shape.num_outputs * shape.dim, rows * shape.dim
    chunk = FP32 * min(CHUNK_ROWS, rows) * shape.num_outputs
    chances = (chunk * min(2, rows // CHUNK_ROWS) if low else 0) + (chunk if shape.head_bias else 0)
    # With a factor in fp32 a product is made in fp32, and rounded after; what is added to an fp32 sum is raised before.
    mixed = (size + 2 * FP32 if low else size) * states
    raised = (size + FP32) * table if low else 0
    return size * rows * shape.num_outputs + max(chances, mixed, size * (states + table), raised)


def _block(part: Part) -> bool:
    return part.name.count(".") == 2


def recomputed(shape: Shape, batch: Batch, precision: Precision, work: list[Part]) -> dict[str, int]:
    """What each block does not keep where it is computed again: all but what it is given; by the part it ends with."""
    freed: Counter[str] = Counter()
    for part in filter(_block, work):
        side, index, _ = part.name.split(".")
        freed[f"{side}.{index}.mlp"] += sum(op.kept for op in part.ops if op.operator != "drop path")
    for name in freed:
        rows = batch.source_rows if name.startswith("encoder") else batch.target_rows
        freed[name] -= BYTES[precision] * rows * shape.dim
    return freed


def _backward(work: list[Part], alive: int, again: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The most that lives while each part goes backward: what it and all below keep, and gradients."""
    for part in reversed(work):
        alive += again.get(part.name, 0)
        most = alive
        for op in reversed(part.ops):
            most = max(most, alive + op.makes + op.beside)
            alive += op.makes - op.drops - op.kept
        yield f"backward of {part.name}", most


def _update(shape: Shape, optimizer: OptimizerKind, precision: Precision) -> int:
    """What lives beside the state in an update: for Muon a matrix's direction in fp32, and its Newton-Schulz steps.

    torch's fused AdamW needs nothing. In the run's precision there are the matrix before and after a step, and two
    squares of its shorter side.
    """
    if optimizer == "adamw":
        return 0
    matrices = muon_matrices(parameters(shape))
    size = BYTES[precision]
    return max((FP32 + 2 * size) * prod(sizes) + 2 * size * min(sizes) ** 2 for sizes in matrices)
