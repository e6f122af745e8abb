"""Memory counts against PyTorch: optimizer state, what autograd really keeps, and the allocator's own peak."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from chinchilla.config.shape import Shape
from chinchilla.models.attention import LONGEST_PLAIN
from chinchilla.models.head import CHUNK_ROWS, PIECE_TOKENS, ROUND_TOKENS
from chinchilla.models.transformer import Transformer
from chinchilla.planning import activations, count
from chinchilla.planning import memory as planned
from chinchilla.planning.activations import by_operator, saved, saved_bytes
from chinchilla.planning.count import Batch, num_params
from chinchilla.planning.memory import memory, state, takes_muon
from chinchilla.training.optimizer import split_parameters

SMALL = Shape(
    vocab_size=1000, dim=40, num_heads=4, num_kv_heads=4, head_dim=12, ffn_dim=100, num_encoder_layers=2,
    num_decoder_layers=2, max_len=64,
)  # fmt: skip
BATCH = Batch(3, 20, 22)

VARIANTS = [
    {"norm": "layer"},
    {"norm_order": "post"},
    {"norm_order": "post", "norm": "layer"},
    *({"activation": kind} for kind in ("gelu", "swiglu", "silu", "relu", "relu2")),
    {"attention": "gated"},
    {"attention": "gated", "qk_norm": True, "position": "learned"},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "position": "learned"},
    {"qk_norm": True},
    {"qk_norm": True, "position": "sinusoidal"},
    {"bias": True},
    {"embed_norm": True, "embed_scale": True},
    {"num_encoder_layers": 0},
    {"num_decoder_layers": 0},
    {"tied_embeddings": False, "head_bias": True},
]
BLOCKS = [
    {"attention": "block", "block_len": 8},
    {"attention": "block", "block_len": 8, "block_summaries": False},
    {"attention": "block", "block_len": 8, "num_kv_heads": 2, "qk_norm": True},
    {"attention": "block", "block_len": 5, "position": "learned", "num_encoder_layers": 0},
    {"attention": "block", "block_len": 5, "position": "learned", "num_kv_heads": 1, "block_summaries": False},
    {"attention": "block", "block_len": 30, "position": "sinusoidal", "qk_norm": True},
]


def loss(model: Transformer, batch: Batch, precision: str) -> Tensor:
    shape = model.shape
    source = torch.randint(3, shape.vocab_size, (batch.size, batch.source_len)) if shape.num_encoder_layers else None
    target = torch.randint(3, shape.vocab_size, (batch.size, batch.target_len)) if shape.num_decoder_layers else None
    kind = torch.int64 if batch.packed else torch.bool
    segments = None if source is None else torch.ones_like(source, dtype=kind)
    target_segments = torch.ones_like(target) if batch.packed and target is not None else None
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        hidden = model(source, target, source_segments=segments, target_segments=target_segments).hidden
        labels = source if target is None else target
        return model.head.loss(hidden, labels, 0.1)[0]


def kept_bytes(model: Transformer, batch: Batch, precision: str) -> int:
    """Bytes of the storages that autograd keeps for a backward pass, parameters and buffers left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(model, batch, precision)
    assert total.isfinite()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)


