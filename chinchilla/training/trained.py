"""Which of a model's parameters a step changes."""

import hashlib

import torch
from torch import nn


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_digest(model: nn.Module) -> str | None:
    """A hash of the frozen parameters' names and bits, by which a checkpoint knows them; None where none is frozen."""
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    digest = hashlib.sha256()
    for name, parameter in sorted(frozen.items()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if frozen else None
