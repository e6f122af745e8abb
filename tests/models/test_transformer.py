"""Padding and packing change nothing real; every parameter learns; wrong calls are refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.block import Dropout
from chinchilla.models.transformer import Transformer

POSITIONS = ["rotary", "learned", "sinusoidal"]


def make(encoder_layers: int = 2, decoder_layers: int = 2, **rest: Any) -> Transformer:
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": 31,
        "dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "ffn_dim": 24,
        "num_encoder_layers": encoder_layers,
        "num_decoder_layers": decoder_layers,
        "max_len": 40,
        "block_len": 4,
    }
    return Transformer(Shape(**(common | rest))).eval()


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 31, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", ["full", "gated", "block"])
@torch.no_grad()
def test_encoder_padding_changes_no_real_position(attention: str, position: str) -> None:
    model, source = make(attention=attention, position=position), ids(3, 14)
    lengths = [14, 9, 1]
    real = torch.arange(14) < torch.tensor(lengths)[:, None]
    memory = model.encode(source.masked_fill(~real, 0), real)
    for row, length in enumerate(lengths):
        alone = model.encode(source[row : row + 1, :length])[0]
        torch.testing.assert_close(memory[row, :length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["full", "gated", "block"])
@torch.no_grad()
def test_target_padding_changes_no_real_position(attention: str) -> None:
    model, target = make(0, attention=attention), ids(1, 20)
    padded = torch.cat([target, torch.zeros(1, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(target=padded).hidden[:, :20], model(target=target).hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("attention", ["full", "gated"])
@torch.no_grad()
def test_packed_examples_equal_separate_ones(attention: str, position: str) -> None:
    model = make(attention=attention, position=position)
    sources, targets = [ids(1, n, n) for n in (5, 8, 3)], [ids(1, n, n + 50) for n in (7, 2, 6)]
    zeros = torch.zeros(1, 4, dtype=torch.int64)
    packed = model(
        torch.cat([*sources, zeros], dim=1),
        torch.cat([*targets, zeros], dim=1),
        source_segments=torch.cat([*_numbered(sources), zeros], dim=1),
        target_segments=torch.cat([*_numbered(targets), zeros], dim=1),
    )
    alone = [model(source, target).hidden for source, target in zip(sources, targets, strict=True)]
    torch.testing.assert_close(packed.hidden[:, :15], torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


def _numbered(rows: list[Tensor]) -> list[Tensor]:
    return [torch.full_like(row, number) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_padding_that_sees_nothing_makes_no_nan(low: bool) -> None:
    model = make().train()
    source, target = ids(2, 6), ids(2, 9)
    source_segments = torch.ones(2, 6, dtype=torch.int64)
    target_segments = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = model(source, target, source_segments=source_segments, target_segments=target_segments)
    real = target_segments.bool()
    assert out.hidden[real].isfinite().all()
    out.hidden[real].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_block_attention_refuses_packed_rows() -> None:
    model = make(attention="block")
    with pytest.raises(ValueError, match="one example a row"):
        model.encode(ids(1, 6), torch.tensor([[1, 1, 1, 2, 2, 2]]))


@pytest.mark.parametrize("attention", ["full", "gated", "block"])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_every_parameter_gets_a_gradient(order: str, attention: str) -> None:
    model = make(
        attention=attention,
        norm_order=order,
        norm="layer",
        activation="swiglu",
        position="learned",
        qk_norm=True,
        bias=True,
        embed_norm=True,
        embed_scale=True,
        tied_embeddings=False,
        head_bias=True,
    )
    out = model(ids(2, 12), ids(2, 12, 1))
    model.logits(out.hidden).square().sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []
    dead = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert dead == []


def test_tied_embeddings_are_one_tensor() -> None:
    model = make(tied_embeddings=True)
    assert model.head.weight is model.embed.tokens.weight
    assert make(tied_embeddings=False).head.weight is not model.embed.tokens.weight


@torch.no_grad()
def test_initial_activations_keep_their_scale() -> None:
    for order in ("pre", "post"):
        model = make(6, 6, dim=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=256, norm_order=order)
        hidden = model(ids(4, 30), ids(4, 30, 1)).hidden
        assert 0.5 < hidden.std().item() < 2.0
        logits = model.logits(hidden)
        assert 0.5 < logits.std().item() < 2.0


@torch.no_grad()
def test_wrong_calls_are_refused() -> None:
    encoder, decoder = make(decoder_layers=0), make(encoder_layers=0)
    with pytest.raises(ValueError, match="no decoder"):
        encoder.decode(ids(1, 3))
    with pytest.raises(ValueError, match="no encoder"):
        decoder.encode(ids(1, 3))
    with pytest.raises(ValueError, match="source, target or both"):
        decoder()
    with pytest.raises(ValueError, match="41 tokens does not fit max_len 40"):
        encoder.encode(ids(1, 41))
    encoder_only = encoder(ids(1, 3))
    assert encoder_only.hidden is encoder_only.memory


def test_blocks_computed_again_draw_torchs_own_dropout_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU and under compilation, where dropout is torch's; workers give each block a generator all the same."""
    monkeypatch.setattr(Dropout, "forward", lambda self, x: F.dropout(x, 0.3, self.training))
    gradients = []
    for recompute in (False, True):
        model = make(0).train()
        model.draw_from(torch.Generator().manual_seed(1))
        model.recompute_(recompute)
        torch.manual_seed(2)
        hidden = model(target=ids(2, 8)).hidden
        gradients.append(torch.autograd.grad(hidden.square().sum(), model.decoder.layers[0].mlp.up.weight)[0])
    assert torch.equal(*gradients)
