"""Model folders in the Hugging Face layout: our own, and those of the families that have the same parts.

    config.json          {"model_type": "chinchilla", "shape": {every field of Shape}, …}
    model.safetensors    the weights, tied ones once
    tokenizer.json       of Hugging Face tokenizers
    README.md            the model card

Read: our own folders, Llama, Marian and BERT folders, and GGUF files of the Llama architecture. Written: our own,
Llama and Marian. Nothing here unpickles: a folder with only `pytorch_model.bin` is refused.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import bert, llama, marian, quantized
from chinchilla.models.gguf import read_gguf
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import Layout, fill_, own_tensors, pieces, read_safetensors
from chinchilla.store.atomic import failures_named, sync_folder, write_new

MODEL_TYPE = "chinchilla"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
CARD = "README.md"


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

    The folder appears whole, in place of the model folder that may have been there. An int8 model is written as such.

    Raises:
        UsageError: something else than a model folder is there.
        FaultError: the disk is full or cannot be written.
    """
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["ChinchillaTransformer"],
        "shape": model.shape.model_dump(mode="json"),
        **(extra or {}),
    }
    scheme = quantized.describe(model)
    if scheme is not None:
        config["quantization"] = scheme
    _write(folder, own_tensors(model), config, tokenizer_json, card)


def write_llama(folder: Path, model: Transformer, tokenizer_json: str | None = None, card: str | None = None) -> None:
    """Write a decoder as a folder that transformers' `LlamaForCausalLM` loads.

    Raises:
        UsageError: the model has a part that a Llama does not have; it is named.
        FaultError: the disk is full or cannot be written.
    """
    _refuse_int8(model, folder)
    config = llama.write_config(model.shape)
    tensors = {name: view.clone() for name, view in pieces(model, llama.layout(model.shape))}
    _write(folder, tensors, config, tokenizer_json, card)


def write_marian(folder: Path, model: Transformer, tokenizer_json: str | None = None, card: str | None = None) -> None:
    """Write an encoder-decoder as a folder that transformers' `MarianMTModel` loads.

    Raises:
        UsageError: the model has a part that a Marian does not have; it is named.
        FaultError: the disk is full or cannot be written.
    """
    _refuse_int8(model, folder)
    config = marian.write_config(model.shape)
    tensors = {name: view.clone() for name, view in pieces(model, marian.layout(model.shape))}
    _write(folder, marian.add_bias(tensors, model.shape), config, tokenizer_json, card)


def _refuse_int8(model: Transformer, folder: Path) -> None:
    if quantized.is_quantized(model):
        raise UsageError(
            f"{folder}: other families' layouts have no place for int8 scales; write the model before int8"
        )


def _write(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], tokenizer_json: str | None, card: str | None
) -> None:
    _refuse_other_folders(folder)
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", TOKENIZER: tokenizer_json, CARD: card}
    with failures_named(folder), _replacing(folder) as building:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / WEIGHTS, {"format": "pt"})
        with (building / WEIGHTS).open("rb") as file:
            os.fsync(file.fileno())
        for name, text in texts.items():
            if text is not None:
                write_new(building / name, [text.encode("utf-8")])


def _refuse_other_folders(folder: Path) -> None:
    """Stop before a folder is replaced that holds something else."""
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
        raise UsageError(f"{folder}: there is something else than a model here; choose another folder")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that takes its place when the block ends well, and goes when it does not."""
    folder = folder.absolute()
    mark = secrets.token_hex(4)
    building, old = (folder.with_name(f".{folder.name}.{mark}.{what}") for what in ("tmp", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    building.mkdir()
    try:
        yield building
        sync_folder(building)
        if folder.exists():
            folder.rename(old)
        building.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read_model(path: Path) -> Loaded:
    """Read a model folder, or a `.gguf` file.

    Raises:
        UsageError: there is no model, or one of a family or with a part that is not supported; it is named.
        FaultError: a file is damaged, or a tensor does not fit the shape; it is named.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _read_gguf(path)
    config = _read_config(path)
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        model = Transformer(_own_shape(config, path / CONFIG))
        if "quantization" in config:
            quantized.rebuild_(model, config["quantization"])
        fill_(model, _read_tensors(path), str(path / WEIGHTS))
    elif kind in FAMILIES:
        family = FAMILIES[kind]
        shape = _family_shape(family, config, path / CONFIG)
        model = Transformer(shape)
        tensors = family.prepare(_read_tensors(path))
        fill_(model, tensors, str(path / WEIGHTS), family.layout(shape), family.is_spare)
    else:
        raise UsageError(f"{path / CONFIG}: model_type {kind!r} is not one of {', '.join((MODEL_TYPE, *FAMILIES))}")
    tokenizer = path / TOKENIZER
    return Loaded(
        model.eval(),
        model.shape,
        config | _chat_template(path),
        tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
    )


def _read_gguf(path: Path) -> Loaded:
    file = read_gguf(path)
    model = Transformer(file.shape)
    fill_(model, file.tensors, str(path), llama.layout(file.shape))
    config = {name: value for name, value in file.fields.items() if not name.startswith(("tokenizer.ggml.", "GGUF."))}
    if "tokenizer.chat_template" in config:
        config["chat_template"] = config["tokenizer.chat_template"]
    return Loaded(model.eval(), file.shape, config, file.tokenizer_json)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such model folder or .gguf file")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder}: not a model folder, {CONFIG} is missing; a run's model lies in its folder model/")
    return _read_json(folder / CONFIG)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FaultError(f"{path}: damaged: {error}; get the file anew") from None
    if not isinstance(content, dict):
        raise FaultError(f"{path}: damaged: not a JSON object; get the file anew")
    return content


def _own_shape(config: Mapping[str, Any], where: Path) -> Shape:
    try:
        return Shape.model_validate(config.get("shape"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["shape", *map(str, problem["loc"])])
        raise FaultError(f"{where}: {key}: {problem['msg']}; the file is damaged or of another version") from None


def _family_shape(family: Family, config: Mapping[str, Any], where: Path) -> Shape:
    try:
        return family.read_shape(config, str(where))
    except ValidationError as error:
        raise UsageError(f"{where}: {error.errors()[0]['msg']}") from None


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The folder's one safetensors file, or the several that an index names."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UsageError(f"{folder}: {name} is missing; weights are read from safetensors, never from pickles")
        tensors |= read_safetensors(folder / name)
    return tensors


def _chat_template(folder: Path) -> dict[str, str]:
    """The chat template as transformers keeps it: a file of its own, or in the tokenizer's settings."""
    if (folder / "chat_template.jinja").is_file():
        return {"chat_template": (folder / "chat_template.jinja").read_text(encoding="utf-8")}
    if (folder / "tokenizer_config.json").is_file():
        template = _read_json(folder / "tokenizer_config.json").get("chat_template")
        return {"chat_template": template} if isinstance(template, str) else {}
    return {}
