"""Bottlenecks where they stand: in a model's folder, beside int8 maps, and refused where there is no place for them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapt import disturb, logits, make

from chinchilla.compression.quantize import quantize_
from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import FaultError, UsageError
from chinchilla.models.adapt import adapt_, merge_
from chinchilla.models.bottleneck import CONFIG_KEY, Bottleneck, describe
from chinchilla.models.hub import read_model, write_llama, write_model
from chinchilla.models.quantized import Int8Bottleneck
from chinchilla.verbs.transfer import read_start


def trained(**shape):
    model = make(**shape)
    adapt_(model, Adapter(kind="bottleneck", rank=4, targets=("attention.out", "mlp.down")))
    disturb(model)
    return model.eval()


@pytest.mark.parametrize("shape", [{}, {"num_encoder_layers": 0, "bias": False}])
def test_a_models_folder_holds_them_where_they_stand(shape, tmp_path):
    model = trained(**shape)
    write_model(tmp_path / "m", model)
    read = read_model(tmp_path / "m").model
    assert torch.equal(logits(read), logits(model))
    layers = [f"decoder.layers.{index}" for index in range(2)] + ["encoder.layers.0"] * (not shape)
    wanted = {f"{layer}.{map}": 4 for layer in layers for map in ("attention.out", "mlp.down")}
    assert describe(read) == wanted
    assert json.loads((tmp_path / "m" / "config.json").read_text())[CONFIG_KEY] == wanted
    own = load_file(tmp_path / "m" / "model.safetensors")
    assert own.keys() == model.state_dict().keys() - {"head.weight"}


def test_maps_become_int8_and_what_is_beside_them_stays_as_it_is(tmp_path):
    model = trained(dim=64, ffn_dim=128, head_dim=32)
    before, plain = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    without = make(dim=64, ffn_dim=128, head_dim=32).eval()
    record = quantize_(model)
    assert "decoder.layers.0.mlp.down" in record.layers_int8
    found = logits(model)
    # As near as int8 is, and nearer than the model without its adapters.
    assert (found - before).norm() < 0.05 * before.norm() < (logits(without) - before).norm()
    map = model.decoder.layers[0].mlp.down
    assert isinstance(map, Int8Bottleneck)
    assert torch.equal(map.adapter_up, plain["decoder.layers.0.mlp.down.adapter_up"])
    write_model(tmp_path / "m", model)
    read = read_model(tmp_path / "m").model
    assert torch.equal(logits(read), found) and describe(read) == describe(model)
    assert not any(parameter.requires_grad for parameter in read.parameters())


def test_no_other_family_has_a_place_for_them_and_nothing_is_trained_from_them(tmp_path):
    llama = {"num_encoder_layers": 0, "norm": "rms", "activation": "swiglu", "bias": False, "tied_embeddings": False}
    model = trained(**llama)
    with pytest.raises(UsageError, match="no place for a bottleneck adapter; use write_model"):
        write_llama(tmp_path / "m", model)
    with pytest.raises(UsageError, match="cannot be merged"):
        merge_(model)
    write_model(tmp_path / "m", model)
    with pytest.raises(UsageError, match=r"has bottleneck adapters.*start from the model that they were trained"):
        read_start(tmp_path / "m")


@pytest.mark.parametrize(
    ("widths", "told"),
    [
        ([], "is no table of widths"),
        ({"decoder.layers.0.mlp.down": "4"}, "of width '4' has no place here"),
        ({"decoder.layers.0.mlp.down": -1}, "of width -1"),
        ({"decoder.layers.0.mlp.down": 1 << 62}, "has no place here"),
        ({"decoder.layers.9.mlp.down": 4}, "'decoder.layers.9.mlp.down' of width 4"),
        ({"decoder.norm": 4}, "'decoder.norm'"),
        (
            {"decoder.layers.0.mlp.down": 5},
            r"mlp\.down\.adapter_down has shape \(4, 16\), config.json makes it \(5, 16\)",
        ),
        ({}, "has no place in this model"),
    ],
)
def test_a_damaged_table_of_widths_is_named(widths, told, tmp_path):
    write_model(tmp_path / "m", trained())
    (tmp_path / "m" / "SHA256SUMS").unlink()
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config[CONFIG_KEY] = config[CONFIG_KEY] | widths if widths else widths
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FaultError, match=told):
        read_model(tmp_path / "m")


def test_a_tensor_that_is_missing_is_named(tmp_path):
    write_model(tmp_path / "m", trained())
    (tmp_path / "m" / "SHA256SUMS").unlink()
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors["decoder.layers.0.mlp.down.adapter_up"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(FaultError, match=r"tensor decoder\.layers\.0\.mlp\.down\.adapter_up is missing"):
        read_model(tmp_path / "m")


def test_a_model_without_them_says_nothing_of_them(tmp_path):
    write_model(tmp_path / "m", make())
    assert CONFIG_KEY not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert not any(isinstance(module, Bottleneck) for module in read_model(tmp_path / "m").model.modules())
