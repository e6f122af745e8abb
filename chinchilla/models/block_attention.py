"""Sub-sequence attention: blocks that see themselves, their neighbours and a summary of every other block.

The summary of a block is the mean of its keys and the mean of its values. With blocks of `w` tokens the cost is
O(n·(2w + n/w)) causal and O(n·(3w + n/w)) bidirectional, least at w ≈ √(n/2) and √(n/3): O(n^1.5).
Without summaries it is O(n·w). Close relatives: Longformer (Beltagy 2020), BigBird (Zaheer 2020).

`block_attention` is the fast form. `with_summaries` and `block_mask` give the same result as full attention over
keys with the summaries appended: the form to decode with, and the one to test against.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE_BYTES = 2**21
"""Scores, keys and values of a piece on a CPU: they stay in a core's own cache. Other devices take 64 times as many."""


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
    if torch.is_autocast_enabled(query.device.type):
        low = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(low), key.to(low), value.to(low)
    attend = _BlockAttention.apply
    if torch.compiler.is_compiling():
        # Every piece would be unrolled: minutes for 2,048 tokens, and no faster.
        attend = torch.compiler.disable(attend)
    return attend(query, key, value, mask, block_len, causal, summaries)


class _BlockAttention(torch.autograd.Function):
    """In pieces of a few blocks, whose scores are made again in the backward pass, as in FlashAttention (Dao 2022).

    Neither the scores nor the keys and values as each block sees them ever exist whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        block_len: int,
        causal: bool,
        summaries: bool,
    ) -> Tensor:
        real = _real_blocks(mask, key.shape[2], block_len, key.device)
        means = [_means(x, real) if summaries else x[:, :, :0] for x in (key, value)]
        ctx.save_for_backward(query, key, value, mask, *means)
        ctx.block_len, ctx.causal = block_len, causal
        # Heads beside each other in memory, so that joining them copies nothing.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for piece in _pieces(query, means[0], block_len, causal):
            asking = _rows(query, key, piece) * query.shape[3] ** -0.5
            chances = _chances(asking, _seen(key, means[0], piece), real, piece)
            _put(out, _mixed(chances, _seen(value, means[1], piece)), piece)
            del asking, chances  # or they would stand beside the next piece's
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, mask, key_means, value_means = ctx.saved_tensors
        real = _real_blocks(mask, key.shape[2], ctx.block_len, key.device)
        scale = query.shape[3] ** -0.5
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_value = (
            _Gradient(x, means, real, ctx.causal) for x, means in ((key, key_means), (value, value_means))
        )
        for piece in _pieces(query, key_means, ctx.block_len, ctx.causal):
            keys, values = _seen(key, key_means, piece), _seen(value, value_means, piece)
            asking, given = _rows(query, key, piece) * scale, _rows(grad, key, piece)
            chances = _chances(asking, keys, real, piece)
            grad_value.add_(chances, given, piece)
            grad_scores = torch.cat(_against(given, values), dim=3)
            grad_scores = torch._softmax_backward_data(grad_scores, chances, 3, chances.dtype)
            grad_key.add_(grad_scores, asking, piece)
            _put(grad_query, _mixed(grad_scores, keys).mul_(scale), piece)
            del keys, values, asking, given, chances, grad_scores
        return grad_query, grad_key.total(), grad_value.total(), None, None, None, None


class _Piece(NamedTuple):
    """Blocks `start` to `end`; each sees the blocks of its window and some of the first `far` summaries."""

    start: int
    end: int
    far: int
    block_len: int
    causal: bool

    @property
    def window(self) -> int:
        """How many blocks a block sees whole, from the one before it on."""
        return 2 if self.causal else 3


class _Seen(NamedTuple):
    """Keys or values that a piece sees: of each window, and the summaries.

    `near` (rows, blocks, window · block_len, head_dim), `far` (rows, far, head_dim) with rows = batch · kv_heads.
    """

    near: Tensor
    far: Tensor


def _pieces(query: Tensor, means: Tensor, block_len: int, causal: bool) -> Iterator[_Piece]:
    batch, heads, length, head_dim = query.shape
    blocks, kv_heads, summaries = -(-length // block_len), means.shape[1], means.shape[2]
    near = (2 if causal else 3) * block_len
    numbers = heads * block_len * (near + summaries) + 2 * kv_heads * near * head_dim
    room = PIECE_BYTES * (1 if query.device.type == "cpu" else 64)
    step = max(1, room // (batch * numbers * query.element_size()))
    for start in range(0, blocks, step):
        end = min(start + step, blocks)
        # The last causal block sees no summary but those of two blocks before it and earlier.
        yield _Piece(start, end, min(summaries, max(end - 2, 0)) if causal else summaries, block_len, causal)


def _rows(x: Tensor, key: Tensor, piece: _Piece) -> Tensor:
    """A piece of the queries or of their gradients: (batch · kv_heads, blocks, group · block_len, head_dim)."""
    x = _cut(x, piece.start * piece.block_len, piece.end * piece.block_len)
    x = x.unflatten(2, (-1, piece.block_len)).unflatten(1, (key.shape[1], -1)).transpose(2, 3)
    return x.flatten(3, 4).flatten(0, 1).contiguous()


def _put(target: Tensor, rows: Tensor, piece: _Piece) -> None:
    """The opposite of `_rows`: write them into `target` (batch, heads, length, head_dim)."""
    batch, length = len(target), target.shape[2]
    first, last = piece.start * piece.block_len, min(piece.end * piece.block_len, length)
    x = rows.unflatten(2, (-1, piece.block_len)).unflatten(0, (batch, -1)).transpose(2, 3)
    target[:, :, first:last] = x.flatten(3, 4).flatten(1, 2)[:, :, : last - first]


def _seen(x: Tensor, means: Tensor, piece: _Piece) -> _Seen:
    block_len, window = piece.block_len, piece.window
    near = _cut(x, (piece.start - 1) * block_len, (piece.end + window - 2) * block_len)
    near = near.unfold(2, window * block_len, block_len).transpose(3, 4).flatten(0, 1)
    return _Seen(near.contiguous(), means[:, :, : piece.far].flatten(0, 1))


def _cut(x: Tensor, first: int, last: int) -> Tensor:
    """Positions `first` to `last` of `x` (batch, heads, length, head_dim), zeros where it has none."""
    inside = x[:, :, max(first, 0) : last]
    before, after = max(-first, 0), max(last - x.shape[2], 0)
    return F.pad(inside, (0, 0, before, after)) if before or after else inside


def _chances(rows: Tensor, keys: _Seen, real: Tensor, piece: _Piece) -> Tensor:
    """Softmax over what each row sees: (batch · kv_heads, blocks, group · block_len, window · block_len + far)."""
    near, far = _against(rows, keys)
    near_bias, far_bias = _biases(real, piece, rows.dtype)
    apart = (len(real), len(rows) // len(real))
    near.unflatten(2, (-1, piece.block_len)).unflatten(0, apart).add_(near_bias[:, None, :, None])
    far.unflatten(0, apart).add_(far_bias[:, None, :, None])
    scores = torch.cat([near, far], dim=3)
    del near, far
    with torch.autocast(rows.device.type, enabled=False):
        return scores.softmax(3)


def _against(rows: Tensor, seen: _Seen) -> tuple[Tensor, Tensor]:
    """Products of each row with what it sees: (…, group · block_len, window · block_len) and (…, far)."""
    far = rows.flatten(1, 2) @ seen.far.transpose(1, 2)
    return rows @ seen.near.transpose(2, 3), far.unflatten(1, rows.shape[1:3])


def _mixed(weights: Tensor, seen: _Seen) -> Tensor:
    """Sums of what is seen, so weighted: the shape of `_rows`."""
    near, far = weights.split((seen.near.shape[2], seen.far.shape[1]), dim=3)
    mixed = near @ seen.near
    return torch.baddbmm(mixed.flatten(1, 2), far.flatten(1, 2), seen.far).view_as(mixed)


def _biases(real: Tensor, piece: _Piece, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What to add to scores: (batch or 1, blocks, block_len or 1, window · block_len), (batch or 1, blocks, far)."""
    block_len, window = piece.block_len, piece.window
    near = F.pad(real, (0, 0, 1, window - 2))[:, piece.start : piece.end + window - 1].flatten(1)
    near = near.unfold(1, window * block_len, block_len)[:, :, None]
    if piece.causal:
        near = near & torch.ones(block_len, 2 * block_len, dtype=torch.bool, device=real.device).tril(block_len)
    far = _far(torch.arange(piece.start, piece.end, device=real.device), piece.far, piece.causal)
    far = far & real.any(2)[:, None, : piece.far]
    # Half the lowest number: with a score added it stays finite, so that a query that sees nothing gives no NaN.
    lowest = torch.finfo(dtype).min / 2
    none = torch.zeros((), dtype=dtype, device=real.device)
    return torch.where(near, none, lowest), torch.where(far, none, lowest)


