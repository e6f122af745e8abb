"""The trainer with a model that is partly frozen: the rest is trained, saved and taken up, and nothing else."""

from typing import Any

import pytest
import torch
from training_fakes import digest, make_shape, make_trainer, make_training, weights

from chinchilla.config.adapter import Adapter
from chinchilla.config.errors import UsageError
from chinchilla.models.adapt import adapt_, adapted, adapter_tensors, merge_
from chinchilla.models.adapter_files import read_adapter_, write_adapter
from chinchilla.models.transformer import Transformer
from chinchilla.store import checkpoint, journal
from chinchilla.training.optimizer import Optimizer
from chinchilla.training.workers import Workers

KINDS = ("lora", "adalora", "bottleneck")
ALLOT = {"every": 2, "settle": 0.5}


def make_model(kind: str, seed: int = 0, base_seed: int = 0, dropout: float = 0.1, **rest: Any) -> Transformer:
    """The base is the same for one base seed; the adapter begins by `seed`."""
    torch.manual_seed(base_seed)
    model = Transformer(make_shape(), dropout)
    torch.manual_seed(seed)
    adapt_(model, Adapter.model_validate({"kind": kind, "rank": 4, "dropout": dropout, "allot": ALLOT} | rest))
    return model


def frozen(model: Transformer) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if not parameter.requires_grad
    }


NOISY: dict[str, Any] = {"optimizer": "adamw", "accumulation": 2, "keep_checkpoints": 9, "eval_every": 3}
WORKERS: dict[str, Any] = {"threads": 2, "ema_decay": 0.9}
LOW: dict[str, Any] = {"precision": "bf16", "recompute": True}


@pytest.mark.parametrize(("kind", "variant"), [("lora", LOW), ("adalora", WORKERS), ("bottleneck", {})])
def test_the_rest_of_the_model_keeps_its_bits_while_the_adapter_learns(kind, variant, tmp_path):
    model = make_model(kind)
    before = frozen(model)
    trainer = make_trainer(tmp_path, model=model, **NOISY, **variant, learning_rate=1e-2, steps=20)
    first = trainer.valid_loss()
    assert trainer.run().valid_loss < first - 0.02
    assert len(before) == len(list(Transformer(make_shape()).parameters()))
    assert digest(frozen(model)) == digest(before)


@pytest.mark.parametrize(
    ("kind", "variant", "step"),
    [("lora", LOW, 4), ("lora", WORKERS, 8), ("adalora", WORKERS, 4), ("adalora", LOW, 8), ("bottleneck", {}, 4)],
)
def test_going_on_from_a_checkpoint_gives_the_same_bits(kind, variant, step, tmp_path):
    """AdaLoRA's ranks are settled after step 6."""
    whole = make_trainer(tmp_path / "whole", model=make_model(kind), **NOISY, **variant)
    outcome = whole.run()
    # Another process begins with another adapter, on the same model.
    other = make_trainer(tmp_path / "other", model=make_model(kind, seed=9), **NOISY, **variant)
    other.resume(checkpoint.load(whole.folder.checkpoints / f"step-{step:06d}"))
    again = other.run()
    assert digest(weights(other.model)) == digest(weights(whole.model))
    assert (again.valid_loss, again.best_step) == (outcome.valid_loss, outcome.best_step)
    saved, last = (checkpoint.load(each.folder.checkpoints / "step-000012") for each in (other, whole))
    for group in last.tensors.keys() - {"random"}:
        assert digest(saved.tensors[group]) == digest(last.tensors[group]), group


