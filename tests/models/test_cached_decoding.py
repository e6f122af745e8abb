"""Decoding token by token with a cache gives what the whole forward pass gives, for every kind of attention."""

from typing import Any

import pytest
import torch
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.cache import KVCache
from chinchilla.models.transformer import Transformer

KINDS = ["full", "gated", "block"]
POSITIONS = ["rotary", "learned", "sinusoidal"]
LENGTH = 23


def make(attention: Any, position: Any, encoder_layers: int = 0, **rest: Any) -> Transformer:
    torch.manual_seed(0)
    shape = Shape(
        vocab_size=29,
        dim=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        ffn_dim=40,
        num_encoder_layers=encoder_layers,
        num_decoder_layers=2,
        max_len=48,
        attention=attention,
        block_len=4,
        position=position,
        **({"qk_norm": True, "activation": "swiglu"} | rest),
    )
    return Transformer(shape).eval()


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 29, (rows, length), generator=torch.Generator().manual_seed(length))


def step_by_step(model: Transformer, target: Tensor, cache: KVCache, chunks: list[int], **memory: Tensor) -> Tensor:
    pieces = target.split(chunks, dim=1)
    return torch.cat([model.decode(piece, cache=cache, **memory) for piece in pieces], dim=1)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7] + [1] * 16, [5, 9, 1, 8]], ids=["steps", "prompt", "chunks"])
@torch.no_grad()
def test_decoder_with_cache_equals_whole_forward(attention: str, position: str, chunks: list[int]) -> None:
    model, target = make(attention, position), ids(2, LENGTH)
    cache = KVCache(2)
    stepped = step_by_step(model, target, cache, chunks)
    assert cache.length == LENGTH
    torch.testing.assert_close(stepped, model(target=target).hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_encoder_decoder_with_cache_equals_whole_forward(attention: str, position: str) -> None:
    model = make(attention, position, encoder_layers=2, norm_order="post", norm="layer", bias=True, activation="gelu")
    source, target = ids(3, 11), ids(3, LENGTH)
    real = torch.arange(11) < torch.tensor([11, 6, 1])[:, None]
    whole = model(source, target, source_segments=real)
    stepped = step_by_step(model, target, KVCache(2), [1] * LENGTH, memory=whole.memory, memory_segments=real)
    torch.testing.assert_close(stepped, whole.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("summaries", [True, False])
@torch.no_grad()
def test_left_padded_rows_equal_unpadded_rows(attention: str, position: str, summaries: bool) -> None:
    model, target = make(attention, position, block_summaries=summaries), ids(3, LENGTH)
    padding = torch.tensor([0, 3, 11])
    padded = target.clone()
    for row, skip in enumerate(padding.tolist()):
        padded[row, :skip] = 0
    stepped = step_by_step(model, padded, KVCache(2, padding), [14] + [1] * 9)
    assert stepped.isfinite().all()
    for row, skip in enumerate(padding.tolist()):
        alone = model(target=target[row : row + 1, skip:]).hidden[0]
        torch.testing.assert_close(stepped[row, skip:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_left_padding_decodes_in_chunks(attention: str) -> None:
    model, target = make(attention, "rotary"), ids(2, LENGTH)
    padding = torch.tensor([9, 2])
    stepped = step_by_step(model, target, KVCache(2, padding), [4, 3, 10, 6])
    for row, skip in enumerate(padding.tolist()):
        alone = model(target=target[row : row + 1, skip:]).hidden[0]
        torch.testing.assert_close(stepped[row, skip:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reorder_moves_whole_rows() -> None:
    model = make("full", "learned", encoder_layers=1)
    source, target, following = ids(3, 7), ids(3, 9), ids(4, 1)
    rows = torch.tensor([2, 0, 0, 1])
    memory = model.encode(source)
    cache = KVCache(2)
    model.decode(target, memory, cache=cache)
    cache.reorder(rows)
    stepped = model.decode(following, memory[rows], cache=cache)
    whole = model(source[rows], torch.cat([target[rows], following], dim=1)).hidden[:, -1:]
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reorder_takes_left_padding_along() -> None:
    model, target = make("full", "rotary"), ids(2, 8)
    cache = KVCache(2, torch.tensor([0, 5]))
    model.decode(target, cache=cache)
    cache.reorder(torch.tensor([1]))
    stepped = model.decode(target[1:, :1], cache=cache)
    alone = model(target=torch.cat([target[1:, 5:], target[1:, :1]], dim=1)).hidden[:, -1:]
    torch.testing.assert_close(stepped, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_too_long_a_sequence_is_refused() -> None:
    model, cache = make("full", "learned"), KVCache(2)
    model.decode(ids(1, 40), cache=cache)
    with pytest.raises(ValueError, match="49 tokens does not fit max_len 48"):
        model.decode(ids(1, 9), cache=cache)
