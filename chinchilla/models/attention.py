"""Multi-head attention with grouped keys and values (Vaswani 2017; Ainslie 2023), on PyTorch's fused kernel.

Kinds: `full`; `gated`, an input-dependent gate a head after the attention; `block`, whose cost grows as
length^1.5 (see `block_attention`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.shape import Shape
from chinchilla.models.block_attention import block_attention, block_mask, rolled, with_summaries
from chinchilla.models.cache import LayerCache
from chinchilla.models.norm import RMSNorm
from chinchilla.models.position import rotate

Rotation = tuple[Tensor, Tensor]


LONGEST_PLAIN = 512
"""Longest bf16 sequence on a CPU for which attention in plain matrix products beats the fused kernel."""


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention.

    `query` (batch, heads, queries, head_dim); `keys`, `values` (batch, kv_heads, length, head_dim); `mask`
    boolean, True where to attend, broadcastable to (batch, heads, queries, length).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys.shape[2] <= LONGEST_PLAIN:
        return _plain(query, keys, values, causal_mask(query.shape[2], keys.shape[2], query.device) if causal else mask)
    grouped = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal, enable_gqa=grouped)


def _plain(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same as matrix products and a softmax, which sums in fp32 and is kept in bf16.

    The fused kernel's bf16 backward pass takes four times as long on CPUs, in torch 2.13, at these lengths.
    """
    repeats = query.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    scores = (query * query.shape[3] ** -0.5) @ keys.transpose(2, 3)
    if mask is not None:
        with torch.no_grad():
            # Where the softmax is 0 so is its gradient: masking need not be recorded, and can be done in place.
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    with torch.autocast(query.device.type, enabled=False):
        return scores.softmax(3) @ values


def causal_mask(queries: int, length: int, device: torch.device) -> Tensor:
    """`(queries, length)`, True where the last `queries` of `length` positions may look."""
    return torch.ones(queries, length, dtype=torch.bool, device=device).tril(length - queries)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, shape: Shape, causal: bool) -> None:
        super().__init__()
        self.kind = shape.attention
        self.causal = causal
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.block_len, self.block_summaries = shape.block_len, shape.block_summaries
        width = shape.num_heads * shape.head_dim
        self.qkv = nn.Linear(shape.dim, width + 2 * shape.num_kv_heads * shape.head_dim, bias=shape.bias)
        self.out = nn.Linear(width, shape.dim, bias=shape.bias)
        self.query_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.key_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.gate = nn.Linear(shape.dim, shape.num_heads) if shape.attention == "gated" else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x` (batch, length, dim) → the same shape.

        `mask` is True where to attend: `(batch or 1, 1, length, keys)`, the past already cut out where causal;
        for block attention `(batch, keys)`, True at real tokens. Cached keys count. None means all (causal: all past).
        """
        query, key, value = self._project(x, rotation)
        fresh = cache is None or cache.length == 0
        if cache is not None:
            key, value = cache.append(key, value)
        if self.kind == "block":
            joined = self._block(query, key, value, mask, fresh, cache is not None)
        else:
            joined = self._full(query, key, value, mask)
        if self.gate is not None:
            joined = joined * torch.sigmoid(self.gate(x)).transpose(1, 2)[..., None]
        return self.out(joined.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        both, value = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = both.split((self.num_heads, self.num_kv_heads), dim=1)
            both = torch.cat([self.query_norm(query), self.key_norm(key)], dim=1)
        if rotation is not None:
            both = rotate(both, *rotation)
        query, key = both.split((self.num_heads, self.num_kv_heads), dim=1)
        return query, key, value

    def _full(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # One new token sees everything before it, so that no mask is needed.
        causal = self.causal and mask is None and query.shape[2] > 1
        return attend(query, key, value, mask, causal)

    def _block(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, fresh: bool, cached: bool
    ) -> Tensor:
        length = key.shape[2]
        index = torch.arange(length, device=key.device)
        asking, start = index[None, length - query.shape[2] :], None
        if cached and mask is not None:
            # Left padding: blocks are counted from each row's first real token, as in a row without padding.
            start = mask.int().argmax(1)
            key, value = rolled(key, start), rolled(value, start)
            asking, mask = asking - start[:, None], index[None] < length - start[:, None]
        if fresh:
            query = query if start is None else rolled(query, start)
            joined = block_attention(query, key, value, mask, self.block_len, self.causal, self.block_summaries)
            return joined if start is None else rolled(joined, -start)
        # A few new tokens against a long cache: building blocks would cost more than the masked form.
        keys, values = with_summaries(key, value, mask, self.block_len)
        keep = block_mask(asking, length, mask, self.block_len, self.causal, self.block_summaries)
        return attend(query, keys, values, keep, causal=False)


class CrossAttention(nn.Module):
    """Attention of a decoder to an encoder's output; always full."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        width = shape.num_heads * shape.head_dim
        self.query = nn.Linear(shape.dim, width, bias=shape.bias)
        self.kv = nn.Linear(shape.dim, 2 * shape.num_kv_heads * shape.head_dim, bias=shape.bias)
        self.out = nn.Linear(width, shape.dim, bias=shape.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x` (batch, length, dim), `memory` (batch, source, dim) → (batch, length, dim).

        `mask` (batch, 1, length or 1, source) is True where to attend.
        """
        query = self.query(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        keys, values = self._memory(memory, cache)
        joined = attend(query, keys, values, mask, causal=False)
        return self.out(joined.transpose(1, 2).flatten(2))

    def _memory(self, memory: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.keys is not None and cache.values is not None:
            return cache.keys[:, :, : cache.length], cache.values[:, :, : cache.length]
        heads = self.kv(memory).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        keys, values = heads.chunk(2, dim=1)
        return (keys, values) if cache is None else cache.append(keys, values)
