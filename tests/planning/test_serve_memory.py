"""Memory of serving against the real thing: weights, the real cache's buffers, the allocator's peak while answering."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensor_bytes import tensor_peak
from torch import Tensor

from chinchilla.config.errors import UsageError
from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.cache import LayerCache
from chinchilla.models.generate import translate
from chinchilla.models.quantized import matrices, replace_
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import own_tensors
from chinchilla.planning.serve_memory import ServeMemory, kv_bytes, kv_capacity, serve_memory, weight_bytes
from chinchilla.serving.answerer import Prompt
from chinchilla.serving.decoding import TokenDecoding

DECODER = Shape(
    vocab_size=300, dim=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=256, num_decoder_layers=3, norm="layer",
    max_len=512,
)  # fmt: skip
TRANSLATOR = DECODER.model_copy(update={"num_encoder_layers": 2})
CLASSIFIER = {"num_encoder_layers": 2, "num_decoder_layers": 0, "num_classes": 7}
SHAPES = [
    {},
    {"tied_embeddings": False, "head_bias": True, "bias": True},
    {"position": "sinusoidal", "num_encoder_layers": 1, "activation": "swiglu"},
    CLASSIFIER | {"stem": ImageStem(height=16, width=16), "position": "learned"},
    CLASSIFIER | {"stem": TableStem(num_numeric=3, cardinalities=(4, 9), pieces=8)},
    {"position": "learned", "reconstruct": True, "qk_norm": True, "attention": "gated"},
]


@pytest.mark.parametrize("variant", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_weights_are_what_the_model_holds(kind: str, variant: dict[str, object]) -> None:
    shape = DECODER.model_copy(update=variant)
    model = Transformer(shape)
    tables = [buffer for name, buffer in model.named_buffers() if name.endswith("table")]
    if kind == "bf16":
        model.bfloat16()
        tables = [table.bfloat16() for table in tables]
    if kind == "int8":
        replace_(model, matrices(model))
    held = sum(tensor.nbytes for tensor in (*own_tensors(model).values(), *tables))
    assert weight_bytes(shape, kind, packed=False) == held


def test_packing_fills_columns_up() -> None:
    plain, packed = (weight_bytes(DECODER, "int8", packed) for packed in (False, True))
    columns = {"qkv": 3 * 64, "out": 64, "up": 256, "down": 64}
    filled = sum(rows * (512 - (256 if name == "down" else 64) + 12) for name, rows in columns.items())
    assert packed - plain == 3 * filled + 300 * (512 + 16)


@given(st.integers(1, 70), st.integers(1, 150))
@settings(max_examples=80)
def test_capacity_is_the_caches(prompt_len: int, new_tokens: int) -> None:
    layer = LayerCache()
    layer.append(torch.zeros(2, 3, prompt_len, 5), torch.zeros(2, 3, prompt_len, 5))
    for _ in range(new_tokens):
        layer.append(torch.zeros(2, 3, 1, 5), torch.zeros(2, 3, 1, 5))
    shape = DECODER.model_copy(update={"num_kv_heads": 3, "num_heads": 3, "head_dim": 5, "position": "learned"})
    assert layer.keys is not None
    assert kv_bytes(shape, 2, kv_capacity(max(prompt_len, 16), prompt_len + new_tokens)) == layer.keys.nbytes


class Silence:
    """A token stream that shows no text."""

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def made(shape: Shape, kind: str) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(shape).eval()
    return model.bfloat16() if kind == "bf16" else model


def found_peak(counted: ServeMemory) -> int:
    return counted.peak - counted.weights


@pytest.mark.parametrize(
    ("variant", "rows", "prompt_len", "new_tokens", "kind"),
    [
        ({}, 1, 100, 12, "fp32"),
        ({}, 4, 50, 60, "fp32"),
        ({"num_kv_heads": 2, "position": "learned"}, 3, 200, 8, "fp32"),
        ({"attention": "gated", "activation": "swiglu", "norm": "rms"}, 2, 64, 10, "fp32"),
        ({"attention": "block", "block_len": 16}, 3, 200, 12, "fp32"),
        ({"num_kv_heads": 1}, 4, 300, 6, "bf16"),
    ],
)
def test_a_running_batch(variant: dict[str, object], rows: int, prompt_len: int, new_tokens: int, kind: str) -> None:
    shape = DECODER.model_copy(update=variant)
    decoding = TokenDecoding(made(shape, kind), lambda text: [3] * prompt_len, Silence, frozenset())

    def answer() -> None:
        decoding.join([Prompt("", new_tokens, temperature=0)] * rows)
        for _ in range(new_tokens - 1):
            decoding.step()

    measured = tensor_peak(answer)
    counted = serve_memory(shape, rows, prompt_len, new_tokens, weights=kind)
    held = sum(t.nbytes for layer in decoding._cache.self_layers for t in (layer.keys, layer.values) if t is not None)
    assert counted.cache == held
    assert found_peak(counted) == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    ("variant", "rows", "source_len", "new_tokens", "beams", "kind"),
    [
        ({}, 4, 50, 10, 1, "fp32"),
        ({}, 3, 50, 20, 4, "fp32"),
        ({"vocab_size": 4000}, 3, 30, 5, 4, "fp32"),
        ({}, 3, 60, 20, 4, "bf16"),
        ({"attention": "block", "block_len": 16, "num_kv_heads": 2}, 3, 100, 8, 4, "fp32"),
    ],
)
def test_a_beam_search(
    variant: dict[str, object], rows: int, source_len: int, new_tokens: int, beams: int, kind: str
) -> None:
    shape = TRANSLATOR.model_copy(update=variant)
    model = made(shape, kind)
    logits = model.logits

    def endless(hidden: Tensor) -> Tensor:
        found = logits(hidden)
        found[..., shape.eos_id] = -1e9
        return found

    model.logits = endless  # type: ignore[method-assign]
    source = torch.randint(3, shape.vocab_size, (rows, source_len))
    real = torch.ones_like(source, dtype=torch.bool)
    measured = tensor_peak(lambda: translate(model, source, real, [new_tokens] * rows, beams))
    counted = serve_memory(shape, rows, source_len, new_tokens, beam_size=beams, weights=kind)
    assert found_peak(counted) == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize("attention", ["full", "block"])
def test_an_encoder_alone(attention: str) -> None:
    shape = DECODER.model_copy(
        update={"num_encoder_layers": 3, "num_decoder_layers": 0, "attention": attention, "block_len": 16}
    )
    model = made(shape, "fp32")
    source = torch.randint(3, shape.vocab_size, (8, 128))
    with torch.inference_mode():
        measured = tensor_peak(lambda: model.encode(source))
    counted = serve_memory(shape, 8, 128, 1)
    assert counted.cache == 0
    assert found_peak(counted) == pytest.approx(measured, rel=0.04)


@given(st.integers(1, 16), st.integers(1, 100), st.integers(1, 100), st.sampled_from(["fp32", "bf16", "int8"]))
@example(2, 1, 1, "fp32")  # the third is read beside less than the second was
@settings(max_examples=60)
def test_more_of_anything_needs_no_less(rows: int, prompt_len: int, new_tokens: int, kind: str) -> None:
    for shape in (DECODER, TRANSLATOR):
        peak = serve_memory(shape, rows, prompt_len, new_tokens, weights=kind).peak
        assert peak <= serve_memory(shape, rows + 1, prompt_len, new_tokens, weights=kind).peak
        assert peak <= serve_memory(shape, rows, prompt_len, new_tokens + 1, weights=kind).peak


def test_the_cache_halves_in_bf16_and_not_in_int8() -> None:
    fp32, bf16, int8 = (serve_memory(DECODER, 4, 50, 60, weights=kind) for kind in ("fp32", "bf16", "int8"))
    assert 2 * bf16.cache == fp32.cache == int8.cache


@pytest.mark.parametrize(("rows", "prompt_len", "new_tokens"), [(0, 5, 5), (1, 0, 5), (1, 5, 0), (1, 500, 13)])
def test_what_cannot_be_served_is_refused(rows: int, prompt_len: int, new_tokens: int) -> None:
    with pytest.raises(UsageError, match=r"at least 1|do not fit max_len 512"):
        serve_memory(DECODER, rows, prompt_len, new_tokens)
