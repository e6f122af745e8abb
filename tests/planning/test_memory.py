"""Memory counts against PyTorch: optimizer state, what autograd really keeps, and the allocator's own peak."""

from collections.abc import Iterator
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stem_fakes import class_labels, stem_source
from tensor_bytes import kept_by, tensor_peak
from torch import Tensor

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.attention import LONGEST_PLAIN
from chinchilla.models.block_attention import PIECE_BYTES
from chinchilla.models.head import CHUNK_ROWS, PIECE_TOKENS, ROUND_TOKENS
from chinchilla.models.transformer import Transformer
from chinchilla.planning import count, operators
from chinchilla.planning import memory as planned
from chinchilla.planning.activations import by_operator, parts, saved, saved_bytes
from chinchilla.planning.count import Batch, num_params, parameters
from chinchilla.planning.memory import memory, state, takes_muon
from chinchilla.tasks.objective import token_objective
from chinchilla.tasks.task import Loss, Objective
from chinchilla.training.muon import Muon
from chinchilla.training.optimizer import split_parameters
from chinchilla.training.workers import Workers

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

IMAGES = (
    {"stem": ImageStem(height=16, width=12, channels=3, patch=4)},
    {"stem": ImageStem(height=16, width=8, channels=1, patch=2), "num_classes": 2},
    {"stem": ImageStem(height=16, width=12, channels=3, patch=4, pooled=True)},
    {"stem": ImageStem(height=16, width=8, channels=1, patch=2, pooled=True), "num_classes": 2},
)
TABLES = (
    {"stem": TableStem(num_numeric=3, cardinalities=(4, 7, 2))},
    {"stem": TableStem(num_numeric=5)},
    {"stem": TableStem(num_numeric=4, cardinalities=(4, 2), pieces=8)},
    {"stem": TableStem(num_numeric=0, cardinalities=(3, 9))},
)
STEM_VARIANTS = [
    {},
    {"norm": "layer", "position": "learned"},
    {"norm_order": "post", "position": "sinusoidal"},
    {"embed_norm": True, "embed_scale": True, "bias": True, "head_bias": True},
    {"attention": "gated", "qk_norm": True, "num_kv_heads": 2, "activation": "swiglu"},
    {"attention": "block", "block_len": 5},
]


def with_stem(stem: dict[str, object], variant: dict[str, object], base: Shape = SMALL) -> tuple[Shape, Batch]:
    """A classifier with this stem, and a batch that it takes."""
    settings = {"num_encoder_layers": 2, "num_decoder_layers": 0, "num_classes": 5, **stem, **variant}
    shape = base.model_copy(update=settings)
    assert shape.stem is not None
    return shape, Batch(3, shape.stem.num_positions, labelled=3)


def inputs(shape: Shape, batch: Batch) -> dict[str, Tensor]:
    """Ids and segments of this size, as the tasks give them to a model."""
    found: dict[str, Tensor] = {}
    if shape.stem is not None:
        return {"source": stem_source(shape.stem, batch.size)}
    if shape.num_encoder_layers:
        found["source"] = torch.randint(3, shape.vocab_size, (batch.size, batch.source_len))
        found["source_segments"] = torch.ones_like(found["source"], dtype=torch.int64 if batch.packed else torch.bool)
    if shape.num_decoder_layers:
        found["target"] = torch.randint(3, shape.vocab_size, (batch.size, batch.target_len))
        if batch.packed:
            found["target_segments"] = torch.ones_like(found["target"])
    return found


def loss(model: Transformer, batch: Batch, precision: str, held: list[Tensor] | None = None) -> Tensor:
    found = inputs(model.shape, batch)
    if held is not None and model.shape.stem is not None:
        held.append(found["source"])
    labels = found.get("target", found.get("source"))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        hidden = model(**found).hidden
        if model.shape.num_classes:
            labels = class_labels(hidden, model.shape.num_classes)
        return model.head.loss(hidden, labels, 0.1)[0]


def kept_bytes(model: Transformer, batch: Batch, precision: str) -> int:
    """Bytes of the storages that autograd keeps for a backward pass, parameters and buffers left out."""
    return kept_by(model, lambda: loss(model, batch, precision))


