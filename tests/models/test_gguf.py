"""GGUF files made here with llama.cpp's own writer, and the real SmolLM2."""

import importlib
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.models.cache import KVCache
from chinchilla.models.gguf import halves
from chinchilla.models.hub import Loaded, read_model
from chinchilla.verbs.data import get

TOKENS = ["<pad>", "<bos>", "<eos>", "<tool>", *"abcdefgh", "Ġ", "1", "2", "ab", "Ġab", "12"]
MERGES = ["a b", "Ġ ab", "1 2"]
KINDS = [3, 3, 3, 4] + [1] * (len(TOKENS) - 4)
TEXTS = [
    "The capital of France is",
    "In 2023, 12345 × 3.14 = ?",
    "Ünïcödé — 日本語 🙂\n\n\tif x:\n        return 7",
    "<|im_start|>user\nHi!<|im_end|>\n",
    "  spaces   trailing  ",
    "it's we'll DON'T",
    "",
]


def interleave(rows: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's convert script: `permute` of convert_hf_to_gguf.py."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, quantized: Any = None, **fields: Any) -> None:
    """Write a Llama as llama.cpp's converter does; `fields` replace or add metadata (None: left out)."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    known = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }
    for name, value in (known | {key.replace("__", "."): value for key, value in fields.items()}).items():
        _add(writer, name, value)
    for name, tensor in model.state_dict().items():
        _add_tensor(writer, name, tensor, config, quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(name, value)
    elif value is not None:
        adders[type(value)](name, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, config: LlamaConfig, quantized: Any) -> None:
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    values = interleave(tensor, heads[part]) if part in heads else tensor
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers).get_name(
        name, try_suffixes=(".weight", ".bias")
    )
    array = values.numpy().astype(np.float32)
    if quantized is not None and array.ndim == 2:
        writer.add_tensor(theirs, gguf.quants.quantize(array, quantized), raw_dtype=quantized)
    else:
        writer.add_tensor(theirs, array)


def make_llama(**rest: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(common | rest))).eval()


def logits(loaded: Loaded, target: Tensor) -> Tensor:
    return loaded.model.logits(loaded.model(target=target).hidden)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_written_llama_is_read_back(tied: bool, tmp_path: Path) -> None:
    theirs = make_llama(tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 300.0})
    write_gguf(tmp_path / "m.gguf", theirs)
    loaded = read_model(tmp_path / "m.gguf")
    target = torch.randint(0, len(TOKENS), (2, 30))
    torch.testing.assert_close(logits(loaded, target), theirs(target).logits, rtol=1e-4, atol=1e-4)
    assert (loaded.shape.pad_id, loaded.shape.bos_id, loaded.shape.eos_id) == (0, 1, 2)
    assert loaded.shape.tied_embeddings == tied
    assert loaded.config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
@torch.no_grad()
def test_lower_precision_is_dequantised(kind: str, tmp_path: Path) -> None:
    theirs, number = make_llama(), gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "m.gguf", theirs, number)
    found = read_model(tmp_path / "m.gguf").model.decoder.layers[1].mlp.down.weight
    original = theirs.model.layers[1].mlp.down_proj.weight.numpy()
    wanted = gguf.quants.dequantize(gguf.quants.quantize(original, number), number)
    assert torch.equal(found, torch.from_numpy(wanted))
    assert not np.array_equal(original, wanted)


def test_the_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama())
    tokenizer = Tokenizer.from_str(read_model(tmp_path / "m.gguf").tokenizer_json)
    encoded = tokenizer.encode("ab 12<tool>ab<eos>")
    assert encoded.tokens == ["<bos>", "ab", "Ġ", "1", "2", "<tool>", "ab", "<eos>"]
    assert tokenizer.decode(encoded.ids) == "ab 12<tool>ab"


def test_gpt2s_own_cut_keeps_numbers_together(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(), tokenizer__ggml__pre="gpt-2", tokenizer__ggml__add_bos_token=False)
    tokenizer = Tokenizer.from_str(read_model(tmp_path / "m.gguf").tokenizer_json)
    assert tokenizer.encode("ab12").tokens == ["ab", "12"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama'"),
        ({"tokenizer__ggml__pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"general__architecture": "mamba"}, "architecture 'mamba'"),
    ],
)
def test_what_is_not_supported_is_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama())
    with pytest.MonkeyPatch.context() as patch:
        if "general__architecture" in fields:
            fields = {}
            patch.setattr(
                "gguf.GGUFWriter.add_architecture", lambda self: self.add_string("general.architecture", "mamba")
            )
        write_gguf(tmp_path / "m.gguf", make_llama(), **fields)
    with pytest.raises(UsageError, match=message):
        read_model(tmp_path / "m.gguf")


def test_a_tensor_no_plain_llama_has_is_named(tmp_path: Path) -> None:
    model = make_llama()
    with pytest.MonkeyPatch.context() as patch:
        write = gguf.GGUFWriter.write_header_to_file

        def with_factors(self: gguf.GGUFWriter) -> None:
            self.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
            write(self)

        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(UsageError, match=r"rope_freqs\.weight"):
        read_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 3, 20, 300, -100])
def test_a_truncated_file_is_damaged(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, make_llama())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FaultError, match="not a whole GGUF file"):
        read_model(path)


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    real = importlib.import_module

    def absent(name: str) -> ModuleType:
        if name.startswith("gguf"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r"extra gguf: pip install 'chinchilla-ml\[gguf\]'"):
        read_model(tmp_path / "m.gguf")


def test_halves_undo_the_interleaving() -> None:
    rows = torch.arange(24.0).view(12, 2)
    assert torch.equal(halves(interleave(rows, 3), 3), rows)
    assert not torch.equal(halves(interleave(rows, 3), 2), rows)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        folder = get("smollm2")
    except FaultError as error:
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Loaded:
    return read_model(smollm2)


def read_with_transformers(path: Path) -> LlamaForCausalLM:
    """What `from_pretrained(gguf_file=…)` does, less the accelerate package that it asks for."""
    model = LlamaForCausalLM(AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    rest = model.load_state_dict(tensors, strict=False)
    assert rest.missing_keys in ([], ["lm_head.weight"]) and not rest.unexpected_keys
    model.tie_weights()
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_equals_transformers(smollm2: Path, loaded: Loaded) -> None:
    theirs = read_with_transformers(smollm2)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    target = torch.tensor([tokenizer.encode(" ".join(TEXTS)).ids])
    wanted = theirs(target).logits
    worst = (logits(loaded, target) - wanted).abs().max()
    assert worst < 1e-4 * wanted.abs().max()


@pytest.mark.slow
def test_smollm2s_tokenizer_equals_transformers(smollm2: Path, loaded: Loaded) -> None:
    ours = Tokenizer.from_str(loaded.tokenizer_json)
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in TEXTS:
        encoded = ours.encode(text).ids
        assert encoded == theirs(text)["input_ids"]
        assert ours.decode(encoded, skip_special_tokens=False) == text


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_knows_the_capital_of_france(loaded: Loaded) -> None:
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    ids = tokenizer.encode("The capital of France is").ids
    cache = KVCache(loaded.shape.num_decoder_layers)
    following, said = ids, []
    for _ in itertools.repeat(None, 6):
        hidden = loaded.model.decode(torch.tensor([following]), cache=cache)
        following = [int(loaded.model.logits(hidden[:, -1]).argmax())]
        said += following
    assert "Paris" in tokenizer.decode(said)
