"""The power a machine draws at work: read from its counters where that is allowed, else declared as a guess.

RAPL counts the energy of whole processor packages, in microjoules, neighbours' work included; most virtual machines
and containers lack it or forbid to read it. A GPU's driver tells its power through NVML, which `nvidia-smi` reads.
"""

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Power

RAPL = Path("/sys/class/powercap")
CORE_WATTS, CORE_SPREAD = 8.0, 1.0
"""Of one busy core with its share of memory and supply: server and laptop processors draw about 4 to 16 W each."""

GPU_WATTS, GPU_SPREAD = 300.0, 1.0
READ_SPREAD = 0.1

log = logging.getLogger("chinchilla")


def power(work: Callable[[], object], device: str, threads: int, time_s: float = 1.0) -> Power:
    """Watts while `work` is repeated for about `time_s` seconds; `how` they are known."""
    if device.startswith("cuda"):
        _repeat(work, time_s)
        watts = nvml_watts(device)
        return _read(watts, "nvml") if watts else _declared(GPU_WATTS, GPU_SPREAD)
    before, begun = rapl_joules(), time.perf_counter()
    _repeat(work, time_s)
    after, spent_s = rapl_joules(), time.perf_counter() - begun
    # The counters begin again at their largest value.
    if before is not None and after is not None and after > before:
        return _read((after - before) / spent_s, "rapl")
    return _declared(CORE_WATTS * threads, CORE_SPREAD)


def rapl_joules(root: Path = RAPL) -> float | None:
    """Energy that all packages have counted; None where there are none or they may not be read."""
    try:
        packages = [zone for zone in sorted(root.glob("*-rapl:*")) if _is_package(zone)]
        counted = [int((zone / "energy_uj").read_text()) for zone in packages]
    except (OSError, ValueError) as error:
        log.info("the processor's energy counters are not readable: %s", error)
        return None
    return sum(counted) / 1e6 if counted else None


def _is_package(zone: Path) -> bool:
    """Whether a zone is a whole package: not a part of one, nor the whole platform (psys), which holds it."""
    name = zone / "name"
    return zone.name.count(":") == 1 and (not name.exists() or name.read_text().startswith("package"))


def nvml_watts(device: str) -> float | None:
    """Power that the driver tells of a GPU; None where it tells nothing."""
    index = device.partition(":")[2] or "0"
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return float(told)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.info("the GPU's power is not readable: %s", error)
        return None


def _repeat(work: Callable[[], object], time_s: float) -> None:
    end = time.perf_counter() + time_s
    while time.perf_counter() < end:
        work()


def _read(watts: float, how: Literal["rapl", "nvml"]) -> Power:
    return Power(watts=Estimate.around(watts, READ_SPREAD, "W", "measured"), how=how)


def _declared(watts: float, spread: float) -> Power:
    return Power(watts=Estimate.around(watts, spread, "W", "guess"), how="declared")
