"""Llama, Marian and BERT folders against Hugging Face transformers, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
)

from chinchilla.compression.quantize import quantize_
from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.shape import Shape
from chinchilla.models.hub import read_model, write_llama, write_marian, write_model
from chinchilla.models.transformer import Transformer

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def scramble_(model: nn.Module) -> None:
    """Give every tensor, norms and biases too, values that differ, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "embed_positions" in name or "inv_freq" in name or not tensor.is_floating_point():
            continue
        spread = 0.3 if tensor.dim() > 1 and tensor.shape[0] > 1 else 0.2
        with torch.no_grad():
            tensor.normal_(
                1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, spread, generator=generator
            )


def ids(rows: int, length: int, vocab_size: int = 50) -> Tensor:
    return torch.randint(3, vocab_size - 1, (rows, length), generator=torch.Generator().manual_seed(rows * length))


LLAMAS: dict[str, dict[str, Any]] = {
    "grouped, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "grouped, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "whole, biases": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "wide heads, long base": {
        "head_dim": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def make_llama(**rest: Any) -> LlamaForCausalLM:
    common = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**(common | rest))).eval()
    scramble_(model)
    return model


@pytest.mark.parametrize("name", LLAMAS)
@torch.no_grad()
def test_llama_folders_give_equal_logits(name: str, tmp_path: Path) -> None:
    theirs, target = make_llama(**LLAMAS[name]), ids(3, 37)
    theirs.save_pretrained(tmp_path)
    ours = read_model(tmp_path).model
    wanted = theirs(target).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(ours.logits(ours(target=target).hidden), wanted, **CLOSE)


@pytest.mark.parametrize("name", LLAMAS)
@torch.no_grad()
def test_what_we_write_as_llama_transformers_reads(name: str, tmp_path: Path) -> None:
    make_llama(**LLAMAS[name]).save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs").model
    write_llama(tmp_path / "ours", ours)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    target = ids(2, 20)
    torch.testing.assert_close(again(target).logits, ours.logits(ours(target=target).hidden), **CLOSE)
    assert read_model(tmp_path / "ours").shape == ours.shape


def test_a_model_of_ours_survives_the_way_through_llama(tmp_path: Path) -> None:
    shape = Shape(
        vocab_size=50,
        dim=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        ffn_dim=40,
        num_decoder_layers=2,
        activation="swiglu",
        reconstruct=True,
    )
    torch.manual_seed(0)
    model, target = Transformer(shape).eval(), ids(2, 9)
    write_llama(tmp_path / "m", model, tokenizer_json="{}", card="card")
    loaded = read_model(tmp_path / "m")
    assert loaded.shape == shape.model_copy(update={"reconstruct": False})
    assert torch.equal(loaded.model(target=target).hidden, model(target=target).hidden)


@torch.no_grad()
def test_llama_settings_of_transformers_4_are_read(tmp_path: Path) -> None:
    theirs, target = make_llama(rope_parameters={"rope_type": "default", "rope_theta": 700.0}), ids(1, 12)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "rope_theta": 700.0,
        "rope_scaling": None,
        "head_dim": None,
        "eos_token_id": [7, 9],
        "pad_token_id": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = read_model(tmp_path)
    assert (loaded.shape.rope_base, loaded.shape.eos_id, loaded.shape.pad_id) == (700.0, 7, 7)
    torch.testing.assert_close(loaded.model.logits(loaded.model(target=target).hidden), theirs(target).logits, **CLOSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias unlike mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "multiple of num_kv_heads"),
    ],
)
def test_llama_settings_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        read_model(tmp_path)