def has_bf16_convolutions() -> bool:
    """Whether oneDNN's, which are what is counted, can be had here: x86 has them from AVX-512 on."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
@pytest.mark.parametrize("variant", STEM_VARIANTS, ids=str)
@pytest.mark.parametrize("stem", [*IMAGES, *TABLES], ids=str)
def test_saved_activations_behind_a_stem(stem: dict[str, object], variant: dict[str, object], precision: str) -> None:
    shape, batch = with_stem(stem, variant)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_activations_with_dropout(precision: str) -> None:
    kept = kept_bytes(Transformer(SMALL, dropout=0.1), BATCH, precision)
    assert saved_bytes(SMALL, BATCH, precision, dropout=True) == kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("variant", [{}, {"norm_order": "post"}, {"num_decoder_layers": 0}, {"attention": "gated"}])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_saved_activations_with_dropped_paths(
    variant: dict[str, object], dropout: float, packed: bool, precision: str
) -> None:
    shape = SMALL.model_copy(update=variant)
    batch, model = sized(shape, packed), Transformer(shape, dropout)
    model.drop_path_(0.3)
    assert saved_bytes(shape, batch, precision, dropout > 0, True) == kept_bytes(model, batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_activations_past_the_longest_plain_attention(precision: str) -> None:
    shape = SMALL.model_copy(update={"num_encoder_layers": 0, "num_decoder_layers": 1, "max_len": 2 * LONGEST_PLAIN})
    batch = Batch(2, target_len=LONGEST_PLAIN + 1)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@given(
    st.integers(2, 5), st.integers(3, 30), st.integers(3, 30), st.integers(2, 4), st.integers(1, 3), st.booleans(),
    st.sampled_from(["fp32", "bf16"]),
)  # fmt: skip
@settings(max_examples=40)
def test_saved_activations_of_any_size(
    size: int, source_len: int, target_len: int, heads: int, layers: int, packed: bool, precision: str
) -> None:
    shape = SMALL.model_copy(update={"num_heads": heads, "num_kv_heads": heads, "num_decoder_layers": layers})
    batch = Batch(size, source_len, target_len, packed=packed)
    assert saved_bytes(shape, batch, precision) == kept_bytes(Transformer(shape), batch, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_activations_of_reconstruction(precision: str) -> None:
    shape = SMALL.model_copy(update={"reconstruct": True})
    model = Transformer(shape)
    model.draw_from(torch.Generator().manual_seed(3))
    given = inputs(shape, BATCH) | {"labels": torch.randint(3, shape.vocab_size, (BATCH.size, BATCH.target_len))}
    # The same draws as the task's.
    draws = torch.Generator().manual_seed(3)
    masked = [int((torch.rand(given[name].shape, generator=draws) < 0.4).sum()) for name in ("source", "target")]

    def total() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return token_objective(model, given, Objective(0.1, 1.0, 0.4, 2)).total

    batch = Batch(BATCH.size, BATCH.source_len, BATCH.target_len, masked_source=masked[0], masked_target=masked[1])
    assert saved_bytes(shape, batch, precision) == pytest.approx(kept_by(model, total), rel=0.003)


@given(
    st.sampled_from([*VARIANTS, *BLOCKS]), st.sampled_from(["fp32", "bf16"]), st.booleans(), st.booleans(),
    st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=60)
def test_what_the_backward_pass_leaves_are_the_gradients(
    variant: dict[str, object], precision: str, dropout: bool, drop_path: bool, layers: int
) -> None:
    sides = {name: layers for name in ("num_encoder_layers", "num_decoder_layers") if variant.get(name) != 0}
    shape = SMALL.model_copy(update=variant | sides)
    matrices = sum(4 * a * b for a, b in (sizes for sizes in parameters(shape).values() if len(sizes) == 2))
    work = parts(shape, sized(shape), precision, dropout, drop_path)
    assert sum(op.makes - op.drops for part in work for op in part.ops) == matrices


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stem", [*IMAGES, *TABLES], ids=str)
def test_what_the_backward_pass_of_a_stem_leaves_are_the_gradients(stem: dict[str, object], precision: str) -> None:
    shape, batch = with_stem(stem, {"position": "learned"})
    matrices = sum(4 * prod(sizes) for sizes in parameters(shape).values() if len(sizes) > 1)
    assert sum(op.makes - op.drops for part in parts(shape, batch, precision) for op in part.ops) == matrices


def test_saved_bytes_are_the_sum_over_operators() -> None:
    items = saved(SMALL, BATCH, "fp32")
    assert sum(by_operator(items).values()) == saved_bytes(SMALL, BATCH, "fp32")
    assert {item.part for item in items} >= {"encoder.embed", "encoder.1.attention", "decoder.0.cross", "head"}


def test_the_constants_are_those_of_the_model() -> None:
    assert planned.PIECE_TOKENS == PIECE_TOKENS
    assert planned.CHUNK_ROWS == CHUNK_ROWS
    assert count.ROUND_TOKENS == ROUND_TOKENS
    assert count.PIECE_BYTES == PIECE_BYTES
    assert operators.LONGEST_PLAIN == LONGEST_PLAIN


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "variant", [{}, {"bias": True, "norm": "layer", "position": "learned", "reconstruct": True}, IMAGES[-1]]
)
def test_state_is_what_torch_holds(optimizer: str, variant: dict[str, object]) -> None:
    shape = with_stem(variant, {})[0] if "stem" in variant else SMALL.model_copy(update=variant)
    model = Transformer(shape)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    matrices, rest = split_parameters(model)
    optimizers = [torch.optim.AdamW(rest if optimizer == "muon" else [*rest, *matrices])]
    if optimizer == "muon":
        optimizers.append(Muon(matrices, lr=1e-3))
    for each in optimizers:
        each.step()
    held = sum(t.nbytes for each in optimizers for values in each.state.values() for t in values.values())
    counted = state(shape, optimizer, ema=True)
    assert counted.optimizer == held
    assert counted.weights == counted.gradients == sum(p.nbytes for p in model.parameters())
    assert counted.copies == 2 * counted.weights
    assert counted.total == counted.optimizer + 4 * counted.weights


@pytest.mark.parametrize("stem", [None, IMAGES[0], IMAGES[-1], TABLES[0]], ids=str)
def test_muon_takes_what_the_trainer_gives_it(stem: dict[str, object] | None) -> None:
    shape = SMALL.model_copy(update={"tied_embeddings": False, "position": "learned", "reconstruct": True})
    if stem is not None:
        shape, _ = with_stem(stem, {"position": "learned"})
    model = Transformer(shape)
    given = {id(parameter) for parameter in split_parameters(model)[0]}
    assert given
    for name, parameter in model.named_parameters():
        assert takes_muon(name, tuple(parameter.shape)) == (id(parameter) in given)


WIDE = Shape(
    vocab_size=1000, dim=128, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=512, num_encoder_layers=1,
    num_decoder_layers=2, max_len=1024, norm="layer",
)  # fmt: skip
DECODER = {"num_encoder_layers": 0}
ENCODER = {"num_encoder_layers": 2, "num_decoder_layers": 0}
STEPS = {
    "encoder-decoder": ({}, Batch(16, 60, 64)),
    "packed": ({"norm": "rms"}, Batch(8, 64, 70, packed=True)),
    "few rows": ({}, Batch(2, 40, 44)),
    "several pieces of logits": (DECODER | {"vocab_size": 3000}, Batch(12, 0, 128)),
    "encoder only": (ENCODER | {"bias": True, "norm_order": "post", "activation": "gelu"}, Batch(8, 128)),
    "gated": (DECODER | {"attention": "gated"}, Batch(8, 0, 160)),
    "grouped": (DECODER | {"num_kv_heads": 1, "activation": "swiglu"}, Batch(8, 0, 128)),
    "normed queries": (DECODER | {"qk_norm": True, "norm": "rms", "position": "learned"}, Batch(8, 0, 128)),
    "long": (DECODER | {"num_decoder_layers": 1}, Batch(2, 0, 640)),
    "causal blocks": (DECODER | {"attention": "block", "block_len": 24}, Batch(2, 0, 700)),
    "blocks": (ENCODER | {"attention": "block", "block_len": 16}, Batch(4, 400)),
    "untied": (DECODER | {"tied_embeddings": False, "head_bias": True, "activation": "relu"}, Batch(8, 0, 128)),
    "small images": (
        ENCODER | {"stem": ImageStem(height=28, width=28, channels=1), "num_classes": 10, "position": "learned"},
        Batch(32, 50, labelled=32),
    ),
    "large images": (
        ENCODER | {"stem": ImageStem(height=96, width=64, channels=3, patch=8), "num_classes": 9, "norm": "rms"},
        Batch(8, 97, labelled=8),
    ),
    "mostly a stem": (
        ENCODER | {"num_encoder_layers": 1, "stem": ImageStem(height=128, width=128, patch=16), "num_classes": 9},
        Batch(16, 65, labelled=16),
    ),
    "small pooled images": (
        ENCODER
        | {
            "stem": ImageStem(height=28, width=28, channels=1, pooled=True),
            "num_classes": 10,
            "position": "learned",
        },
        Batch(32, 49, labelled=32),
    ),
    "mostly a pooled stem": (
        ENCODER
        | {
            "num_encoder_layers": 1,
            "stem": ImageStem(height=128, width=128, patch=16, pooled=True),
            "num_classes": 9,
        },
        Batch(16, 64, labelled=16),
    ),
    "tables": (
        ENCODER | {"stem": TableStem(num_numeric=20, cardinalities=(9, 300, 4), pieces=32), "num_classes": 2},
        Batch(64, 24, labelled=64),
    ),
    "wide": (DECODER | {"dim": 320, "head_dim": 80, "ffn_dim": 640}, Batch(4, 0, 96)),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker computes: oneDNN's scratch grows with the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients_peak(
    shape: Shape, batch: Batch, precision: str, micro_batches: int, recompute: bool, drop_path: float = 0.0
) -> int:
    """Most bytes alive while the trainer's own worker makes gradients; images are held on to, as the trainer does."""
    model = Transformer(shape)
    model.recompute_(recompute)
    model.drop_path_(drop_path)
    workers, held = Workers(model, 1, 0), []

    def given(model: Transformer, nothing: object) -> Loss:
        return Loss(loss(model, batch, precision, held), torch.zeros(()))

    return tensor_peak(lambda: workers.gradients([{}] * micro_batches, given))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STEPS)
