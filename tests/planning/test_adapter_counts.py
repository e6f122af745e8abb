"""An adapter's numbers, counted, are those that the real model trains."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_count import batches, counted, forward, shapes, step

from chinchilla.config.adapter import BRANCH_ENDS, TARGETS, Adapter
from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.adapt import adapt_, adapter_tensors
from chinchilla.models.transformer import Transformer
from chinchilla.planning.adapter_flops import trained_flops
from chinchilla.planning.adapters import added_params, kept_params, trained_parameters, trained_params
from chinchilla.planning.count import Batch, flops, num_params
from chinchilla.planning.memory import memory, state
from chinchilla.planning.room import Room
from chinchilla.training.muon import Muon
from chinchilla.training.optimizer import split_parameters


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


@settings(max_examples=60)
@given(shape=shapes(), adapter=adapters())
def test_the_count_is_the_models(shape, adapter):
    model = Transformer(shape)
    try:
        adapt_(model, adapter)
    except UsageError:
        return
    trained = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
    assert trained_parameters(shape, adapter) == trained
    assert trained_params(shape, adapter) == sum(map(math.prod, trained.values()))
    assert num_params(shape) + added_params(shape, adapter) == sum(each.numel() for each in model.parameters())
    assert kept_params(shape, adapter) == (added_params(shape, adapter) if adapter.kind == "bottleneck" else 0)


@settings(max_examples=80)
@given(data=st.data(), adapter=adapters())
def test_flops_equal_the_counter_of_torch(data, adapter):
    shape = data.draw(shapes().filter(lambda shape: shape.attention != "block" and not shape.reconstruct))
    batch = data.draw(batches(shape))
    model = Transformer(shape)
    try:
        adapt_(model, adapter)
    except UsageError:
        return
    found = trained_flops(shape, adapter, batch)
    assert counted(forward, model, batch) == found.forward
    assert counted(step, model, batch) == found.step
    assert trained_flops(shape, None, batch) == flops(shape, batch)


def test_a_frozen_model_costs_about_two_thirds():
    batch = Batch(2, 0, 64)
    share = trained_flops(SMOLLM, Adapter(), batch).step / flops(SMOLLM, batch).step
    assert 2 / 3 < share < 0.7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["lora", "adalora", "bottleneck"])
def test_the_state_is_what_torch_holds(kind, optimizer):
    adapter = Adapter(kind=kind, rank=2, also=("norms",))
    shape = SMOLLM.model_copy(
        update={"vocab_size": 50, "dim": 18, "head_dim": 2, "ffn_dim": 24, "num_decoder_layers": 2}
    )
    model = Transformer(shape)
    adapt_(model, adapter)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    matrices, rest = split_parameters(model)
    matrices, rest = ([each for each in group if each.requires_grad] for group in (matrices, rest))
    optimizers = [torch.optim.AdamW(rest if optimizer == "muon" else [*rest, *matrices])]
    if optimizer == "muon":
        optimizers.append(Muon(matrices, lr=1e-3))
    for each in optimizers:
        each.step()
    held = sum(tensor.nbytes for each in optimizers for kept in each.state.values() for tensor in kept.values())
    counted, whole = state(shape, optimizer, True, adapter), state(shape, optimizer, True)
    assert counted.optimizer == held
    assert counted.weights == sum(each.nbytes for each in model.parameters())
    assert counted.gradients == sum(each.nbytes for each in model.parameters() if each.requires_grad)
    assert counted.copies == 2 * counted.gradients
    assert counted.frozen == counted.weights - counted.gradients and whole.frozen == 0
    assert counted.saved == 3 * counted.gradients + counted.optimizer
    assert whole.saved == 3 * whole.weights + whole.optimizer


def test_an_adapter_needs_less_memory_and_disk_than_the_whole_model():
    batch = Batch(2, 0, 64)
    whole, little = (memory(SMOLLM, batch, "fp32", "adamw", adapter=each) for each in (None, Adapter()))
    assert little.peak < whole.peak - 2 * whole.state.weights
    room = {"batch": batch, "precision": "fp32", "optimizer": "adamw"}
    least = Room(0, **room, adapter=Adapter()).peak(SMOLLM, True)
    assert Room(least, **room, adapter=Adapter()).way(SMOLLM) is not None and Room(least, **room).way(SMOLLM) is None


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
