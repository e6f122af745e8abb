"""Model files that are damaged or mean harm are refused by name: nothing runs, no memory is taken on their word."""

import json
import os
import pickle
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models import folder as model_folder
from chinchilla.models.hub import read_model, write_model
from chinchilla.models.transformer import Transformer
from chinchilla.verbs.load import load

SHAPE = Shape(
    vocab_size=300, dim=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_dim=12, num_decoder_layers=2, max_len=16
)


def as_foreign(place: Path) -> Path:
    """Without its hashes, as from elsewhere."""
    (place / "SHA256SUMS").unlink()
    return place


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return Tokenizer.train(["some words to learn from, and some more words"], vocab_size=300).to_json()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("made") / "model"
    write_model(place, Transformer(SHAPE), tokenizer_json, extra={"task": "generate"})
    return as_foreign(place)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def little_memory() -> Any:
    """Eight more GB of address space at most, so that a bomb fails at once instead of filling the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(path: Path, message: str, kind: type[ChinchillaError] = FaultError) -> None:
    began = time.perf_counter()
    with pytest.raises(kind, match=message):
        read_model(path)
    assert time.perf_counter() - began < 5


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_pickles_are_refused_with_the_mend_and_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(folder / "opened")))
    refused(folder, rf"{name} is a pickle, which may run any code.*safetensors", UsageError)
    refused(folder / name, rf"{name}: a pickle, which may run any code", UsageError)
    assert not (folder / "opened").exists()


@pytest.mark.parametrize("disguise", ["model.safetensors", "config.json", "tokenizer.json", "model.gguf"])
def test_a_pickle_under_another_name_is_never_opened(folder: Path, disguise: str) -> None:
    (folder / disguise).write_bytes(pickle.dumps(Bomb(folder / "opened")))
    with pytest.raises(ChinchillaError, match=disguise):
        load(folder / disguise if disguise.endswith("gguf") else folder)
    assert not (folder / "opened").exists()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"x": {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}}


SAFETENSORS_BOMBS = {
    "a header of 2^63 bytes": safetensors(b"{}", length=1 << 63),
    "a header of 100 MB": safetensors(b"{}", length=100 << 20),
    "a header of 9 MB that is there": safetensors(b"{" + b" " * (9 << 20) + b"}"),
    "a header longer than the file": safetensors(b"{}", length=1 << 20),
    "deep JSON": safetensors(b'{"x":' * 100_000),
    "deep lists": safetensors(b"[" * 1_000_000),
    "no JSON": safetensors(b"\x80\x04\x95"),
    "offsets out of range": safetensors(one([1 << 40], 0, 4 << 40)),
    "offsets backwards": safetensors(one([1], 8, 4), bytes(8)),
    "negative offsets": safetensors(one([1], -4, 0), bytes(8)),
    "offsets too large for 64 bits": safetensors(one([1], 0, 1 << 70), bytes(8)),
    "sizes whose product overflows": safetensors(one([1 << 32, 1 << 32], 0, 8), bytes(8)),
    "a negative size": safetensors(one([-1], 0, 4), bytes(4)),
    "a size of 2^63": safetensors(one([1 << 63], 0, 4), bytes(4)),
    "a size that is no number": safetensors({"x": one([1], 0, 4)["x"] | {"shape": "1"}}, bytes(4)),
    "an unknown kind of number": safetensors(one([1], 0, 4, "PICKLE"), bytes(4)),
    "more data than tensors": safetensors(one([1], 0, 4), bytes(400)),
    "overlapping tensors": safetensors(one([2], 0, 8) | {"y": one([2], 4, 12)["x"]}, bytes(12)),
    "the same bytes a hundred times": safetensors({f"x{n}": one([2], 0, 8)["x"] for n in range(100)}, bytes(8)),
    "a tensor that is a list": safetensors({"x": [1, 2]}),
    "metadata that is no text": safetensors({"__metadata__": {"a": {"b": 1}}}),
}


@pytest.mark.parametrize("bomb", SAFETENSORS_BOMBS)
def test_safetensors_bombs_are_damaged_files(folder: Path, bomb: str) -> None:
    (folder / "model.safetensors").write_bytes(SAFETENSORS_BOMBS[bomb])
    refused(folder, r"model\.safetensors: damaged")


def test_many_tensors_that_the_model_lacks_are_refused(folder: Path) -> None:
    save_file({f"t{number}": torch.zeros(1) for number in range(20_000)}, folder / "model.safetensors")
    refused(folder, r"model\.safetensors: tensor \S+ is missing")


def test_unusual_kinds_of_number_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for kind in (torch.complex64, torch.bool, torch.uint16):
        save_file(tensors | {"decoder.norm.weight": torch.ones(8).to(kind)}, folder / "model.safetensors")
        refused(folder, r"decoder\.norm\.weight holds torch\.")


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["shape"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


BIG = 10**12
SHAPE_BOMBS: dict[str, dict[str, Any]] = {
    "vocab": {"vocab_size": BIG},
    "vocab that fits 64 bits": {"vocab_size": 1 << 40},
    "dim": {"dim": BIG},
    "dim that fits": {"dim": 1 << 20},
    "ffn": {"ffn_dim": BIG},
    "heads": {"num_heads": BIG, "num_kv_heads": BIG},
    "head_dim": {"head_dim": BIG},
    "layers": {"num_decoder_layers": 10**9},
    "encoder layers": {"num_encoder_layers": 10**6},
    "learned positions": {"max_len": BIG, "position": "learned"},
    "sinusoids": {"max_len": BIG, "position": "sinusoidal"},
    "sinusoids that fit 64 bits": {"max_len": 1 << 32, "position": "sinusoidal"},
    "more than 64 bits": {"dim": 1 << 70},
    "all": dict.fromkeys(("vocab_size", "dim", "ffn_dim", "head_dim", "num_decoder_layers", "max_len"), 1 << 62),
    "NaN": {"rope_base": float("nan")},
    "infinite": {"norm_eps": float("inf")},
    "a list": {"dim": [8]},
    "a tree": {"dim": {"dim": {"dim": 8}}},
    "a text": {"num_heads": "many"},
    "nothing": {"vocab_size": None},
    "negative layers": {"num_decoder_layers": -1},
    "an id out of range": {"pad_id": 10**9},
    "a negative id": {"eos_id": -1},
}


@pytest.mark.parametrize("bomb", SHAPE_BOMBS)
def test_shapes_beyond_the_file_are_refused_before_memory_is_taken(folder: Path, bomb: str) -> None:
    edit(folder, **SHAPE_BOMBS[bomb])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, r"config\.json|model\.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"shape": ' + "9" * 5000 + "}",
        '"chinchilla"',
        '{"model_type": ["chinchilla"]}',
        '{"model_type": "chinchilla", "shape": 3}',
        '{"model_type": null}',
        '{"model_type": "chinchilla"}',
    ],
)
def test_a_config_of_the_wrong_form_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ChinchillaError, match=r"config\.json"):
        read_model(folder)


@pytest.mark.parametrize("value", [3, [], "int8", None, {"scheme": {}}, {"scheme": [1]}])
def test_a_quantization_of_the_wrong_form_is_named(folder: Path, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": value}))
    refused(folder, "quantization scheme", UsageError)


def test_texts_have_a_largest_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size_bytes in (("config.json", 1 << 40), ("tokenizer.json", 1 << 40)):
        kept = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(size_bytes)  # sparse: it takes no room
        refused(folder, rf"{name}: larger than")
        (folder / name).write_bytes(kept)
    (folder / "model.safetensors.index.json").write_bytes(b" " * 100)
    (folder / "model.safetensors").unlink()
    monkeypatch.setitem(model_folder.MAX_TEXT_BYTES, "model.safetensors.index.json", 99)
    refused(folder, "index.json: larger than")


def tokenizer_with(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


TOKENIZER_BOMBS: dict[str, Callable[[str], str]] = {
    "no JSON": lambda text: text[:-5],
    "deep": lambda text: "[" * 1_000_000,
    "deep inside": lambda text: text[:-1] + ', "x": ' + '{"a":' * 100_000,
    "a list": lambda text: "[]",
    "no vocabulary": lambda text: tokenizer_with(
        text, model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]
    ),
    "ids of 64 bits": lambda text: tokenizer_with(text, model={"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}),
    "a panic": lambda text: tokenizer_with(text, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "no expression": lambda text: tokenizer_with(
        text, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}
    ),
    "ids beyond the model": lambda text: text.replace('"id":3,', '"id":4000000000,').replace(
        '"<mask>":3', '"<mask>":4000000000'
    ),
}


@pytest.mark.parametrize("bomb", TOKENIZER_BOMBS)
def test_hostile_tokenizers_are_named(folder: Path, tokenizer_json: str, bomb: str) -> None:
    (folder / "tokenizer.json").write_text(TOKENIZER_BOMBS[bomb](tokenizer_json))
    with pytest.raises(ChinchillaError, match=r"tokenizer\.json"):
        load(folder)


def test_odd_scores_do_not_hinder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for metrics, wanted in (([1], {}), ({"bleu": "high", "chrf": 3}, {"chrf": 3.0}), (None, {})):
        (folder / "config.json").write_text(json.dumps(config | {"metrics": metrics}))
        assert load(folder).card.metrics == wanted


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/secret.safetensors", "a/../../x", "..", ".", "", "\0", "a\0b", "x" * 5000, "\ud800"],
)
def test_an_index_names_plain_files_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    if name.startswith("/"):
        name = str(folder.parent / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"embed.tokens.weight": name}}))
    refused(folder, "which is no file of this folder", UsageError)


@pytest.mark.parametrize("weight_map", [None, 3, [], ["a.safetensors"], {"x": 3}, {"x": None}, {"x": ["a"]}])
def test_an_index_of_the_wrong_form_is_damaged(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, r"index\.json: damaged")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_that_lead_out_are_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    for target in (outside, Path("../outside"), Path("/dev/zero"), folder / name, folder.parent / "nothing"):
        (folder / name).symlink_to(target)
        with pytest.raises(FaultError, match=rf"{name}: (a link that leads out|not a regular file)"):
            read_model(folder)
        (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, rf"{name}: not a regular file")


def test_shards_that_are_links_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside")
    (folder / "a.safetensors").symlink_to("../outside")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    refused(folder, r"a\.safetensors: a link that leads out")


def test_hugging_faces_cache_is_made_of_links_and_read(folder: Path) -> None:
    cache = folder.parent / "models--one"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in list(folder.iterdir()):
        file.rename(cache / "blobs" / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert read_model(snapshot).shape == SHAPE


def test_a_link_within_the_folder_is_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    assert read_model(folder).shape == SHAPE


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=19, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


LLAMA_BOMBS: list[dict[str, Any]] = [
    {"hidden_size": "8"},
    {"num_attention_heads": 0},
    {"num_attention_heads": [2]},
    {"rope_parameters": [1]},
    {"rope_parameters": {"rope_type": [], "rope_theta": {}}},
    {"rope_parameters": {"rope_theta": float("nan")}},
    {"eos_token_id": {"a": 1}},
    {"num_hidden_layers": 10**9},
    {"vocab_size": 10**15},
    {"hidden_size": 10**15},
    {"intermediate_size": 1 << 80},
    {"rms_norm_eps": "tiny"},
]


@pytest.mark.parametrize("change", LLAMA_BOMBS, ids=str)
def test_another_familys_config_bombs_are_named(llama: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(llama, tmp_path / "m")
    config = json.loads((llama / "config.json").read_text()) | change
    config.pop("head_dim", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ChinchillaError, match=r"config\.json|model\.safetensors"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize("kind", ["marian", "bert"])
def test_the_other_families_name_settings_of_the_wrong_kind(folder: Path, kind: str) -> None:
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size", "d_model")
    for value in ([], {}, "many", -1, 0, 1e300):
        config = dict.fromkeys(names, value) | {"model_type": kind, "hidden_act": value, "activation_function": value}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ChinchillaError, match=r"config\.json"):
            read_model(folder)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_harmless(made: Path, tmp_path: Path, seed: int) -> None:
    """Whatever bytes are changed, reading ends in a model or in an error of ours."""
    draw = random.Random(seed)
    for trial in range(60):
        place = tmp_path / str(trial)
        shutil.copytree(made, place)
        file = place / draw.choice(["config.json", "model.safetensors", "tokenizer.json"])
        data = bytearray(file.read_bytes())
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(min(len(data), 3000))] = draw.randrange(256)
        file.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            load(place)
        except ChinchillaError as error:
            assert str(tmp_path) in str(error)
