"""Muon: its direction against singular values, its polynomials against a minimax solver, its update by hand."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chinchilla.training.muon import POLYNOMIALS, Muon, orthogonal


def matrix(rows: int, columns: int, least: float, seed: int = 0) -> torch.Tensor:
    """A random one whose singular values lie between `least` and 1, the ends among them."""
    generator = torch.Generator().manual_seed(seed)
    left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return left * torch.logspace(0, np.log10(least), min(rows, columns)) @ right


def minimax(low: float, high: float) -> tuple[np.ndarray, float]:
    """Of a·x + b·x³ + c·x⁵ the nearest to 1 between `low` and `high`, and its largest distance: a linear program."""
    x = np.concatenate([np.geomspace(low, high, 2000), np.linspace(low, high, 2000)])
    powers = np.stack([x, x**3, x**5], axis=1)
    ones = np.ones((len(x), 1))
    found = scipy.optimize.linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[powers, -ones], [-powers, -ones]]),
        b_ub=np.concatenate([np.ones(len(x)), -np.ones(len(x))]),
        bounds=[(None, None)] * 4,
    )
    return found.x[:3], float(found.x[3])


def test_each_polynomial_is_the_best_for_what_the_one_before_leaves() -> None:
    low, high = 0.01, 1.0
    for polynomial in POLYNOMIALS:
        best, error = minimax(low, high)
        np.testing.assert_allclose(polynomial, best, atol=2e-3)
        low, high = 1 - error, 1 + error
    assert (low, high) == pytest.approx((0.73, 1.27), abs=5e-3)


DTYPES = [torch.bfloat16, torch.float32]
CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(2, 80),
    columns=st.integers(2, 80),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_singular_values_end_near_one_however_large_they_were(
    dtype: torch.dtype, rows: int, columns: int, size: float, seed: int
) -> None:
    ends = torch.linalg.svdvals(orthogonal((size * matrix(rows, columns, 0.05, seed)).to(dtype)).float())
    # Between 0.73 and 1.27 but for what bf16 rounds.
    assert ends.min() > 0.6
    assert ends.max() < 1.3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(48, 48), (32, 96), (96, 32)])
def test_direction_is_the_polar_factor(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    given_matrix = matrix(*sizes, 0.1)
    left, _, right = torch.linalg.svd(given_matrix, full_matrices=False)
    found = orthogonal(given_matrix.to(dtype))
    assert found.dtype == dtype
    alike = torch.cosine_similarity(found.float().flatten(), (left @ right).flatten(), dim=0)
    assert alike > 0.98


def test_no_gradient_at_all_moves_nothing() -> None:
    assert orthogonal(torch.zeros(4, 8)).abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_is_momentum_decay_and_the_scaled_direction(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(matrix(16, 64, 0.1, seed=1))
    first, second = matrix(16, 64, 0.2, seed=2), matrix(16, 64, 0.2, seed=3)
    expected, momentum = parameter.detach().clone(), torch.zeros(16, 64)
    optimizer = Muon([parameter], lr=0.02, weight_decay=0.1, dtype=dtype)
    for gradient in (first, second):
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * momentum
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 8 * orthogonal(ahead.to(dtype)).float()
    # Where its products are in bf16 a difference in the last bit of fp32 can move one of bf16.
    torch.testing.assert_close(parameter.detach(), expected, atol=2e-5, rtol=1e-3)


def test_what_torchs_muon_kept_is_taken_on() -> None:
    parameter = nn.Parameter(matrix(16, 16, 0.1))
    theirs, ours = torch.optim.Muon([parameter], lr=0.02), Muon([parameter], lr=0.02)
    parameter.grad = matrix(16, 16, 0.1, seed=1)
    theirs.step()
    ours.step()
    names = [list(each.state_dict()["state"][0]) for each in (theirs, ours)]
    assert names[0] == names[1] == ["momentum_buffer"]
    torch.testing.assert_close(*(each.state_dict()["state"][0]["momentum_buffer"] for each in (theirs, ours)))


def test_a_kernel_is_the_matrix_of_each_output_by_all_that_it_sees() -> None:
    flat, gradient = matrix(6, 36, 0.1), matrix(6, 36, 0.2, seed=1)
    alike = [nn.Parameter(flat.clone()), nn.Parameter(flat.view(6, 4, 3, 3).contiguous(memory_format=CHANNELS_LAST))]
    for parameter in alike:
        # A convolution's gradient has its channels last in memory where its input has.
        last = {"memory_format": CHANNELS_LAST} if parameter.dim() == 4 else {}
        parameter.grad = gradient.view(parameter.shape).contiguous(**last)
        Muon([parameter], lr=0.02, weight_decay=0.1, dtype=torch.float32).step()
    torch.testing.assert_close(alike[1].detach().flatten(1), alike[0].detach())


def test_a_state_of_adamw_is_let_go() -> None:
    """Runs from before Muon took convolutions have one."""
    old, new = (nn.Parameter(matrix(6, 9, 0.1).view(6, 1, 3, 3)) for _ in range(2))
    taken, fresh = Muon([old], lr=0.02), Muon([new], lr=0.02)
    taken.state[old] = {"step": torch.tensor(3.0), "exp_avg": torch.ones(6, 1, 3, 3)}
    for parameter, optimizer in ((old, taken), (new, fresh)):
        parameter.grad = matrix(6, 9, 0.2, seed=1).view(6, 1, 3, 3)
        optimizer.step()
    assert list(taken.state[old]) == ["momentum_buffer"]
    assert torch.equal(old, new)
