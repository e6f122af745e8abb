"""How long a training step takes on a measured machine: a roofline over its products, traffic and operators.

Its terms rest on measured rates, its coefficients are rules of thumb, so its answer is a guess with a wide spread, good
for choosing what to probe. A probe run measures the step itself.
"""

import math
from dataclasses import dataclass
from math import prod

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine, Precision
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import saved_bytes
from chinchilla.planning.count import Batch, Product, parameters, products
from chinchilla.planning.memory import takes_muon

SPREAD = 0.5
"""Relative spread of a step time from this roofline."""

# What follows was fitted to 16 eager steps (2 to 19 million parameters, fp32 and bf16, one thread of one CPU with AMX;
# within 15 % of each). On another machine these are rules of thumb.

PASSES: dict[Precision, float] = {"fp32": 18.0, "bf16": 28.0}
"""Times that a saved activation crosses memory, both ways and with its gradient, before it's let go."""

LOGIT_PASSES: dict[Precision, float] = {"fp32": 8.0, "bf16": 25.0}
"""The same for a logit, which is fp32 in either precision; its exponential included."""

ATTENTION_SHARE = 0.5
"""Share of a plain product's rate that attention's small products reach."""

NEWTON_SCHULZ_SHARE = 0.5
"""The same for Muon's products of one matrix with itself."""

OPS_A_LAYER = 100
"""Calls of a bare operator that one layer's fixed costs, forward and backward, amount to."""

OPS_A_MUON_MATRIX = 100
"""The same for Muon's update of one matrix."""

ADAMW_PASSES = 10.0
MUON_PASSES = 6.0
"""Times that an optimizer's step crosses a parameter's four bytes."""

NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what they are spent on."""

    products_s: float
    attention_s: float
    traffic_s: float
    overhead_s: float
    optimizer_s: float

    @property
    def total_s(self) -> float:
        """All of it: nothing overlaps on one device."""
        return self.products_s + self.attention_s + self.traffic_s + self.overhead_s + self.optimizer_s

    def estimate(self) -> Estimate:
        """The total with its spread."""
        return Estimate.around(self.total_s, SPREAD, "s", "guess")


def matmul_rate(machine: Machine, m: int, k: int, n: int, precision: Precision) -> float:
    """FLOPs a second of an (m, k) by (k, n) product, from the products measured nearest to it.

    A mean over the logarithms of the measured rates, weighed by the inverse square of the distance in the logarithms
    of the three sizes: exact at a measured shape, never outside the measured rates.

    Raises:
        BudgetError: nothing was measured in this precision.
    """
    known = [rate for rate in machine.matmul if rate.precision == precision]
    if not known:
        raise BudgetError(f"{machine.name} has no measured {precision} products: run `chinchilla measure --refresh`")
    weighed = 0.0
    total = 0.0
    for rate in known:
        distance = sum(math.log(max(a, 1) / b) ** 2 for a, b in ((m, rate.m), (k, rate.k), (n, rate.n)))
        if distance == 0:
            return rate.flops_per_s
        weighed += math.log(rate.flops_per_s) / distance
        total += 1 / distance
    return math.exp(weighed / total)


def step_time(
    shape: Shape,
    batch: Batch,
    machine: Machine,
    precision: Precision,
    optimizer: OptimizerKind,
    accumulation: int = 1,
) -> StepTime:
    """Time of one optimizer step over `accumulation` micro-batches like `batch`, eager, on `machine`."""
    work = products(shape, batch)
    attention = [product for product in work if product.name.endswith(("scores", "values"))]
    plain = [product for product in work if not product.name.endswith(("scores", "values"))]
    layers = shape.num_encoder_layers + shape.num_decoder_layers
    logits = 4 * batch.head_rows * shape.vocab_size
    traffic = PASSES[precision] * saved_bytes(shape, batch, precision) + LOGIT_PASSES[precision] * logits
    return StepTime(
        products_s=accumulation * 3 * _products_s(plain, machine, precision),
        attention_s=accumulation * 3 * _products_s(attention, machine, precision) / ATTENTION_SHARE,
        traffic_s=accumulation * traffic / machine.bytes_per_s,
        overhead_s=accumulation * OPS_A_LAYER * layers * machine.op_overhead_s,
        optimizer_s=optimizer_time(shape, machine, optimizer),
    )


def optimizer_time(shape: Shape, machine: Machine, optimizer: OptimizerKind) -> float:
    """Seconds of one update: traffic over the parameters, and Muon's Newton-Schulz products (in bf16)."""
    tensors = parameters(shape)
    muon = [sizes for name, sizes in tensors.items() if optimizer == "muon" and takes_muon(name, sizes)]
    muon_numbers = sum(map(prod, muon))
    adamw_numbers = sum(map(prod, tensors.values())) - muon_numbers
    traffic = 4 * (ADAMW_PASSES * adamw_numbers + MUON_PASSES * muon_numbers)
    overhead = OPS_A_MUON_MATRIX * len(muon) * machine.op_overhead_s
    return traffic / machine.bytes_per_s + overhead + sum(_newton_schulz_s(sizes, machine) for sizes in muon)


def newton_schulz_flops(rows: int, columns: int) -> int:
    """FLOPs that Muon spends on one matrix a step: five times X·Xᵀ, its square, and their product with X."""
    short, long = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * short * short * long + 2 * short**3)


def _newton_schulz_s(sizes: tuple[int, ...], machine: Machine) -> float:
    short, long = sorted(sizes)
    rate = NEWTON_SCHULZ_SHARE * matmul_rate(machine, short, long, short, "bf16")
    return newton_schulz_flops(short, long) / rate


def _products_s(work: list[Product], machine: Machine, precision: Precision) -> float:
    return sum(p.flops / matmul_rate(machine, p.m * p.count, p.k, p.n, precision) for p in work if p.flops)
