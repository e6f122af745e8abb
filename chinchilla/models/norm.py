"""Norms over the channels of a hidden state."""

import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.shape import Shape


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang 2019) whose fp32 weight follows the input to bf16, so that the fused kernel takes both."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, dim) → the same shape and dtype."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(shape: Shape) -> nn.Module:
    """LayerNorm (Ba 2016) or RMSNorm over `dim`."""
    if shape.norm == "layer":
        return nn.LayerNorm(shape.dim, eps=shape.norm_eps)
    return RMSNorm(shape.dim, shape.norm_eps)
