"""The process's memory: keep what is freed, and see what was used at most."""

import ctypes
import gc
import logging
import resource
import sys
from pathlib import Path

import torch

log = logging.getLogger("chinchilla")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, so that a step's tensors take no page faults; it halves the loss's time.

    glibc gives every large tensor back to the kernel otherwise. Without glibc nothing changes, and that is logged.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST)
        # One arena for all threads: tensors are made in one thread and freed in another, and arenas would only grow.
        libc.mallopt(_M_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Give the kernel what was freed and kept."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def used_bytes(device: torch.device) -> int:
    """Memory in use now: the process's on a CPU (its peak where the system does not tell), torch's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS:") or _lifetime_peak()


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `reset_peak`: the process's on a CPU, torch's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM:") or _lifetime_peak()


def reset_peak(device: torch.device) -> None:
    """Begin a new peak; where the system cannot, the peak stays that of the process's life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def _glibc() -> ctypes.CDLL | None:
    if sys.platform.startswith("linux"):
        try:
            return ctypes.CDLL("libc.so.6")
        except OSError:
            log.info("no glibc here: large tensors go back to the system at each step, which is slower")
    return None


def _status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == field), 0)


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
