"""Int8 kernels against integer arithmetic done independently, and int8 modules in a whole model."""

import copy
import functools
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import quantized
from chinchilla.models.cache import KVCache
from chinchilla.models.quantized import (
    EngineKernel,
    Int8Embedding,
    Int8Head,
    Int8Linear,
    Int8Rows,
    PlainKernel,
    to_rows,
)
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import own_tensors

REDUCED = functools.partial(EngineKernel, reduce_range=True)

HAS_ENGINE = quantized.fastest_kernel() is not PlainKernel

KERNELS = [
    pytest.param(quantized.fastest_kernel(), id="fastest"),
    pytest.param(
        REDUCED, id="reduced", marks=pytest.mark.skipif(not HAS_ENGINE, reason="torch has no int8 engine here")
    ),
    pytest.param(PlainKernel, id="plain"),
]


def top_level(kernel):
    """The highest of an activation's levels, from 0 on; a kernel of reduced range has one bit less."""
    reduced = isinstance(kernel, functools.partial) and kernel.keywords["reduce_range"]
    return 127 if reduced else 255


def least_sqnr_db(kernel):
    """35 dB, less what the lost bit costs: steps twice as long, so errors of four times the power, 6 dB."""
    return 35 - 20 * math.log10(255 / top_level(kernel))


def sqnr_db(wanted, found):
    return 10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()).item()


def random_rows(rows, columns, bias=False, seed=0):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random)
    return to_rows(weight, torch.randn(rows, generator=random) if bias else None)


def integer_product(x, rows, top):
    """The product in numpy's int64: activations rounded to levels 0 to `top` of the tensor's span, zero among them."""
    x = x.double().numpy()
    step = max((max(x.max(), 0) - min(x.min(), 0)) / top, 6.1e-5)
    zero = round(-min(x.min(), 0) / step)
    levels = np.clip(np.rint(x / step) + zero, 0, top).astype(np.int64) - zero
    product = levels @ rows.weight.numpy().astype(np.int64).T * (step * rows.scale.double().numpy())
    return torch.from_numpy(product + (0 if rows.bias is None else rows.bias.double().numpy())), step


def small_model(**changes):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 300,
        "dim": 48,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 12,
        "ffn_dim": 96,
        "max_len": 32,
    }
    shape |= {"num_encoder_layers": 2, "num_decoder_layers": 2} | changes
    return Transformer(Shape(**shape)).eval()


def int8_linear(columns, rows, bias=True):
    linear = nn.Linear(columns, rows, bias=bias)
    return Int8Linear(to_rows(linear.weight, linear.bias))


def quantized_twin(model):
    twin = copy.deepcopy(model)
    quantized.replace_(twin, quantized.matrices(twin))
    return twin


def logits(model):
    random = torch.Generator().manual_seed(1)
    source, target = (torch.randint(3, 300, (2, length), generator=random) for length in (11, 7))
    return model.logits(model(source if model.encoder else None, target).hidden)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 130),
    lead=st.sampled_from([(1,), (5,), (2, 3), (1, 1), (2, 1, 3)]),
    size=st.sampled_from([0.01, 1.0, 300.0]),
    shift=st.sampled_from([-3.0, 0.0, 0.7]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernels_do_integer_arithmetic(kernel, rows, columns, lead, size, shift, bias, seed):
    matrix = random_rows(rows, columns, bias, seed)
    x = (torch.randn(*lead, columns, generator=torch.Generator().manual_seed(seed + 1)) + shift) * size
    wanted, step = integer_product(x, matrix, top_level(kernel))
    found = kernel(matrix)(x)
    # A value halfway between two levels may go either way: allow three of them, and fp32's rounding.
    slack = 3 * step * 127 * matrix.scale.max() + 1e-5 * wanted.abs().max()
    assert found.shape == (*lead, rows) and found.dtype == torch.float32
    assert (found - wanted).abs().max() <= slack


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows, columns", [(64, 64), (256, 256), (1024, 256), (300, 1024)])
def test_precision(kernel, rows, columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    x = torch.randn(9, columns, generator=torch.Generator().manual_seed(3))
    assert sqnr_db(x @ weight.T, kernel(to_rows(weight))(x)) > least_sqnr_db(kernel)
    rounded = to_rows(weight)
    assert sqnr_db(weight, rounded.weight * rounded.scale[:, None]) > 40


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_of_outliers_spoils_no_other_row(kernel):
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(4))
    x = torch.randn(99, 64, generator=torch.Generator().manual_seed(5))
    spoiled = weight.clone()
    spoiled[7] *= 1e5
    found, wanted = kernel(to_rows(spoiled))(x), kernel(to_rows(weight))(x)
    others = torch.arange(20) != 7
    assert torch.equal(found[:, others], wanted[:, others])
    assert sqnr_db(x @ spoiled[7], found[:, 7]) > least_sqnr_db(kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tiny", [0.0, 1e-38])
def test_rows_of_zeros_give_zero_or_the_bias(kernel, tiny):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(6))
    weight[2] = tiny
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(7))
    assert not kernel(to_rows(weight))(x)[:, 2].any()
    bias = torch.arange(6.0)
    assert torch.equal(kernel(to_rows(weight, bias))(x)[:, 2], torch.full((4,), 2.0))


