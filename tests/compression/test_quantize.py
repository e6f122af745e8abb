"""Quantizing a model in place: the record tells what is then on disk, and what cannot be done is refused."""

import pytest
import torch

from chinchilla.compression.quantize import quantize_
from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.hub import WEIGHTS, read_model, write_model
from chinchilla.models.quantized import describe
from chinchilla.models.transformer import Transformer


def demo_model():
    torch.manual_seed(0)
    return Transformer(
        Shape(
            vocab_size=2000,
            dim=128,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            ffn_dim=512,
            num_encoder_layers=2,
            num_decoder_layers=2,
        )
    ).eval()


def test_record_is_what_the_files_weigh(tmp_path):
    model = demo_model()
    write_model(tmp_path / "before", model)
    record = quantize_(model)
    write_model(tmp_path / "after", model, extra={"quantization": describe(model)})
    before, after = ((tmp_path / name / WEIGHTS).stat().st_size for name in ("before", "after"))
    header_bytes = 200 * len(model.state_dict())
    assert record.size_before_bytes < before < record.size_before_bytes + header_bytes
    assert record.size_after_bytes < after < record.size_after_bytes + header_bytes
    assert before / after > 3.8
    assert record.params_int8 + 4 * record.params_fp32 == record.size_after_bytes


def test_record_names_every_matrix():
    model = demo_model()
    record = quantize_(model)
    # 2 encoder layers of 4 matrices, 2 decoder layers of 7, the embedding, the head tied to it.
    assert len(record.layers_int8) == 2 * 4 + 2 * 7 + 2
    assert record.params_int8 == 2000 * 128 + 2 * 12 * 128**2 + 2 * 16 * 128**2


def test_a_folder_gives_the_same_model_back(tmp_path):
    model = demo_model()
    source, target = torch.randint(3, 2000, (2, 9)), torch.randint(3, 2000, (2, 5))
    plain = model.logits(model(source, target).hidden)
    quantize_(model)
    wanted = model.logits(model(source, target).hidden)
    write_model(tmp_path / "model", model, extra={"quantization": describe(model)})
    loaded = read_model(tmp_path / "model").model
    assert torch.equal(loaded.logits(loaded(source, target).hidden), wanted)
    error = (plain - wanted).square().sum() / plain.square().sum()
    assert 0 < error < 0.01


def test_a_model_is_quantized_once():
    model = demo_model()
    quantize_(model)
    with pytest.raises(UsageError, match="already"):
        quantize_(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = demo_model()
    with torch.no_grad():
        model.decoder.layers[1].mlp.up.weight[3, 4] = value
    with pytest.raises(FaultError, match=r"decoder\.layers\.1\.mlp\.up\.weight"):
        quantize_(model)
