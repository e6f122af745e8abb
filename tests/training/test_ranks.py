"""AdaLoRA's ranks: the paper's formulas, and directions that go where a layer needs them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chinchilla.config.adapter import Adapter, Allotment
from chinchilla.models.adapt import AdaLora
from chinchilla.training.ranks import Ranks, budget, settled_step


@given(
    steps=st.integers(1, 500),
    hold=st.floats(0, 0.5),
    settle=st.floats(0.01, 0.49),
    last=st.integers(1, 50),
    more=st.integers(0, 50),
)
def test_the_budget_falls_from_the_first_to_the_last_rank_and_ends_there(steps, hold, settle, last, more):
    allot = Allotment(hold=hold, settle=settle)
    course = [budget(step, steps, last + more, last, allot) for step in range(1, steps + 1)]
    assert course == sorted(course, reverse=True)
    assert course[-1] == last
    assert all(each <= last + more for each in course)
    assert all(each == last for each in course[settled_step(steps, allot) - 1 :])
    assert all(
        course[step - 1] == last + more for step in range(1, min(round(hold * steps), settled_step(steps, allot)))
    )


def test_the_budget_is_the_papers_cubic():
    allot = Allotment(hold=0.1, settle=0.4)
    assert [budget(step, 100, 120, 80, allot) for step in (10, 20, 35, 50, 59, 60)] == [
        120,
        80 + round(40 * 0.8**3),
        80 + round(40 * 0.5**3),
        80 + round(40 * 0.2**3),
        80,
        80,
    ]


class Maps(nn.Module):
    """Linear maps side by side, each with an AdaLoRA."""

    def __init__(self, count: int, size: int, settings: Adapter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.ModuleList(AdaLora(nn.Linear(size, size, bias=False), settings) for _ in range(count))
        for map in self.maps:
            map.weight.requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def test_importance_is_the_papers():
    """Its §3.2, by numpy in double precision, over a few steps of made-up gradients."""
    model = Maps(2, 6, Adapter(kind="adalora", rank=2, allot={"orthogonality": 0.0, "smoothing": 0.6}))
    ranks = Ranks(model)
    names = ("lora_A", "lora_B", "lora_E")
    held = {(index, name): [0.0, 0.0] for index in range(2) for name in names}
    for step in range(4):
        torch.manual_seed(step)
        for parameter in model.trained():
            parameter.data.normal_()
            parameter.grad = torch.randn_like(parameter)
        ranks.see()
        for index, map in enumerate(model.maps):
            for name in names:
                parameter = getattr(map, name)
                now = np.abs(parameter.detach().double().numpy() * parameter.grad.double().numpy())
                mean, spread = held[index, name]
                mean = 0.6 * mean + 0.4 * now
                held[index, name] = [mean, 0.6 * spread + 0.4 * np.abs(now - mean)]
    for index in range(2):
        right, left, value = (held[index, name][0] * held[index, name][1] for name in names)
        for direction in range(3):
            expected = value[direction, 0] + left[:, direction].sum() / 6 + right[direction].sum() / 6
            assert float(ranks.importance(f"maps.{index}")[direction]) == pytest.approx(expected, rel=1e-4)


def test_the_penaltys_gradient_is_added_to_the_losss():
    """d/dQ γ‖QQᵀ − I‖² = 4γ(QQᵀ − I)Q, and the like for P."""
    model = Maps(1, 6, Adapter(kind="adalora", rank=2, allot={"orthogonality": 0.3}))
    (map,) = model.maps
    for parameter in model.trained():
        parameter.data.normal_()
        parameter.grad = torch.ones_like(parameter)
    Ranks(model).see()
    right, left, unit = map.lora_A.detach(), map.lora_B.detach(), torch.eye(3)
    torch.testing.assert_close(map.lora_A.grad, 1 + 1.2 * (right @ right.T - unit) @ right)
    torch.testing.assert_close(map.lora_B.grad, 1 + 1.2 * left @ (left.T @ left - unit))
    torch.testing.assert_close(map.lora_E.grad, torch.ones(3, 1))


def fit(needs: tuple[int, ...], settings: Adapter, steps: int = 200) -> Maps:
    """Maps trained towards targets that lie so many directions off, each as far as the others, through noise."""
    model, size = Maps(len(needs), 16, settings), 16
    random = torch.Generator().manual_seed(1)
    targets = []
    for map, rank in zip(model.maps, needs, strict=True):
        left, right = (torch.linalg.qr(torch.randn(size, size, generator=random))[0][:, :rank] for _ in range(2))
        targets.append(map.weight + left @ right.T)
    ranks = Ranks(model)
    optimizer = torch.optim.Adam(model.trained(), lr=0.02)
    for step in range(1, steps + 1):
        x = torch.randn(64, size, generator=random)
        wanted = [x @ target.T + 0.5 * torch.randn(64, size, generator=random) for target in targets]
        errors = [(map(x) - each).square().mean() for map, each in zip(model.maps, wanted, strict=True)]
        optimizer.zero_grad()
        torch.stack(errors).sum().backward()
        ranks.see()
        optimizer.step()
        ranks.allot_(step, steps, {})
    assert ranks.settled
    return model


def found(model: Maps) -> list[int]:
    return [int((map.lora_E != 0).sum()) for map in model.maps]


def test_the_one_layer_that_matters_gets_the_ranks():
    settings = Adapter(kind="adalora", rank=2, allot={"first_rank": 8})
    assert found(fit((0, 8, 0, 0), settings)) == [0, 8, 0, 0]


def test_ranks_go_by_need_under_the_budget():
    settings = Adapter(kind="adalora", rank=3, allot={"first_rank": 8})
    assert found(fit((1, 7, 0, 4), settings)) == [1, 7, 0, 4]
    few = found(fit((1, 7, 0, 4), Adapter(kind="adalora", rank=1, allot={"first_rank": 8})))
    assert sum(few) == 4 and few[2] == 0


def test_directions_stay_orthonormal_because_of_the_penalty():
    """And the penalty is needed for it: without, they drift."""
    drift = []
    for weight in (0.0, 0.1):
        model = fit((4, 4), Adapter(kind="adalora", rank=4, allot={"orthogonality": weight}), steps=150)
        drift.append(sum(map.orthogonality().item() for map in model.maps))
    assert drift[1] < 0.1 * drift[0]


def test_more_steps_than_planned_give_ranks_back_to_the_course():
    model = Maps(2, 16, Adapter(kind="adalora", rank=2, allot={"first_rank": 4, "every": 1, "hold": 0.0}))
    ranks = Ranks(model)

    def step(number: int, of: int) -> int:
        for parameter in model.trained():
            parameter.grad = torch.randn_like(parameter)
            parameter.data.normal_()
        ranks.see()
        ranks.allot_(number, of, {})
        return sum(found(model))

    assert [step(number, 10) for number in (5, 6, 7)] == [4, 4, 4] and ranks.settled
    assert step(8, 100) == budget(8, 100, 8, 4, Allotment(hold=0.0)) == 7 and not ranks.settled


def test_a_model_without_adalora_is_left_alone():
    ranks = Ranks(nn.Linear(2, 2))
    ranks.see()
    ranks.allot_(1, 2, {})
    assert ranks.settled and ranks.state() == {}
