"""FLOPs really executed, against PyTorch's counter on the real module, its optimizer and its kernels."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stem_fakes import class_labels, stem_source
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import Batch, flops
from chinchilla.planning.executed import executed
from chinchilla.training.muon import Muon
from chinchilla.training.optimizer import split_parameters

SHAPE = Shape(
    vocab_size=30, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=24, num_encoder_layers=1,
    num_decoder_layers=2, max_len=2048,
)  # fmt: skip


def fused_forward(query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(query, repeated(key, query), repeated(value, query))


def fused_backward(grad, query, key, value, *args, out_shape=None, **kwargs):
    # Five products, the scores made again among them.
    return sdpa_backward_flop_count(grad, query, repeated(key, query), repeated(value, query))


def repeated(sizes, query):
    return (sizes[0], query[1], *sizes[2:])


FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_backward,
}


def counted(
    shape: Shape, batch: Batch, precision: str, dropout: float, recompute: bool, drop_path: float = 0.0
) -> tuple[int, int]:
    """FLOPs of a forward and of a backward pass."""
    model = Transformer(shape, dropout)
    model.recompute_(recompute)
    model.drop_path_(drop_path)
    source = torch.randint(3, shape.vocab_size, (batch.size, batch.source_len)) if shape.num_encoder_layers else None
    target = torch.randint(3, shape.vocab_size, (batch.size, batch.target_len)) if shape.num_decoder_layers else None
    segments = None if source is None else torch.ones_like(source, dtype=torch.bool)
    labels = source if target is None else target
    if shape.stem is not None:
        source, segments = stem_source(shape.stem, batch.size), None
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with FlopCounterMode(display=False, custom_mapping=FUSED) as forward, low:
        hidden = model(source, target, source_segments=segments).hidden
        labels = labels if shape.stem is None else class_labels(hidden, shape.num_classes)
        loss = model.head.loss(hidden, labels, 0.1)[0]
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    encoder, decoder = draw(st.sampled_from([(0, 2), (2, 0), (1, 2)]))
    return SHAPE.model_copy(
        update={
            "num_encoder_layers": encoder,
            "num_decoder_layers": decoder,
            "attention": draw(st.sampled_from(["full", "block", "gated"])),
            "block_len": draw(st.integers(2, 9)),
            "block_summaries": draw(st.booleans()),
            "position": draw(st.sampled_from(["sinusoidal", "learned", "rotary"])),
            "norm": draw(st.sampled_from(["layer", "rms"])),
            "norm_order": draw(st.sampled_from(["pre", "post"])),
            "activation": draw(st.sampled_from(["gelu", "swiglu", "relu2", "silu", "relu"])),
            "num_kv_heads": draw(st.sampled_from([1, 2])),
            "qk_norm": draw(st.booleans()),
            "bias": draw(st.booleans()),
        }
    )


@given(
    shapes(), st.sampled_from(["fp32", "bf16"]), st.booleans(), st.booleans(), st.integers(1, 40), st.integers(2, 40)
)
@settings(max_examples=80)
def test_executed_flops_equal_the_counter_of_torch(
    shape: Shape, precision: str, dropout: bool, recompute: bool, source_len: int, target_len: int
) -> None:
    batch = Batch(2, source_len if shape.num_encoder_layers else 0, target_len if shape.num_decoder_layers else 0)
    found = executed(shape, batch, precision, "adamw", dropout=dropout, recompute=recompute)
    assert (found.forward, found.backward) == counted(shape, batch, precision, 0.1 if dropout else 0.0, recompute)
    assert (found.update, found.convention) == (0, "hardware")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_dropped_paths_are_computed_all_the_same(order: str, recompute: bool) -> None:
    shape, batch = SHAPE.model_copy(update={"norm_order": order}), Batch(2, 5, 6)
    found = executed(shape, batch, "fp32", "adamw", drop_path=True, recompute=recompute)
    assert (found.forward, found.backward) == counted(shape, batch, "fp32", 0.0, recompute, 0.3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stem",
    [
        ImageStem(height=8, width=12, patch=4),
        ImageStem(height=8, width=12, patch=4, pooled=True),
        TableStem(num_numeric=2, cardinalities=(3, 5), pieces=4),
    ],
    ids=["strided", "image", "table"],
)
def test_executed_flops_behind_a_stem(stem: ImageStem | TableStem, precision: str, recompute: bool) -> None:
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 0, "num_classes": 5}
    shape = SHAPE.model_copy(update=layers | {"stem": stem})
    batch = Batch(3, stem.num_positions, labelled=3)
    found = executed(shape, batch, precision, "adamw", recompute=recompute)
    assert (found.forward, found.backward) == counted(shape, batch, precision, 0.0, recompute)


def test_blocks_in_several_pieces() -> None:
    # 40 blocks in pieces of about 6: causal pieces leave out the summaries that none of their blocks sees.
    shape = SHAPE.model_copy(
        update={"attention": "block", "block_len": 32, "num_heads": 8, "num_kv_heads": 8, "num_decoder_layers": 1}
    )
    batch = Batch(1, 1280, 1280)
    found = executed(shape, batch, "fp32", "adamw")
    assert (found.forward, found.backward) == counted(shape, batch, "fp32", 0.0, False)
    head = 2 * batch.head_rows * shape.dim * shape.vocab_size
    assert found.forward < flops(shape, batch).forward + 2 * head


@pytest.mark.parametrize("length", [40, 300, 700, 1500, 2048])
def test_the_fused_kernel_skips_hidden_tiles(length: int) -> None:
    shape = SHAPE.model_copy(update={"num_encoder_layers": 0, "num_decoder_layers": 1})
    packed, causal = (executed(shape, Batch(1, 0, length, packed=packed), "fp32", "adamw") for packed in (True, False))
    queries = 256 if length >= 768 else 64 if length >= 192 else 32
    seen = np.tril(np.ones((length, length), dtype=bool))
    tiles = [seen[i : i + queries, j : j + 512] for i in range(0, length, queries) for j in range(0, length, 512)]
    hidden = sum(tile.size for tile in tiles if not tile.any())
    width = shape.num_heads * shape.head_dim
    assert packed.forward - causal.forward == 2 * 2 * width * hidden
    assert packed.backward - causal.backward == 5 * 2 * width * hidden


def test_muons_products_are_counted() -> None:
    model = Transformer(SHAPE)
    matrices, _ = split_parameters(model)
    muon = Muon(matrices, lr=1e-3)
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    found = executed(SHAPE, Batch(2, 5, 6), "fp32", "muon", accumulation=3)
    assert found.update == counter.get_total_flops()
    once = executed(SHAPE, Batch(2, 5, 6), "fp32", "adamw")
    assert found.step - found.update == 3 * once.step


def test_one_convention_against_another() -> None:
    shape = SHAPE.model_copy(update={"num_encoder_layers": 0})
    batch = Batch(4, 0, 128)
    matmul, plain, fused = (
        flops(shape, batch),
        executed(shape, batch, "bf16", "adamw"),
        executed(shape, batch, "fp32", "adamw"),
    )
    assert plain.step == matmul.step
    scores = 2 * prod((4, 2, 128, 128, 8))
    assert fused.step - matmul.step == shape.num_decoder_layers * scores
