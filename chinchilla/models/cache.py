"""The explicit key-value cache that decoding passes to `forward`."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values of one attention layer, `(batch, kv_heads, capacity, head_dim)`, filled to `length`.

    The buffers double when full, so that appending a token costs a copy of one position only.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add `(batch, kv_heads, new, head_dim)`; return views of all that is held."""
        end = self.length + keys.shape[2]
        self.keys = _store(self.keys, keys, self.length, end)
        self.values = _store(self.values, values, self.length, end)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Keep, repeat or permute rows: row `i` becomes what row `rows[i]` was."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, rows)
            self.values = self.values.index_select(0, rows)


def _store(buffer: Tensor | None, new: Tensor, start: int, end: int) -> Tensor:
    if buffer is None or end > buffer.shape[2]:
        batch, heads, _, head_dim = new.shape
        grown = new.new_empty(batch, heads, max(end, 2 * start, 16), head_dim)
        if buffer is not None:
            grown[:, :, :start] = buffer[:, :, :start]
        buffer = grown
    buffer[:, :, start:end] = new
    return buffer


@dataclass
class KVCache:
    """What a decoder remembers between calls.

    `self_layers` grows by the tokens seen; `cross_layers` holds the keys and values of the encoder's output,
    computed once. `left_padding` (batch,) counts the positions to ignore at the left of each row, so that
    prompts of unequal length decode together.
    """

    num_layers: int
    left_padding: Tensor | None = None
    self_layers: list[LayerCache] = field(init=False)
    cross_layers: list[LayerCache] = field(init=False)

    def __post_init__(self) -> None:
        self.self_layers = [LayerCache() for _ in range(self.num_layers)]
        self.cross_layers = [LayerCache() for _ in range(self.num_layers)]

    @property
    def length(self) -> int:
        """Positions held, left padding included."""
        return self.self_layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Row `i` becomes what row `rows[i]` was, in every layer; `rows` (new_batch,) int64."""
        for layer in (*self.self_layers, *self.cross_layers):
            layer.reorder(rows)
        if self.left_padding is not None:
            self.left_padding = self.left_padding.index_select(0, rows)

    def positions(self, new: int, device: torch.device) -> Tensor:
        """Positions of the next `new` tokens: `(new,)`, or `(batch, new)` with left padding (never below 0)."""
        positions = torch.arange(self.length, self.length + new, device=device)
        if self.left_padding is None:
            return positions
        return (positions[None, :] - self.left_padding[:, None]).clamp_min(0)