def sized(shape: Shape, packed: bool = False) -> Batch:
    return Batch(
        3, 20 if shape.num_encoder_layers else 0, 22 if shape.num_decoder_layers else 0, packed=packed
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_saved_activations_are_what_autograd_keeps(variant: dict[str, object], packed: bool, precision: str) -> None:
    shape = SMALL.model_copy(update=variant)
    batch = sized(shape, packed)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", BLOCKS, ids=str)
def test_saved_activations_of_block_attention(variant: dict[str, object], precision: str) -> None:
    shape = SMALL.model_copy(update=variant)
    batch = sized(shape)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_activations_with_dropout(precision: str) -> None:
    kept = kept_bytes(Transformer(SMALL, dropout=0.1), BATCH, precision)
    assert saved_bytes(SMALL, BATCH, precision, dropout=True) == kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_activations_past_the_longest_plain_attention(precision: str) -> None:
    shape = SMALL.model_copy(update={"num_encoder_layers": 0, "num_decoder_layers": 1, "max_len": 2 * LONGEST_PLAIN})
    batch = Batch(2, target_len=LONGEST_PLAIN + 1)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@given(
    st.integers(2, 5), st.integers(3, 30), st.integers(3, 30), st.integers(2, 4), st.integers(1, 3), st.booleans(),
    st.sampled_from(["fp32", "bf16"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_saved_activations_of_any_size(
    size: int, source_len: int, target_len: int, heads: int, layers: int, packed: bool, precision: str
) -> None:
    shape = SMALL.model_copy(update={"num_heads": heads, "num_kv_heads": heads, "num_decoder_layers": layers})
    batch = Batch(size, source_len, target_len, packed=packed)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


def test_saved_bytes_are_the_sum_over_operators() -> None:
    items = saved(SMALL, BATCH, "fp32")
    assert sum(by_operator(items).values()) == saved_bytes(SMALL, BATCH, "fp32")
    assert {item.part for item in items} >= {"encoder.embed", "encoder.1.attention", "decoder.0.cross", "head"}


def test_the_constants_are_those_of_the_model() -> None:
    assert planned.PIECE_TOKENS == PIECE_TOKENS
    assert planned.CHUNK_ROWS == CHUNK_ROWS
    assert count.ROUND_TOKENS == ROUND_TOKENS
    assert activations.LONGEST_PLAIN == LONGEST_PLAIN


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("variant", [{}, {"bias": True, "norm": "layer", "position": "learned", "reconstruct": True}])
def test_state_is_what_torch_holds(optimizer: str, variant: dict[str, object]) -> None:
    shape = SMALL.model_copy(update=variant)
    model = Transformer(shape)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    matrices, rest = split_parameters(model)
    optimizers = [torch.optim.AdamW(rest if optimizer == "muon" else [*rest, *matrices])]
    if optimizer == "muon":
        optimizers.append(torch.optim.Muon(matrices))
    for each in optimizers:
        each.step()
    held = sum(t.nbytes for each in optimizers for values in each.state.values() for t in values.values())
    counted = state(shape, optimizer, ema=True)
    assert counted.optimizer == held
    assert counted.weights == counted.gradients == sum(p.nbytes for p in model.parameters())
    assert counted.copies == 2 * counted.weights
    assert counted.total == counted.optimizer + 4 * counted.weights


def test_muon_takes_what_the_trainer_gives_it() -> None:
    shape = SMALL.model_copy(update={"tied_embeddings": False, "position": "learned", "reconstruct": True})
    model = Transformer(shape)
    given = {id(parameter) for parameter in split_parameters(model)[0]}
    assert given
    for name, parameter in model.named_parameters():
        assert takes_muon(name, tuple(parameter.shape)) == (id(parameter) in given)


@contextmanager
def quiet() -> Iterator[None]:
    """The profiler warns about its own defaults, differently in each release."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tensor_peak(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at one time during a call, over those alive before it."""
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("variant", "batch"),
    [
        ({}, Batch(64, 40, 44)),
        ({}, Batch(2, 40, 44)),
        ({"num_encoder_layers": 0, "num_decoder_layers": 6, "vocab_size": 1000}, Batch(8, 0, 256)),
        ({"num_encoder_layers": 0, "activation": "swiglu", "norm": "layer"}, Batch(4, 0, 512)),
    ],
    ids=["many rows", "few rows", "deep", "long"],
)
def test_peak_of_forward_and_backward_is_the_allocators(
    variant: dict[str, object], batch: Batch, precision: str
) -> None:
    shape = Shape(
        vocab_size=4000, dim=128, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=512, num_encoder_layers=2,
        num_decoder_layers=2,
    ).model_copy(update=variant)  # fmt: skip
    model = Transformer(shape)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    counted = memory(shape, batch, precision, "adamw", accumulation=2)
    measured = tensor_peak(lambda: loss(model, batch, precision).backward())
    assert counted.peak == pytest.approx(counted.state.total + measured, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layers", [(0, 6), (3, 3)])
def test_peak_where_blocks_are_computed_again(layers: tuple[int, int], precision: str) -> None:
    encoder, decoder = layers
    shape = Shape(
        vocab_size=1000, dim=128, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=512, num_encoder_layers=encoder,
        num_decoder_layers=decoder, activation="relu2", norm="layer",
    )  # fmt: skip
    batch = Batch(8, 256 if encoder else 0, 256)
    model = Transformer(shape)
    model.recompute_(True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    counted = memory(shape, batch, precision, "adamw", accumulation=2, recompute=True)
    measured = tensor_peak(lambda: loss(model, batch, precision).backward())
    assert counted.peak == pytest.approx(counted.state.total + measured, rel=0.05)
    assert counted.saved < 0.5 * memory(shape, batch, precision, "adamw", accumulation=2).saved


def test_a_tiny_batch_peaks_outside_the_passes() -> None:
    shape = SMALL.model_copy(update={"dim": 256, "num_decoder_layers": 8})
    counted = memory(shape, Batch(1, 4, 4), "fp32", "adamw")
    assert counted.phase == "validation"
    assert counted.peak >= 4 * 6 * num_params(shape)


def test_the_averaged_copy_and_held_gradients_are_part_of_the_peak() -> None:
    plain = memory(SMALL, BATCH, "fp32", "adamw")
    averaged = memory(SMALL, BATCH, "fp32", "adamw", ema=True)
    accumulated = memory(SMALL, BATCH, "fp32", "adamw", accumulation=2)
    assert averaged.peak == plain.peak + 4 * num_params(SMALL)
    assert plain.phase == accumulated.phase == "forward"
    assert accumulated.peak == plain.peak + 4 * num_params(SMALL)
