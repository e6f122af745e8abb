"""Adapters alone in a folder, as PEFT keeps them, so that `peft` and transformers read them too.

adapter_config.json          what kind of adapter, its rank, its scale
adapter_model.safetensors    base_model.model.<map>.lora_A.weight, …lora_B.weight; what else was trained, whole
SHA256SUMS                   their hashes; what is read is compared with them where they are there
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.models.adapt import adapted, adapter_tensors, put_, refuse_unfit
from chinchilla.models.bottleneck import Bottleneck
from chinchilla.models.folder import PICKLES, find, is_there, read_json, replacing
from chinchilla.models.peft_layout import (
    BOTTLENECK,
    LORA,
    Content,
    FamilyName,
    bottleneck_content,
    lora_content,
    read_bottlenecks,
    read_lora,
)
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import read_safetensors
from chinchilla.store.atomic import failures_named, write_new
from chinchilla.store.sums import check_sums, write_sums

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(folder: Path, model: Transformer, family: FamilyName | None = None, base: str | None = None) -> None:
    """Write the adapter of `model` and what else was trained; in another family's names for that family's readers.

    `base` says where the model itself lies, for PEFT. The folder appears whole, in place of the adapter that may have
    been there.

    Raises:
        UsageError: the model has no adapter, none yet that does anything, or a part that the family does not have; or
            something else than an adapter is in the folder.
        FaultError: the disk is full or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
        raise UsageError(f"{folder}: there is something else than an adapter here; choose another folder")
    maps = adapted(model)
    if not maps:
        raise UsageError(f"{folder}: the model has no adapter to write")
    narrow = any(isinstance(map, Bottleneck) for map in maps.values())
    content = bottleneck_content(model, family) if narrow else lora_content(model, family)
    config = {**content.config, "base_model_name_or_path": base, "inference_mode": True}
    # The parts of a fused map share one matrix, which the format does not allow.
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in content.tensors.items()}
    with failures_named(folder), replacing(folder) as building:
        save_file({f"{PREFIX}{name}": tensor for name, tensor in copies.items()}, building / WEIGHTS, {"format": "pt"})
        with (building / WEIGHTS).open("rb") as file:
            os.fsync(file.fileno())
        write_new(building / CONFIG, [(json.dumps(config, indent=2) + "\n").encode()])
        write_sums(building)


def read_adapter_(model: Transformer, folder: Path) -> list[str]:
    """Put a folder's adapter on `model`, everything else frozen; give the names of what may be trained on.

    Reads what `write_adapter` and PEFT's LoRA wrote, in our own names or those of a family that `models.hub` reads.
    When something is wrong, the model stays as it is.

    Raises:
        UsageError: there is no adapter, or one with a part that is not supported; or the model is int8 or has one.
        FaultError: a file is damaged or a link that leads out, or a tensor does not fit the model; it is named.
    """
    refuse_unfit(model)
    content = _read(folder)
    match content.config.get("peft_type"):
        case "LORA":
            found = read_lora(model, content, str(folder))
        case "BOTTLENECK":
            found = read_bottlenecks(model, content, str(folder))
        case kind:
            raise UsageError(f"{folder / CONFIG}: peft_type {kind!r} is not one of {LORA}, {BOTTLENECK}")
    model.requires_grad_(False)
    put_(model, found.maps)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in found.whole.items():
            own[name].copy_(tensor).requires_grad_(True)
    return list(adapter_tensors(model))


def _read(folder: Path) -> Content:
    """The settings, and the tensors without the prefix of their names."""
    if not (folder.is_dir() and is_there(folder, CONFIG)):
        raise UsageError(f"{folder}: not an adapter's folder, {CONFIG} is missing")
    if not is_there(folder, WEIGHTS):
        raise UsageError(_no_weights(folder))
    check_sums(folder, (CONFIG, WEIGHTS))
    config, path = read_json(folder, CONFIG), find(folder, WEIGHTS)
    tensors = read_safetensors(path)
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX) or not tensor.is_floating_point():
            raise FaultError(f"{path}: tensor {name} ({tensor.dtype}) is no adapter's; get the file anew")
    return Content(config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    found = f", and {pickles[0]} is a pickle, which may run any code when it is opened" if pickles else ""
    return f"{folder}: {WEIGHTS} is missing{found}; get the adapter's safetensors form"
