"""Adapter folders: read back as they were, read by `peft` as they are, and refused where something is wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapt import KINDS, disturb, logits, make
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, MarianMTModel

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.models.adapt import AdaLora, adapt_, adapted, adapter_tensors, merge_
from chinchilla.models.adapter_files import read_adapter_, write_adapter
from chinchilla.models.hub import read_model, write_llama, write_marian, write_model
from chinchilla.models.transformer import Transformer

# peft 0.21 asks transformers 5.23 for a property that it will lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LLAMA = {
    "num_encoder_layers": 0,
    "norm": "rms",
    "activation": "swiglu",
    "bias": False,
    "tied_embeddings": False,
}
MARIAN = {"norm": "layer", "norm_order": "post", "position": "sinusoidal", "activation": "gelu", "num_kv_heads": 2}


def trained(kind: str = "lora", shape: dict[str, Any] | None = None, **rest: Any) -> Transformer:
    model = make(**(shape or {}))
    adapt_(model, Adapter.model_validate({"kind": kind, "rank": 4} | rest))
    disturb(model)
    return model.eval()


def thin(model: Transformer) -> None:
    """Some ranks of AdaLoRA taken away, all of one map's among them."""
    for index, map in enumerate(adapted(model).values()):
        assert isinstance(map, AdaLora)
        with torch.no_grad():
            map.lora_E[: index % (len(map.lora_E) + 1)] = 0


@pytest.mark.parametrize("also", [(), ("norms", "head")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind, also, tmp_path):
    shape = {"tied_embeddings": False, "head_bias": True}
    model = trained(kind, shape, also=also, dropout=0.25)
    if kind == "adalora":
        thin(model)
    write_adapter(tmp_path / "a", model)
    other = make(**shape).eval()
    names = read_adapter_(other, tmp_path / "a")
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=1e-5)
    assert all(map.dropout.rate == 0.25 for map in adapted(other).values())
    if kind == "adalora":
        assert len(adapted(other)) < len(adapted(model))
    else:
        found, wanted = adapter_tensors(other), adapter_tensors(model)
        assert names == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_folder_is_small_and_appears_whole(tmp_path):
    model = trained()
    write_adapter(tmp_path / "a", model)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    numbers = sum(tensor.numel() for tensor in adapter_tensors(model).values())
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "a" / "adapter_model.safetensors").values()) == numbers
    (tmp_path / "a" / "old").write_text("")
    write_adapter(tmp_path / "a", model)
    assert not (tmp_path / "a" / "old").exists()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else than an adapter"):
        write_adapter(tmp_path, model)


