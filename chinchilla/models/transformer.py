"""One Transformer: encoder-decoder, decoder-only or encoder-only by its shape."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chinchilla.config.shape import ImageStem, Shape
from chinchilla.models.attention import Rotation, causal_mask
from chinchilla.models.block import Block, Dropout, kept_paths
from chinchilla.models.boxes import BoxHead
from chinchilla.models.cache import KVCache
from chinchilla.models.embed import Embed
from chinchilla.models.head import Reconstruction, TokenHead
from chinchilla.models.norm import make_norm
from chinchilla.models.position import rotation
from chinchilla.models.stem import Stem, make_stem


class Output(NamedTuple):
    """What `forward` returns.

    `hidden` (batch, length, dim): the last layer's states, the decoder's where there is one; of images (batch, 1, dim),
    what their class is read from.
    `memory` (batch, source, dim): the encoder's states, or None.
    """

    hidden: Tensor
    memory: Tensor | None


class Stack(nn.Module):
    """A loop over blocks and the norm that closes it (pre-norm only)."""

    def __init__(self, shape: Shape, num_layers: int, causal: bool, cross: bool, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(shape, causal, cross, dropout) for _ in range(num_layers))
        self.norm = make_norm(shape) if shape.norm_order == "pre" else nn.Identity()
        self.recompute = False
        self.drop_path = 0.0
        self.generator: torch.Generator | None = None
        self._branches = 3 if cross else 2

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        turn: Rotation | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """`x` (batch, length, dim) → the same shape; `segments` (batch, length) number the examples of each row."""
        for index, layer in enumerate(self.layers):
            own = cache.self_layers[index] if cache else None
            cross = cache.cross_layers[index] if cache else None
            paths = self._paths(index, x, segments) if self.drop_path and self.training else None
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = computed_again(layer, x, mask, turn, memory, memory_mask, None, None, paths)
            else:
                x = layer(x, mask, turn, memory, memory_mask, own, cross, paths)
        return self.norm(x)

    def _paths(self, index: int, x: Tensor, segments: Tensor | None) -> Tensor:
        """Which branches of a layer are dropped: more often from layer to layer, up to `drop_path` (Huang 2016)."""
        rate = self.drop_path * (index + 1) / len(self.layers)
        return kept_paths(self._branches, x, segments, rate, self.generator)


def computed_again(block: nn.Module, *inputs: Any) -> Tensor:
    """A block's output; its activations are not kept, but made again in the backward pass (Chen 2016)."""
    generator = cast(Block, block).dropout.generator
    if generator is None:
        return checkpoint(block, *inputs, use_reentrant=False)
    state = generator.get_state()
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _rewound(generator, state)),
    )


@contextlib.contextmanager
def _rewound(generator: torch.Generator, state: Tensor) -> Iterator[None]:
    """Draw again what was drawn from `state` on, and go on as if nothing had been drawn."""
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)


class Transformer(nn.Module):
    """A model of the given `Shape`; `dropout` acts on embeddings and on every residual branch while training."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embed: Embed | Stem = (
            Embed(shape, dropout) if shape.stem is None else make_stem(shape, shape.stem, dropout)
        )
        has_encoder, has_decoder = shape.num_encoder_layers > 0, shape.num_decoder_layers > 0
        self.encoder = Stack(shape, shape.num_encoder_layers, False, False, dropout) if has_encoder else None
        self.decoder = Stack(shape, shape.num_decoder_layers, True, has_encoder, dropout) if has_decoder else None
        tied = self.embed.tokens.weight if isinstance(self.embed, Embed) and shape.tied_head else None
        self.head = TokenHead(shape.dim, shape.num_outputs, shape.head_bias, tied)
        self.box_head = BoxHead(shape.dim, shape.stem) if shape.boxes and isinstance(shape.stem, ImageStem) else None
        self.encoder_reconstruction = Reconstruction(shape.dim) if shape.reconstruct and has_encoder else None
        self.decoder_reconstruction = Reconstruction(shape.dim) if shape.reconstruct and has_decoder else None
        self.generator: torch.Generator | None = None
        self.reset_parameters()

    def draw_from(self, generator: torch.Generator) -> None:
        """Take dropout's masks and other noise from this CPU generator instead of torch's own."""
        self.generator = generator
        for module in self.modules():
            if isinstance(module, Dropout | Stack):
                module.generator = generator

    def recompute_(self, on: bool) -> None:
        """Whether training makes the blocks' activations again in the backward pass instead of keeping them."""
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.recompute = on

    def drop_path_(self, rate: float) -> None:
        """How often training drops a residual branch of the last block for an example; of those before it, less."""
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.drop_path = rate

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 1/√fan_in, branch outputs scaled by 1/√(2·layers), zero biases."""
        depth = 2 * max(self.shape.num_encoder_layers, self.shape.num_decoder_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif parameter.dim() == 4:
                nn.init.normal_(parameter, std=math.sqrt(2 / parameter[0].numel()))  # what feeds a ReLU (He 2015)
            elif name.startswith(("embed", "head")):
                # Classes begin near to equal chances; a vocabulary's table is the embedding's too.
                start = 0.1 if name.startswith("head.") and self.shape.num_classes else 1.0
                nn.init.normal_(parameter, std=start * self.shape.dim**-0.5)
            elif name == "box_head.out.weight":
                # Each patch first looks at its own place, or chance would say which is matched to a box.
                nn.init.normal_(parameter, std=0.1 * self.shape.dim**-0.5)
            else:
                branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 / (math.sqrt(depth) if branch else 1))
        if isinstance(self.embed, Stem):
            self.embed.lay_out_()

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        *,
        source_segments: Tensor | None = None,
        target_segments: Tensor | None = None,
    ) -> Output:
        """Run the whole model over whole sequences, as in training.

        `source` (batch, source) int64, or what the shape's stem takes, feeds the encoder, `target` (batch, length)
        int64 the decoder. A row may hold
        several examples one after the other: segments, in `source`'s and `target`'s shapes, number them from 1 (0 is
        padding), and no example sees another. Without segments each row is one example without padding
        (the target's may have padding at its right, which nothing real sees).
        """
        memory = None if source is None else self.encode(source, source_segments)
        if target is None:
            if memory is None:
                raise ValueError("forward needs source, target or both")
            return Output(self.read_out(memory), memory)
        return Output(self.decode(target, memory, source_segments, target_segments=target_segments), memory)

    def encode(self, source: Tensor, segments: Tensor | None = None) -> Tensor:
        """`source` (batch, length) int64, or what the stem takes → states (batch, length, dim).

        `segments` (batch, length), bool or int64, is 0 at padding; different numbers do not see each other.
        """
        if self.encoder is None:
            raise ValueError("this model has no encoder")
        length = source.shape[1] if self.shape.stem is None else self.shape.stem.num_positions
        self._check_length(length)
        positions = self._positions(length, source.device, segments)
        mask = None if segments is None else self._mask(segments, segments)
        return self.encoder(self.embed(source, positions), mask, self._rotation(positions), segments=segments)

    def decode(
        self,
        target: Tensor,
        memory: Tensor | None = None,
        memory_segments: Tensor | None = None,
        cache: KVCache | None = None,
        target_segments: Tensor | None = None,
    ) -> Tensor:
        """`target` (batch, new) int64, after what `cache` holds → states (batch, new, dim).

        `memory` (batch, source, dim) comes from the encoder, `memory_segments` (batch, source) went into it.
        `target_segments` (batch, new) is for whole packed rows, without a cache.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder")
        self._check_length(target.shape[1] + (cache.length if cache else 0))
        if cache:
            positions = cache.positions(target.shape[1], target.device)
            mask = self._cached_mask(cache, target.shape[1], target.device)
        else:
            positions = self._positions(target.shape[1], target.device, target_segments)
            mask = None if target_segments is None else self._mask(target_segments, target_segments, causal=True)
        cross = None if memory_segments is None else _cross_mask(target_segments, memory_segments)
        x = self.embed(target, positions)
        return self.decoder(x, mask, self._rotation(positions), memory, cross, cache, target_segments)

    def read_out(self, states: Tensor) -> Tensor:
        """What classes are read from, of an encoder's states (batch, length, dim).

        Images: (batch, 1, dim), the mean of the patches, or the class token. Else all states: a label says where.
        """
        stem = self.shape.stem
        if not isinstance(stem, ImageStem):
            return states
        return states.mean(1, keepdim=True) if stem.pooled else states[:, :1]

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` (…, dim) → (…, vocab_size), or (…, num_classes)."""
        return self.head(hidden)

    def _positions(self, length: int, device: torch.device, segments: Tensor | None) -> Tensor:
        """(length,), or (batch, length) counted from the start of each segment."""
        index = torch.arange(length, device=device)
        # Rotary attention sees differences of positions only, and those are the same either way.
        if segments is None or segments.dtype == torch.bool or self.shape.position == "rotary":
            return index
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return index - torch.where(begins, index, 0).cummax(dim=1).values

    def _mask(self, queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
        """The mask of one sequence to itself, as `SelfAttention` wants it for this shape's kind of attention."""
        if self.shape.attention == "block":
            if keys.dtype != torch.bool and int(keys.max()) > 1:
                raise ValueError("block attention takes one example a row: pack no segments")
            return keys != 0
        mask = keys.bool()[:, None, None, :] if keys.dtype == torch.bool else _same(queries, keys)
        if causal:
            mask = mask & causal_mask(queries.shape[1], keys.shape[1], queries.device)
        return mask

    def _cached_mask(self, cache: KVCache, new: int, device: torch.device) -> Tensor | None:
        """The mask of `new` tokens to the cached ones and themselves; None where they see all the past."""
        length = cache.length + new
        if cache.left_padding is None:
            needless = self.shape.attention == "block" or new == 1 or cache.length == 0
            return None if needless else causal_mask(new, length, device)[None, None]
        real = torch.arange(length, device=device)[None, :] >= cache.left_padding[:, None]
        if self.shape.attention == "block":
            return real
        # A query inside the padding would see nothing and turn into NaN: let it see itself.
        seen = causal_mask(new, length, device) & (real[:, None, :] | torch.eye(length, device=device).bool()[-new:])
        return seen[:, None]

    def _rotation(self, positions: Tensor) -> Rotation | None:
        if self.shape.position != "rotary":
            return None
        cos, sin = rotation(positions, self.shape.head_dim, self.shape.rope_base)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def _check_length(self, length: int) -> None:
        # Rotary positions reach further than they were trained, but never silently.
        if length > self.shape.max_len:
            raise ValueError(f"a sequence of {length} tokens does not fit max_len {self.shape.max_len}")


def _same(queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, 1, queries, keys): True where the segment numbers agree; padding (0) sees padding only."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def _cross_mask(queries: Tensor | None, keys: Tensor) -> Tensor:
    """The mask of a decoder's queries (None: one segment a row) to the encoder's states."""
    if queries is None or keys.dtype == torch.bool:
        return (keys != 0)[:, None, None, :]
    return _same(queries, keys)
