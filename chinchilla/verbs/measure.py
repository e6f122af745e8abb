"""`chinchilla measure`: what this machine can do a second, measured once and kept."""

import torch

from chinchilla.config.machine import Machine
from chinchilla.data.sources import default_cache
from chinchilla.parallel.measure import cached_measure


def measure(refresh: bool = False) -> Machine:
    """Measure matrix products by precision, memory bandwidth and the cost of an operator, in under 30 seconds.

    Kept in the cache folder ($CHINCHILLA_CACHE or ~/.cache/chinchilla) with its date and the noise seen; measured
    anew when `refresh` is set, after 30 days, or when processor, threads or torch have changed.
    """
    return cached_measure(default_cache(), refresh=refresh, device="cuda" if torch.cuda.is_available() else "cpu")
