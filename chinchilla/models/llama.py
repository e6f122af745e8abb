"""Llama's folder (Touvron 2023; `LlamaForCausalLM` of Hugging Face transformers): names and settings."""

from collections.abc import Mapping
from typing import Any

from chinchilla.config.shape import Shape
from chinchilla.models.weights import Layout, Piece, need, refuse


def read_shape(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a Llama's `config.json` describes.

    Where the file names several end-of-text ids, the shape holds the first; without a padding id, that one.

    Raises:
        UsageError: a missing setting, or one that the shape cannot carry; it is named.
    """
    rope = _rope(config)
    refuse(
        {
            f"rope scaling {rope['rope_type']!r}": rope["rope_type"] != "default",
            f"partial_rotary_factor {rope['partial_rotary_factor']}": rope["partial_rotary_factor"] != 1.0,
            f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
            "attention_bias unlike mlp_bias": bool(config.get("attention_bias")) != bool(config.get("mlp_bias")),
            "quantization_config": "quantization_config" in config,
        },
        where,
    )
    dim, num_heads = need(config, "hidden_size", where), need(config, "num_attention_heads", where)
    eos = first(config.get("eos_token_id"), 2)
    return Shape(
        vocab_size=need(config, "vocab_size", where),
        dim=dim,
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or dim // num_heads,
        ffn_dim=need(config, "intermediate_size", where),
        num_decoder_layers=need(config, "num_hidden_layers", where),
        max_len=config.get("max_position_embeddings", 2048),
        position="rotary",
        rope_base=rope["rope_theta"],
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias=bool(config.get("attention_bias")),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        pad_id=first(config.get("pad_token_id"), eos),
        bos_id=first(config.get("bos_token_id"), 1),
        eos_id=eos,
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings as transformers 5 keeps them, or as 4 did (`rope_theta`, `rope_scaling`)."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "rope_type": given.get("rope_type", given.get("type", "default")),
        "rope_theta": given.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "partial_rotary_factor": given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)),
    }


def first(ids: int | list[int] | None, absent: int) -> int:
    """A token id, the first of several, or `absent`."""
    if isinstance(ids, list):
        return ids[0] if ids else absent
    return absent if ids is None else ids


def is_spare(name: str) -> bool:
    """Whether a tensor of a Llama's file can be left: the rotary table, and the head where it is tied."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def layout(shape: Shape) -> Layout:
    """Our tensors in a Llama's names."""
    names: dict[str, tuple[Piece, ...]] = {
        "embed.tokens.weight": (Piece("model.embed_tokens.weight", shape.vocab_size),),
        "decoder.norm.weight": (Piece("model.norm.weight", shape.dim),),
        "head.weight": (Piece("lm_head.weight", shape.vocab_size),),
    }
    for index in range(shape.num_decoder_layers):
        names |= _layer(shape, f"decoder.layers.{index}.", f"model.layers.{index}.")
    return names


def _layer(shape: Shape, ours: str, theirs: str) -> dict[str, tuple[Piece, ...]]:
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    names: dict[str, tuple[Piece, ...]] = {
        f"{ours}attention_norm.weight": (Piece(f"{theirs}input_layernorm.weight", shape.dim),),
        f"{ours}mlp_norm.weight": (Piece(f"{theirs}post_attention_layernorm.weight", shape.dim),),
    }
    for kind in ("weight", "bias"):
        names[f"{ours}attention.qkv.{kind}"] = (
            Piece(f"{theirs}self_attn.q_proj.{kind}", width),
            Piece(f"{theirs}self_attn.k_proj.{kind}", kv_width),
            Piece(f"{theirs}self_attn.v_proj.{kind}", kv_width),
        )
        names[f"{ours}attention.out.{kind}"] = (Piece(f"{theirs}self_attn.o_proj.{kind}", shape.dim),)
        names[f"{ours}mlp.up.{kind}"] = (
            Piece(f"{theirs}mlp.gate_proj.{kind}", shape.ffn_dim),
            Piece(f"{theirs}mlp.up_proj.{kind}", shape.ffn_dim),
        )
        names[f"{ours}mlp.down.{kind}"] = (Piece(f"{theirs}mlp.down_proj.{kind}", shape.dim),)
    return names


def write_config(shape: Shape) -> dict[str, Any]:
    """The `config.json` of a Llama of this shape.

    Raises:
        UsageError: a part of the shape that a Llama does not have; it is named.
    """
    refuse(
        {
            "an encoder": shape.num_encoder_layers > 0,
            f"attention = {shape.attention}": shape.attention != "full",
            f"position = {shape.position}": shape.position != "rotary",
            f"norm = {shape.norm}": shape.norm != "rms",
            f"norm_order = {shape.norm_order}": shape.norm_order != "pre",
            f"activation = {shape.activation}": shape.activation != "swiglu",
            "qk_norm": shape.qk_norm,
            "embed_norm": shape.embed_norm,
            "embed_scale": shape.embed_scale,
            "head_bias": shape.head_bias,
            "a dim that num_heads does not divide": shape.dim % shape.num_heads > 0,
        },
        "a Llama",
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.num_decoder_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_len,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "attention_bias": shape.bias,
        "mlp_bias": shape.bias,
        "tie_word_embeddings": shape.tied_embeddings,
        "pad_token_id": shape.pad_id,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
    }
