"""Measure this machine: matrix products, memory bandwidth, cost of an operator, noise. In under 30 seconds.

Every figure is the median of repeated timings on the wall clock, so that a busy machine measures as the slower
machine that it is; how unsteady it was is kept as `noise`.
"""

import datetime
import hashlib
import logging
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import torch

from chinchilla.config.machine import Machine, MatmulRate, Precision
from chinchilla.planning.step_model import is_counted
from chinchilla.store.atomic import failures_named, make_folder, write_text

Product = tuple[int, int, int]

SHAPES: tuple[Product, ...] = (
    (4096, 32, 64),
    (4096, 64, 256),
    (1024, 128, 512),
    (4096, 128, 512),
    (4096, 192, 768),
    (2048, 256, 1024),
    (4096, 256, 256),
    (4096, 384, 1536),
    (512, 256, 8192),
    (2048, 512, 2048),
    (4096, 512, 512),
    (1024, 1024, 4096),
)
"""(m, k, n) of the products in models of 128 to 1024 channels: attention, projections, feed-forward, logits."""

BUDGET_S = 10.0
"""Time for the matrix products of one precision; what would take longer is left out, and said."""

REPEAT_S = 0.25
BUFFER_BYTES = 2**28
"""Larger than any cache that one process gets."""

BUSY = 0.5
"""A noise from which on the machine is called busy, and its figures are not to be trusted for long."""

KEEP_DAYS = 30
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

log = logging.getLogger("chinchilla")


def measure(shapes: Sequence[Product] | None = None, device: str = "cpu", threads: int | None = None) -> Machine:
    """Measure `device` with `threads` CPU threads (as many as torch uses when absent).

    `shapes` are the (m, k, n) of the products to time, in fp32 and bf16; typical ones when absent.
    """
    with _threads(threads):
        count = torch.get_num_threads()
        log.info("measuring %s with %d threads", device, count)
        unsteady = noise(device)
        if unsteady > BUSY:
            log.warning("this machine is busy (noise %.0f %%): `chinchilla measure --refresh` later", 100 * unsteady)
        return Machine(
            name=device_name(device),
            device=device,
            threads=count,
            memory_bytes=memory_bytes(device),
            torch_version=torch.__version__,
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            noise=unsteady,
            matmul=tuple(_rates(tuple(shapes or SHAPES), device)),
            bytes_per_s=bandwidth(device),
            op_overhead_s=op_overhead(device),
            has_compiler=has_compiler(),
        )


def cached_measure(
    folder: Path,
    *,
    refresh: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    extend: Callable[[Machine], Machine] | None = None,
) -> Machine:
    """The machine as measured before, from a file in `folder`, or measured now.

    Measured anew when `refresh` is set, when nothing readable is there for this processor, thread count and torch
    version, or when it is more than 30 days old. `extend` adds what takes longer, where it isn't there yet: a
    machine without power has not been extended.

    Raises:
        FaultError: the folder cannot be made or written to.
    """
    with failures_named(folder):
        make_folder(folder)  # before the minutes of measuring that would be lost
    path = folder / f"machine-{_key(device, threads)}.json"
    known = None if refresh else _read(path)
    if known is not None:
        log.info("machine as measured on %s (%s)", known.measured_at[:10], path)
    machine = known or measure(device=device, threads=threads)
    if extend is not None and machine.power is None:
        with _threads(threads):
            machine = extend(machine)
    if machine is not known:
        write_text(path, machine.model_dump_json(indent=1) + "\n")
    if not machine.calibration:
        log.info("step times by the roofline, a guess, until `chinchilla measure` has fitted real steps")
    return machine


def device_name(device: str) -> str:
    """The processor's name as its maker writes it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def memory_bytes(device: str) -> int:
    """Memory this process may use: the device's, or the smaller of the machine's and the container's limit."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def noise(device: str) -> float:
    """Relative spread (p90 / p10 - 1) of one product's time over many repeats."""
    product = _product((1024, 256, 1024), DTYPES["fp32"], device)
    times = _times(product, device, seconds=4 * REPEAT_S, least=20)
    tenths = quantiles(times, n=10)
    return tenths[-1] / tenths[0] - 1


def bandwidth(device: str) -> float:
    """Bytes read and written a second while copying and adding buffers larger than the caches."""
    size = min(BUFFER_BYTES, memory_bytes(device) // 16) // 4
    source, target = torch.zeros(size, device=device), torch.zeros(size, device=device)
    copy = 2 * source.nbytes / median(_times(lambda: target.copy_(source), device))
    add = 3 * source.nbytes / median(_times(lambda: torch.add(source, target, out=target), device))
    return (copy + add) / 2


def op_overhead(device: str) -> float:
    """Seconds that an operator takes whatever its size: an addition of one number."""
    number, calls = torch.zeros(1, device=device), 1000

    def add() -> None:
        for _ in range(calls):
            number.add_(1.0)

    return median(_times(add, device)) / calls


def has_compiler() -> bool:
    """Whether the C++ compiler that `torch.compile` would call builds a kernel: OpenMP and Python's headers too."""
    compiler = os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text("#include <Python.h>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        command = [compiler, "-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_path('include')}"]
        command += [str(source), "-o", str(Path(folder, "try.so"))]
        try:
            return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _rates(shapes: tuple[Product, ...], device: str) -> Iterator[MatmulRate]:
    """Smallest product first, so that a slow precision is noticed before it costs much."""
    for precision, dtype in DTYPES.items():
        spent, slowest = 0.0, None
        for m, k, n in sorted(shapes, key=lambda shape: shape[0] * shape[1] * shape[2]):
            work = 2 * m * k * n
            if slowest is not None and spent + 3 * work / slowest > BUDGET_S:
                log.info("left out %s product %d×%d×%d: too slow here", precision, m, k, n)
                continue
            begin = time.perf_counter()
            rate = work / median(_times(_product((m, k, n), dtype, device), device))
            spent += time.perf_counter() - begin
            slowest = min(rate, slowest or rate)
            log.info("%s product %d×%d×%d: %.1f GFLOP/s", precision, m, k, n, rate / 1e9)
            yield MatmulRate(m=m, k=k, n=n, precision=precision, flops_per_s=rate)


def _product(shape: Product, dtype: torch.dtype, device: str) -> Callable[[], object]:
    m, k, n = shape
    left, right = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    # A linear layer's product: its weight stands transposed.
    return lambda: left @ right.t()


def _times(call: Callable[[], object], device: str, seconds: float = REPEAT_S, least: int = 3) -> list[float]:
    """Durations of repeated calls over about `seconds`, at least `least` of them, after one to warm up."""
    call()
    _synchronize(device)
    times: list[float] = []
    while sum(times) < seconds or len(times) < least:
        begin = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return times


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(device: str, threads: int | None) -> str:
    parts = (device, device_name(device), str(threads or torch.get_num_threads()), torch.__version__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _read(path: Path) -> Machine | None:
    """A kept measurement that is still good."""
    if not path.exists():
        return None
    try:
        machine = Machine.model_validate_json(path.read_text(encoding="utf-8"))
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(machine.measured_at)
    except (ValueError, TypeError):  # no machine in it, or a date that is none or lacks its zone
        log.warning("%s is not readable: measuring anew", path)
        return None
    if age >= datetime.timedelta(days=KEEP_DAYS):
        return None
    if not all(map(is_counted, machine.calibration)):
        log.warning("%s: its step times were fitted to other kinds of work than are counted now", path)
        return machine.model_copy(update={"calibration": (), "power": None})  # as before it was extended
    return machine