def by_peft(base: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with the adapter as the library puts it on; it says when a tensor finds no place."""
    return peft.PeftModel.from_pretrained(base, str(folder)).eval()


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_peft_reads_our_own_names(kind, tmp_path):
    shape = {"tied_embeddings": False}
    model = trained(kind, shape, also=("norms", "head"))
    if kind == "adalora":
        thin(model)
    write_adapter(tmp_path / "a", model)
    wrapped = by_peft(make(**shape), tmp_path / "a")
    torch.testing.assert_close(logits(wrapped.base_model.model), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_transformers_and_peft_run_an_adapted_llama(kind, tmp_path):
    model = trained(kind, LLAMA, also=("norms", "head"), alpha=3.0)
    if kind == "adalora":
        thin(model)
    write_adapter(tmp_path / "a", model, family="llama", base=str(tmp_path / "base"))
    write_llama(tmp_path / "base", make(**LLAMA))
    wrapped = by_peft(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "a")
    ids = torch.randint(3, 19, (2, 9))
    expected = model.logits(model(target=ids).hidden)
    torch.testing.assert_close(wrapped(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    # And ours reads the family's names, into a model that was read from the family's folder.
    again = read_model(tmp_path / "base").model
    read_adapter_(again, tmp_path / "a")
    torch.testing.assert_close(again.logits(again(target=ids).hidden), expected, rtol=0, atol=1e-5)
    if kind == "lora":
        wanted = adapter_tensors(model)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in adapter_tensors(again).items())


def test_transformers_and_peft_run_an_adapted_marian(tmp_path):
    model = trained("lora", MARIAN)
    write_adapter(tmp_path / "a", model, family="marian")
    write_marian(tmp_path / "base", make(**MARIAN))
    wrapped = by_peft(MarianMTModel.from_pretrained(tmp_path / "base"), tmp_path / "a")
    source, target = torch.randint(3, 19, (2, 5)), torch.randint(3, 19, (2, 6))
    expected = model.logits(model(source, target).hidden)
    found = wrapped(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def randomise(wrapped: torch.nn.Module) -> None:
    torch.manual_seed(9)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "lora_alpha": 20, "use_rslora": True},
        {
            "target_modules": ["v_proj", "up_proj", "down_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 5},
        },
        {"target_modules": ["k_proj", "v_proj"], "alpha_pattern": {"k_proj": 1, "model.layers.0.self_attn.v_proj": 7}},
    ],
)
def test_an_adapter_that_peft_saved_for_a_llama_is_read(settings, tmp_path):
    config = LlamaConfig(
        vocab_size=19,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=3, task_type="CAUSAL_LM", **settings)).eval()
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "a")
    model = read_model(tmp_path / "base").model
    read_adapter_(model, tmp_path / "a")
    ids = torch.randint(3, 19, (2, 9))
    expected = wrapped(input_ids=ids).logits
    torch.testing.assert_close(model.logits(model(target=ids).hidden), expected, rtol=0, atol=1e-5)
    merge_(model)
    torch.testing.assert_close(model.logits(model(target=ids).hidden), expected, rtol=0, atol=1e-5)


def test_an_adapter_that_peft_saved_for_a_bert_is_read(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=19, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    base = BertModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["query", "value", "output.dense"]))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "a")
    model = read_model(tmp_path / "base").model
    read_adapter_(model, tmp_path / "a")
    ids = torch.randint(3, 19, (2, 9))
    torch.testing.assert_close(model.encode(ids), wrapped(input_ids=ids).last_hidden_state, rtol=0, atol=1e-5)


def test_what_has_no_place_is_not_written(tmp_path):
    with pytest.raises(UsageError, match="no adapter to write"):
        write_adapter(tmp_path / "a", make())
    fresh = make()
    adapt_(fresh, Adapter(kind="adalora", rank=4))
    with pytest.raises(UsageError, match="zero throughout"):
        write_adapter(tmp_path / "a", fresh)
    with pytest.raises(UsageError, match=r"not supported: .*activation = relu2"):
        write_adapter(tmp_path / "a", trained(shape={"num_encoder_layers": 0}), family="llama")
    with pytest.raises(UsageError, match="no place in a llama"):
        write_adapter(tmp_path / "a", trained("bottleneck", LLAMA), family="llama")
    with pytest.raises(UsageError, match="no place for this adapter"):
        write_model(tmp_path / "m", trained())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Without hashes, as from elsewhere."""
    write_adapter(tmp_path / "a", trained(shape={"tied_embeddings": False}, also=("head",)))
    (tmp_path / "a" / "SHA256SUMS").unlink()
    return tmp_path / "a"


def refused(folder: Path, message: str, kind: type[ChinchillaError] = FaultError) -> None:
    model = make(tied_embeddings=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=message):
        read_adapter_(model, folder)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not one of", UsageError),
        ({"peft_type": ["LORA"]}, "is not one of LORA", UsageError),
        ({"use_dora": True}, "not supported: use_dora", UsageError),
        ({"some_later_setting": {"x": 1}}, "not supported: some_later_setting", UsageError),
        ({"init_lora_weights": "pissa"}, "not supported: init_lora_weights", UsageError),
        ({"bias": "all"}, "not supported: bias", UsageError),
        ({"rank_pattern": {"(a+)+$": 3}}, "not supported: the pattern", UsageError),
        ({"r": 5}, "adapter_config.json says rank 5", FaultError),
        ({"r": -1}, "r: Input should be greater than 0", FaultError),
        ({"r": "many"}, "r: Input should be a valid integer", FaultError),
        ({"lora_alpha": float("nan")}, "lora_alpha", FaultError),
        ({"lora_dropout": 7}, "lora_dropout", FaultError),
        ({"rank_pattern": [1]}, "rank_pattern", FaultError),
    ],
)
def test_settings_that_are_damaged_or_unknown_are_refused(folder, change, message, kind):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(folder, message, kind)


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


