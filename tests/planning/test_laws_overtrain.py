"""Gadre's law: its constants, its published predictions, and that it is Hoffmann's form in other letters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.planning.overtrain import GADRE_C4, GADRE_REDPAJAMA, GADRE_REFINEDWEB, OVERTRAIN_LAWS, OverTrainLaw

laws = st.sampled_from(list(OVERTRAIN_LAWS.values()))
budgets = st.floats(15, 24).map(lambda exponent: 10.0**exponent)
ratios = st.floats(0, 4).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize(
    ("law", "constants"),
    [
        (GADRE_C4, (1.508, 141.3, 189.5, 0.1212)),
        (GADRE_REDPAJAMA, (1.837, 212.2, 366.7, 0.1364)),
        (GADRE_REFINEDWEB, (1.735, 157.1, 246.2, 0.1272)),
    ],
    ids=list(OVERTRAIN_LAWS),
)
def test_the_constants_are_the_published(law: OverTrainLaw, constants: tuple[float, ...]) -> None:
    found = (law.irreducible, law.param_scale, law.token_scale, law.exponent)
    assert [constant.value for constant in found] == pytest.approx(constants, rel=5e-4)
    assert {constant.tag for constant in found} == {"verified"}
    assert all(constant.error for constant in found)


@pytest.mark.parametrize(
    ("num_params", "ratio", "loss", "error"),
    [(1439795200, 640, 2.502053562117363, 0.007103), (6889410560, 20, 2.424993099368689, 0.007320)],
)
def test_the_published_errors_on_the_two_dearest_redpajama_runs(
    num_params: float, ratio: float, loss: float, error: float
) -> None:
    # C4 validation losses of the runs, and the relative errors that the authors' notebook prints.
    predicted = GADRE_REDPAJAMA.loss(6 * num_params**2 * ratio, ratio)
    assert abs(predicted / loss - 1) == pytest.approx(error, abs=1e-5)


@given(laws, budgets, ratios)
def test_it_is_hoffmanns_form_with_one_exponent(law: OverTrainLaw, flops: float, ratio: float) -> None:
    num_params, tokens = math.sqrt(flops / 6 / ratio), math.sqrt(flops / 6 * ratio)
    assert law.chinchilla().loss(num_params, tokens) == pytest.approx(law.loss(flops, ratio), rel=1e-12)


@given(laws, budgets)
def test_the_best_ratio_is_the_optimum_of_every_budget(law: OverTrainLaw, flops: float) -> None:
    num_params, tokens = law.chinchilla().optimum(flops)
    assert tokens / num_params == pytest.approx(law.best_ratio, rel=1e-9)


@given(laws, budgets, ratios)
def test_the_price_buys_the_loss_of_the_best_ratio(law: OverTrainLaw, flops: float, ratio: float) -> None:
    price = law.price(ratio)
    assert price >= 1 - 1e-12
    assert law.loss(price * flops, ratio) == pytest.approx(law.loss(flops, law.best_ratio), rel=1e-9)
