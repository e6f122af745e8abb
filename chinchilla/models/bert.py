"""BERT's folder (Devlin 2019; `BertModel` of Hugging Face transformers): names and settings, for reading."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from chinchilla.config.shape import Activation, Shape
from chinchilla.models.weights import Layout, Piece, need, refuse

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "relu": "relu", "silu": "silu"}
SEGMENTS = "embeddings.token_type_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"


def read_shape(config: Mapping[str, Any], where: str) -> Shape:
    """The shape of an encoder that a BERT's `config.json` describes.

    The file does not tell the ids that open and close a text: `bos_id` and `eos_id` are the padding id.

    Raises:
        UsageError: a missing setting, or one that the shape cannot carry; it is named.
    """
    activation = config.get("hidden_act", "gelu")
    positions = config.get("position_embedding_type", "absolute")
    refuse(
        {
            f"hidden_act {activation!r}": activation not in ACTIVATIONS,
            f"position_embedding_type {positions!r}": positions != "absolute",
            "is_decoder": bool(config.get("is_decoder")),
            "quantization_config": "quantization_config" in config,
        },
        where,
    )
    dim, num_heads = need(config, "hidden_size", where), need(config, "num_attention_heads", where)
    pad = config.get("pad_token_id") or 0
    return Shape(
        vocab_size=need(config, "vocab_size", where),
        dim=dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=dim // num_heads,
        ffn_dim=need(config, "intermediate_size", where),
        num_encoder_layers=need(config, "num_hidden_layers", where),
        max_len=config.get("max_position_embeddings", 512),
        position="learned",
        norm="layer",
        norm_order="post",
        norm_eps=config.get("layer_norm_eps", 1e-12),
        activation=ACTIVATIONS[activation],
        bias=True,
        embed_norm=True,
        pad_id=pad,
        bos_id=pad,
        eos_id=pad,
    )


def is_spare(name: str) -> bool:
    """Whether a tensor of a BERT's file can be left: pooler, task heads, the segment table once folded."""
    return name.startswith(("pooler.", "cls.", "classifier.")) or name in (SEGMENTS, "embeddings.position_ids")


def fold_segments(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors without the prefix of a task model, the first segment added to every position."""
    plain = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    if SEGMENTS in plain and POSITIONS in plain:
        plain[POSITIONS] = plain[POSITIONS] + plain[SEGMENTS][0]
    return plain


def layout(shape: Shape) -> Layout:
    """Our tensors in a BERT's names."""
    names: dict[str, tuple[Piece, ...]] = {
        "embed.tokens.weight": (Piece("embeddings.word_embeddings.weight", shape.vocab_size),),
        "embed.position.table": (Piece(POSITIONS, shape.max_len),),
        "embed.norm.weight": (Piece("embeddings.LayerNorm.weight", shape.dim),),
        "embed.norm.bias": (Piece("embeddings.LayerNorm.bias", shape.dim),),
    }
    for index in range(shape.num_encoder_layers):
        names |= _layer(shape.dim, shape.ffn_dim, f"encoder.layers.{index}.", f"encoder.layer.{index}.")
    return names


def _layer(dim: int, ffn_dim: int, ours: str, theirs: str) -> dict[str, tuple[Piece, ...]]:
    names: dict[str, tuple[Piece, ...]] = {}
    for kind in ("weight", "bias"):
        own = f"{theirs}attention.self."
        names |= {
            f"{ours}attention.qkv.{kind}": tuple(Piece(f"{own}{x}.{kind}", dim) for x in ("query", "key", "value")),
            f"{ours}attention.out.{kind}": (Piece(f"{theirs}attention.output.dense.{kind}", dim),),
            f"{ours}attention_norm.{kind}": (Piece(f"{theirs}attention.output.LayerNorm.{kind}", dim),),
            f"{ours}mlp.up.{kind}": (Piece(f"{theirs}intermediate.dense.{kind}", ffn_dim),),
            f"{ours}mlp.down.{kind}": (Piece(f"{theirs}output.dense.{kind}", dim),),
            f"{ours}mlp_norm.{kind}": (Piece(f"{theirs}output.LayerNorm.{kind}", dim),),
        }
    return names
