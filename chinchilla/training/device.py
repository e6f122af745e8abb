"""How a model is run: on which device, in which precision, compiled or not."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from chinchilla.config.machine import Precision
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Batch


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Run what is inside in that precision; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch on that device; the copies may still be under way."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def compile_blocks_(model: Transformer) -> None:
    """Compile each block; equal blocks share one compiled form, which costs less than compiling the model whole."""
    for stack in (model.encoder, model.decoder):
        for block in stack.layers if stack is not None else ():
            # All batches of a run have one size.
            block.compile(dynamic=False)
