"""Attention read out: who looks at whom in an encoder, made again beside the fused kernel, which keeps no weights."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from chinchilla.models.attention import Rotation, SelfAttention
from chinchilla.models.block import Block
from chinchilla.models.block_attention import block_mask, with_summaries
from chinchilla.models.transformer import Transformer


@torch.no_grad()
def attention_maps(model: Transformer, source: Tensor) -> list[Tensor]:
    """The weights of each encoder layer (batch, heads, length, length); each row adds up to 1.

    `source` is as `encode` takes it, examples without padding. A weight on the mean of a block of tokens is shared out
    evenly among them. Gates come after the weights, and are not in them.
    """
    if model.encoder is None:
        raise ValueError("this model has no encoder")
    maps: list[Tensor] = []

    def keep(attention: Any, inputs: tuple[Any, ...]) -> None:
        maps.append(attention_weights(attention, inputs[0], inputs[2]))

    blocks = cast("Iterable[Block]", model.encoder.layers)
    handles = [block.attention.register_forward_pre_hook(keep) for block in blocks]
    try:
        model.encode(source)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def attention_weights(attention: SelfAttention, x: Tensor, rotation: Rotation | None) -> Tensor:
    """softmax(Q·Kᵀ / √head_dim) of what the module is given, `x` (batch, length, dim) → (batch, heads, length, length).

    For encoders, without a mask.
    """
    query, key, value = attention._project(x, rotation)
    length, keep = x.shape[1], None
    if attention.kind == "block":
        key, _ = with_summaries(key, value, None, attention.block_len)
        index = torch.arange(length, device=x.device)[None]
        keep = block_mask(index, length, None, attention.block_len, attention.causal, attention.block_summaries)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    if keep is None:
        return scores.softmax(3)
    weights = scores.masked_fill(~keep, -torch.inf).softmax(3)
    return weights[..., :length] + _shared_out(weights[..., length:], length, attention.block_len)


def _shared_out(weights: Tensor, length: int, block_len: int) -> Tensor:
    """Weights on blocks (…, blocks) as weights on their tokens (…, length)."""
    sizes = torch.full((weights.shape[-1],), block_len, device=weights.device)
    sizes[-1] = length - block_len * (len(sizes) - 1)
    return (weights / sizes).repeat_interleave(sizes, -1)


def rollout(maps: list[Tensor]) -> Tensor:
    """How much of each position reaches each position through all layers (batch, length, length).

    Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928, §3): the product of the layers' weights, each the mean of
    its heads and, for the residual path, half an identity.
    """
    batch, _, length, _ = maps[0].shape
    flow = torch.eye(length, device=maps[0].device).expand(batch, -1, -1)
    for weights in maps:
        flow = (weights.mean(1) @ flow + flow) / 2
    return flow
