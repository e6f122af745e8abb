"""Muennighoff's law of repeats against its authors' own printed figures, a grid, and what must hold of repeats."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import BudgetError
from chinchilla.planning.laws import BESIROGLU, LAWS, ChinchillaLaw
from chinchilla.planning.repeat import MUENNIGHOFF, NEARLY, law_loss, repeated

sizes = st.floats(6, 12).map(lambda exponent: 10.0**exponent)
budgets = st.floats(17, 25).map(lambda exponent: 10.0**exponent)


def by_the_formula(num_params: float, tokens: float, unique: float) -> float:
    """Eqs. 5 and 6 written out, with the constants of the authors' repository; from one epoch on."""
    a, b, e, alpha, token_life, param_life = 6.255414, 7.3049974, 0.6254804, 0.3526596, 15.387756, 5.309743
    balance = math.exp((a - b) / (2 * alpha))
    assert tokens >= unique
    fresh, useful = unique, min(num_params, unique * balance**2)
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
def test_the_loss_is_that_of_the_formula(num_params: float, one: float, other: float) -> None:
    unique, tokens = sorted((one, other))
    assert MUENNIGHOFF.loss(num_params, tokens, unique) == pytest.approx(
        by_the_formula(num_params, tokens, unique), rel=1e-9
    )


@given(st.sampled_from(list(LAWS.values())), sizes, sizes)
def test_with_unlimited_text_every_model_has_the_laws_own_loss(
    law: ChinchillaLaw, num_params: float, tokens: float
) -> None:
    assert repeated(law).loss(num_params, tokens, math.inf) == law.loss(num_params, tokens)
    enough = max(tokens, law.tokens_for(num_params) * (1 + 1e-9))
    assert law_loss(law, num_params, tokens, enough).p50 == law.loss(num_params, tokens)
    assert not repeated(law).discounts(num_params, tokens, enough)


@given(sizes, sizes, sizes)
def test_repeats_are_never_worth_more_than_fresh_tokens(num_params: float, tokens: float, unique: float) -> None:
    fresh = MUENNIGHOFF.base.loss(num_params, tokens)
    assert MUENNIGHOFF.loss(num_params, tokens, unique) >= fresh * (1 - 1e-12)
    assert MUENNIGHOFF.discounts(num_params, tokens, unique) or MUENNIGHOFF.loss(num_params, tokens, unique) == fresh
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


def test_the_fewer_tokens_below_the_fitted_the_wider() -> None:
    def width(tokens: float) -> float:
        estimate = MUENNIGHOFF.predict(1e3, tokens, tokens)
        return estimate.p90 / estimate.p50

    assert width(1e8) == width(1e10) == pytest.approx(1.15)
    assert width(1e7) == pytest.approx(1.30)
    assert width(1e5) == pytest.approx(1.60)


@pytest.mark.parametrize("unique", [0.0, -1.0, math.nan, math.inf])
def test_absurd_data_is_refused(unique: float) -> None:
    with pytest.raises(BudgetError, match="unique tokens"):
        MUENNIGHOFF.optimum(1e20, unique)


@settings(max_examples=30)
@given(st.floats(18, 25).map(lambda exponent: 10.0**exponent), st.floats(-6, 1).map(lambda exponent: 10.0**exponent))
def test_another_laws_optimum_on_short_text_is_the_best_of_a_grid(flops: float, share: float) -> None:
    fresh, rule = BESIROGLU.optimum(flops), repeated(BESIROGLU)
    unique = share * fresh[1]
    num_params, tokens = rule.optimum(flops, unique)
    if share >= 1:
        assert (num_params, tokens) == fresh
        return
    grid = np.exp(np.linspace(math.log(unique) - 3, math.log(fresh[1]) + 12, 600))
    best = min(rule.loss(flops / 6 / seen, seen, unique) for seen in grid.tolist())
    assert rule.loss(num_params, tokens, unique) <= best * (1 + 1e-12)
    # More parameters than all there is to read can use would only cost.
    assert num_params <= fresh[0] * (1 + 1e-9)


@settings(max_examples=40)
@given(budgets, st.floats(3, 15).map(lambda exponent: 10.0**exponent), st.floats(1, 1e3))
@example(1e17, 1000.0, 1.0000000000000002)
def test_of_less_text_the_best_model_is_no_larger_and_no_better(flops: float, unique: float, shortage: float) -> None:
    rule = repeated(BESIROGLU)
    rich, poor = (rule.optimum(flops, text) for text in (unique, unique / shortage))
    assert poor[0] <= rich[0] * (1 + 1e-6)
    assert rule.loss(*poor, unique / shortage) >= rule.loss(*rich, unique) * (1 - 1e-12)


@settings(max_examples=30)
@given(budgets, st.floats(3, 15).map(lambda exponent: 10.0**exponent))
def test_the_best_size_has_the_spread_of_the_law_or_more(flops: float, unique: float) -> None:
    size, plain = repeated(BESIROGLU).best_size(flops, unique), BESIROGLU.allocation(flops)[0]
    assert size.p10 / size.p50 <= plain.p10 / plain.p50 * (1 + 1e-9)
    assert size.p90 / size.p50 >= plain.p90 / plain.p50 * (1 - 1e-9)
    if BESIROGLU.optimum(flops)[1] <= unique:
        assert size == plain
    else:
        assert size.source == "guess"


@given(sizes, sizes, sizes)
def test_what_is_enough_comes_within_a_hundredth(num_params: float, tokens: float, unique: float) -> None:
    rule = repeated(BESIROGLU)
    enough, most = rule.enough(num_params, tokens, unique), rule.loss(num_params, tokens, unique) * (1 + NEARLY)
    assert enough < tokens
    assert rule.loss(num_params, enough, unique) <= most
    assert rule.loss(num_params, enough / 1.001, unique) > most


def test_of_sizes_that_come_to_the_same_loss_the_smallest_is_best() -> None:
    rule, unique = repeated(BESIROGLU), 5.3e6
    (small, _), (same, _) = (rule.optimum(flops, unique) for flops in (1e20, 1e22))
    assert same == pytest.approx(small, rel=1e-3)
    assert rule.loss(small / 2, 1e20 / 3 / small, unique) > rule.loss(small, 1e20 / 6 / small, unique) * (1 + 1e-12)


def test_a_loss_from_a_law_is_marked_as_a_guess() -> None:
    estimate = law_loss(BESIROGLU, 1e8, 1e11, 1e10)
    assert estimate.source == "guess"
    assert estimate.p50 == repeated(BESIROGLU).loss(1e8, 1e11, 1e10)
    assert estimate.p10 < estimate.p50 < estimate.p90
