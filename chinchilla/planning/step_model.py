"""A training step's time as a few kinds of work, each with a rate that real steps of small models were fitted to.

A step is its gradients (a forward and a backward pass for each micro-batch) and one update. Either takes a sum of
`unit_s` seconds for each unit of work, none of them negative; what a unit is, `GRADIENT_UNITS` and `UPDATE_UNITS` say.
The units are counted from the shape alone; the rates come from non-negative least squares on relative errors, so that
a small step weighs as much as a large one. The spread is that of steps left out of the fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.machine import Calibration, Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import parts
from chinchilla.planning.count import Batch, parameters, products
from chinchilla.planning.memory import muon_matrices

Floats = NDArray[np.float64]

GRADIENT_UNITS = {
    "products": "FLOP",
    "attention": "FLOP",
    "elementwise": "byte",
    "cross-entropy": "logit",
    "matrices": "number",
    "operators": "call",
}
"""Kinds of work in a micro-batch's forward and backward pass."""

UPDATE_UNITS = {
    "adamw": "number",
    "adamw tensors": "call",
    "muon": "number",
    "muon tensors": "call",
    "newton-schulz fp32": "FLOP",
    "newton-schulz bf16": "FLOP",
}
"""Kinds of work in an update; Muon's products are in the run's precision."""

NEWTON_SCHULZ_STEPS = 3
"""As many as `training.muon` takes."""

LEAST_SPREAD = 0.05


@dataclass(frozen=True)
class Sample:
    """Work, by kind, and the seconds that it was measured to take."""

    work: Mapping[str, float]
    time_s: float


@dataclass(frozen=True)
class Fit:
    """Seconds a unit of each kind of work, and the relative errors of samples left out one at a time."""

    unit_s: dict[str, float]
    errors: tuple[float, ...]

    @property
    def spread(self) -> float:
        """How far off eight of ten left-out samples were at most."""
        return max(LEAST_SPREAD, float(np.quantile(np.abs(self.errors), 0.8)))


def gradient_work(shape: Shape, batch: Batch, precision: Precision) -> dict[str, float]:
    """Work of one micro-batch's gradients, in `GRADIENT_UNITS`.

    FLOPs are three times a forward pass's; bytes are what the operators keep, make and use beside. What a micro-batch
    costs whatever its size has no kind of its own: with one, larger models were foretold the worse.
    """
    flops = {"products": 0, "attention": 0}
    for product in products(shape, batch):
        flops["attention" if product.name.endswith(("scores", "values")) else "products"] += 3 * product.flops
    ops = [op for part in parts(shape, batch, precision) if part.name != "head" for op in part.ops]
    moved = sum(op.kept + op.makes + op.beside for op in ops if op.operator not in ("linear", "matrix copy"))
    return {
        **flops,
        "elementwise": moved,
        "cross-entropy": batch.head_rows * shape.num_outputs,
        "matrices": sum(map(prod, parameters(shape).values())),
        "operators": len(ops),
    }


def update_work(shape: Shape, optimizer: OptimizerKind, precision: Precision) -> dict[str, float]:
    """Work of one update, in `UPDATE_UNITS`."""
    tensors = parameters(shape)
    muon = muon_matrices(tensors) if optimizer == "muon" else []
    muon_numbers, flops = sum(map(prod, muon)), sum(newton_schulz_flops(*sizes) for sizes in muon)
    return {
        "adamw": sum(map(prod, tensors.values())) - muon_numbers,
        "adamw tensors": len(tensors) - len(muon),
        "muon": muon_numbers,
        "muon tensors": len(muon),
        "newton-schulz fp32": flops if precision == "fp32" else 0,
        "newton-schulz bf16": flops if precision == "bf16" else 0,
    }


def newton_schulz_flops(rows: int, columns: int) -> int:
    """FLOPs that Muon spends on one matrix a step: three times X·Xᵀ, its square, and their product with X."""
    short, long = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * short * short * long + 2 * short**3)


def is_counted(known: Calibration) -> bool:
    """Whether a calibration has rates for the kinds of work that are counted here."""
    fitted = [{term.kind for term in terms} for terms in (known.gradients, known.update)]
    return fitted == [GRADIENT_UNITS.keys(), UPDATE_UNITS.keys()]


def fit(samples: Sequence[Sample]) -> Fit:
    """Rates by non-negative least squares on relative errors; all samples have the same kinds of work."""
    kinds = list(samples[0].work)
    rows = np.array([[sample.work[kind] / sample.time_s for kind in kinds] for sample in samples])
    errors = [float(row @ _rates(np.delete(rows, index, axis=0))) - 1 for index, row in enumerate(rows)]
    return Fit(dict(zip(kinds, _rates(rows).tolist(), strict=True)), tuple(errors))


def nnls(matrix: Floats, target: Floats) -> Floats:
    """The x ≥ 0 of least ‖matrix·x − target‖, by Lawson and Hanson's active sets (1974, chapter 23)."""
    x, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], dtype=bool)
    tolerance = 1e-12 * np.linalg.norm(matrix, axis=0) * max(float(np.linalg.norm(target)), 1e-300)
    while True:
        slope = matrix.T @ (target - matrix @ x)
        slope[free | (slope <= tolerance)] = 0
        if not slope.any():
            return x
        free[np.argmax(slope)] = True
        x = _feasible(matrix, target, x, free)


def _feasible(matrix: Floats, target: Floats, x: Floats, free: NDArray[np.bool_]) -> Floats:
    """Least squares over the free columns; one that would turn negative is bound again at 0."""
    while True:
        best = np.zeros_like(x)
        best[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        bad = free & (best <= 0)
        if not bad.any():
            return best
        x = x + float(np.min(x[bad] / (x[bad] - best[bad]))) * (best - x)
        free &= x > 1e-14 * x.max(initial=0.0)
        x[~free] = 0


def _rates(rows: Floats) -> Floats:
    """Rates of samples in units of their own times. Columns are scaled: FLOPs and calls are 1e9 apart."""
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1
    return nnls(rows / scale, np.ones(len(rows))) / scale