def test_without_the_state_of_the_ranks_the_bits_would_differ(tmp_path):
    """The test above can fail."""
    whole = make_trainer(tmp_path / "whole", model=make_model("adalora"), **NOISY)
    whole.run()
    saved = checkpoint.load(whole.folder.checkpoints / "step-000004")
    saved.tensors["ranks"] = {}
    other = make_trainer(tmp_path / "other", model=make_model("adalora"), **NOISY)
    other.resume(saved)
    other.run()
    assert digest(weights(other.model)) != digest(weights(whole.model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_what_is_trained_and_no_more(kind, tmp_path):
    model = make_model(kind)
    trainer = make_trainer(tmp_path, model=model, **NOISY, ema_decay=0.9)
    trainer.run()
    saved = checkpoint.load(trainer.folder.checkpoints / "step-000012")
    names = set(adapter_tensors(model))
    assert all(set(saved.tensors[group]) == names for group in ("model", "average", "best"))
    assert {name.rpartition(".")[0] for name in saved.tensors["optimizer"]} == names
    assert ("ranks" in saved.tensors) == (kind == "adalora")


def test_a_checkpoint_is_not_taken_up_on_another_model(tmp_path):
    trainer = make_trainer(tmp_path / "a", model=make_model("lora"), **NOISY)
    trainer.run()
    saved = checkpoint.load(trainer.folder.checkpoints / "step-000008")
    other = make_trainer(tmp_path / "b", model=make_model("lora", base_seed=1), **NOISY)
    with pytest.raises(UsageError, match="other frozen weights"):
        other.resume(saved)
    with pytest.raises(UsageError, match="other frozen weights"):
        make_trainer(tmp_path / "c", **NOISY).resume(saved)


def test_a_run_that_overflows_returns_with_its_ranks(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model("adalora"), **NOISY)
    update = trainer.optimizer.step

    def overflow(scale: float) -> None:
        update(scale)
        if trainer.progress.step == 6 and trainer.progress.rollbacks == 0:
            with torch.no_grad():
                next(iter(adapted(trainer.model).values())).lora_B.fill_(torch.inf)

    trainer.optimizer.step = overflow  # type: ignore[method-assign]
    trainer.run()
    assert "rollback" in [event["kind"] for event in journal.read(trainer.folder.events)]
    numbers = (*weights(trainer.model).values(), *trainer.ranks.state().values())
    assert all(tensor.isfinite().all() for tensor in numbers)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_adalora_ends_within_its_budget_of_ranks(ema_decay, tmp_path):
    model = make_model("adalora", allot={"first_rank": 6, "every": 2, "settle": 0.4}, rank=2)
    trainer = make_trainer(tmp_path, model=model, **NOISY, ema_decay=ema_decay, steps=20, learning_rate=1e-2)
    outcome = trainer.run()
    maps = adapted(model)
    assert sum(int((map.lora_E != 0).sum()) for map in maps.values()) == 2 * len(maps)
    # Validations of models above the budget do not count.
    assert outcome.best_step >= 12
    lines = [line for line in journal.read(trainer.folder.metrics) if "valid_loss" in line]
    assert lines[0]["step"] == 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_have_no_optimizer_and_no_gradient(optimizer):
    model = make_model("lora", also=("norms",))
    workers = Workers(model, 1, 0)
    made = Optimizer(model, make_training(optimizer=optimizer), workers)
    held = {id(p) for part in made.parts for group in part.param_groups for p in group["params"]}
    own = dict(model.named_parameters())
    assert held == {id(own[name]) for name in adapter_tensors(model)}


def test_a_trained_adapter_is_saved_alone_and_merged(tmp_path):
    trainer = make_trainer(tmp_path / "run", model=make_model("lora"), **NOISY, learning_rate=1e-2)
    trainer.run()
    loss = trainer.valid_loss()
    write_adapter(tmp_path / "adapter", trainer.model)
    torch.manual_seed(0)
    fresh = Transformer(make_shape(), 0.1)
    read_adapter_(fresh, tmp_path / "adapter")
    merge_(fresh)
    assert make_trainer(tmp_path / "b", model=fresh).valid_loss() == pytest.approx(loss, rel=1e-5)
    merge_(trainer.model)
    assert make_trainer(tmp_path / "c", model=trainer.model).valid_loss() == pytest.approx(loss, rel=1e-5)
