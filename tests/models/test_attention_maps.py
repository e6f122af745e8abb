"""Attention read out: it is what the module itself did, of every kind; rollout against its definition."""

import pytest
import torch

from chinchilla.config.shape import ImageStem, Shape
from chinchilla.models.attention_maps import attention_maps, attention_weights, rollout
from chinchilla.models.transformer import Transformer

KINDS = [
    {},
    {"num_kv_heads": 2},
    {"qk_norm": True, "position": "learned"},
    {"attention": "gated"},
    {"attention": "block", "block_len": 4},
    {"attention": "block", "block_len": 4, "block_summaries": False, "num_kv_heads": 1},
]


def make_model(**changes) -> Transformer:
    torch.manual_seed(0)
    common = {
        "vocab_size": 50, "dim": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "ffn_dim": 32,
        "num_encoder_layers": 3, "num_classes": 3, "max_len": 64,
    }  # fmt: skip
    return Transformer(Shape(**(common | changes))).eval()


@torch.no_grad()
@pytest.mark.parametrize("changes", KINDS)
def test_weights_times_values_are_what_the_module_gives(changes):
    model = make_model(**changes)
    attention, x = model.encoder.layers[0].attention, torch.randn(2, 18, 32)
    turn = model._rotation(torch.arange(18))
    weights = attention_weights(attention, x, turn)
    assert weights.shape == (2, 4, 18, 18)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 4, 18))
    values = attention._project(x, turn)[2]
    joined = weights @ values.repeat_interleave(4 // values.shape[1], 1)
    if attention.gate is not None:
        joined = joined * attention.gate(x).sigmoid().transpose(1, 2)[..., None]
    found = attention.out(joined.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, attention(x, None, turn), atol=1e-5, rtol=0)


def test_maps_are_of_every_layer_and_leave_the_model_as_it_was():
    model, source = make_model(), torch.randint(4, 50, (2, 9))
    before = model.encode(source)
    maps = attention_maps(model, source)
    assert [each.shape for each in maps] == [(2, 4, 9, 9)] * 3
    assert not any(each.requires_grad for each in maps)
    assert all(not layer.attention._forward_pre_hooks for layer in model.encoder.layers)
    assert torch.equal(model.encode(source), before)
    image = make_model(stem=ImageStem(height=8, width=12, channels=1, patch=4))
    assert attention_maps(image, torch.randn(1, 1, 8, 12))[0].shape == (1, 4, 7, 7)
    with pytest.raises(ValueError, match="no encoder"):
        attention_maps(make_model(num_encoder_layers=0, num_decoder_layers=1), source)


def test_rollout_is_the_sum_over_all_paths():
    maps = [torch.rand(1, 2, 3, 3).softmax(3) for _ in range(2)]
    first, second = (each[0].mean(0) for each in maps)
    for start in range(3):
        for end in range(3):
            paths = sum(
                (second[start, middle] + (start == middle)) * (first[middle, end] + (middle == end)) / 4
                for middle in range(3)
            )
            assert float(rollout(maps)[0, start, end]) == pytest.approx(float(paths), rel=1e-5)
