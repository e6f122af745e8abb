"""Marian's folder (Junczys-Dowmunt 2018; `MarianMTModel` of Hugging Face transformers): names and settings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chinchilla.config.shape import Activation, Shape
from chinchilla.models.llama import first
from chinchilla.models.weights import Layout, Piece, need, refuse

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "relu": "relu", "swish": "silu", "silu": "silu"}
NORM_EPS = 1e-5
BIAS = "final_logits_bias"


def read_shape(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a Marian's `config.json` describes; `bos_id` is the id that decoding starts from.

    Raises:
        UsageError: a missing setting, or one that the shape cannot carry; it is named.
    """
    activation = config.get("activation_function", "gelu")
    num_heads, ffn_dim = need(config, "encoder_attention_heads", where), need(config, "encoder_ffn_dim", where)
    vocab_size, dim = need(config, "vocab_size", where), need(config, "d_model", where)
    refuse(
        {
            f"activation_function {activation!r}": activation not in ACTIVATIONS,
            "decoder heads unlike the encoder's": config.get("decoder_attention_heads") != num_heads,
            "decoder_ffn_dim unlike the encoder's": config.get("decoder_ffn_dim") != ffn_dim,
            "separate embeddings": not config.get("share_encoder_decoder_embeddings", True),
            "untied embeddings": not config.get("tie_word_embeddings", True),
            "a decoder vocabulary of its own": (config.get("decoder_vocab_size") or vocab_size) != vocab_size,
            "quantization_config": "quantization_config" in config,
        },
        where,
    )
    pad = first(config.get("pad_token_id"), 58100)
    return Shape(
        vocab_size=vocab_size,
        dim=dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=dim // num_heads,
        ffn_dim=ffn_dim,
        num_encoder_layers=need(config, "encoder_layers", where),
        num_decoder_layers=need(config, "decoder_layers", where),
        max_len=config.get("max_position_embeddings", 1024),
        position="sinusoidal",
        norm="layer",
        norm_order="post",
        norm_eps=NORM_EPS,
        activation=ACTIVATIONS[activation],
        bias=True,
        embed_scale=bool(config.get("scale_embedding", False)),
        head_bias=True,
        pad_id=pad,
        bos_id=first(config.get("decoder_start_token_id"), pad),
        eos_id=first(config.get("eos_token_id"), 0),
    )


def is_spare(name: str) -> bool:
    """Whether a tensor of a Marian's file can be left: the sinusoids, and copies of the shared table."""
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return name.endswith("embed_positions.weight") or name in copies


def flatten_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with the logits' bias `(1, vocab_size)` as `(vocab_size,)`."""
    return tensors | {BIAS: tensors[BIAS].flatten()} if BIAS in tensors else tensors


def add_bias(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The same tensors, with the logits' bias in a Marian's form; zeros where the model has none."""
    bias = tensors[BIAS] if BIAS in tensors else torch.zeros(shape.vocab_size)
    return tensors | {BIAS: bias[None]}


def layout(shape: Shape) -> Layout:
    """Our tensors in a Marian's names."""
    names: dict[str, tuple[Piece, ...]] = {
        "embed.tokens.weight": (Piece("model.shared.weight", shape.vocab_size),),
        "head.bias": (Piece(BIAS, shape.vocab_size),),
    }
    for side, num_layers in (("encoder", shape.num_encoder_layers), ("decoder", shape.num_decoder_layers)):
        for index in range(num_layers):
            names |= _layer(shape.dim, shape.ffn_dim, f"{side}.layers.{index}.", f"model.{side}.layers.{index}.")
    return names


def _layer(dim: int, ffn_dim: int, ours: str, theirs: str) -> dict[str, tuple[Piece, ...]]:
    names: dict[str, tuple[Piece, ...]] = {}
    for kind in ("weight", "bias"):
        own, cross = f"{theirs}self_attn.", f"{theirs}encoder_attn."
        names |= {
            f"{ours}attention.qkv.{kind}": tuple(Piece(f"{own}{x}_proj.{kind}", dim) for x in "qkv"),
            f"{ours}attention.out.{kind}": (Piece(f"{own}out_proj.{kind}", dim),),
            f"{ours}attention_norm.{kind}": (Piece(f"{theirs}self_attn_layer_norm.{kind}", dim),),
            f"{ours}cross.query.{kind}": (Piece(f"{cross}q_proj.{kind}", dim),),
            f"{ours}cross.kv.{kind}": tuple(Piece(f"{cross}{x}_proj.{kind}", dim) for x in "kv"),
            f"{ours}cross.out.{kind}": (Piece(f"{cross}out_proj.{kind}", dim),),
            f"{ours}cross_norm.{kind}": (Piece(f"{theirs}encoder_attn_layer_norm.{kind}", dim),),
            f"{ours}mlp.up.{kind}": (Piece(f"{theirs}fc1.{kind}", ffn_dim),),
            f"{ours}mlp.down.{kind}": (Piece(f"{theirs}fc2.{kind}", dim),),
            f"{ours}mlp_norm.{kind}": (Piece(f"{theirs}final_layer_norm.{kind}", dim),),
        }
    return names


def write_config(shape: Shape) -> dict[str, Any]:
    """The `config.json` of a Marian of this shape.

    Raises:
        UsageError: a part of the shape that a Marian does not have; it is named.
    """
    refuse(
        {
            "no encoder": shape.num_encoder_layers == 0,
            "no decoder": shape.num_decoder_layers == 0,
            f"attention = {shape.attention}": shape.attention != "full",
            f"position = {shape.position}": shape.position != "sinusoidal",
            f"norm = {shape.norm}": shape.norm != "layer",
            f"norm_order = {shape.norm_order}": shape.norm_order != "post",
            f"norm_eps = {shape.norm_eps}": shape.norm_eps != NORM_EPS,
            f"activation = {shape.activation}": shape.activation not in ACTIVATIONS.values(),
            "bias = false": not shape.bias,
            "qk_norm": shape.qk_norm,
            "embed_norm": shape.embed_norm,
            "grouped keys": shape.num_kv_heads != shape.num_heads,
            "untied embeddings": not shape.tied_embeddings,
            "heads that do not fill dim": shape.num_heads * shape.head_dim != shape.dim,
        },
        "a Marian",
    )
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": shape.vocab_size,
        "decoder_vocab_size": shape.vocab_size,
        "d_model": shape.dim,
        "encoder_layers": shape.num_encoder_layers,
        "decoder_layers": shape.num_decoder_layers,
        "encoder_attention_heads": shape.num_heads,
        "decoder_attention_heads": shape.num_heads,
        "encoder_ffn_dim": shape.ffn_dim,
        "decoder_ffn_dim": shape.ffn_dim,
        "activation_function": shape.activation,
        "max_position_embeddings": shape.max_len,
        "scale_embedding": shape.embed_scale,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "pad_token_id": shape.pad_id,
        "bos_token_id": None,
        "eos_token_id": shape.eos_id,
        "forced_eos_token_id": shape.eos_id,
        "decoder_start_token_id": shape.bos_id,
    }
