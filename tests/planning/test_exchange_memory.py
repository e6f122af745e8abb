"""Memory of exchanging gradients: buckets as DDP makes them, segments as Gloo's ring cuts them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import _compute_bucket_assignment_by_size

from chinchilla.config.shape import Shape
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import num_params
from chinchilla.planning.exchange_memory import (
    BUCKET_BYTES,
    FIRST_BUCKET_BYTES,
    SEGMENT_BYTES,
    buckets,
    exchange_bytes,
    gradient_buckets,
    segment_bytes,
)

SHAPE = Shape(
    vocab_size=9000, dim=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=2048, num_encoder_layers=3,
    num_decoder_layers=3,
)  # fmt: skip


@given(st.lists(st.integers(1, 3 * 10**6), min_size=1, max_size=30), st.integers(1, 16 * 10**6))
@settings(max_examples=60)
def test_buckets_are_those_of_ddp(numbers: list[int], limit: int) -> None:
    tensors = [torch.empty(count, device="meta") for count in numbers]
    found, _ = _compute_bucket_assignment_by_size(tensors, [FIRST_BUCKET_BYTES, limit])
    assert buckets([4 * count for count in numbers], limit) == [4 * sum(numbers[i] for i in part) for part in found]


def test_a_models_buckets_hold_all_its_gradients() -> None:
    with torch.device("meta"):
        parameters = [parameter.to("meta") for parameter in Transformer(SHAPE).parameters()]
    found, _ = _compute_bucket_assignment_by_size(parameters[::-1], [FIRST_BUCKET_BYTES, BUCKET_BYTES])
    counted = gradient_buckets(SHAPE)
    assert len(counted) == len(found)
    assert sum(counted) == 4 * num_params(SHAPE)


@given(st.integers(1, 10**8), st.integers(2, 64))
def test_segments_cover_a_bucket(numbers: int, nodes: int) -> None:
    size = 4 * numbers
    segment = segment_bytes(size, nodes)
    assert segment % 4 == 0
    assert segment <= SEGMENT_BYTES
    assert segment * 2 * nodes >= size or segment > SEGMENT_BYTES / 2 - 4
    # At least two a process.
    assert segment <= max(4, -(-size // (2 * nodes)) + 4)


def test_a_ring_has_two_segments_of_two_buckets_on_their_way_and_one_process_exchanges_nothing() -> None:
    sizes = gradient_buckets(SHAPE)
    assert exchange_bytes(sizes, 1) == 0
    assert exchange_bytes(sizes, 2) - sum(sizes) == pytest.approx(2 * 2 * 2**20, rel=0.05)
