"""An adapter's numbers, counted, are those that the real model trains."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_count import shapes

from chinchilla.config.adapter import BRANCH_ENDS, TARGETS, Adapter
from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.adapt import adapt_, adapter_tensors
from chinchilla.models.transformer import Transformer
from chinchilla.planning.adapters import trained_params


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    kind = draw(st.sampled_from(["lora", "adalora", "bottleneck"]))
    targets = BRANCH_ENDS if kind == "bottleneck" else TARGETS
    return Adapter(
        kind=kind,
        rank=draw(st.integers(1, 3)),
        targets=draw(st.none() | st.lists(st.sampled_from(targets), min_size=1, unique=True).map(tuple)),
        also=draw(st.sampled_from([(), ("norms",), ("head",), ("norms", "head")])),
    )


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), adapter=adapters())
def test_the_count_is_the_models(shape, adapter):
    model = Transformer(shape)
    try:
        adapt_(model, adapter)
    except UsageError:
        return
    assert trained_params(shape, adapter) == sum(tensor.numel() for tensor in adapter_tensors(model).values())


SMOLLM = Shape(
    vocab_size=49_152,
    dim=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    ffn_dim=1536,
    num_decoder_layers=30,
    max_len=2048,
    activation="swiglu",
)


@pytest.mark.parametrize(
    ("adapter", "numbers"),
    [
        # By hand: 30 layers of 8·(576+960) + 8·(576+576) + 8·(576+3072) + 8·(1536+576).
        (Adapter(), 30 * 67_584),
        (Adapter(targets=("attention.qkv",), rank=16), 30 * 16 * (576 + 960)),
        (Adapter(kind="adalora", rank=4), 30 * 6 * (1536 + 1152 + 3648 + 2112 + 4)),
        (Adapter(kind="bottleneck", rank=32), 30 * 2 * (2 * 32 * 576 + 32 + 576)),
        (Adapter(targets=("mlp.down",), rank=1, also=("norms",)), 30 * (2112 + 2 * 576) + 576),
    ],
)
def test_the_numbers_for_a_model_of_135_million(adapter, numbers):
    assert trained_params(SMOLLM, adapter) == numbers