TENSORS: dict[str, tuple[Any, str, type[ChinchillaError]]] = {
    "one factor": (lambda t: t.pop(first(t, "lora_B.weight")), "has only one of lora_A and lora_B", FaultError),
    "another size": (
        lambda t: t.update({first(t, "lora_B.weight"): torch.zeros(7, 4)}),
        "which do not fit",
        FaultError,
    ),
    "not a matrix": (lambda t: t.update({first(t, "lora_A.weight"): torch.zeros(4)}), "says rank 4", FaultError),
    "another layer": (
        lambda t: t.update({"base_model.model.decoder.layers.9.mlp.up.lora_A.weight": torch.zeros(4, 16)}),
        "decoder.layers.9.mlp.up.weight has no place in this model",
        FaultError,
    ),
    "no prefix": (lambda t: t.update({"x": torch.zeros(1)}), "tensor x .* is no adapter's", FaultError),
    "whole numbers": (
        lambda t: t.update({first(t, "lora_A.weight"): torch.zeros(4, 16, dtype=torch.int32)}),
        "is no adapter's",
        FaultError,
    ),
    "a weight of the model": (
        lambda t: t.update({"base_model.model.embed.tokens.weight": torch.zeros(19, 16)}),
        "not supported: embed.tokens.weight, trained whole",
        UsageError,
    ),
    "another head": (
        lambda t: t.update({"base_model.model.head.weight": torch.zeros(20, 16)}),
        "head.weight is not of",
        FaultError,
    ),
    "on the head": (
        lambda t: t.update(
            {f"base_model.model.head.lora_{x}.weight": torch.zeros(*s) for x, s in (("A", (4, 16)), ("B", (19, 4)))}
        ),
        "LoRA on head",
        UsageError,
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_named(folder, name):
    change, message, kind = TENSORS[name]
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    refused(folder, message, kind)


def test_damaged_bottlenecks_are_named(tmp_path):
    write_adapter(tmp_path / "a", trained("bottleneck", {"tied_embeddings": False}))
    (tmp_path / "a" / "SHA256SUMS").unlink()
    path = tmp_path / "a" / "adapter_model.safetensors"
    whole = load_file(path)
    name = first(whole, "adapter_up")
    for tensor, told in ((None, "missing"), (torch.zeros(16, 5), r"of \(16, 5\), not of \(16, 4\)")):
        changed = {key: value for key, value in whole.items() if key != name}
        save_file(changed if tensor is None else changed | {name: tensor}, path)
        refused(tmp_path / "a", told)


def test_files_that_are_missing_damaged_or_lead_out_are_refused(folder, tmp_path):
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    refused(folder, "adapter_model.safetensors is missing", UsageError)
    weights.symlink_to(tmp_path / "outside.safetensors")
    refused(folder, "a link that leads out")
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Path.touch))
    refused(folder, "adapter_model.bin is a pickle", UsageError)
    weights.write_bytes((tmp_path / "outside.safetensors").read_bytes()[:-8])
    refused(folder, "damaged")
    (folder / "adapter_config.json").write_text("[" * 100_000)
    refused(folder, "adapter_config.json: damaged")
    refused(tmp_path, "adapter_config.json is missing", UsageError)


def test_hashes_are_compared_where_they_are_there(tmp_path):
    write_adapter(tmp_path / "a", trained())
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(path.read_text().replace("LORA", "LORA "))
    with pytest.raises(FaultError, match="SHA-256"):
        read_adapter_(make(), tmp_path / "a")


def test_a_second_adapter_is_refused(folder):
    model = make(tied_embeddings=False)
    read_adapter_(model, folder)
    with pytest.raises(UsageError, match="has an adapter already"):
        read_adapter_(model, folder)