class _Gradient:
    """The gradient of the keys or of the values, summed up piece by piece."""

    def __init__(self, x: Tensor, means: Tensor, real: Tensor, causal: bool) -> None:
        batch, kv_heads, self.length, head_dim = x.shape
        self.real, self.window = real, 2 if causal else 3
        self.near = x.new_zeros(batch, kv_heads, real.shape[1] + self.window - 1, real.shape[2], head_dim)
        self.far = torch.zeros_like(means, dtype=torch.promote_types(x.dtype, torch.float32))

    def add_(self, weights: Tensor, rows: Tensor, piece: _Piece) -> None:
        """Add the rows' gradients, so weighted, to what they see."""
        split = (len(self.near), -1)
        near, far = weights.split((weights.shape[3] - piece.far, piece.far), dim=3)
        near = (near.transpose(2, 3) @ rows).unflatten(0, split).unflatten(3, (self.window, -1))
        for index in range(self.window):
            self.near[:, :, piece.start + index : piece.end + index] += near[:, :, :, index]
        far = far.flatten(1, 2).transpose(1, 2) @ rows.flatten(1, 2)
        self.far[:, :, : piece.far] += far.unflatten(0, split)

    def total(self) -> Tensor:
        """(batch, kv_heads, length, head_dim); each token of a block has its part in the summary's."""
        blocks = self.near[:, :, 1 : 1 + self.real.shape[1]]
        if self.far.shape[2]:
            of_each = self.far / self.real.sum(2)[:, None, :, None].clamp_min(1)
            blocks.addcmul_(of_each[:, :, :, None].to(blocks.dtype), self.real[:, None, :, :, None])
        return blocks.flatten(2, 3)[:, :, : self.length]


