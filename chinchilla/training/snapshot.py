"""Copies of what a step changes, and putting them back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from chinchilla.training.optimizer import Optimizer
from chinchilla.training.trained import trained
from chinchilla.training.workers import Workers

Weights = dict[str, Tensor]


def copy_weights(model: nn.Module) -> Weights:
    """All weights but frozen ones, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def all_finite(model: nn.Module) -> bool:
    """Whether every weight that steps change is a number: an update can overflow before a loss shows it."""
    return all(bool(parameter.detach().isfinite().all()) for parameter in trained(model).values())


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back weights, all or some."""
    own = dict(model.named_parameters())
    for name, tensor in weights.items():
        own[name].copy_(tensor)


def on_cpu(tensors: Mapping[str, Tensor]) -> Weights:
    """Copies that lie on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def learned(model: nn.Module, optimizer: Optimizer, average: Weights | None) -> dict[str, Weights]:
    """Copies of the weights, the optimizer's state and the averaged weights where there are any, on the CPU.

    Frozen weights are left out: whoever goes on has them, and `frozen_digest` says whether they are the same.
    """
    copies = {"model": on_cpu(trained(model)), "optimizer": on_cpu(optimizer.state())}
    return copies if average is None else copies | {"average": on_cpu(average)}


def random_state(workers: Workers, device: torch.device) -> Weights:
    """The state of every random generator: torch's own, the workers', the GPU's."""
    state = {"cpu": torch.get_rng_state(), **workers.state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def load_random_state(state: Mapping[str, Tensor], workers: Workers, device: torch.device) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    workers.load(state)
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