def test_rounding_keeps_to_127_and_to_the_nearest():
    weight = torch.randn(50, 80, generator=torch.Generator().manual_seed(8))
    rows = to_rows(weight)
    assert rows.weight.dtype == torch.int8 and rows.scale.dtype == torch.float32
    assert torch.equal(rows.weight.abs().amax(1), torch.full((50,), 127, dtype=torch.int8))
    assert ((weight - rows.weight * rows.scale[:, None]).abs() <= rows.scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_take_views_zeros_and_nothing(kernel):
    rows = random_rows(24, 40, bias=True)
    packed = kernel(rows)
    wide = torch.randn(40, 6, generator=torch.Generator().manual_seed(9))
    assert torch.equal(packed(wide.T), packed(wide.T.contiguous()))
    assert torch.equal(packed(wide.T[::2]), packed(wide.T[::2].contiguous()))
    assert packed(torch.zeros(0, 40)).shape == (0, 24)
    assert packed(torch.zeros(2, 0, 40)).shape == (2, 0, 24)
    assert torch.equal(packed(torch.zeros(3, 40)), rows.bias.expand(3, -1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_leave_their_input_alone(kernel):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(10))
    before = x.clone()
    kernel(random_rows(8, 16))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [False, True])
def test_unpacking_gives_every_bit_back(kernel, bias):
    rows = random_rows(37, 53, bias)
    unpacked = kernel(rows).unpack()
    assert torch.equal(unpacked, rows.weight) and unpacked.dtype == torch.int8


def test_without_an_engine_plain_torch_takes_over_and_says_so(monkeypatch, caplog):
    def refuse(self, rows, reduce_range=False):
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack\nand more")

    monkeypatch.setattr(EngineKernel, "__init__", refuse)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        assert quantized.fastest_kernel.__wrapped__() is PlainKernel
    assert "Didn't find engine" in caplog.text and "and more" not in caplog.text


def test_an_engine_that_saturates_runs_with_reduced_range(monkeypatch):
    class Saturating(PlainKernel):
        def __init__(self, rows, reduce_range=False):
            super().__init__(rows)
            self.reduce_range = reduce_range

        def __call__(self, x):
            return super().__call__(x) * (1.0 if self.reduce_range else 0.51)

    monkeypatch.setattr(quantized, "EngineKernel", Saturating)
    chosen = quantized.fastest_kernel.__wrapped__()
    assert isinstance(chosen, functools.partial) and chosen.keywords == {"reduce_range": True}


def test_a_layer_holds_its_matrix_once():
    layer = int8_linear(64, 32)
    assert layer.weight.shape == (32, 64)
    layer(torch.randn(2, 64))
    assert layer.weight.numel() == 0
    layer.state_dict()
    assert layer.weight.shape == (32, 64) and layer.kernel is None


@pytest.mark.parametrize("bias", [False, True])
def test_state_goes_through_a_file_bit_for_bit(tmp_path, bias):
    layer, x = int8_linear(64, 32, bias=bias), torch.randn(2, 64)
    fresh = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    wanted = layer(x)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    stored = load_file(tmp_path / "layer.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: torch.int8 if name == "weight" else torch.float32 for name in fresh
    }
    assert all(torch.equal(stored[name], fresh[name]) for name in fresh)
    other = int8_linear(64, 32, bias=bias)
    other(x)
    other.load_state_dict(stored)
    assert torch.equal(other(x), wanted)
    assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_token_does_not_suffer_from_its_batch(kernel, bias, monkeypatch):
    """Squared ReLU: few large values among many small ones, and a token whose values are a thousand times larger."""
    monkeypatch.setattr(quantized, "fastest_kernel", lambda: kernel)
    torch.manual_seed(0)
    linear = nn.Linear(256, 64, bias=bias)
    layer = Int8Linear(to_rows(linear.weight, linear.bias))
    x = torch.randn(4, 8, 256).relu().square()
    x[2, 3] *= 1000
    x[1, 5] = 0
    wanted, found = linear(x), layer(x)
    others = torch.ones(4, 8, dtype=torch.bool)
    others[2, 3] = False
    assert sqnr_db(wanted[others], found[others]) > least_sqnr_db(kernel)
    assert sqnr_db(wanted[2, 3], found[2, 3]) > least_sqnr_db(kernel)
    assert torch.equal(found[1, 5], wanted[1, 5])
    together = layer.kernel(x)
    assert sqnr_db(wanted[others], together[others]) < 10


def test_few_rows_go_straight_to_the_kernel(monkeypatch):
    layer, given = int8_linear(16, 8), []
    monkeypatch.setattr(quantized, "fastest_kernel", lambda: lambda rows: lambda x: given.append(x) or x)
    for rows in (1, quantized.FEW_ROWS, quantized.FEW_ROWS + 1):
        layer.kernel, layer.bias = None, None
        x = torch.randn(rows, 1, 16)
        assert torch.allclose(layer(x), x)
        assert (given[-1] is x) == (rows <= quantized.FEW_ROWS)


def test_a_head_takes_a_single_vector():
    head, hidden = Int8Head(to_rows(torch.randn(30, 16))), torch.randn(2, 3, 16)
    assert torch.equal(head(hidden[0, -1]), head(hidden[0, -1:])[0])
    assert head(hidden).shape == (2, 3, 30)


def test_embedding_looks_up_the_rounded_rows():
    table = nn.Embedding(30, 16)
    rows = to_rows(table.weight)
    ids = torch.tensor([[3, 3, 29], [0, 1, 2]])
    assert torch.equal(Int8Embedding(rows)(ids), (rows.weight * rows.scale[:, None])[ids])


SHAPES = {
    "tied": {},
    "untied with biases": {"tied_embeddings": False, "head_bias": True, "bias": True},
    "tied with a head bias": {"head_bias": True},
    "gated": {"attention": "gated", "qk_norm": True},
    "block": {"attention": "block", "block_len": 4},
    "bert-like": {
        "norm": "layer",
        "norm_order": "post",
        "position": "learned",
        "activation": "gelu",
        "embed_norm": True,
    },
    "marian-like": {"norm": "layer", "position": "sinusoidal", "embed_scale": True, "activation": "silu"},
    "decoder only": {"num_encoder_layers": 0, "activation": "swiglu"},
    "with reconstruction": {"reconstruct": True},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_kind_of_model(changes):
    model = small_model(**changes)
    twin = quantized_twin(model)
    left = [name for name, tensor in own_tensors(twin).items() if tensor.dim() > 1 and tensor.dtype != torch.int8]
    assert left in ([], ["embed.position.table"])
    answers = logits(twin)
    assert sqnr_db(logits(model), answers) > 18
    assert not answers.requires_grad
    assert quantized.num_params(twin) == sum(parameter.numel() for parameter in model.parameters())
    assert twin.head.weight.device == model.head.weight.device


def test_plain_torch_gives_a_model_the_same_answers(monkeypatch):
    model = small_model()
    with_engine = logits(quantized_twin(model))
    monkeypatch.setattr(quantized, "fastest_kernel", lambda: PlainKernel)
    assert sqnr_db(with_engine, logits(quantized_twin(model))) > 25


def test_decoding_token_by_token():
    model = small_model()
    twin = quantized_twin(model)
    source, target = torch.randint(3, 300, (2, 9)), torch.randint(3, 300, (2, 6))
    memory, cache = twin.encode(source), KVCache(2)
    steps = [twin.decode(target[:, i : i + 1], memory, cache=cache) for i in range(6)]
    assert sqnr_db(model(source, target).hidden, torch.cat(steps, 1)) > 18


def test_half_precision_input_is_taken():
    layer = int8_linear(32, 8)
    assert layer(torch.randn(2, 32).bfloat16()).dtype == torch.float32


def test_tied_table_is_stored_once_and_stays_tied(tmp_path):
    twin = quantized_twin(small_model())
    wanted = logits(twin)
    stored = own_tensors(twin)
    assert stored["embed.tokens.weight"].dtype == torch.int8
    assert not [name for name in stored if name.startswith("head")]
    save_file(stored, tmp_path / "model.safetensors")
    torch.manual_seed(9)
    other = Transformer(twin.shape)
    quantized.rebuild_(other, quantized.describe(twin))
    logits(other)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(other), wanted)
    other.embed.tokens.weight.neg_()
    other.load_state_dict(other.state_dict())
    hidden = torch.randn(1, 1, twin.shape.dim)
    assert torch.allclose(other.logits(hidden), -twin.logits(hidden), atol=1e-6)


def test_a_copy_has_its_own_tie():
    twin = quantized_twin(small_model())
    wanted = logits(twin)
    other = copy.deepcopy(twin)
    assert torch.equal(logits(other), wanted)
    assert other.head.weight is other.embed.tokens.weight
    assert other.head.weight.data_ptr() != twin.head.weight.data_ptr()


def test_the_whole_model_is_nearly_four_times_smaller():
    shape = {
        "vocab_size": 8192,
        "dim": 256,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 64,
        "ffn_dim": 1024,
        "max_len": 256,
    }
    model = small_model(**shape, num_encoder_layers=3, num_decoder_layers=3)
    before = sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(model).values())
    after = sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(quantized_twin(model)).values())
    assert before / after > 3.9


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False, "head_bias": True}])
def test_head_loss_is_that_of_its_logits(smoothing, changes, monkeypatch):
    monkeypatch.setattr(quantized, "PIECE_TOKENS", 5)
    model = small_model(**changes)
    twin = quantized_twin(model)
    hidden, labels = torch.randn(3, 7, model.shape.dim), torch.randint(0, 300, (3, 7))
    labels[0, 2:] = labels[2] = -100
    total, plain = twin.head.loss(hidden, labels, smoothing)
    wanted, wanted_plain = model.head.loss(hidden, labels, smoothing)
    assert total.item() == pytest.approx(wanted.item(), rel=0.01)
    assert plain.item() == pytest.approx(wanted_plain.item(), rel=0.01)
    direct = F.cross_entropy(twin.logits(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    assert plain.item() == pytest.approx(direct.item(), rel=0.01)


def test_head_loss_without_labels_is_zero():
    head = quantized_twin(small_model()).head
    total, plain = head.loss(torch.randn(1, 3, 48), torch.full((1, 3), -100))
    assert total.item() == plain.item() == 0


def test_describing_and_rebuilding():
    model = small_model()
    assert quantized.describe(model) is None and not quantized.is_quantized(model)
    twin = quantized_twin(model)
    assert quantized.describe(twin) == {"scheme": "int8-dynamic"} and quantized.is_quantized(twin)
    with pytest.raises(UsageError, match=r"'int3' is not one of int8-dynamic"):
        quantized.rebuild_(model, {"scheme": "int3"})


def test_kernels_are_replaceable(monkeypatch):
    class Doubling(PlainKernel):
        def __call__(self, x):
            return 2 * super().__call__(x)

    layer = int8_linear(16, 8, bias=False)
    twice, x = copy.deepcopy(layer), torch.randn(2, 16)
    monkeypatch.setattr(quantized, "fastest_kernel", lambda: Doubling)
    assert torch.allclose(twice(x), 2 * PlainKernel(Int8Rows(layer.weight, layer.scale, None))(x))
