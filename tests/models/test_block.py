"""The parts of a block against plain torch: norm orders, activations, dropout, rotary positions, head loss."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.block import Block, Dropout, activate
from chinchilla.models.position import rotate, rotation, sinusoids


def shape(**rest: Any) -> Shape:
    common: dict[str, Any] = {
        "vocab_size": 11,
        "dim": 12,
        "num_heads": 3,
        "num_kv_heads": 3,
        "head_dim": 4,
        "ffn_dim": 20,
        "num_decoder_layers": 1,
    }
    return Shape(**(common | rest))


def plain_attention(block: Block, x: Tensor, heads: int) -> Tensor:
    """Self-attention by the formulas softmax(QKᵀ/√d)V and concat·W, causal."""
    batch, length, dim = x.shape
    q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in block.attention.qkv(x).chunk(3, dim=2))
    scores = q @ k.transpose(2, 3) / math.sqrt(dim // heads)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return block.attention.out((scores.softmax(3) @ v).transpose(1, 2).reshape(batch, length, dim))


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_norm_order_is_where_the_norm_stands(order: str, norm: str) -> None:
    torch.manual_seed(0)
    block = Block(shape(norm_order=order, norm=norm, activation="relu", bias=True), True, False, 0.0)
    x = torch.randn(2, 7, 12)
    if order == "pre":
        y = x + plain_attention(block, block.attention_norm(x), 3)
        wanted = y + block.mlp.down(F.relu(block.mlp.up(block.mlp_norm(y))))
    else:
        y = block.attention_norm(x + plain_attention(block, x, 3))
        wanted = block.mlp_norm(y + block.mlp.down(F.relu(block.mlp.up(y))))
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)


def test_post_norm_decoder_equals_torch() -> None:
    torch.manual_seed(0)
    block = Block(
        shape(norm_order="post", norm="layer", activation="gelu", bias=True, num_encoder_layers=1), True, True, 0.0
    )
    theirs = torch.nn.TransformerDecoderLayer(12, 3, 20, 0.0, "gelu", batch_first=True)
    assert block.cross is not None and block.cross_norm is not None
    pairs = [
        (theirs.self_attn.in_proj_weight, block.attention.qkv.weight),
        (theirs.self_attn.in_proj_bias, block.attention.qkv.bias),
        (theirs.self_attn.out_proj.weight, block.attention.out.weight),
        (theirs.self_attn.out_proj.bias, block.attention.out.bias),
        (theirs.multihead_attn.in_proj_weight, torch.cat([block.cross.query.weight, block.cross.kv.weight])),
        (theirs.multihead_attn.in_proj_bias, torch.cat([block.cross.query.bias, block.cross.kv.bias])),
        (theirs.multihead_attn.out_proj.weight, block.cross.out.weight),
        (theirs.multihead_attn.out_proj.bias, block.cross.out.bias),
        (theirs.linear1.weight, block.mlp.up.weight),
        (theirs.linear1.bias, block.mlp.up.bias),
        (theirs.linear2.weight, block.mlp.down.weight),
        (theirs.linear2.bias, block.mlp.down.bias),
    ]
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 8, 12)
    padding = torch.arange(8) >= torch.tensor([[8], [3]])
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    wanted = theirs(x, memory, tgt_mask=future, memory_key_padding_mask=padding)
    mine = block(x, memory=memory, memory_mask=~padding[:, None, None, :])
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_activations_equal_their_formulas() -> None:
    x = torch.linspace(-4, 4, 1001, dtype=torch.float64).view(1, -1)
    gelu = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    silu = x / (1 + torch.exp(-x))
    for name, wanted in {"gelu": gelu, "silu": silu, "relu": x.clamp_min(0), "relu2": x.clamp_min(0) ** 2}.items():
        torch.testing.assert_close(activate(x, name), wanted)
    both = torch.cat([x, 3 - x], dim=1)
    torch.testing.assert_close(activate(both, "swiglu"), silu * (3 - x))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_dropout_has_its_rate_and_is_unbiased(rate: float) -> None:
    torch.manual_seed(0)
    drop, x = Dropout(rate), torch.ones(1000, 1000)
    y = drop(x)
    rounded = round(rate * 256) / 256
    spread = math.sqrt(rounded * (1 - rounded) / x.numel())
    assert abs((y == 0).float().mean().item() - rounded) < 5 * spread
    assert abs(y.mean().item() - 1) < 5 * spread / (1 - rounded)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - rounded)])


def test_dropout_draws_are_independent_along_rows_and_columns() -> None:
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(2000, 512)) != 0).float() - 0.5
    for shift in (1, 2, 7, 8):
        assert abs((kept[:, shift:] * kept[:, :-shift]).mean().item()) < 0.25 * 5 / math.sqrt(kept.numel())
    assert abs((kept[1:] * kept[:-1]).mean().item()) < 0.25 * 5 / math.sqrt(kept.numel())


def test_dropout_follows_the_seed_and_rests_in_evaluation() -> None:
    drop, x = Dropout(0.3), torch.randn(3, 5, 7)
    torch.manual_seed(7)
    first, second = drop(x), drop(x)
    torch.manual_seed(7)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_drops_the_gradient_where_it_drops_the_value() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 50, requires_grad=True)
    y = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_dropout_keeps_something_at_the_highest_rate() -> None:
    torch.manual_seed(0)
    y = Dropout(0.999)(torch.ones(1000, 1000))
    assert y.isfinite().all()
    assert 0 < (y != 0).float().mean() < 0.01


@settings(max_examples=50)
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 500), st.sampled_from([2, 8, 64]))
def test_rotary_products_depend_on_the_distance_alone(first: int, second: int, shift: int, head_dim: int) -> None:
    torch.manual_seed(first)
    query, key = torch.randn(2, 1, 1, 1, head_dim).unbind()

    def product(at: int, other: int) -> float:
        turned = rotate(query, *rotation(torch.tensor([at]), head_dim, 10_000.0))
        return float((turned * rotate(key, *rotation(torch.tensor([other]), head_dim, 10_000.0))).sum())

    scale = float(query.norm() * key.norm())
    assert product(first, second) == pytest.approx(product(first + shift, second + shift), abs=1e-3 * scale)
    assert product(first, first) == pytest.approx(float((query * key).sum()), abs=1e-4 * scale)


def test_rotation_equals_complex_multiplication() -> None:
    head_dim, positions = 8, torch.tensor([0, 1, 5, 300])
    x = torch.randn(1, 1, 4, head_dim, dtype=torch.float64)
    angles = positions[:, None] * 500.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    wanted = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, *rotation(positions, head_dim, 500.0)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 7, 16])
def test_sinusoids_are_the_papers(dim: int) -> None:
    table = sinusoids(30, dim)
    half = (dim + 1) // 2
    for position in (0, 1, 29):
        for pair in range(dim // 2):
            angle = position / 10_000 ** (2 * pair / dim)
            assert table[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, half + pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
