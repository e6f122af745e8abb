"""Whether images fit in memory, told before any is decoded."""

import os
from pathlib import Path

from chinchilla.config.errors import DataError
from chinchilla.config.units import show_bytes
from chinchilla.data.letterbox import Size


def check_fits(count: int, size: Size, place: object) -> None:
    """Refuse more images than memory holds twice: once as read, once while they are split.

    Raises:
        DataError: naming a smaller size that would fit.
    """
    need, free = 2 * count * size.height * size.width * size.channels, free_bytes()
    if need <= free:
        return
    shrink = (free / need) ** 0.5
    height, width = max(1, int(size.height * shrink)), max(1, int(size.width * shrink))
    raise DataError(
        f"{place}: {count:,} images of {size.height} x {size.width} with {size.channels} channels take "
        f"{show_bytes(need)} while they are split, and {show_bytes(free)} are free; ask for a smaller size, at most "
        f"{height} x {width}, or give fewer images"
    )


def free_bytes() -> int:
    """Memory that a process may still take: the machine's, or what its container has left where that is less."""
    limits = []
    machine = _fields(Path("/proc/meminfo"))
    if "MemAvailable:" in machine:
        limits.append(1024 * machine["MemAvailable:"])
    else:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    most = Path("/sys/fs/cgroup/memory.max")
    text = most.read_text().strip() if most.exists() else ""
    if text.isdigit():
        # Not memory.current, which counts cached files too; those make room.
        limits.append(max(0, int(text) - _fields(most.with_name("memory.stat")).get("anon", 0)))
    return min(limits)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines like "MemAvailable: 123 kB"; none when there is no such file."""
    if not path.exists():
        return {}
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
