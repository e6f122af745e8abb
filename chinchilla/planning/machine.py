"""How long a training step takes on a measured machine.

Where `chinchilla measure` has fitted real steps (`step_model`), by that fit, with the errors it made on steps it had
not seen. Else by a roofline over products, traffic and operators: its terms rest on measured rates, its coefficients
are rules of thumb, so its answer is a guess with a wide spread, good for choosing what to probe.
"""

import math
from dataclasses import dataclass
from math import prod

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.machine import Calibration, Machine, Precision, StepTerm
from chinchilla.config.plan import OptimizerKind
from chinchilla.config.shape import Shape
from chinchilla.planning.activations import saved_bytes
from chinchilla.planning.count import Batch, Product, num_params, parameters, products
from chinchilla.planning.memory import muon_matrices
from chinchilla.planning.step_model import gradient_work, update_work
from chinchilla.planning.step_model import newton_schulz_flops as newton_schulz_flops

SPREAD = 0.5
"""Relative spread of a step time from this roofline."""

# What follows was fitted to 16 eager steps (2 to 19 million parameters, fp32 and bf16, one thread of one CPU with AMX;
# within 15 % of each then, 28 % with LayerNorm). On another machine these are rules of thumb.

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

FARTHEST = 4.0
"""Times the parameters of the largest model that a fit has seen: what is larger is a guess again."""


COMPILE_TIME_S = 60.0
"""What compiling small models took on CPUs when it was tried (docs/training.md)."""


@dataclass(frozen=True)
class StepTime:
    """Wall seconds of one optimizer step, by what they are spent on.

    `source` is `measured` by a fit to real steps of models like this one, else `guess`. `waiting` is how many of these
    seconds passed for each of the processor's while it was fitted: on an idle machine a step takes so much less.
    """

    products_s: float
    attention_s: float
    traffic_s: float
    overhead_s: float
    optimizer_s: float
    spread: float = SPREAD
    source: Source = "guess"
    waiting: float = 1.0

    @property
    def total_s(self) -> float:
        """All of it: nothing overlaps on one device."""
        return self.products_s + self.attention_s + self.traffic_s + self.overhead_s + self.optimizer_s

    def estimate(self) -> Estimate:
        """The total with its spread; p10 is that of a machine on which nothing waits."""
        around = Estimate.around(self.total_s, self.spread, "s", self.source)
        return around.model_copy(update={"p10": around.p10 / self.waiting})


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
    known = machine.calibrated(precision)
    if known is not None:
        return _fitted(shape, batch, known, precision, optimizer, accumulation)
    return _roofline(shape, batch, machine, precision, optimizer, accumulation)


def compile_time(shape: Shape, machine: Machine) -> Estimate:
    """Seconds that compiling the blocks takes: equal ones share one form, an encoder's and a decoder's are two.

    By the block that `chinchilla measure` has compiled; else a guess.
    """
    if machine.compile_time_s is None:
        return Estimate.around(COMPILE_TIME_S, 1.0, "s", "guess")
    forms = (shape.num_encoder_layers > 0) + (shape.num_decoder_layers > 0)
    return Estimate.around(forms * machine.compile_time_s, SPREAD, "s", "measured")


def covers(known: Calibration, shape: Shape) -> bool:
    """Whether a shape is like those that were timed: attention is plain, and it is not too much larger."""
    return shape.attention != "block" and num_params(shape) <= FARTHEST * known.most_params


def _fitted(
    shape: Shape, batch: Batch, known: Calibration, precision: Precision, optimizer: OptimizerKind, accumulation: int
) -> StepTime:
    # Budgets are wall time: a fit by the processor's clock is lengthened by what steps waited when it was made.
    waiting = max(1.0, known.waiting)
    gradients = _terms_s(known.gradients, gradient_work(shape, batch, precision), waiting)
    update_s = sum(_terms_s(known.update, update_work(shape, optimizer, precision), waiting).values())
    spread = _joined_spread(known, accumulation * sum(gradients.values()), update_s)
    seen = covers(known, shape)
    return StepTime(
        products_s=accumulation * gradients["products"],
        attention_s=accumulation * gradients["attention"],
        traffic_s=accumulation * (gradients["elementwise"] + gradients["cross-entropy"] + gradients["matrices"]),
        overhead_s=accumulation * gradients["operators"],
        optimizer_s=update_s,
        spread=spread if seen else max(SPREAD, spread),
        source="measured" if seen else "guess",
        waiting=waiting,
    )


def _terms_s(terms: tuple[StepTerm, ...], work: dict[str, float], waiting: float) -> dict[str, float]:
    return {term.kind: waiting * term.unit_s * work[term.kind] for term in terms}


def _joined_spread(known: Calibration, gradients_s: float, update_s: float) -> float:
    """Relative spread of the sum; what is off in one is thought to be off in the other too."""
    return (known.spread * gradients_s + known.update_spread * update_s) / (gradients_s + update_s)


def _roofline(
    shape: Shape, batch: Batch, machine: Machine, precision: Precision, optimizer: OptimizerKind, accumulation: int
) -> StepTime:
    work = products(shape, batch)
    attention = [product for product in work if product.name.endswith(("scores", "values"))]
    plain = [product for product in work if not product.name.endswith(("scores", "values"))]
    layers = shape.num_encoder_layers + shape.num_decoder_layers
    logits = 4 * batch.head_rows * shape.num_outputs
    traffic = PASSES[precision] * saved_bytes(shape, batch, precision) + LOGIT_PASSES[precision] * logits
    return StepTime(
        products_s=accumulation * 3 * _products_s(plain, machine, precision),
        attention_s=accumulation * 3 * _products_s(attention, machine, precision) / ATTENTION_SHARE,
        traffic_s=accumulation * traffic / machine.bytes_per_s,
        overhead_s=accumulation * OPS_A_LAYER * layers * machine.op_overhead_s,
        optimizer_s=optimizer_time(shape, machine, optimizer, precision),
    )


def optimizer_time(shape: Shape, machine: Machine, optimizer: OptimizerKind, precision: Precision) -> float:
    """Seconds of one update: traffic over the parameters, and Muon's Newton-Schulz products, in the run's precision."""
    tensors = parameters(shape)
    muon = muon_matrices(tensors) if optimizer == "muon" else []
    muon_numbers = sum(map(prod, muon))
    adamw_numbers = sum(map(prod, tensors.values())) - muon_numbers
    traffic = 4 * (ADAMW_PASSES * adamw_numbers + MUON_PASSES * muon_numbers)
    overhead = OPS_A_MUON_MATRIX * len(muon) * machine.op_overhead_s
    products_s = sum(_newton_schulz_s(sizes, machine, precision) for sizes in muon)
    return traffic / machine.bytes_per_s + overhead + products_s


def _newton_schulz_s(sizes: tuple[int, ...], machine: Machine, precision: Precision) -> float:
    short, long = sorted(sizes)
    rate = NEWTON_SCHULZ_SHARE * matmul_rate(machine, short, long, short, precision)
    return newton_schulz_flops(short, long) / rate


def _products_s(work: list[Product], machine: Machine, precision: Precision) -> float:
    return sum(p.flops / matmul_rate(machine, p.m * p.count, p.k, p.n, precision) for p in work if p.flops)
