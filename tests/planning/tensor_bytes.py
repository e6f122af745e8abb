"""What torch's autograd keeps, and what its allocator holds at most, while something is called."""

import gc
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


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


def tensor_peak(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at one time during a call, over those alive before it."""
    gc.collect()  # what dies during the call was not alive for it
    with warnings.catch_warnings():
        # The profiler warns about its own defaults, differently in each release.
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
