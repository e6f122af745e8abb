"""One residual block of an encoder or decoder (pre-norm: Xiong 2020; post-norm: Vaswani 2017)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.shape import Activation, Shape
from chinchilla.models.attention import CrossAttention, Rotation, SelfAttention
from chinchilla.models.cache import LayerCache
from chinchilla.models.norm import make_norm


def activate(x: Tensor, activation: Activation) -> Tensor:
    """GELU, SiLU, ReLU, squared ReLU (So 2021), or SwiGLU (Shazeer 2020), which halves the last axis."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    if activation == "relu2":
        return _SquaredRelu.apply(x)
    if activation == "silu":
        return F.silu(x)
    return F.relu(x) if activation == "relu" else F.gelu(x)


class _SquaredRelu(torch.autograd.Function):
    """max(x, 0)², keeping one tensor and making one pass each way where the composed form makes three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = F.relu(x)
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(2)


class Dropout(nn.Module):
    """Dropout (Srivastava 2014) whose mask is made from raw random bytes.

    On a CPU torch draws one Mersenne-Twister number an element: 12 ms a million elements, more than the matrix
    products around it. Eight one-byte draws from each 64-bit number are four times cheaper; the rate is
    rounded to a 256th and the scale is exact for the rounded rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; the identity in evaluation."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.rate)
        dropped = min(round(self.rate * 256), 255)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * keep.to(x.dtype).mul_(256 / (256 - dropped))


def kept_paths(
    branches: int, x: Tensor, segments: Tensor | None, rate: float, generator: torch.Generator | None
) -> Tensor:
    """Stochastic depth (Huang 2016, arXiv 1603.09382): what each residual branch counts for in each example.

    0 with a chance of `rate`, else 1 / (1 - rate), so that nothing is scaled in evaluation (the convention of timm and
    DeiT); each branch and each example by itself. Gives (branches, batch, 1, 1), or (branches, batch, length, 1) where
    `segments` (batch, length) int64 number several examples in a row of `x` (batch, length, dim).
    """
    several = None if segments is None or segments.dtype == torch.bool else segments
    slots = 1 if several is None else x.shape[1] + 1  # no row holds more segments than positions; 0 is padding
    chances = torch.rand(branches, len(x), slots, generator=generator).to(x.device)
    kept = (chances >= rate).to(x.dtype).mul_(1 / (1 - rate))
    if several is not None:
        kept = kept.gather(2, several.expand(branches, -1, -1))
    return kept[..., None]


class Mlp(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.activation = shape.activation
        width = 2 * shape.ffn_dim if shape.activation == "swiglu" else shape.ffn_dim
        self.up = nn.Linear(shape.dim, width, bias=shape.bias)
        self.down = nn.Linear(shape.ffn_dim, shape.dim, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, dim) → the same shape."""
        return self.down(activate(self.up(x), self.activation))


class Block(nn.Module):
    """Self-attention, cross-attention to an encoder's output where there is one, and feed-forward.

    Pre-norm: y = x + f(norm(x)); post-norm: y = norm(x + f(x)).
    """

    def __init__(self, shape: Shape, causal: bool, cross: bool, dropout: float) -> None:
        super().__init__()
        self.pre = shape.norm_order == "pre"
        self.attention_norm = make_norm(shape)
        self.attention = SelfAttention(shape, causal)
        self.cross_norm = make_norm(shape) if cross else None
        self.cross = CrossAttention(shape) if cross else None
        self.mlp_norm = make_norm(shape)
        self.mlp = Mlp(shape)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
        cross_cache: LayerCache | None = None,
        paths: Tensor | None = None,
    ) -> Tensor:
        """`x` (batch, length, dim) → the same shape; masks as `SelfAttention` and `CrossAttention` take them.

        `paths` (see `kept_paths`) say what each branch, in order, counts for; None: 1.
        """
        if self.pre:
            x = x + self._branch(self.attention(self.attention_norm(x), mask, rotation, cache), paths, 0)
            if self.cross is not None and self.cross_norm is not None and memory is not None:
                x = x + self._branch(self.cross(self.cross_norm(x), memory, memory_mask, cross_cache), paths, 1)
            return x + self._branch(self.mlp(self.mlp_norm(x)), paths, -1)
        x = self.attention_norm(x + self._branch(self.attention(x, mask, rotation, cache), paths, 0))
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = self.cross_norm(x + self._branch(self.cross(x, memory, memory_mask, cross_cache), paths, 1))
        return self.mlp_norm(x + self._branch(self.mlp(x), paths, -1))

    def _branch(self, x: Tensor, paths: Tensor | None, index: int) -> Tensor:
        """What is added to the residual stream."""
        x = self.dropout(x)
        return x if paths is None else x * paths[index]
