"""One Transformer: encoder-decoder, decoder-only or encoder-only by its shape."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from chinchilla.config.shape import Shape
from chinchilla.models.attention import Rotation
from chinchilla.models.block import Block, make_norm
from chinchilla.models.cache import KVCache
from chinchilla.models.embed import Embed
from chinchilla.models.head import Reconstruction, TokenHead
from chinchilla.models.position import rotation


class Output(NamedTuple):
    """What `forward` returns.

    `hidden` (batch, length, dim): the last layer's states, the decoder's where there is one.
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

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        turn: Rotation | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`x` (batch, length, dim) → the same shape."""
        for index, layer in enumerate(self.layers):
            own = cache.self_layers[index] if cache else None
            cross = cache.cross_layers[index] if cache else None
            x = layer(x, mask, turn, memory, memory_mask, own, cross)
        return self.norm(x)


class Transformer(nn.Module):
    """A model of the given `Shape`; `dropout` acts on embeddings and on every residual branch while training."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embed = Embed(shape, dropout)
        has_encoder, has_decoder = shape.num_encoder_layers > 0, shape.num_decoder_layers > 0
        self.encoder = Stack(shape, shape.num_encoder_layers, False, False, dropout) if has_encoder else None
        self.decoder = Stack(shape, shape.num_decoder_layers, True, has_encoder, dropout) if has_decoder else None
        tied = self.embed.tokens.weight if shape.tied_embeddings else None
        self.head = TokenHead(shape.dim, shape.vocab_size, shape.head_bias, tied)
        self.encoder_reconstruction = Reconstruction(shape.dim) if shape.reconstruct and has_encoder else None
        self.decoder_reconstruction = Reconstruction(shape.dim) if shape.reconstruct and has_decoder else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 1/√fan_in, branch outputs scaled by 1/√(2·layers), zero biases."""
        depth = 2 * max(self.shape.num_encoder_layers, self.shape.num_decoder_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif name.startswith(("embed", "head")):
                nn.init.normal_(parameter, std=self.shape.dim**-0.5)
            else:
                branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 / (math.sqrt(depth) if branch else 1))

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        *,
        source_mask: Tensor | None = None,
    ) -> Output:
        """Run the whole model over whole sequences, as in training.

        `source` (batch, source) int64 with `source_mask` (batch, source), True at real tokens, feeds the encoder;
        `target` (batch, length) int64, padded at the right if at all, feeds the decoder.
        """
        memory = None if source is None else self.encode(source, source_mask)
        if target is None:
            if memory is None:
                raise ValueError("forward needs source, target or both")
            return Output(memory, memory)
        return Output(self.decode(target, memory, source_mask), memory)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """`source` (batch, length) int64, `source_mask` (batch, length) bool → states (batch, length, dim)."""
        if self.encoder is None:
            raise ValueError("this model has no encoder")
        self._check_length(source.shape[1])
        positions = torch.arange(source.shape[1], device=source.device)
        return self.encoder(self.embed(source, positions), source_mask, self._rotation(positions))

    def decode(
        self,
        target: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`target` (batch, new) int64, after what `cache` holds → states (batch, new, dim).

        `memory` (batch, source, dim) and `memory_mask` (batch, source) come from the encoder.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder")
        new = target.shape[1]
        past = cache.length if cache else 0
        self._check_length(past + new)
        device = target.device
        positions = cache.positions(new, device) if cache else torch.arange(new, device=device)
        mask = None
        if cache and cache.left_padding is not None:
            mask = torch.arange(past + new, device=device)[None, :] >= cache.left_padding[:, None]
        x = self.embed(target, positions)
        return self.decoder(x, mask, self._rotation(positions), memory, memory_mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` (…, dim) → (…, vocab_size)."""
        return self.head(hidden)

    def _rotation(self, positions: Tensor) -> Rotation | None:
        if self.shape.position != "rotary":
            return None
        cos, sin = rotation(positions, self.shape.head_dim, self.shape.rope_base)
        return (cos, sin) if positions.dim() == 1 else (cos[:, None], sin[:, None])

    def _check_length(self, length: int) -> None:
        # Rotary positions reach further than they were trained, but never silently.
        if length > self.shape.max_len:
            raise ValueError(f"a sequence of {length} tokens does not fit max_len {self.shape.max_len}")