def test_llama_tensors_that_do_not_fit_carry_their_own_names(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FaultError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight has shape \(16, 16\)"):
        read_model(tmp_path)


def make_marian(**rest: Any) -> MarianMTModel:
    common = {
        "vocab_size": 50,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 28,
        "decoder_ffn_dim": 28,
        "max_position_embeddings": 64,
        "pad_token_id": 49,
        "decoder_start_token_id": 49,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }
    model = MarianMTModel(MarianConfig(**(common | rest))).eval()
    scramble_(model)
    return model


MARIANS: dict[str, dict[str, Any]] = {
    "swish, scaled": {"activation_function": "swish", "scale_embedding": True},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
}


@pytest.mark.parametrize("name", MARIANS)
@torch.no_grad()
def test_marian_folders_give_equal_logits(name: str, tmp_path: Path) -> None:
    theirs, source, target = make_marian(**MARIANS[name]), ids(3, 11), ids(3, 8)
    theirs.save_pretrained(tmp_path)
    loaded = read_model(tmp_path)
    ours = loaded.model
    assert (loaded.shape.bos_id, loaded.shape.pad_id, loaded.shape.eos_id) == (49, 49, 0)
    real = torch.arange(11) < torch.tensor([11, 7, 2])[:, None]
    source = source.masked_fill(~real, 49)
    wanted = theirs(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
    assert wanted.std() > 0.1 and theirs.final_logits_bias.any()
    found = ours.logits(ours(source, target, source_segments=real).hidden)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("name", MARIANS)
@torch.no_grad()
def test_what_we_write_as_marian_transformers_reads(name: str, tmp_path: Path) -> None:
    make_marian(**MARIANS[name]).save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs").model
    write_marian(tmp_path / "ours", ours)
    again = MarianMTModel.from_pretrained(tmp_path / "ours").eval()
    source, target = ids(2, 9), ids(2, 5)
    wanted = ours.logits(ours(source, target).hidden)
    torch.testing.assert_close(again(input_ids=source, decoder_input_ids=target).logits, wanted, **CLOSE)
    assert read_model(tmp_path / "ours").shape == ours.shape


@torch.no_grad()
def test_a_model_of_ours_survives_the_way_through_marian(tmp_path: Path) -> None:
    shape = Shape(
        vocab_size=50,
        dim=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
        position="sinusoidal",
        norm="layer",
        norm_order="post",
        activation="gelu",
        bias=True,
    )
    torch.manual_seed(0)
    model, source, target = Transformer(shape).eval(), ids(2, 9), ids(2, 5)
    write_marian(tmp_path / "m", model)
    loaded = read_model(tmp_path / "m")
    assert loaded.shape == shape.model_copy(update={"head_bias": True, "max_len": 512})
    assert torch.equal(loaded.model(source, target).hidden, model(source, target).hidden)
    assert not loaded.model.head.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share_encoder_decoder_embeddings": False}, "separate embeddings"),
        ({"tie_word_embeddings": False}, "untied embeddings"),
        ({"decoder_vocab_size": 60}, "a decoder vocabulary of its own"),
        ({"decoder_ffn_dim": 32}, "decoder_ffn_dim unlike"),
        ({"decoder_attention_heads": 2}, "decoder heads unlike"),
        ({"activation_function": "tanh"}, "activation_function 'tanh'"),
    ],
)
def test_marian_settings_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_marian().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        read_model(tmp_path)


BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
@torch.no_grad()
def test_bert_folders_give_equal_states(kind: Any, tmp_path: Path) -> None:
    theirs = kind(BertConfig(**BERT)).eval()
    scramble_(theirs)
    theirs.save_pretrained(tmp_path)
    ours, source = read_model(tmp_path).model, ids(3, 13)
    real = torch.arange(13) < torch.tensor([13, 5, 1])[:, None]
    encoder = theirs if kind is BertModel else theirs.bert
    wanted = encoder(input_ids=source, attention_mask=real.long()).last_hidden_state
    found = ours(source, source_segments=real).hidden
    torch.testing.assert_close(found[real], wanted[real], **CLOSE)


def test_bert_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    BertModel(BertConfig(**BERT, hidden_act="gelu_new")).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="hidden_act 'gelu_new'"):
        read_model(tmp_path)


def test_a_family_read_is_written_as_our_own(tmp_path: Path) -> None:
    make_llama(num_key_value_heads=2).save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs")
    write_model(tmp_path / "ours", ours.model)
    again = read_model(tmp_path / "ours")
    assert again.shape == ours.shape
    assert torch.equal(again.model(target=ids(1, 5)).hidden, ours.model(target=ids(1, 5)).hidden)


def test_int8_models_are_not_written_for_other_families(tmp_path):
    shape = Shape(
        vocab_size=30, dim=16, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=32, num_decoder_layers=1,
        activation="swiglu",
    )  # fmt: skip
    model = Transformer(shape).eval()
    quantize_(model)
    with pytest.raises(UsageError, match="int8"):
        write_llama(tmp_path / "llama", model)
    assert not (tmp_path / "llama").exists()
