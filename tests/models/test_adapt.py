"""Adapters: nothing changes until they are trained, nothing else is trained, and merging gives the same model."""

import copy
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.models import quantized
from chinchilla.models.adapt import AdaLora, Lora, adapt_, adapted, adapter_tensors, merge_
from chinchilla.models.bottleneck import Bottleneck
from chinchilla.models.cache import KVCache
from chinchilla.models.transformer import Transformer

KINDS = ("lora", "adalora", "bottleneck")


def make(**changes: Any) -> Transformer:
    torch.manual_seed(3)
    common: dict[str, Any] = {
        "vocab_size": 19,
        "dim": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "ffn_dim": 24,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "max_len": 16,
        "bias": True,
    }
    return Transformer(Shape(**(common | changes)))


def logits(model: Transformer) -> torch.Tensor:
    torch.manual_seed(5)
    source, target = torch.randint(3, 19, (2, 5)), torch.randint(3, 19, (2, 6))
    return model.logits(model(source if model.encoder else None, target).hidden)


def disturb(model: Transformer) -> None:
    """Adapters as training might leave them."""
    torch.manual_seed(7)
    for tensor in adapter_tensors(model).values():
        tensor.add_(0.1 * torch.randn_like(tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_does_not_change_at_first(kind):
    model = make()
    before = logits(model)
    adapt_(model, Adapter(kind=kind, rank=4, dropout=0.5))
    assert len(adapted(model)) == {"lora": 18, "adalora": 18, "bottleneck": 8}[kind]
    assert torch.equal(logits(model), before)
    disturb(model)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_model_itself_stay(kind):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = adapt_(model, Adapter(kind=kind, rank=2))
    after = model.state_dict()
    assert not before.keys() & set(names)
    assert after.keys() == before.keys() | set(names)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_part_of_the_adapter_and_nothing_else(kind, recompute):
    model = make()
    names = adapt_(model, Adapter(kind=kind, rank=4))
    model.recompute_(recompute)
    disturb(model)
    logits(model).square().sum().backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == set(names)
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_noise_is_the_same_noise(kind):
    found = []
    for recompute in (False, True):
        model = make()
        adapt_(model, Adapter(kind=kind, rank=4, dropout=0.4))
        model.draw_from(torch.Generator().manual_seed(1))
        model.recompute_(recompute)
        disturb(model)
        logits(model).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_adapter_put_on_later_takes_the_models_noise():
    model = make()
    generator = torch.Generator()
    model.draw_from(generator)
    adapt_(model, Adapter(dropout=0.5, rank=2))
    assert all(module.dropout.generator is generator for module in adapted(model).values())


def test_noise_is_for_training_only():
    model = make().eval()
    adapt_(model, Adapter(dropout=0.5, rank=2))
    model.draw_from(torch.Generator())
    disturb(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_lora_is_the_formula():
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    found = Lora(base, rank=2, scale=0.75)
    nn.init.normal_(found.lora_B)
    product = found.lora_B.detach().numpy() @ found.lora_A.detach().numpy()
    expected = base(x).detach().numpy() + 0.75 * x.numpy() @ product.T
    torch.testing.assert_close(found(x), torch.from_numpy(expected))
    assert found.lora_A.abs().max() <= 6**-0.5


def test_adalora_is_the_formula_and_its_penalty_too():
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    found = AdaLora(base, Adapter(kind="adalora", rank=2, alpha=1.0))
    assert found.orthogonality().item() == pytest.approx(0, abs=1e-10)
    for factor in (found.lora_A, found.lora_B, found.lora_E):
        nn.init.normal_(factor)
    left, values, right = (each.detach().double() for each in (found.lora_B, found.lora_E[:, 0], found.lora_A))
    expected = base(x) + (0.5 * x.double() @ (left @ values.diag() @ right).T).float()
    torch.testing.assert_close(found(x), expected)
    # ‖M‖² is the sum over the squares of its entries: over all pairs of directions, their products less δ.
    penalty = 0.0
    for rows in (right, left.T):
        for i, one in enumerate(rows.tolist()):
            for j, other in enumerate(rows.tolist()):
                penalty += (sum(a * b for a, b in zip(one, other, strict=True)) - (i == j)) ** 2
    assert found.orthogonality().item() == pytest.approx(penalty, rel=1e-5)


def test_a_bottleneck_is_the_formula():
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    found = Bottleneck(base, width=2)
    assert torch.equal(found(x), base(x))
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    down, up = nn.Linear(5, 2), nn.Linear(2, 5)
    down.weight, down.bias = found.adapter_down, found.adapter_down_bias
    up.weight, up.bias = found.adapter_up, found.adapter_up_bias
    torch.testing.assert_close(found(x), base(x) + nn.Sequential(down, nn.GELU(), up)(base(x)))


@pytest.mark.parametrize("shape", [{}, {"bias": False, "num_encoder_layers": 0}])
@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_merged_is_unmerged(kind, shape):
    model = make(**shape)
    plain = {name: type(module) for name, module in model.named_modules()}
    adapt_(model, Adapter(kind=kind, rank=4))
    disturb(model)
    before = logits(model)
    merge_(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert {name: type(module) for name, module in model.named_modules()} == plain
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_merged_is_told():
    model = make()
    with pytest.raises(UsageError, match="no adapter to merge"):
        merge_(model)
    adapt_(model, Adapter(kind="bottleneck", rank=4))
    disturb(model)
    before = logits(model)
    with pytest.raises(UsageError, match="activation inside"):
        merge_(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_is_decoding_whole(kind):
    model = make(num_encoder_layers=0).eval()
    adapt_(model, Adapter(kind=kind, rank=4))
    disturb(model)
    target = torch.randint(3, 19, (2, 6))
    cache = KVCache(model.shape.num_decoder_layers)
    pieces = [model.decode(target[:, index : index + 1], cache=cache) for index in range(6)]
    torch.testing.assert_close(torch.cat(pieces, 1), model.decode(target))


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_shares_every_parameter(kind):
    model = make()
    adapt_(model, Adapter(kind=kind, rank=4))
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    disturb(model)
    assert torch.equal(logits(twin), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_in_bf16(kind):
    model = make()
    names = adapt_(model, Adapter(kind=kind, rank=4))
    disturb(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), logits(model), rtol=0.1, atol=0.1)
    found.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for n, parameter in model.named_parameters() if n in names)


def test_targets_are_obeyed_and_other_parts_may_be_trained():
    model = make(tied_embeddings=False, qk_norm=True)
    names = adapt_(model, Adapter(rank=2, targets=("attention.qkv",), also=("norms", "head")))
    assert set(adapted(model)) == {f"{side}.attention.qkv" for side in ("encoder.layers.0", "decoder.layers.0")} | {
        "decoder.layers.1.attention.qkv"
    }
    others = {name for name in names if ".lora_" not in name}
    assert others == {name for name in model.state_dict() if "norm" in name} | {"head.weight"}


@pytest.mark.parametrize(
    ("change", "adapter", "told"),
    [
        ({"num_encoder_layers": 0}, {"targets": ("cross.kv",)}, "no cross.kv"),
        ({}, {"rank": 17}, "encoder.layers.0.attention.qkv has rank 16 itself, below the adapter's 17"),
        ({}, {"kind": "adalora", "rank": 11}, "below the adapter's 17"),
        ({}, {"also": ("head",)}, "the head is its embedding table|head is its embedding table"),
    ],
)
def test_what_the_model_cannot_carry_is_told_before_it_is_changed(change, adapter, told):
    model = make(**change)
    with pytest.raises(UsageError, match=told):
        adapt_(model, Adapter(**adapter))
    assert not adapted(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_two_adapters_and_int8_are_refused():
    model = make()
    adapt_(model, Adapter(rank=2))
    with pytest.raises(UsageError, match="has an adapter already"):
        adapt_(model, Adapter(rank=2))
    merge_(model)
    quantized.replace_(model, quantized.matrices(model))
    with pytest.raises(UsageError, match="int8"):
        adapt_(model, Adapter(rank=2))


def test_lora_trains_as_pefts_does():
    """The same factors, data and steps: peft's own training of our model stays beside ours."""
    ours, theirs = make(), make()
    names = adapt_(ours, Adapter(rank=3, alpha=5.0))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(adapted(ours)))
    wrapped = peft.get_peft_model(theirs, config)
    twins = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            twins[name.removeprefix("base_model.model.").replace(".default.weight", "")] = parameter
    assert set(twins) == set(names)
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in twins.items():
            parameter.copy_(own[name])
    for model, trained in ((ours, [own[n] for n in names]), (wrapped.base_model.model, [twins[n] for n in names])):
        optimizer = torch.optim.SGD(trained, lr=0.3)
        for step in range(5):
            torch.manual_seed(step)
            source, target = torch.randint(3, 19, (2, 5)), torch.randint(3, 19, (2, 6))
            loss = F.cross_entropy(model.logits(model(source, target).hidden).flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, parameter in twins.items():
        torch.testing.assert_close(own[name], parameter, rtol=1e-4, atol=1e-6)
