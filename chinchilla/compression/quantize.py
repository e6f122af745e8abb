"""Int8 after training: no data, no calibration, every matrix and the embedding (docs/compression.md)."""

from dataclasses import dataclass

import torch

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.models.quantized import SCHEME, is_quantized, matrices, replace_
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import own_tensors


@dataclass(frozen=True)
class Record:
    """What quantizing did. Sizes count the tensors as stored, tied ones once; a file adds a header of a few kB."""

    scheme: str
    layers_int8: tuple[str, ...]
    params_int8: int
    params_fp32: int
    size_before_bytes: int
    size_after_bytes: int


def quantize_(model: Transformer) -> Record:
    """Hold every matrix of `model` in int8, in place; it is for inference only from then on.

    Raises:
        UsageError: it is quantized already.
        FaultError: a weight is not finite; the tensor is named.
    """
    if is_quantized(model):
        raise UsageError("the model is quantized already; compress the run that it was made from")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FaultError(f"{name} holds values that are not finite; train again from a checkpoint before they came")
    layers, size_before_bytes = matrices(model), _size_bytes(model)
    replace_(model, layers)
    held = list(own_tensors(model).values())
    params_int8 = sum(tensor.numel() for tensor in held if tensor.dtype == torch.int8)
    return Record(
        scheme=SCHEME,
        layers_int8=tuple(layers),
        params_int8=params_int8,
        params_fp32=sum(tensor.numel() for tensor in held) - params_int8,
        size_before_bytes=size_before_bytes,
        size_after_bytes=_size_bytes(model),
    )


def _size_bytes(model: Transformer) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(model).values())
