"""Memory that exchanging gradients takes on each process of data parallelism, as torch's DDP and Gloo take it."""

from collections.abc import Sequence
from math import prod

from chinchilla.config.shape import Shape
from chinchilla.planning.count import parameters
from chinchilla.planning.operators import FP32

FIRST_BUCKET_BYTES = 2**20
"""DDP's first bucket is small, so that the exchange begins early."""

BUCKET_BYTES = 25 * 2**20
"""Size at which DDP closes a bucket, by default (`bucket_cap_mb`)."""

SEGMENT_BYTES = 2**20
"""The largest part of a bucket that Gloo's ring has on its way at one time (`allreduce.h`)."""

OVERLAPPED = 2
"""Buckets on their way at one time: Gloo's threads."""


def exchange_bytes(sizes: Sequence[int], processes: int) -> int:
    """Bytes beside the gradients themselves that exchanging them in buckets of these `sizes` takes on each process.

    The flat buckets that they are copied into, and two segments of a ring for each bucket on its way. Nothing where
    there is one process.
    """
    if processes < 2:
        return 0
    return sum(sizes) + sum(2 * segment_bytes(size, processes) for size in sorted(sizes)[-OVERLAPPED:])


def gradient_buckets(shape: Shape) -> list[int]:
    """Sizes of the buckets of a model's fp32 gradients, which are ready from the last parameter to the first."""
    sizes = [FP32 * prod(tensor) for tensor in parameters(shape).values()]
    return buckets(sizes[::-1])


def buckets(sizes: Sequence[int], bucket_bytes: int = BUCKET_BYTES) -> list[int]:
    """Sizes of DDP's buckets for tensors of these sizes in the order in which their gradients are ready.

    A bucket is closed by the tensor that reaches the limit, which stays in it; the first has its own limit.
    """
    found, filled, limit = [], 0, FIRST_BUCKET_BYTES
    for size in sizes:
        filled += size
        if filled >= limit:
            found.append(filled)
            filled, limit = 0, bucket_bytes
    return [*found, filled] if filled else found


def segment_bytes(size_bytes: int, processes: int) -> int:
    """A segment of Gloo's ring: at least two a process, all alike, none above `SEGMENT_BYTES`."""
    segments = max(-(-size_bytes // SEGMENT_BYTES), 2 * processes)
    segments = -(-segments // processes) * processes
    each = -(-size_bytes // segments)
    return -(-each // FP32) * FP32
