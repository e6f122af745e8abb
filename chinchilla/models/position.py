"""Positions: sinusoidal (Vaswani 2017, §3.5), learned, rotary (Su 2021)."""

import torch
from torch import Tensor, nn


def sinusoids(length: int, dim: int) -> Tensor:
    """The table `(length, dim)`: sines in the first half of the channels, cosines in the second.

    The halves stand beside each other, as in Marian, not interleaved as in the paper: the same
    features in another order.
    """
    frequencies = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()[:, : dim // 2]], dim=1).float()


class SinusoidalPosition(nn.Module):
    """Adds fixed sinusoids to embeddings."""

    def __init__(self, max_len: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(max_len, dim), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` (batch, length, dim), `positions` (length,) or (batch, length) → the sum, in `x`'s shape."""
        return x + self.table[positions].to(x.dtype)


class LearnedPosition(nn.Module):
    """Adds a learned vector for each position to embeddings."""

    def __init__(self, max_len: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_len, dim))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` (batch, length, dim), `positions` (length,) or (batch, length) → the sum, in `x`'s shape."""
        return x + self.table[positions].to(x.dtype)


def rotation(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `(…, length, head_dim)` of the rotary angles, for `rotate`; fp32."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head (Hugging Face's convention; llama.cpp interleaves).

    `x` (batch, heads, length, head_dim); `cos`, `sin` broadcast to it.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)
