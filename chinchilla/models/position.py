"""Positions: sinusoidal (Vaswani 2017, §3.5), learned, rotary (Su 2021)."""

from typing import Any

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


def grid_sinusoids(rows: int, columns: int, dim: int) -> Tensor:
    """Rows and columns of a grid as `(rows · columns, dim)`, row by row: half of the channels are of each.

    As in MoCo v3 (Chen 2021, arXiv 2104.02057), but that the slowest of the waves is 100 times as slow as the fastest,
    since a grid has tens of places a side. Channels beyond a multiple of four are 0.
    """
    frequencies = 100.0 ** (-torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (y, x)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return nn.functional.pad(waves, (0, dim - waves.shape[1]))


class SinusoidalPosition(nn.Module):
    """Adds fixed sinusoids to embeddings."""

    table: Tensor

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
    """Cosine and sine `(…, length, head_dim / 2)` of the rotary angles, for `rotate`; fp32."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head (Hugging Face's convention; llama.cpp interleaves).

    `x` (batch, heads, length, head_dim); `cos`, `sin` (…, length, head_dim / 2) broadcast to its halves.
    """
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, so that nothing of `x` need be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.empty_like(x)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned
