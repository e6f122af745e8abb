"""Muennighoff's law of repeats against its authors' own printed figures, a grid, and what must hold of repeats."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import BudgetError
from chinchilla.planning.repeat import MUENNIGHOFF

sizes = st.floats(6, 12).map(lambda exponent: 10.0**exponent)
budgets = st.floats(17, 25).map(lambda exponent: 10.0**exponent)


def by_the_formula(num_params: float, tokens: float, unique: float) -> float:
    """Eqs. 5 and 6 written out, with the constants of the authors' repository."""
    a, b, e, alpha, token_life, param_life = 6.255414, 7.3049974, 0.6254804, 0.3526596, 15.387756, 5.309743
    balance = math.exp((a - b) / (2 * alpha))
    fresh = min(unique, tokens)
    useful = min(num_params, fresh * balance**2)
    excess, repeats = num_params / useful - 1, tokens / fresh - 1
    size = useful + useful * param_life * (1 - math.exp(-excess / param_life))
    data = fresh + fresh * token_life * (1 - math.exp(-repeats / token_life))
    return math.exp(e) + math.exp(a) * size**-alpha + math.exp(b) * data**-alpha


@pytest.mark.parametrize(
    ("num_params", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)]
)
def test_the_losses_that_the_authors_print(num_params: float, tokens: float, loss: float) -> None:
    assert MUENNIGHOFF.loss(num_params, tokens, unique=25e9) == pytest.approx(loss, rel=1e-12)


def test_the_allocation_that_the_authors_print() -> None:
    # Theirs is the best of 1,000 grid points.
    num_params, tokens = MUENNIGHOFF.optimum(1e22, unique=25e9)
    assert tokens == pytest.approx(237336955477.55075, rel=2e-3)
    assert num_params == pytest.approx(7022364735.879969, rel=2e-3)
    assert MUENNIGHOFF.loss(num_params, tokens, 25e9) <= MUENNIGHOFF.loss(7022364735.879969, 237336955477.55075, 25e9)


@given(sizes, sizes, sizes)
def test_the_loss_is_that_of_the_formula(num_params: float, tokens: float, unique: float) -> None:
    assert MUENNIGHOFF.loss(num_params, tokens, unique) == pytest.approx(
        by_the_formula(num_params, tokens, unique), rel=1e-9
    )


@given(sizes, sizes, sizes)
def test_repeats_are_never_worth_more_than_fresh_tokens(num_params: float, tokens: float, unique: float) -> None:
    assert MUENNIGHOFF.loss(num_params, tokens, unique) >= MUENNIGHOFF.loss(num_params, tokens, tokens) * (1 - 1e-12)
    worth = MUENNIGHOFF.worth(min(unique, tokens), tokens)
    assert worth.p10 <= worth.p50 <= worth.p90 <= tokens * (1 + 1e-6)


@given(sizes, sizes, sizes, st.floats(1.01, 10))
def test_more_of_anything_never_hurts(num_params: float, tokens: float, unique: float, more: float) -> None:
    loss = MUENNIGHOFF.loss(num_params, tokens, unique) * (1 + 1e-12)
    assert MUENNIGHOFF.loss(more * num_params, tokens, unique) <= loss
    assert MUENNIGHOFF.loss(num_params, more * tokens, unique) <= loss
    assert MUENNIGHOFF.loss(num_params, tokens, more * unique) <= loss


@settings(max_examples=30)
@given(budgets, st.floats(-4, 1).map(lambda exponent: 10.0**exponent))
def test_the_optimum_is_the_best_of_a_grid(flops: float, share: float) -> None:
    fresh = MUENNIGHOFF.base.optimum(flops)[1]
    unique = share * fresh
    num_params, tokens = MUENNIGHOFF.optimum(flops, unique)
    grid = np.exp(np.linspace(math.log(min(unique, fresh)) - 2, math.log(fresh) + 8, 600))
    best = min(MUENNIGHOFF.loss(flops / 6 / seen, seen, unique) for seen in grid.tolist())
    assert MUENNIGHOFF.loss(num_params, tokens, unique) <= best * (1 + 1e-12)
    assert 6 * num_params * tokens == pytest.approx(flops)


@given(budgets)
def test_with_text_enough_it_is_the_law_of_one_epoch(flops: float) -> None:
    fresh = MUENNIGHOFF.base.optimum(flops)
    assert MUENNIGHOFF.optimum(flops, fresh[1]) == fresh


@given(budgets, st.floats(1.5, 1e3))
def test_short_text_takes_a_smaller_model_for_more_epochs(flops: float, shortage: float) -> None:
    # Excess parameters lose their worth sooner (5 times N_opt) than tokens (15 repeats).
    num_params, tokens = MUENNIGHOFF.base.optimum(flops)
    short = MUENNIGHOFF.optimum(flops, tokens / shortage)
    assert short[0] < num_params
    assert short[1] > tokens


def test_worth_is_shown_with_the_ends_of_the_interval() -> None:
    # 4 epochs of 1e9: R = 3; the half-life lies in [5.1, unbounded).
    worth = MUENNIGHOFF.worth(1e9, 4e9)
    assert worth.p10 == pytest.approx(1e9 + 5.1e9 * (1 - math.exp(-3 / 5.1)))
    assert worth.p50 == pytest.approx(1e9 + 15.387756e9 * (1 - math.exp(-3 / 15.387756)))
    assert worth.p90 == pytest.approx(4e9)
    assert worth.source == "law"
    assert MUENNIGHOFF.worth(1e9, 100e9).source == "guess"


@given(sizes, sizes, sizes)
def test_a_predicted_loss_is_a_guess_around_the_law(num_params: float, tokens: float, unique: float) -> None:
    estimate = MUENNIGHOFF.predict(num_params, tokens, unique)
    assert estimate.p50 == MUENNIGHOFF.loss(num_params, tokens, unique)
    assert estimate.p10 < estimate.p50 < estimate.p90
    assert estimate.source == "guess"


@pytest.mark.parametrize("unique", [0.0, -1.0, math.nan, math.inf])
def test_absurd_data_is_refused(unique: float) -> None:
    with pytest.raises(BudgetError, match="unique tokens"):
        MUENNIGHOFF.optimum(1e20, unique)
