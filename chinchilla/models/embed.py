"""The token stem: ids to vectors."""

import math

import torch
from torch import Tensor, nn

from chinchilla.config.shape import Shape
from chinchilla.models.block import Dropout
from chinchilla.models.norm import make_norm
from chinchilla.models.position import LearnedPosition, SinusoidalPosition


class Embed(nn.Module):
    """Token embeddings, scaled and normed where the shape says so, with positions added unless rotary."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.scale = math.sqrt(shape.dim) if shape.embed_scale else 1.0
        self.tokens = nn.Embedding(shape.vocab_size, shape.dim)
        self.position: nn.Module | None = None
        if shape.position == "sinusoidal":
            self.position = SinusoidalPosition(shape.max_len, shape.dim)
        elif shape.position == "learned":
            self.position = LearnedPosition(shape.max_len, shape.dim)
        self.norm = make_norm(shape) if shape.embed_norm else None
        self.dropout = Dropout(dropout)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """`ids` (batch, length) int64, `positions` (length,) or (batch, length) → (batch, length, dim)."""
        x = self.tokens(ids)
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream in low precision halves the memory traffic of everything that is not a product.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.scale != 1.0:
            x = x * self.scale
        if self.position is not None:
            x = self.position(x, positions)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)
