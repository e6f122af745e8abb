"""Bottleneck adapters (Houlsby 2019, arXiv 1902.00751): a narrow layer behind a map that ends a residual branch.

They cannot be merged into the map, so a model's folder holds them where they stand, and they stay in fp32 beside a map
that is made int8. Its `config.json` says their widths by the maps' names:

    "bottlenecks": {"decoder.layers.0.attention.out": 8, …}
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.errors import FaultError
from chinchilla.models.block import Dropout

CONFIG_KEY = "bottlenecks"
"""Of `config.json`."""

MOST_WIDTH = 1 << 20
"""Wider ones are no model's, and sizes near 2^63 overflow."""


class Adapted(nn.Module):
    """A linear map, its weights kept, with an adapter that is trained; at first the output is the map's own."""

    def __init__(self, base: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.dropout = Dropout(dropout)
        self.train(base.training)

    def base(self, x: Tensor) -> Tensor:
        """`x` (…, in) → (…, out), without the adapter."""
        return F.linear(x, self.weight, self.bias)

    def _trained(self, *sizes: int) -> nn.Parameter:
        """Zeros, in the precision and on the device of the map."""
        return nn.Parameter(self.weight.new_zeros(sizes))


class Bottleneck(Adapted):
    """y + up(gelu(down(y))) behind a map that ends a residual branch (Houlsby 2019, arXiv 1902.00751); `up` is zero."""

    def __init__(self, base: nn.Linear, width: int, dropout: float = 0.0) -> None:
        super().__init__(base, dropout)
        dim = base.out_features
        self.adapter_down, self.adapter_down_bias = self._trained(width, dim), self._trained(width)
        self.adapter_up, self.adapter_up_bias = self._trained(dim, width), self._trained(dim)
        nn.init.uniform_(self.adapter_down, -(dim**-0.5), dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in) → (…, out)."""
        y = self.base(x)
        inner = self.dropout(y)
        return y + narrowed(inner, self.adapter_down, self.adapter_down_bias, self.adapter_up, self.adapter_up_bias)


def narrowed(y: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """What is added to a map's output `y` (…, out), with `down` (width, out) and `up` (out, width)."""
    return F.linear(F.gelu(F.linear(y, down, down_bias)), up, up_bias)


def describe(model: nn.Module) -> dict[str, int]:
    """The width of each bottleneck, by its map's name; fp32 or int8."""
    down = ".adapter_down"
    return {name.removesuffix(down): len(each) for name, each in model.named_parameters() if name.endswith(down)}


def rebuild_(model: nn.Module, widths: Any, where: str) -> None:
    """Put bottlenecks on a new model, whose tensors they then take from the folder; `widths` is what `describe` gave.

    Raises:
        FaultError: `widths` is damaged, or the model has no such map.
    """
    if not isinstance(widths, Mapping):
        raise FaultError(f"{where}: {CONFIG_KEY} is no table of widths; get the file anew")
    maps = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, width in widths.items():
        if name not in maps or not isinstance(width, int) or isinstance(width, bool) or not 0 < width < MOST_WIDTH:
            raise FaultError(f"{where}: {CONFIG_KEY}: {name!r} of width {width!r} has no place here; get the file anew")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Bottleneck(maps[name], width))
