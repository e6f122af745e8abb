"""Model folders in the Hugging Face layout: our own, and those of the families that have the same parts.

    config.json          {"model_type": "chinchilla", "shape": {every field of Shape}, …}
    model.safetensors    the weights, tied ones once
    tokenizer.json       of Hugging Face tokenizers
    README.md            the model card
    SHA256SUMS           their hashes; what is read is compared with them where they are there

Read: our own folders, Llama, Marian and BERT folders, and GGUF files of the Llama architecture. Written: our own,
Llama and Marian. Nothing here unpickles: a folder with only `pytorch_model.bin` is refused. No memory is taken for a
model before its `config.json` was held against the tensors that the file has.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import bert, bottleneck, llama, marian, quantized
from chinchilla.models.adapt import adapted
from chinchilla.models.bottleneck import Bottleneck
from chinchilla.models.folder import (
    CARD,
    CHAT_TEMPLATE,
    CONFIG,
    INDEX,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    is_there,
    read_json,
    read_text,
    refuse_pickle,
    replacing,
    weight_files,
)
from chinchilla.models.gguf import read_gguf
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import (
    Layout,
    check_fit,
    check_shape,
    fill_,
    own_tensors,
    pieces,
    read_safetensors,
)
from chinchilla.store.atomic import failures_named, write_new
from chinchilla.store.sums import check_sums, write_sums

MODEL_TYPE = "chinchilla"


class Loaded(NamedTuple):
    """A model read from disk, in evaluation mode; in fp32, or int8 where the folder is.

    `config` is the whole `config.json` (a GGUF's metadata); where a chat template came with the model it stands
    there as `chat_template`.
    """

    model: Transformer
    shape: Shape
    config: dict[str, Any]
    tokenizer_json: str | None


class Family(NamedTuple):
    """How to read another family's folder."""

    read_shape: Callable[[Mapping[str, Any], str], Shape]
    layout: Callable[[Shape], Layout]
    is_spare: Callable[[str], bool]
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]]


FAMILIES = {
    "llama": Family(llama.read_shape, llama.layout, llama.is_spare, lambda tensors: tensors),
    "marian": Family(marian.read_shape, marian.layout, marian.is_spare, marian.flatten_bias),
    "bert": Family(bert.read_shape, bert.layout, bert.is_spare, bert.fold_segments),
}


