"""The tables of a measured machine: what it can do a second, and how long kinds of work take in a training step."""

from rich.console import Group

from chinchilla.config.machine import Calibration, Machine, StepTerm
from chinchilla.config.units import show_bytes
from chinchilla.reporting.tables import Rows, _table
from chinchilla.reporting.values import interval

HOW = {"rapl": "processor's counters", "nvml": "GPU's driver", "declared": "declared, a guess"}
"""How power is known."""


def machine_table(machine: Machine) -> Group:
    """What a machine can do, for a terminal."""
    rates: Rows = [
        (f"{rate.m} x {rate.k} x {rate.n}", rate.precision, f"{rate.flops_per_s / 1e9:.0f}") for rate in machine.matmul
    ]
    tables = [
        _table("Machine", ("", "measured"), fact_rows(machine), left=(0, 1)),
        _table("Matrix products", ("m x k x n", "precision", "GFLOP/s"), rates, left=(0, 1)),
    ]
    if machine.calibration:
        head = ("work", *(known.precision for known in machine.calibration), "units a second")
        tables.append(_table("A training step's work", head, term_rows(machine.calibration), left=(0,)))
    return Group(*tables)


def fact_rows(machine: Machine) -> Rows:
    """One fact a row."""
    rows: Rows = [
        ("processor", machine.name),
        ("device, threads", f"{machine.device}, {machine.threads}"),
        ("memory", show_bytes(machine.memory_bytes)),
        ("memory bandwidth", f"{machine.bytes_per_s / 1e9:.3g} GB/s"),
        ("one operator", f"{machine.op_overhead_s * 1e6:.3g} us"),
        ("noise seen", f"{machine.noise:.0%}"),
        ("C++ compiler", "yes" if machine.has_compiler else "no"),
    ]
    if machine.compile_time_s is not None:
        rows.append(("compiling one block", f"{machine.compile_time_s:.3g} s"))
    if machine.power is not None:
        rows.append(("power at work", f"{interval(machine.power.watts)} ({HOW[machine.power.how]})"))
    rows += [("step time", known) for known in _step_time(machine)]
    return [*rows, ("measured", f"{machine.measured_at}, torch {machine.torch_version}")]


def term_rows(calibration: tuple[Calibration, ...]) -> Rows:
    """Each kind of work with its rate in each precision; an update's is the same in all."""
    rows: Rows = []
    for terms in ([known.gradients for known in calibration], [known.update for known in calibration]):
        for same in zip(*terms, strict=True):
            rows.append((same[0].kind, *map(_rate, same), f"{same[0].unit}s"))
    return rows


def _rate(term: StepTerm) -> str:
    return f"{1 / term.unit_s:.3g}" if term.unit_s else "free"


def _step_time(machine: Machine) -> list[str]:
    if not machine.calibration:
        return ["by the roofline, a guess"]
    return [
        f"{known.precision}: fitted to {known.num_models} models' steps, x/: {1 + known.spread:.2f} where it had not "
        f"seen them; noise {known.noise:.0%}, {known.clock} time, waiting x {known.waiting:.1f}"
        for known in machine.calibration
    ]
