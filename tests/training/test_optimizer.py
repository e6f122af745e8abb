"""Which parameters go to which optimizer, and that each does what its paper (or torch) says."""

import math

import pytest
import torch
from torch import nn
from training_fakes import digest, make_shape, make_training

from chinchilla.config.shape import ImageStem
from chinchilla.models.transformer import Transformer
from chinchilla.training.muon import Muon
from chinchilla.training.optimizer import Optimizer, split_parameters
from chinchilla.training.workers import Workers


def make_model(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(make_shape(**changes))


def make_optimizer(model: Transformer, workers: int = 1, **changes) -> Optimizer:
    return Optimizer(model, make_training(**changes), Workers(model, workers, 0))


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def names(model: nn.Module, chosen: list[nn.Parameter]) -> list[str]:
    ids = {id(parameter): name for name, parameter in model.named_parameters()}
    return [ids[id(parameter)] for parameter in chosen]


EVERYTHING = {
    "position": "learned",
    "tied_embeddings": False,
    "head_bias": True,
    "bias": True,
    "norm": "layer",
    "attention": "gated",
    "embed_norm": True,
    "reconstruct": True,
}


def test_muon_takes_the_matrices_inside_blocks_and_nothing_else():
    model = make_model(**EVERYTHING)
    matrices, rest = split_parameters(model)
    assert all(parameter.dim() == 2 for parameter in matrices)
    inside = ("encoder.", "decoder.", "encoder_reconstruction.", "decoder_reconstruction.")
    assert all(name.startswith(inside) for name in names(model, matrices))
    others = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    others = {name for name in others if name in names(model, rest)}
    assert others == {"embed.tokens.weight", "embed.position.table", "head.weight"}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_every_parameter_has_one_optimizer_tied_ones_too(changes, kind, workers):
    model = make_model(**changes)
    optimizer = make_optimizer(model, workers, optimizer=kind)
    held = [id(p) for part in optimizer.parts for group in part.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    if not changes:
        assert model.head.weight is model.embed.tokens.weight


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_only_matrices_decay(kind):
    model = make_model(**EVERYTHING)
    for part in make_optimizer(model, optimizer=kind, weight_decay=0.3).parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0.0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_state_taken_back_gives_bit_equal_steps(kind, workers):
    model = make_model()
    optimizer = make_optimizer(model, workers, optimizer=kind)
    for seed in range(3):
        set_gradients(model, seed)
        optimizer.step(0.5 + seed)
    twin = make_model()
    twin.load_state_dict(model.state_dict())
    other = make_optimizer(twin, workers, optimizer=kind)
    other.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    assert digest(other.state()) == digest(optimizer.state())
    for seed in range(3, 6):
        for each, its in ((model, optimizer), (twin, other)):
            set_gradients(each, seed)
            its.step(1.0)
        assert digest(dict(twin.named_parameters())) == digest(dict(model.named_parameters()))
        assert digest(other.state()) == digest(optimizer.state())


def test_a_fresh_state_would_not():
    """The test above can fail: momentum matters."""
    model, twin = make_model(), make_model()
    optimizer = make_optimizer(model)
    set_gradients(model, 0)
    optimizer.step(1.0)
    twin.load_state_dict(model.state_dict())
    other = make_optimizer(twin)
    for each, its in ((model, optimizer), (twin, other)):
        set_gradients(each, 1)
        its.step(1.0)
    assert digest(dict(twin.named_parameters())) != digest(dict(model.named_parameters()))


def test_adamw_is_torchs_own():
    model, twin = make_model(**EVERYTHING), make_model(**EVERYTHING)
    settings = {"optimizer": "adamw", "learning_rate": 1e-3, "embedding_learning_rate": 4e-3, "weight_decay": 0.1}
    ours = make_optimizer(model, **settings)
    matrices, rest = split_parameters(twin)
    theirs = torch.optim.AdamW(
        [
            {"params": matrices, "lr": 1e-3, "weight_decay": 0.1},
            {"params": [p for p in rest if p.dim() > 1], "lr": 4e-3, "weight_decay": 0.1},
            {"params": [p for p in rest if p.dim() < 2], "lr": 4e-3, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        foreach=False,
    )
    for seed in range(5):
        for each in (model, twin):
            set_gradients(each, seed)
        ours.step(1.0)
        theirs.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_scales_every_peak_rate_and_lets_gradients_go():
    model = make_model()
    optimizer = make_optimizer(model, learning_rate=0.25, embedding_learning_rate=0.5)
    for scale in (0.5, 0.1):
        set_gradients(model, 0)
        optimizer.step(scale)
        rates = [[group["lr"] for group in part.param_groups] for part in optimizer.parts]
        assert rates == [[0.25 * scale], [0.5 * scale, 0.5 * scale]]
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (96, 32), (16, 128)])
def test_muons_update_is_orthogonal_and_as_large_as_adamws(rows, columns):
    """Every singular value of 0.2 √max(rows, columns) ⇒ a mean square of 0.2² (Liu 2025)."""
    model = nn.Module()
    model.inner = nn.Linear(columns, rows, bias=False)
    model.embed = nn.Embedding(3, 4)
    before = model.inner.weight.detach().clone()
    optimizer = make_optimizer_of(model)
    model.inner.weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    model.embed.weight.grad = torch.zeros(3, 4)
    gradient = model.inner.weight.grad.clone()
    optimizer.step(1.0)
    update = (before - model.inner.weight.detach()) / 0.01
    singular = torch.linalg.svdvals(update) / (0.2 * math.sqrt(max(rows, columns)))
    # Three Newton-Schulz steps bring singular values between 0.73 and 1.27, and bf16 rounds on the way.
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(update.flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.95


def make_optimizer_of(model: nn.Module) -> Optimizer:
    workers = Workers(make_model(), 1, 0)
    return Optimizer(model, make_training(learning_rate=0.01, weight_decay=0.0), workers)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_muons_products_are_in_the_runs_precision(precision, dtype):
    parts = make_optimizer(make_model(), precision=precision).parts
    assert [part.dtype for part in parts if isinstance(part, Muon)] == [dtype]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_from_before_muon_took_convolutions_is_taken_on(workers):
    stem = ImageStem(height=8, width=8, channels=1, patch=4, pooled=True)
    changes = {"stem": stem, "num_classes": 3, "vocab_size": 3, "num_decoder_layers": 0, "position": "learned"}
    model = make_model(**changes, max_len=4)
    optimizer = make_optimizer(model, workers)
    set_gradients(model, 0)
    optimizer.step(1.0)
    old = optimizer.state()
    kernels = [name for name, parameter in model.named_parameters() if parameter.dim() == 4]
    for name in kernels:
        buffer = old.pop(f"{name}.momentum_buffer")
        old |= {f"{name}.step": torch.tensor(1.0), f"{name}.exp_avg": buffer, f"{name}.exp_avg_sq": buffer.square()}
    optimizer.load(old)
    set_gradients(model, 1)
    optimizer.step(1.0)
    kept = optimizer.state()
    assert len(kernels) == 4
    assert all(f"{name}.momentum_buffer" in kept and f"{name}.exp_avg" not in kept for name in kernels)
