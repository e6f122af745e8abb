"""A step's micro-batches side by side, one processor core each.

Two threads that each take a micro-batch through the whole model wait for each other once a step; two threads that
share every operator wait for each other a thousand times. On 2 cores that is 1.3 times as fast for small models.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from chinchilla.config.plan import Training
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Batch, Loss
from chinchilla.training.trained import trained

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(training: Training, device: torch.device) -> int:
    """Threads to spread a step's micro-batches over: as many of both as divide evenly, on a CPU, without compiling."""
    if device.type != "cpu" or training.compile:
        return 1
    return math.gcd(training.accumulation, training.threads)


class Gradients(NamedTuple):
    """Summed gradients in the order of `trained(model)`, and the plain loss in nats, summed over tokens."""

    tensors: list[Tensor]
    nats: float


class Workers:
    """`count` threads that share the processor's; with one worker everything runs in the caller's thread.

    Each has a twin of the model that shares its parameters, and a random generator of its own, so that the result does
    not depend on which thread is ahead.
    """

    def __init__(self, model: Transformer, count: int, seed: int) -> None:
        self.models = [model] + [_twin(model) for _ in range(count - 1)]
        self.generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
        for twin, generator in zip(self.models, self.generators, strict=True):
            twin.draw_from(generator)
        self._threads = None
        if count > 1:
            each = max(1, torch.get_num_threads() // count)
            self._threads = ThreadPoolExecutor(count, "worker", initializer=torch.set_num_threads, initargs=(each,))

    def gradients(self, micro_batches: Sequence[Batch], loss: Callable[[Transformer, Batch], Loss]) -> Gradients:
        """Gradients of the summed `loss(model, micro_batch).total`; sums are taken in a fixed order.

        Tensors of a micro-batch that require gradients have theirs afterwards, as `grad`.
        """
        count = len(self.models)
        shares = [(model, micro_batches[index::count]) for index, model in enumerate(self.models)]
        parts = self.map(lambda share: _gradients(*share, loss), [share for share in shares if share[1]])
        total = parts[0]
        for part in parts[1:]:
            torch._foreach_add_(total.tensors, part.tensors)
        return Gradients(total.tensors, sum(part.nats for part in parts))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Apply `function` to each item, side by side."""
        if self._threads is None:
            return [function(item) for item in items]
        return list(self._threads.map(function, items))

    def state(self) -> dict[str, Tensor]:
        """The generators' states."""
        return {f"worker{index}": generator.get_state() for index, generator in enumerate(self.generators)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; workers that were not there then keep the generators they began with."""
        for index, generator in enumerate(self.generators):
            if f"worker{index}" in state:
                generator.set_state(state[f"worker{index}"])

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()


def _twin(model: Transformer) -> Transformer:
    """The same modules over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _gradients(model: Transformer, batches: Sequence[Batch], loss: Callable[[Transformer, Batch], Loss]) -> Gradients:
    parameters = list(trained(model).values())
    total: list[Tensor] = []
    nats = 0.0
    for batch in batches:
        found = loss(model, batch)
        inputs = [tensor for tensor in batch.values() if tensor.requires_grad]
        new = list(torch.autograd.grad(found.total, [*parameters, *inputs], materialize_grads=True))
        for tensor in reversed(inputs):
            tensor.grad = new.pop()
        if total:
            torch._foreach_add_(total, new)
        else:
            total = new
        del new  # or they would live until the next batch's are made
        nats += float(found.plain)
    return Gradients(total, nats)
