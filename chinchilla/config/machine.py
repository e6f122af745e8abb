"""A machine as measured: what it can do a second, and how sure that is."""

from typing import Literal

from chinchilla.config.frozen import Frozen

Precision = Literal["fp32", "bf16"]


class MatmulRate(Frozen):
    """Measured rate of an (m, k) by (k, n) product; one multiply-add is two FLOPs."""

    m: int
    k: int
    n: int
    precision: Precision
    flops_per_s: float


class Machine(Frozen):
    """One node, measured by `chinchilla measure`.

    `noise` is the relative spread (p90 / p10 - 1) seen while repeating one fixed product.
    """

    name: str
    device: str
    threads: int
    memory_bytes: int
    torch_version: str
    measured_at: str
    noise: float
    matmul: tuple[MatmulRate, ...]
    bytes_per_s: float
    op_overhead_s: float
    has_compiler: bool
    """Whether a C++ compiler is there, which `torch.compile` needs on a CPU."""

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
