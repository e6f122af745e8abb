"""Serving counted in: the fixture of Sardana's problem, a numeric search, and its limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from chinchilla.config.errors import BudgetError
from chinchilla.planning.constants import Constant
from chinchilla.planning.inference import Lifetime, chinchilla_lifetime, serving_optimum
from chinchilla.planning.laws import BESIROGLU, HOFFMANN, LAWS, ChinchillaLaw

laws = st.sampled_from(list(LAWS.values()))
budgets = st.floats(18, 25).map(lambda exponent: 10.0**exponent)
served = st.floats(8, 15).map(lambda exponent: 10.0**exponent)


def of_30_billion(law: ChinchillaLaw) -> tuple[Lifetime, Lifetime]:
    """At the quality of a compute-optimal model of 30G, which serves 1e13 tokens: itself, and the cheapest."""
    loss = law.loss(30e9, law.tokens_for(30e9))
    return chinchilla_lifetime(law, loss, 1e13), serving_optimum(law, loss, 1e13)


def test_the_fixture_with_the_digits_that_besiroglu_prints() -> None:
    printed = BESIROGLU.model_copy(update={"token_exponent": Constant(value=0.3658, source="arXiv 2404.10102")})
    plain, best = of_30_billion(printed)
    assert plain.num_params == pytest.approx(30e9)
    assert best.num_params == pytest.approx(1.162e10, rel=5e-4)
    assert best.tokens == pytest.approx(2.449e12, rel=5e-4)
    assert best.flops == pytest.approx(4.032e23, rel=5e-4)
    assert best.flops / plain.flops - 1 == pytest.approx(-0.427, abs=5e-4)


@pytest.mark.parametrize(("law", "saved"), [(BESIROGLU, 0.4275), (HOFFMANN, 0.266)], ids=["besiroglu", "hoffmann-tex"])
def test_the_choice_of_constants_decides_most(law: ChinchillaLaw, saved: float) -> None:
    plain, best = of_30_billion(law)
    assert 1 - best.flops / plain.flops == pytest.approx(saved, abs=5e-4)


@given(laws, budgets, served)
def test_the_optimum_is_the_cheapest_way_to_the_loss(law: ChinchillaLaw, flops: float, tokens: float) -> None:
    loss = law.loss(*law.optimum(flops))
    best = serving_optimum(law, loss, tokens)
    assert law.loss(best.num_params, best.tokens) == pytest.approx(loss, rel=1e-9)

    def cost(log_params: float) -> float:
        gap = loss - law.floor(math.exp(log_params))
        if gap <= 0:
            return 1e40
        needed = (law.token_scale.value / gap) ** (1 / law.token_exponent.value)
        return 6 * math.exp(log_params) * needed + 2 * math.exp(log_params) * tokens

    middle = math.log(best.num_params)
    found = minimize_scalar(cost, bounds=(middle - 3, middle + 3), method="bounded", options={"xatol": 1e-10})
    assert best.flops <= found.fun * (1 + 1e-7)


@given(laws, budgets)
def test_without_serving_it_is_chinchillas(law: ChinchillaLaw, flops: float) -> None:
    num_params, tokens = law.optimum(flops)
    none = serving_optimum(law, law.loss(num_params, tokens), 0.0)
    few = serving_optimum(law, law.loss(num_params, tokens), 1e-6 * tokens)
    for best in (none, few):
        assert best.num_params == pytest.approx(num_params, rel=1e-3)
        assert best.tokens == pytest.approx(tokens, rel=1e-3)
    assert none.flops == pytest.approx(flops, rel=1e-6)


@given(laws, budgets, served, st.floats(1.5, 100))
def test_the_more_is_served_the_smaller_the_model(law: ChinchillaLaw, flops: float, tokens: float, more: float) -> None:
    loss = law.loss(*law.optimum(flops))
    less, much = serving_optimum(law, loss, tokens), serving_optimum(law, loss, more * tokens)
    assert much.num_params <= less.num_params * (1 + 1e-6)
    assert much.tokens >= less.tokens * (1 - 1e-6)
    assert much.flops > less.flops


@pytest.mark.parametrize("loss", [1.8, BESIROGLU.irreducible.value, math.nan, math.inf])
def test_a_loss_out_of_reach_is_refused(loss: float) -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        serving_optimum(BESIROGLU, loss, 1e12)


@pytest.mark.parametrize("tokens", [-1.0, math.nan, math.inf])
def test_absurd_serving_is_refused(tokens: float) -> None:
    with pytest.raises(BudgetError, match="cannot be served"):
        serving_optimum(BESIROGLU, 2.5, tokens)
