"""What torch's autograd keeps, and what its allocator holds at most, while something is called."""

import gc
import warnings
from bisect import bisect_right
from collections.abc import Callable
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

MOST_SCRATCH = 2_000_000
"""What oneDNN takes beside a product at most, on one thread (docs/planning-counts.md)."""


def kept_by(model: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd keeps for a backward pass, parameters and buffers left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = call()
    assert total.isfinite()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)


def tensor_peak(call: Callable[[], object], scratch: int | None = None) -> int:
    """Most bytes of tensors alive at one time during a call, over those alive before it.

    Where `scratch` is given, what a matrix product takes and gives back at once counts up to that many bytes, and what
    is beyond oneDNN's 2 MB.
    """
    gc.collect()  # what dies during the call was not alive for it
    with warnings.catch_warnings():
        # The profiler warns about its own defaults, differently in each release.
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
    events = sorted(trace.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    moves = [event for event in events if event.name() == "[memory]"]
    products = [event for event in events if event.name() in ("aten::mm", "aten::addmm", "aten::bmm")]
    starts = [event.start_ns() for event in products]
    alive, peak = 0, 0
    for move, after in zip_longest(moves, moves[1:]):
        taken = move.nbytes()
        last = bisect_right(starts, move.start_ns()) - 1
        own = last >= 0 and after is not None and after.start_ns() <= products[last].end_ns()
        if scratch is not None and own and after.nbytes() == -taken:
            taken = max(min(taken, scratch), taken - MOST_SCRATCH)
        peak = max(peak, alive + taken)
        alive += move.nbytes()
    return peak