def write_model(
    folder: Path,
    model: Transformer,
    tokenizer_json: str | None = None,
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write our own layout; `extra` adds keys to `config.json` (such as `task`).

    The folder appears whole, in place of the model folder that may have been there. An int8 model is written as such,
    and one with bottleneck adapters with them.

    Raises:
        UsageError: something else than a model folder is there, or the model has an adapter to merge first.
        FaultError: the disk is full or cannot be written.
    """
    _refuse_mergeable(model, folder)
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["ChinchillaTransformer"],
        "shape": model.shape.model_dump(mode="json"),
        **(extra or {}),
    }
    scheme, widths = quantized.describe(model), bottleneck.describe(model)
    if scheme is not None:
        config["quantization"] = scheme
    if widths:
        config[bottleneck.CONFIG_KEY] = widths
    _write(folder, own_tensors(model), config, tokenizer_json, card)


def write_llama(folder: Path, model: Transformer, tokenizer_json: str | None = None, card: str | None = None) -> None:
    """Write a decoder as a folder that transformers' `LlamaForCausalLM` loads.

    Raises:
        UsageError: the model has an adapter, or a part that a Llama does not have; it is named.
        FaultError: the disk is full or cannot be written.
    """
    _refuse_int8(model, folder)
    _refuse_adapter(model, folder)
    config = llama.write_config(model.shape)
    tensors = {name: view.clone() for name, view in pieces(model, llama.layout(model.shape))}
    _write(folder, tensors, config, tokenizer_json, card)


def write_marian(folder: Path, model: Transformer, tokenizer_json: str | None = None, card: str | None = None) -> None:
    """Write an encoder-decoder as a folder that transformers' `MarianMTModel` loads.

    Raises:
        UsageError: the model has an adapter, or a part that a Marian does not have; it is named.
        FaultError: the disk is full or cannot be written.
    """
    _refuse_int8(model, folder)
    _refuse_adapter(model, folder)
    config = marian.write_config(model.shape)
    tensors = {name: view.clone() for name, view in pieces(model, marian.layout(model.shape))}
    _write(folder, marian.add_bias(tensors, model.shape), config, tokenizer_json, card)


def _refuse_int8(model: Transformer, folder: Path) -> None:
    if quantized.is_quantized(model):
        raise UsageError(
            f"{folder}: other families' layouts have no place for int8 scales; write the model before int8"
        )


def _refuse_mergeable(model: Transformer, folder: Path) -> None:
    if any(not isinstance(map, Bottleneck) for map in adapted(model).values()):
        raise UsageError(
            f"{folder}: a model's folder has no place for this adapter: merge_ it, or write_adapter it alone"
        )


def _refuse_adapter(model: Transformer, folder: Path) -> None:
    _refuse_mergeable(model, folder)
    if bottleneck.describe(model):
        raise UsageError(f"{folder}: other families' layouts have no place for a bottleneck adapter; use write_model")


def _write(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], tokenizer_json: str | None, card: str | None
) -> None:
    _refuse_other_folders(folder)
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", TOKENIZER: tokenizer_json, CARD: card}
    with failures_named(folder), replacing(folder) as building:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / WEIGHTS, {"format": "pt"})
        with (building / WEIGHTS).open("rb") as file:
            os.fsync(file.fileno())
        for name, text in texts.items():
            if text is not None:
                write_new(building / name, [text.encode("utf-8")])
        write_sums(building)


def _refuse_other_folders(folder: Path) -> None:
    """Stop before a folder is replaced that holds something else."""
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
        raise UsageError(f"{folder}: there is something else than a model here; choose another folder")


def read_model(path: Path) -> Loaded:
    """Read a model folder, or a `.gguf` file.

    Raises:
        UsageError: there is no model, or one of a family or with a part that is not supported; it is named.
        FaultError: a file is damaged or a link that leads out, or a tensor does not fit the shape; it is named.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _read_gguf(path)
    config = _read_config(path)
    check_sums(path, (CONFIG, INDEX, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE))
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        model = _fitted(_own_shape(config, path / CONFIG), _read_tensors(path), path / WEIGHTS, config)
    elif isinstance(kind, str) and kind in FAMILIES:
        family = FAMILIES[kind]
        shape = _family_shape(family, config, path / CONFIG)
        tensors = family.prepare(_read_tensors(path))
        model = _fitted(shape, tensors, path / WEIGHTS, {}, family.layout, family.is_spare)
    else:
        raise UsageError(f"{path / CONFIG}: model_type {kind!r} is not one of {', '.join((MODEL_TYPE, *FAMILIES))}")
    return Loaded(model, model.shape, config | _chat_template(path), read_text(path, TOKENIZER))


def _read_gguf(path: Path) -> Loaded:
    file = read_gguf(path)
    model = _fitted(file.shape, file.tensors, path, {}, llama.layout)
    config = {name: value for name, value in file.fields.items() if not name.startswith(("tokenizer.ggml.", "GGUF."))}
    if "tokenizer.chat_template" in config:
        config["chat_template"] = config["tokenizer.chat_template"]
    return Loaded(model, file.shape, config, file.tokenizer_json)


def _fitted(
    shape: Shape,
    tensors: Mapping[str, Tensor],
    where: Path,
    config: Mapping[str, Any],
    layout: Callable[[Shape], Layout] | None = None,
    is_spare: Callable[[str], bool] = lambda name: False,
) -> Transformer:
    """The model of this shape with these tensors, once it is known that they fit it."""

    def make() -> Transformer:
        model = Transformer(shape)
        if bottleneck.CONFIG_KEY in config:
            bottleneck.rebuild_(model, config[bottleneck.CONFIG_KEY], str(where))
        if "quantization" in config:
            quantized.rebuild_(model, config["quantization"])
        return model

    check_shape(shape, tensors, str(where))
    names = None if layout is None else layout(shape)
    with torch.device("meta"):  # names and sizes alone, no memory
        sketch = make()
    check_fit(sketch, tensors, str(where), names, is_spare)
    model = make()
    fill_(model, tensors, str(where), names, is_spare)
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    refuse_pickle(folder)
    if not folder.is_dir():
        what = "a file, neither a model folder nor a .gguf file" if folder.exists() else "no such model folder or file"
        raise UsageError(f"{folder}: {what}; name a folder with {CONFIG}, or a .gguf file")
    if not is_there(folder, CONFIG):
        raise UsageError(f"{folder}: not a model folder, {CONFIG} is missing; a run's model lies in its folder model/")
    return read_json(folder, CONFIG)


def _own_shape(config: Mapping[str, Any], where: Path) -> Shape:
    try:
        shape = Shape.model_validate(config.get("shape"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["shape", *map(str, problem["loc"])])
        raise FaultError(f"{where}: {key}: {problem['msg']}; the file is damaged or of another version") from None
    if not all(0 <= number < shape.vocab_size for number in (shape.pad_id, shape.bos_id, shape.eos_id)):
        raise FaultError(f"{where}: shape: pad_id, bos_id and eos_id must be below vocab_size; get the file anew")
    return shape


def _family_shape(family: Family, config: Mapping[str, Any], where: Path) -> Shape:
    try:
        return family.read_shape(config, str(where))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FaultError(f"{where}: a setting is of the wrong kind: {error}; get the file anew") from None


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of all the folder's safetensors files."""
    files = weight_files(folder)
    check_sums(folder, [file.name for file in files])
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(file)
    return tensors


def _chat_template(folder: Path) -> dict[str, str]:
    """The chat template as transformers keeps it: a file of its own, or in the tokenizer's settings."""
    template = read_text(folder, CHAT_TEMPLATE)
    if template is None:
        template = read_json(folder, TOKENIZER_CONFIG).get("chat_template")
    return {"chat_template": template} if isinstance(template, str) else {}
