"""Counts against the real module: its parameters, and the FLOPs that PyTorch's own counter finds."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stem_fakes import class_labels, stem_source
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.transformer import Output, Transformer
from chinchilla.planning.count import (
    Batch,
    flops,
    flops_per_token,
    matrix_params,
    num_params,
    paper_flops,
    parameters,
    products,
    typical_batch,
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads = draw(st.integers(1, 2))
    encoder, decoder = draw(st.sampled_from([(0, 1), (0, 2), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]))
    return Shape(
        vocab_size=draw(st.integers(5, 40)),
        dim=2 * draw(st.integers(1, 12)),
        num_heads=kv_heads * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 6)),
        ffn_dim=draw(st.integers(1, 40)),
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        max_len=draw(st.integers(16, 24)),
        attention=draw(st.sampled_from(["full", "block", "gated"])),
        block_len=draw(st.integers(2, 9)),
        block_summaries=draw(st.booleans()),
        position=draw(st.sampled_from(["sinusoidal", "learned", "rotary"])),
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_order=draw(st.sampled_from(["pre", "post"])),
        activation=draw(st.sampled_from(["gelu", "swiglu", "relu2", "silu", "relu"])),
        qk_norm=draw(st.booleans()),
        bias=draw(st.booleans()),
        embed_norm=draw(st.booleans()),
        embed_scale=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        reconstruct=draw(st.booleans()),
    )


@st.composite
def stems(draw: st.DrawFn) -> ImageStem | TableStem:
    if draw(st.booleans()):
        cardinalities = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
        numbers, pieces = draw(st.integers(0 if cardinalities else 1, 5)), draw(st.sampled_from([0, 4]))
        return TableStem(num_numeric=numbers, cardinalities=cardinalities, pieces=pieces)
    patch = draw(st.sampled_from([2, 4, 8]))
    height, width = (patch * draw(st.integers(1, 3)) for _ in range(2))
    channels, pooled = draw(st.sampled_from([1, 3])), draw(st.booleans())
    return ImageStem(height=height, width=width, channels=channels, patch=patch, pooled=pooled)


@st.composite
def classifiers(draw: st.DrawFn) -> Shape:
    layers = {"num_encoder_layers": draw(st.integers(1, 2)), "num_decoder_layers": 0, "reconstruct": False}
    return draw(shapes()).model_copy(update=layers | {"stem": draw(stems()), "num_classes": draw(st.integers(2, 9))})


@st.composite
def batches(draw: st.DrawFn, shape: Shape) -> Batch:
    source_len = draw(st.integers(1, 16)) if shape.num_encoder_layers else 0
    target_len = draw(st.integers(1, 16)) if shape.num_decoder_layers else 0
    size = draw(st.integers(1, 3))
    labelled = draw(st.integers(1, size * (target_len or source_len)))
    masked = [draw(st.integers(0, size * length)) if shape.reconstruct else 0 for length in (source_len, target_len)]
    return Batch(size, source_len, target_len, labelled, masked_source=masked[0], masked_target=masked[1])


def ids(shape: Shape, size: int, length: int) -> torch.Tensor:
    return torch.randint(3, shape.vocab_size, (size, length))


def outputs(model: Transformer, batch: Batch) -> Output:
    shape = model.shape
    source = ids(shape, batch.size, batch.source_len) if shape.num_encoder_layers else None
    target = ids(shape, batch.size, batch.target_len) if shape.num_decoder_layers else None
    segments = None if source is None else torch.ones_like(source, dtype=torch.bool)
    return model(source, target, source_segments=segments)


def loss(model: Transformer, batch: Batch) -> torch.Tensor:
    hidden, memory = outputs(model, batch)
    labels = ids(model.shape, hidden.shape[0], hidden.shape[1])
    labels.view(-1)[batch.loss_rows :] = -100
    total = model.head.loss(hidden, labels, 0.1)[0]
    for head, states, count in (
        (model.encoder_reconstruction, memory, batch.masked_source),
        (model.decoder_reconstruction, hidden, batch.masked_target),
    ):
        if head is not None and states is not None:
            total = total + head.loss(states, torch.randn(states.shape), first(states, count))
    return total


def first(states: torch.Tensor, count: int) -> torch.Tensor:
    return (torch.arange(states[..., 0].numel()) < count).view(states.shape[:2])


def forward(model: Transformer, batch: Batch) -> None:
    with torch.no_grad():
        loss(model, batch)


def class_loss(model: Transformer, batch: Batch) -> torch.Tensor:
    assert model.shape.stem is not None
    hidden = model(stem_source(model.shape.stem, batch.size)).hidden
    return model.head.loss(hidden, class_labels(hidden, model.shape.num_classes), 0.1)[0]


def step(model: Transformer, batch: Batch) -> None:
    loss(model, batch).backward()


def counted(call: Callable[[Transformer, Batch], None], model: Transformer, batch: Batch) -> int:
    # The fused CPU kernel is not in PyTorch's table of FLOP formulas; the math form is made of counted products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, batch)
    return counter.get_total_flops()


@given(shapes())
@settings(max_examples=60)
def test_parameters_are_those_of_the_module(shape: Shape) -> None:
    model = Transformer(shape)
    assert parameters(shape) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert num_params(shape) == sum(p.numel() for p in model.parameters())


def test_parameters_keep_the_order_of_the_module() -> None:
    shape = Shape(
        vocab_size=9, dim=4, num_heads=2, num_kv_heads=1, head_dim=2, ffn_dim=5, num_encoder_layers=1,
        num_decoder_layers=1, attention="gated", position="learned", norm="layer", qk_norm=True, bias=True,
        embed_norm=True, tied_embeddings=False, head_bias=True, reconstruct=True,
    )  # fmt: skip
    assert list(parameters(shape)) == [name for name, _ in Transformer(shape).named_parameters()]


def test_matrix_params_leave_out_the_vocabulary_and_positions() -> None:
    shape = Shape(
        vocab_size=50, dim=8, num_heads=2, num_kv_heads=2, head_dim=4, ffn_dim=16, num_decoder_layers=2,
        position="learned", tied_embeddings=False, max_len=20,
    )  # fmt: skip
    assert matrix_params(shape) == num_params(shape) - 2 * 50 * 8 - 20 * 8


@given(st.data())
@settings(max_examples=40)
def test_flops_equal_the_counter_of_torch(data: st.DataObject) -> None:
    shape = data.draw(shapes().filter(lambda shape: shape.attention != "block"))
    batch = data.draw(batches(shape))
    model = Transformer(shape)
    assert flops(shape, batch).forward == counted(forward, model, batch)
    assert flops(shape, batch).step == counted(step, model, batch)


@given(classifiers())
@settings(max_examples=40)
def test_parameters_and_flops_of_a_classifier_behind_a_stem(shape: Shape) -> None:
    model = Transformer(shape)
    assert parameters(shape) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert list(parameters(shape)) == [name for name, _ in model.named_parameters()]
    if shape.attention == "block":
        return
    assert shape.stem is not None
    batch = Batch(2, shape.stem.num_positions, labelled=2)
    assert flops(shape, batch).step == counted(lambda *given: class_loss(*given).backward(), model, batch)
    with torch.no_grad():
        assert flops(shape, batch).forward == counted(class_loss, model, batch)


@given(st.data())
@settings(max_examples=40)
def test_flops_of_block_attention(data: st.DataObject) -> None:
    shape = data.draw(shapes()).model_copy(update={"attention": "block"})
    batch = data.draw(batches(shape))
    model = Transformer(shape)
    # Outside the convention: scores are made again in the backward pass, and causal pieces leave out later summaries.
    again = sum(product.flops for product in products(shape, batch) if product.name.endswith(".attention.scores"))
    most = flops(shape, batch).forward, flops(shape, batch).step + again
    found = counted(forward, model, batch), counted(step, model, batch)
    if shape.num_decoder_layers and shape.block_summaries:
        assert found[0] <= most[0]
        assert found[1] <= most[1]
    else:
        assert found == most


def test_the_plain_count_is_six_flops_a_matrix_parameter_and_token() -> None:
    shape = Shape(
        vocab_size=8_000, dim=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=2_048, num_decoder_layers=6
    )
    batch = Batch(4, target_len=64)
    matmuls = [p for p in products(shape, batch) if not p.name.endswith(("scores", "values"))]
    matrices = sum(prod(sizes) for sizes in parameters(shape).values() if len(sizes) == 2)
    assert 3 * sum(p.flops for p in matmuls) == 6 * matrices * batch.target_rows
    assert flops_per_token(shape, batch) == flops(shape, batch).step / 256


def test_six_n_d_says_its_n() -> None:
    shape = Shape(vocab_size=50, dim=8, num_heads=2, num_kv_heads=2, head_dim=4, ffn_dim=16, num_decoder_layers=2)
    batch = Batch(2, target_len=10, labelled=15)
    whole, matrices = paper_flops(shape, batch), paper_flops(shape, batch, tables=False)
    assert whole.step == 6 * num_params(shape) * 15
    assert matrices.step == 6 * matrix_params(shape) * 15
    assert (whole.convention, whole.num_params, matrices.num_params) == (
        "paper6nd", num_params(shape), matrix_params(shape),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        # GPT-2 (Radford 2019), as its weights count.
        (
            Shape(
                vocab_size=50257, dim=768, num_heads=12, num_kv_heads=12, head_dim=64, ffn_dim=3072,
                num_decoder_layers=12, max_len=1024, position="learned", norm="layer", activation="gelu", bias=True,
            ),
            124_439_808,
        ),
        # BERT base, uncased (Devlin 2019): 109,482,240 less its pooler and its table of segments, folded in here.
        (
            Shape(
                vocab_size=30522, dim=768, num_heads=12, num_kv_heads=12, head_dim=64, ffn_dim=3072,
                num_encoder_layers=12, max_len=512, position="learned", norm="layer", norm_order="post",
                activation="gelu", bias=True, embed_norm=True,
            ),
            109_482_240 - 768 * 769 - 2 * 768,
        ),
        # TinyLlama 1.1B (Zhang 2024).
        (
            Shape(
                vocab_size=32000, dim=2048, num_heads=32, num_kv_heads=4, head_dim=64, ffn_dim=5632,
                num_decoder_layers=22, max_len=2048, activation="swiglu", tied_embeddings=False,
            ),
            1_100_048_384,
        ),
    ],
    ids=["gpt2", "bert", "tinyllama"],
)  # fmt: skip
def test_published_models_have_their_published_parameters(shape: Shape, published: int) -> None:
    assert num_params(shape) == published


def test_a_typical_batch_holds_the_asked_tokens() -> None:
    assert typical_batch(4_000, 21.6, 25.0) == Batch(size=160, source_len=22, target_len=25)
    assert typical_batch(3, 0, 25.0).size == 1


@pytest.mark.parametrize(("encoder", "decoder", "rows"), [(1, 0, 6), (0, 1, 8), (1, 1, 8)])
def test_every_position_of_the_output_side_is_labelled_unless_said_otherwise(
    encoder: int, decoder: int, rows: int
) -> None:
    batch = Batch(2, source_len=3 if encoder else 0, target_len=4 if decoder else 0)
    assert batch.loss_rows == rows
