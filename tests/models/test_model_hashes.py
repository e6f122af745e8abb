"""Every model folder that we write carries hashes, and a damaged file is named before it is used."""

import shutil
from pathlib import Path

import pytest
import torch

from chinchilla.config.errors import FaultError
from chinchilla.config.shape import Shape
from chinchilla.models import quantized
from chinchilla.models.hub import read_model, write_llama, write_model
from chinchilla.models.transformer import Transformer
from chinchilla.store.sums import check_sums

NAMES = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


def make() -> Transformer:
    torch.manual_seed(3)
    return Transformer(
        Shape(
            vocab_size=19, dim=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_dim=12, num_decoder_layers=2, max_len=16,
            activation="swiglu",
        )
    ).eval()  # fmt: skip


def make_int8() -> Transformer:
    model = make()
    quantized.replace_(model, quantized.matrices(model))
    return model


def write(kind: str, folder: Path) -> None:
    writer = write_llama if kind == "llama" else write_model
    writer(folder, make_int8() if kind == "int8" else make(), "{}", "# Card")


@pytest.mark.parametrize("kind", ["ours", "int8", "llama"])
def test_a_folder_carries_the_hashes_of_its_files(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "m")
    assert check_sums(tmp_path / "m") == tuple(NAMES)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "SHA256SUMS", *NAMES[1:]]
    read_model(tmp_path / "m")


@pytest.mark.parametrize("kind", ["ours", "int8", "llama"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_flipped_bit_is_named_and_never_loaded(kind: str, name: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "m")
    file = tmp_path / "m" / name
    good = file.read_bytes()
    # The last of config.json and tokenizer.json are white space or a bracket: still no harm to look.
    for place in {0, len(good) // 3, len(good) // 2, len(good) - 1}:
        data = bytearray(good)
        data[place] ^= 1
        file.write_bytes(data)
        with pytest.raises(FaultError, match=rf"{name}.*damaged"):
            read_model(tmp_path / "m")
    file.write_bytes(good)
    read_model(tmp_path / "m")


def test_a_card_that_someone_wrote_on_still_loads(tmp_path: Path) -> None:
    write("ours", tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("# Better card")
    read_model(tmp_path / "m")


def test_a_file_slipped_in_is_named(tmp_path: Path) -> None:
    write("ours", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ evil }}")
    with pytest.raises(FaultError, match=r"chat_template\.jinja: is not in SHA256SUMS"):
        read_model(tmp_path / "m")


def test_a_copied_folder_is_as_good(tmp_path: Path) -> None:
    write("ours", tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    assert read_model(tmp_path / "copy").shape == make().shape
