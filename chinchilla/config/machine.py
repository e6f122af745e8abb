"""A machine as measured: what it can do a second, and how sure that is."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen

Precision = Literal["fp32", "bf16"]


class MatmulRate(Frozen):
    """Measured rate of an (m, k) by (k, n) product; one multiply-add is two FLOPs."""

    m: PositiveInt
    k: PositiveInt
    n: PositiveInt
    precision: Precision
    flops_per_s: PositiveFloat


class StepTerm(Frozen):
    """One kind of work in a training step, and the seconds that a unit of it takes."""

    kind: str
    unit: str
    unit_s: NonNegativeFloat


class Calibration(Frozen):
    """What real training steps of small models took, in one precision: `planning.step_model`.

    `spread` and `update_spread` are how far off eight of ten models were that the fit had not seen. `clock` says what
    a second is: the processor's where one thread works, else the wall's; `waiting` is wall seconds a clock second, by
    which a prediction is lengthened.
    `noise` is the median relative spread of one model's repeats, `most_params` the largest model's parameters.
    """

    precision: Precision
    gradients: tuple[StepTerm, ...]
    update: tuple[StepTerm, ...]
    spread: NonNegativeFloat
    update_spread: NonNegativeFloat
    clock: Literal["cpu", "wall"]
    waiting: PositiveFloat
    noise: float
    num_models: int
    most_params: int
    measured_at: str


class Power(Frozen):
    """Watts drawn at work: read from the processor's counters (`rapl`), from a GPU's (`nvml`), or `declared`."""

    watts: Estimate
    how: Literal["rapl", "nvml", "declared"]


class Machine(Frozen):
    """One node, measured by `chinchilla measure`.

    `noise` is the relative spread (p90 / p10 - 1) seen while repeating one fixed product. What stands after
    `has_compiler` takes a minute more, and is absent where only a plan has measured.
    """

    name: str
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: PositiveInt
    memory_bytes: PositiveInt
    torch_version: str
    measured_at: str
    noise: float
    matmul: Annotated[tuple[MatmulRate, ...], Field(min_length=1)]
    bytes_per_s: PositiveFloat
    op_overhead_s: PositiveFloat
    has_compiler: bool
    """Whether a C++ compiler is there, which `torch.compile` needs on a CPU."""
    calibration: tuple[Calibration, ...] = ()
    compile_time_s: float | None = None
    """Seconds to compile one small block, forward and backward, with nothing kept from before."""
    power: Power | None = None

    def calibrated(self, precision: Precision) -> Calibration | None:
        """What was fitted to real steps in that precision, if it was."""
        return next((each for each in self.calibration if each.precision == precision), None)

    def flops_per_s(self, precision: Precision) -> float:
        """The best measured matmul rate in `precision`: the machine's peak as this project uses the word."""
        return max(rate.flops_per_s for rate in self.matmul if rate.precision == precision)

    def fastest_precision(self) -> Precision:
        """`bf16` where its median measured product is faster than fp32's, else `fp32`."""
        medians: dict[str, float] = {}
        for precision in ("fp32", "bf16"):
            rates = sorted(r.flops_per_s for r in self.matmul if r.precision == precision)
            medians[precision] = rates[len(rates) // 2] if rates else 0.0
        return "bf16" if medians["bf16"] > medians["fp32"] else "fp32"
