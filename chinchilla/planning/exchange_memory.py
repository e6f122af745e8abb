"""Memory that exchanging gradients takes on each process of data parallelism, as torch's DDP and Gloo take it."""

from dataclasses import dataclass
from math import prod

from chinchilla.config.shape import Shape
from chinchilla.planning.count import parameters
from chinchilla.planning.operators import FP32

FIRST_BUCKET_BYTES = 2**20
"""DDP's first bucket is small, so that the exchange begins early."""

BUCKET_BYTES = 25 * 2**20
"""Size at which DDP closes a bucket, by default."""

SEGMENT_BYTES = 2**20
"""The largest part of a bucket that Gloo's ring has on its way at one time (`allreduce.h`)."""


@dataclass(frozen=True)
class Exchange:
    """Bytes beside the gradients themselves: flat `buckets` that they are copied into, `scratch` of the collective."""

    buckets: tuple[int, ...]
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.buckets) + self.scratch


def exchange_memory(
    shape: Shape, nodes: int, *, bucket_bytes: int = BUCKET_BYTES, views: bool = False, overlapped: int = 2
) -> Exchange:
    """What an all-reduce of fp32 gradients over `nodes` processes needs on each.

    With `views` gradients live in the buckets (`gradient_as_bucket_view`): no copy. Up to `overlapped` buckets are on
    their way at one time (Gloo's two threads), each with two segments of a ring. One process exchanges nothing, but DDP
    copies all the same.
    """
    sizes = [FP32 * prod(tensor) for tensor in parameters(shape).values()]
    found = buckets(sizes[::-1], bucket_bytes)
    longest = sorted(found)[-overlapped:]
    scratch = sum(2 * segment_bytes(size, nodes) for size in longest) if nodes > 1 else 0
    return Exchange(() if views else tuple(found), scratch)


def buckets(sizes: list[int], bucket_bytes: int = BUCKET_BYTES) -> list[int]:
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


def segment_bytes(size_bytes: int, nodes: int) -> int:
    """A segment of Gloo's ring: at least two a process, all alike, none above `SEGMENT_BYTES`."""
    segments = max(-(-size_bytes // SEGMENT_BYTES), 2 * nodes)
    segments = -(-segments // nodes) * nodes
    each = -(-size_bytes // segments)
    return -(-each // FP32) * FP32
