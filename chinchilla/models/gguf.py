"""Read a GGUF file (llama.cpp's format) of the Llama architecture, dequantised to fp32."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.gguf_header import check_header
from chinchilla.models.weights import need, refuse

CONTROL, USER_DEFINED = 3, 4
"""Token kinds of the format: marks that a text never contains, and words kept whole."""

DIGITS = {"gpt-2": None, "smollm": pre_tokenizers.Digits(individual_digits=True)}
"""How each known pre-tokenizer treats digits before GPT-2's pattern cuts the text."""

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf(NamedTuple):
    """What one file holds: `tensors` carry a Llama's Hugging Face names; `fields` is the file's metadata."""

    shape: Shape
    tensors: dict[str, Tensor]
    fields: dict[str, Any]
    tokenizer_json: str


def read_gguf(path: Path) -> Gguf:
    """Read the whole file.

    Raises:
        UsageError: the `gguf` extra is missing, or another architecture, tokenizer or number format; it is named.
        FaultError: the file is damaged.
    """
    library = _library()
    try:
        check_header(path, library.GGML_QUANT_SIZES)
        reader = library.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise FaultError(f"{path}: not a whole GGUF file: {error}; get the file anew") from None
    stored = {item.name: item for item in reader.tensors}
    with _settings_named(path):
        shape = _read_shape(fields, "output.weight" in stored, str(path))
        tensors = {_name(name, path): _read_tensor(library, item, shape, path) for name, item in stored.items()}
        tokenizer_json = _tokenizer(fields, str(path)).to_str()
    return Gguf(shape, tensors, fields, tokenizer_json)


@contextmanager
def _settings_named(path: Path) -> Iterator[None]:
    """Settings of the wrong kind or size are a fault of the file, wherever they come to light."""
    try:
        yield
    except ChinchillaError:
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise FaultError(f"{path}: damaged: {place}: {problem['msg']}; get the file anew") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise FaultError(f"{path}: damaged: its settings do not fit together: {error}; get the file anew") from None


def _library() -> ModuleType:
    try:
        importlib.import_module("gguf.quants")
        return importlib.import_module("gguf")
    except ImportError:
        raise UsageError("reading GGUF needs the extra gguf: pip install 'chinchilla-ml[gguf]'") from None


def _read_shape(fields: Mapping[str, Any], has_head: bool, where: str) -> Shape:
    family = need(fields, "general.architecture", where)
    scaling = fields.get("llama.rope.scaling.type", "none")
    refuse({f"architecture {family!r}": family != "llama", f"rope scaling {scaling!r}": scaling != "none"}, where)
    dim, num_heads = need(fields, "llama.embedding_length", where), need(fields, "llama.attention.head_count", where)
    eos = need(fields, "tokenizer.ggml.eos_token_id", where)
    return Shape(
        vocab_size=len(need(fields, "tokenizer.ggml.tokens", where)),
        dim=dim,
        num_heads=num_heads,
        num_kv_heads=fields.get("llama.attention.head_count_kv", num_heads),
        head_dim=fields.get("llama.attention.key_length", dim // num_heads),
        ffn_dim=need(fields, "llama.feed_forward_length", where),
        num_decoder_layers=need(fields, "llama.block_count", where),
        max_len=need(fields, "llama.context_length", where),
        position="rotary",
        rope_base=fields.get("llama.rope.freq_base", 10_000.0),
        norm="rms",
        norm_eps=need(fields, "llama.attention.layer_norm_rms_epsilon", where),
        activation="swiglu",
        tied_embeddings=not has_head,
        pad_id=fields.get("tokenizer.ggml.padding_token_id", eos),
        bos_id=need(fields, "tokenizer.ggml.bos_token_id", where),
        eos_id=eos,
    )


def _name(name: str, path: Path) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    part, _, kind = name.rpartition(".")
    if part in _TENSORS:
        return f"{_TENSORS[part]}.{kind}"
    if part.startswith("blk."):
        _, index, inner = part.split(".", 2)
        if inner in _LAYER_TENSORS:
            return f"model.layers.{index}.{_LAYER_TENSORS[inner]}.{kind}"
    raise UsageError(f"{path}: not supported: tensor {name}, which a plain Llama does not have")


def _read_tensor(library: ModuleType, item: Any, shape: Shape, path: Path) -> Tensor:
    try:
        values = torch.from_numpy(library.quants.dequantize(item.data, item.tensor_type).copy()).float()
    except NotImplementedError:
        raise UsageError(f"{path}: not supported: number format {item.tensor_type.name} of {item.name}") from None
    if ".attn_q." in item.name:
        return halves(values, shape.num_heads)
    return halves(values, shape.num_kv_heads) if ".attn_k." in item.name else values


def halves(rows: Tensor, num_heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows: interleaved pairs → the two halves that `rotate` turns."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _tokenizer(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """The byte-level BPE of GPT-2's kind, as the file's vocabulary and merges describe it."""
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    refuse({f"tokenizer {kind!r}": kind != "gpt2", f"pre-tokenizer {cut!r}": cut not in DIGITS}, where)
    tokens = need(fields, "tokenizer.ggml.tokens", where)
    merges = [pair.partition(" ")[::2] for pair in need(fields, "tokenizer.ggml.merges", where)]
    tokenizer = Tokenizer(_bpe(tokens, merges, where))
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False)))
    digits = DIGITS[cut]
    tokenizer.pre_tokenizer = pattern if digits is None else pre_tokenizers.Sequence([digits, pattern])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    marks = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    words = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    if fields.get("tokenizer.ggml.add_bos_token", False):
        bos = tokens[fields["tokenizer.ggml.bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return tokenizer


def _bpe(tokens: Sequence[str], merges: Sequence[tuple[str, str]], where: str) -> models.BPE:
    try:
        return models.BPE({token: index for index, token in enumerate(tokens)}, merges)
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        raise FaultError(f"{where}: damaged: its tokens and merges are no tokenizer: {error}") from None
