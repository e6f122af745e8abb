"""The shape of a model: everything needed to build it, count it and load it again."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from chinchilla.config.frozen import Frozen

AttentionKind = Literal["full", "block", "gated"]
PositionKind = Literal["sinusoidal", "learned", "rotary"]
NormKind = Literal["layer", "rms"]
NormOrder = Literal["pre", "post"]
Activation = Literal["gelu", "swiglu", "relu2", "silu", "relu"]
Patch = Literal[2, 4, 8, 16]


class ImageStem(Frozen):
    """Images as a sequence: convolutions down to one position for each `patch` × `patch` pixels.

    `pooled`: their outputs are normed and max-pooled, and a class is read from the mean of the patches. Models from
    before that had strides, and a class token.
    """

    kind: Literal["image"] = "image"
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt = 3
    patch: Patch = 4
    pooled: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"{self.height}x{self.width} pixels do not cut into patches of {self.patch}")
        return self

    @property
    def class_token(self) -> bool:
        """Whether a class token goes before the patches."""
        return not self.pooled

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def num_positions(self) -> int:
        """Patches, and the class token before them."""
        return self.class_token + self.num_patches


class TableStem(Frozen):
    """A table's row as a sequence, a position a column: first the numbers, then the categories.

    `cardinalities` count each category column's codes: 0 is missing, 1 unknown. A number's vector is a line, bent
    between as many `pieces` of its distribution; 0 is a straight one.
    """

    kind: Literal["table"] = "table"
    num_numeric: NonNegativeInt
    cardinalities: tuple[PositiveInt, ...] = ()
    pieces: NonNegativeInt = 0

    @property
    def class_token(self) -> bool:
        """Whether a class token goes before the columns: always."""
        return True

    @property
    def num_positions(self) -> int:
        """Columns, and the class token before them."""
        return 1 + self.num_numeric + len(self.cardinalities)


Stem = Annotated[ImageStem | TableStem, Field(discriminator="kind")]


class Shape(Frozen):
    """The shape of one `Transformer`.

    Encoder-decoder, decoder-only and encoder-only differ only in which of `num_encoder_layers` and
    `num_decoder_layers` is zero. Source and target share one embedding table. A `stem` takes the table's place where
    the source is no tokens. With `num_classes` the head chooses among those instead of the vocabulary, at the position
    of a class token, the first of each example, or by the mean of an image's patches. With `boxes` every patch of an
    image has classes and a box.
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
    stem: Stem | None = None
    num_classes: NonNegativeInt = 0
    boxes: bool = False
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
        if self.stem is not None and not (self.num_classes and self.num_encoder_layers and not self.num_decoder_layers):
            raise ValueError("a stem needs an encoder alone, and num_classes")
        if self.boxes and not isinstance(self.stem, ImageStem):
            raise ValueError("boxes are found in images: they need an image stem")
        if self.stem is not None and self.reconstruct:
            raise ValueError("feature reconstruction needs tokens, and a stem takes none")
        if self.stem is not None and self.stem.num_positions > self.max_len:
            raise ValueError(f"max_len ({self.max_len}) is below the stem's {self.stem.num_positions} positions")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        return self

    @property
    def num_outputs(self) -> int:
        """What the head chooses among: classes, or tokens."""
        return self.num_classes or self.vocab_size

    @property
    def tied_head(self) -> bool:
        """Whether the head's matrix is the embedding table."""
        return self.tied_embeddings and not self.num_classes
