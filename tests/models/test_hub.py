"""Model folders: what is written is read back bit for bit, and what is damaged or foreign is named."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import hub, quantized
from chinchilla.models.hub import read_model, write_llama, write_marian, write_model
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import fill_, own_tensors


def make(**rest: Any) -> Transformer:
    torch.manual_seed(3)
    common: dict[str, Any] = {
        "vocab_size": 19,
        "dim": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "ffn_dim": 12,
        "num_decoder_layers": 2,
        "max_len": 16,
    }
    model = Transformer(Shape(**(common | rest))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder without hashes, as from elsewhere: what else is wrong with a file must be seen too."""
    write_model(tmp_path / "model", make())
    (tmp_path / "model" / "SHA256SUMS").unlink()
    return tmp_path / "model"


SHAPES = {
    "tied": {},
    "untied": {"tied_embeddings": False, "head_bias": True, "bias": True, "norm": "layer"},
    "gated": {"attention": "gated", "position": "learned", "qk_norm": True, "embed_norm": True},
    "seq2seq": {"num_encoder_layers": 1, "norm_order": "post", "position": "sinusoidal", "reconstruct": True},
    "block": {"attention": "block", "block_len": 4, "block_summaries": False},
}


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_is_bit_equal(name: str, tmp_path: Path) -> None:
    model = make(**SHAPES[name])
    write_model(tmp_path / "m", model, '{"a": 1}', "# Card\n", {"task": "generate"})
    loaded = read_model(tmp_path / "m")
    assert loaded.shape == model.shape
    assert loaded.tokenizer_json == '{"a": 1}'
    assert loaded.config["task"] == "generate"
    assert (tmp_path / "m" / "README.md").read_text() == "# Card\n"
    assert not loaded.model.training
    wanted, found = model.state_dict(), loaded.model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert (loaded.model.head.weight is loaded.model.embed.tokens.weight) == model.shape.tied_embeddings


def test_tied_tensors_are_written_once(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert "embed.tokens.weight" in names and "head.weight" not in names
    assert json.loads((folder / "config.json").read_text())["model_type"] == "chinchilla"


def test_an_int8_model_is_read_back_as_it_was(tmp_path: Path) -> None:
    model = make(num_encoder_layers=1, num_kv_heads=2, norm="layer", bias=True)
    quantized.replace_(model, quantized.matrices(model))
    source, target = torch.randint(3, 19, (2, 5)), torch.randint(3, 19, (2, 6))
    wanted = model.logits(model(source, target).hidden)
    write_model(tmp_path / "m", model)
    loaded = read_model(tmp_path / "m")
    assert quantized.is_quantized(loaded.model)
    found = loaded.model.logits(loaded.model(source, target).hidden)
    assert torch.equal(found, wanted)


def test_writing_again_replaces_the_folder_whole(folder: Path) -> None:
    (folder / "leftover").write_text("old")
    write_model(folder, make(dim=4, head_dim=2))
    assert read_model(folder).shape.dim == 4
    assert not (folder / "leftover").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_is_no_model_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UsageError, match="something else than a model"):
            write_model(place, make())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", make())
    assert read_model(tmp_path / "empty").shape.dim == 8


def test_a_failed_write_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "write_new", full)
    with pytest.raises(FaultError, match="No space left"):
        write_model(folder, make(dim=4, head_dim=2))
    assert read_model(folder).shape.dim == 8
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_half_precision_files_are_read_as_fp32(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    model = read_model(folder).model
    for name, tensor in own_tensors(model).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].bfloat16().float())


def test_sharded_weights_are_joined(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(read_model(folder).model.embed.tokens.weight, make().embed.tokens.weight)
    (folder / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"b\.safetensors is missing"):
        read_model(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"embed.tokens.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="secret"):
        read_model(folder)


def test_a_pickle_beside_the_weights_is_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "opened",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    read_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="never from pickles"):
        read_model(folder)
    assert not (folder / "opened").exists()


def test_a_missing_folder_and_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model folder"):
        read_model(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"notes\.txt: a file, neither a model folder nor a \.gguf file"):
        read_model(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        read_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_truncated_weights_are_damaged(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FaultError, match=r"model\.safetensors: damaged"):
        read_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_a_damaged_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(FaultError, match=r"config\.json: damaged"):
        read_model(folder)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_unknown_families_are_refused(folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    with pytest.raises(UsageError, match="model_type 'mamba' is not one of chinchilla, llama, marian, bert"):
        read_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dim": -1}, "shape.dim"), ({"colour": 1}, "shape.colour"), ({"num_kv_heads": 3}, "multiple of num_kv_heads")],
)
def test_a_wrong_shape_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    shape = json.loads((folder / "config.json").read_text())["shape"]
    edit_config(folder, shape=shape | change)
    with pytest.raises(FaultError, match=message):
        read_model(folder)
    edit_config(folder, shape=None)
    with pytest.raises(FaultError, match="shape"):
        read_model(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    shape = json.loads((folder / "config.json").read_text())["shape"]
    edit_config(folder, shape=shape | {"ffn_dim": 13})
    with pytest.raises(FaultError, match=r"mlp\.up\.weight has shape \(12, 8\), config.json makes it \(13, 8\)"):
        read_model(folder)
    edit_config(folder, shape=shape | {"num_decoder_layers": 3})
    with pytest.raises(FaultError, match=r"decoder\.layers\.2\.\S+ is missing \(6 in all\)"):
        read_model(folder)
    edit_config(folder, shape=shape | {"num_decoder_layers": 1})
    with pytest.raises(FaultError, match=r"decoder\.layers\.1\.\S+ has no place"):
        read_model(folder)


def test_a_tensor_of_another_kind_of_number_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.norm.weight"] = tensors["decoder.norm.weight"].long()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FaultError, match=r"decoder\.norm\.weight holds torch\.int64"):
        read_model(folder)


def test_an_unknown_quantization_is_refused(folder: Path) -> None:
    edit_config(folder, quantization={"scheme": "int3"})
    with pytest.raises(UsageError, match="int3"):
        read_model(folder)


def test_every_error_carries_an_exit_code(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ChinchillaError) as caught:
        read_model(folder)
    assert caught.value.exit_code == 2


def test_a_layout_that_leaves_a_tensor_unfilled_is_a_mistake_of_ours() -> None:
    model = make()
    with pytest.raises(ValueError, match="does not fill"):
        fill_(model, own_tensors(model), "here", layout={})


def test_foreign_families_refuse_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a Llama: not supported: activation = relu2, qk_norm"):
        write_llama(tmp_path / "l", make(qk_norm=True))
    with pytest.raises(UsageError, match="a Marian: not supported: no encoder, position = rotary"):
        write_marian(tmp_path / "m", make())
    assert list(tmp_path.iterdir()) == []


def test_a_chat_template_comes_along(folder: Path) -> None:
    assert "chat_template" not in read_model(folder).config
    (folder / "tokenizer_config.json").write_text('{"chat_template": "one"}')
    assert read_model(folder).config["chat_template"] == "one"
    (folder / "chat_template.jinja").write_text("two")
    assert read_model(folder).config["chat_template"] == "two"
