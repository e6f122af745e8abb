"""The process's memory: peaks are seen, and what is freed is kept where that is asked for."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chinchilla.training.allocator import peak_bytes, release_freed_memory, reset_peak, used_bytes

CPU = torch.device("cpu")
LARGE = 200_000_000

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps no peak to reset")


def test_the_process_is_in_memory():
    assert 10_000_000 < used_bytes(CPU) <= peak_bytes(CPU) * 1.01


@linux
def test_a_large_tensor_is_a_peak_until_the_next_reset():
    release_freed_memory()
    reset_peak(CPU)
    before = peak_bytes(CPU)
    tensor = torch.ones(LARGE // 4)
    assert used_bytes(CPU) > before + 0.9 * LARGE
    del tensor
    gc.collect()
    release_freed_memory()
    assert peak_bytes(CPU) > before + 0.9 * LARGE
    assert used_bytes(CPU) < before + 0.5 * LARGE
    reset_peak(CPU)
    assert peak_bytes(CPU) < before + 0.5 * LARGE


FAULTS = """
import resource
import torch
from chinchilla.training.allocator import keep_freed_memory, release_freed_memory, used_bytes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
keep_freed_memory()
faults()
print(returned, faults())
held = used_bytes(torch.device("cpu"))
release_freed_memory()
print(held - used_bytes(torch.device("cpu")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    returned, kept, released = map(int, done.stdout.split())
    assert kept < returned / 10
    assert released > 0.5 * 64_000_000
