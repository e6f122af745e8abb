"""The shape of a model: everything needed to build it, count it and load it again."""

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from chinchilla.config.frozen import Frozen

AttentionKind = Literal["full", "block", "gated"]
PositionKind = Literal["sinusoidal", "learned", "rotary"]
NormKind = Literal["layer", "rms"]
NormOrder = Literal["pre", "post"]
Activation = Literal["gelu", "swiglu", "relu2", "silu", "relu"]


class Shape(Frozen):
    """The shape of one `Transformer`.

    Encoder-decoder, decoder-only and encoder-only differ only in which of `num_encoder_layers` and
    `num_decoder_layers` is zero. Source and target share one embedding table.
    """

    vocab_size: PositiveInt
    dim: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    ffn_dim: PositiveInt
    num_encoder_layers: int = 0
    num_decoder_layers: int = 0
    max_len: PositiveInt = 512

    attention: AttentionKind = "full"
    block_len: PositiveInt = 64
    block_summaries: bool = True
    position: PositionKind = "rotary"
    rope_base: float = 10_000.0
    norm: NormKind = "rms"
    norm_order: NormOrder = "pre"
    norm_eps: float = 1e-5
    activation: Activation = "relu2"
    qk_norm: bool = False
    bias: bool = False
    embed_norm: bool = False
    embed_scale: bool = False
    tied_embeddings: bool = True
    head_bias: bool = False
    reconstruct: bool = False

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.num_encoder_layers, self.num_decoder_layers) < 0:
            raise ValueError("the number of layers cannot be negative")
        if self.num_encoder_layers + self.num_decoder_layers == 0:
            raise ValueError("a model needs an encoder or a decoder layer")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        return self