def test_peak_of_forward_and_backward_is_the_allocators(name: str, precision: str, recompute: bool) -> None:
    if precision == "bf16" and name in ("large images", "mostly a stem") and not has_bf16_convolutions():
        pytest.skip("this processor has no bf16 convolutions: torch takes others, whose memory is not what is counted")
    variant, batch = STEPS[name]
    shape = WIDE.model_copy(update=variant)
    counted = memory(shape, batch, precision, "adamw", recompute=recompute)
    base = counted.state.total - counted.state.gradients
    passes = max(size for phase, size in counted.phases.items() if phase.startswith(("forward", "backward")))
    measured = base + gradients_peak(shape, batch, precision, 1, recompute)
    assert passes == pytest.approx(measured, rel=0.005 if precision == "fp32" else 0.02)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["encoder-decoder", "packed", "encoder only", "small images"])
def test_peak_with_dropped_paths_is_the_allocators(name: str, precision: str, recompute: bool) -> None:
    variant, batch = STEPS[name]
    shape = WIDE.model_copy(update=variant)
    counted = memory(shape, batch, precision, "adamw", drop_path=True, recompute=recompute)
    base = counted.state.total - counted.state.gradients
    passes = max(size for phase, size in counted.phases.items() if phase.startswith(("forward", "backward")))
    measured = base + gradients_peak(shape, batch, precision, 1, recompute, 0.2)
    assert passes == pytest.approx(measured, rel=0.005 if precision == "fp32" else 0.02)
    assert passes > max(memory(shape, batch, precision, "adamw", recompute=recompute).phases.values()) or recompute


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_gradients_of_later_micro_batches_stand_beside_the_sum(micro_batches: int) -> None:
    shape, batch = WIDE.model_copy(update={"vocab_size": 8000}), Batch(2, 20, 20)
    counted = memory(shape, batch, "fp32", "adamw", accumulation=micro_batches)
    base = counted.state.total - counted.state.gradients
    measured = gradients_peak(shape, batch, "fp32", micro_batches, False)
    passes = max(size for phase, size in counted.phases.items() if phase not in ("update", "validation"))
    assert passes - base == pytest.approx(measured, rel=0.01)
    assert 2 * counted.state.gradients < measured < 3 * counted.state.gradients