def with_summaries(key: Tensor, value: Tensor, mask: Tensor | None, block_len: int) -> tuple[Tensor, Tensor]:
    """Keys and values `(batch, kv_heads, length, head_dim)` with the blocks' means appended along the length."""
    real = _real_blocks(mask, key.shape[2], block_len, key.device)
    means = (_means(x, real) for x in (key, value))
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
    far = _far(block.clamp_min(0), -(-length // block_len), causal) & summaries
    real = _real_blocks(mask, length, block_len, asking.device)
    keep = torch.cat([near & real.flatten(1)[:, None, :length], far & real.any(2)[:, None]], dim=2)
    return (keep | ~keep.any(2, keepdim=True))[:, None]


def rolled(x: Tensor, by: Tensor) -> Tensor:
    """`x` (batch, heads, length, head_dim), row `i` moved to the left by `by[i]` positions, round the end."""
    index = (torch.arange(x.shape[2], device=x.device) + by[:, None]) % x.shape[2]
    return x.gather(2, index[:, None, :, None].expand_as(x))


def _real_blocks(mask: Tensor | None, length: int, block_len: int, device: torch.device) -> Tensor:
    """(batch or 1, blocks, block_len): True at real tokens."""
    real = torch.ones(1, length, dtype=torch.bool, device=device) if mask is None else mask
    return F.pad(real, (0, -length % block_len)).unflatten(1, (-1, block_len))


def _means(x: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens of each block: (batch, heads, length, head_dim) → (batch, heads, blocks, head_dim)."""
    weight = real[:, None, :, :, None].to(x.dtype)
    x = _cut(x, 0, real[0].numel()).unflatten(2, real.shape[1:])
    mean = (x * weight).sum(3) / weight.sum(3).clamp_min(1)
    # Autocast on GPUs sums in fp32.
    return mean.to(x.dtype)


def _far(block: Tensor, blocks: int, causal: bool) -> Tensor:
    """(…, blocks): True at the blocks that a query in `block` (…) sees through their summaries alone."""
    distance = block[..., None] - torch.arange(blocks, device=block.device)
    return distance > 1 if causal else distance.abs() > 1
