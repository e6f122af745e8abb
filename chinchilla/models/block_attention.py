"""Sub-sequence attention: blocks that see themselves, their neighbours and a summary of every other block.

The summary of a block is the mean of its keys and the mean of its values. With blocks of `w` tokens the cost is
O(n·(2w + n/w)) causal and O(n·(3w + n/w)) bidirectional, least at w ≈ √(n/2) and √(n/3): O(n^1.5).
Without summaries it is O(n·w). Close relatives: Longformer (Beltagy 2020), BigBird (Zaheer 2020).

`block_attention` is the fast form. `with_summaries` and `block_mask` give the same result as full attention over
keys with the summaries appended: the form to decode with, and the one to test against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    block_len: int,
    causal: bool,
    summaries: bool,
) -> Tensor:
    """Attend block by block.

    `query` (batch, heads, length, head_dim); `key`, `value` (batch, kv_heads, length, head_dim); `mask`
    (batch, length), True at real tokens → (batch, heads, length, head_dim).
    """
    batch, heads, length, head_dim = query.shape
    real = _real(mask, batch, length, query.device)
    query, key, value = (_blocks(x, block_len) for x in (query, key, value))
    blocks = query.shape[2]
    real = F.pad(real, (0, blocks * block_len - length)).unflatten(1, (blocks, block_len))
    keep = _local_keep(real, block_len, causal)
    seen_keys, seen_values = _neighbours(key, causal), _neighbours(value, causal)
    if summaries:
        seen_keys.append(_means(key, real)[:, :, None].expand(-1, -1, blocks, -1, -1))
        seen_values.append(_means(value, real)[:, :, None].expand(-1, -1, blocks, -1, -1))
        far = _far(blocks, causal, query.device)[None] & real.any(2)[:, None]
        keep = torch.cat([keep, far[:, :, None].expand(-1, -1, block_len, -1)], dim=3)
    # A padding query may see nothing at all: let it see everything, since its output is not used.
    keep = keep | ~keep.any(3, keepdim=True)
    keys, values = torch.cat(seen_keys, dim=3), torch.cat(seen_values, dim=3)
    query, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (query, keys, values))
    grouped = heads != keys.shape[1]
    joined = F.scaled_dot_product_attention(query, keys, values, keep.flatten(0, 1)[:, None], enable_gqa=grouped)
    joined = joined.unflatten(0, (batch, blocks)).transpose(1, 2)
    return joined.reshape(batch, heads, blocks * block_len, head_dim)[:, :, :length]


def with_summaries(key: Tensor, value: Tensor, mask: Tensor | None, block_len: int) -> tuple[Tensor, Tensor]:
    """Keys and values `(batch, kv_heads, length, head_dim)` with the blocks' means appended along the length."""
    batch, _, length, _ = key.shape
    real = _real(mask, batch, length, key.device)
    real = F.pad(real, (0, -length % block_len)).unflatten(1, (-1, block_len))
    means = (_means(_blocks(x, block_len), real) for x in (key, value))
    keys, values = (torch.cat([x, mean], dim=2) for x, mean in zip((key, value), means, strict=True))
    return keys, values


def block_mask(
    asking: Tensor, length: int, mask: Tensor | None, block_len: int, causal: bool, summaries: bool
) -> Tensor:
    """The mask `(batch or 1, 1, queries, length + blocks)` under which full attention equals `block_attention`.

    `asking` (batch or 1, queries) holds the positions of the queries among the keys; `mask` (batch, length).
    """
    position = torch.arange(length, device=asking.device)
    block = torch.div(asking, block_len, rounding_mode="floor")
    distance = block[:, :, None] - torch.div(position, block_len, rounding_mode="floor")
    near = (distance >= 0) & (distance <= 1) if causal else distance.abs() <= 1
    if causal:
        near = near & (asking[:, :, None] >= position)
    far = _far(-(-length // block_len), causal, asking.device)[block.clamp_min(0)] & summaries
    real = _real(mask, 1, length, asking.device)
    real_blocks = F.pad(real, (0, -length % block_len)).unflatten(1, (-1, block_len)).any(2)
    keep = torch.cat([near & real[:, None], far & real_blocks[:, None]], dim=2)
    return (keep | ~keep.any(2, keepdim=True))[:, None]


def rolled(x: Tensor, by: Tensor) -> Tensor:
    """`x` (batch, heads, length, head_dim), row `i` moved to the left by `by[i]` positions, round the end."""
    index = (torch.arange(x.shape[2], device=x.device) + by[:, None]) % x.shape[2]
    return x.gather(2, index[:, None, :, None].expand_as(x))


def _real(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool, device=device) if mask is None else mask


def _blocks(x: Tensor, block_len: int) -> Tensor:
    """(batch, heads, length, head_dim) → (batch, heads, blocks, block_len, head_dim), zero-padded."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % block_len)).unflatten(2, (-1, block_len))


def _means(x: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens of each block: (batch, heads, blocks, head_dim)."""
    weight = real[:, None, :, :, None].to(x.dtype)
    return (x * weight).sum(3) / weight.sum(3).clamp_min(1)


def _neighbours(x: Tensor, causal: bool) -> list[Tensor]:
    """For every block the one before it, itself and, unless causal, the one after; each in the shape of `x`."""
    before = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    return [before, x] if causal else [before, x, F.pad(x, (0, 0, 0, 0, 0, 1))[:, :, 1:]]


def _local_keep(real: Tensor, block_len: int, causal: bool) -> Tensor:
    """(batch, blocks, block_len, 2 or 3 · block_len): True at the real tokens of the neighbourhood."""
    before = F.pad(real, (0, 0, 1, 0))[:, :-1]
    if not causal:
        after = F.pad(real, (0, 0, 0, 1))[:, 1:]
        return torch.cat([before, real, after], dim=2)[:, :, None].expand(-1, -1, block_len, -1)
    keep = torch.cat([before, real], dim=2)[:, :, None]
    past = torch.ones(block_len, 2 * block_len, dtype=torch.bool, device=real.device).tril(block_len)
    return keep & past


def _far(blocks: int, causal: bool, device: torch.device) -> Tensor:
    """(blocks, blocks): True where a block is seen through its summary alone."""
    index = torch.arange(blocks, device=device)
    distance = index[:, None] - index[None, :]
    return distance > 1 if causal else distance.abs() > 1