def test_workers_each_have_activations_and_gradients() -> None:
    alone = memory(WIDE, BATCH, "fp32", "adamw", accumulation=2)
    two = memory(WIDE, BATCH, "fp32", "adamw", accumulation=4, workers=2)
    base = alone.state.total - alone.state.gradients
    assert two.phases["forward"] - base == 2 * (alone.phases["forward"] - base)
    each = memory(WIDE, BATCH, "fp32", "adamw", accumulation=2, workers=2)
    assert two.phases["forward"] - each.phases["forward"] == 2 * two.state.gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_peak_of_the_update(optimizer: str, precision: str) -> None:
    shape = WIDE.model_copy(update={"dim": 384, "ffn_dim": 1536})
    model = Transformer(shape)
    matrices, rest = split_parameters(model)
    parts = [torch.optim.AdamW(rest if optimizer == "muon" else [*rest, *matrices], fused=True)]
    if optimizer == "muon":
        parts.append(Muon(matrices, lr=1e-3, dtype=torch.bfloat16 if precision == "bf16" else torch.float32))

    def step() -> None:
        for part in parts:
            part.step()

    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step()
    counted = memory(shape, BATCH, precision, optimizer)
    assert counted.phases["update"] == pytest.approx(counted.state.total + tensor_peak(step), rel=0.03)


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
