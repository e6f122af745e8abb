"""What a published law recommends: the least loss of all shapes, and what too little text does to it."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import HELP, WEB

from chinchilla.config.errors import BudgetError
from chinchilla.config.run import Limits, Model
from chinchilla.planning.by_law import LawPlan, law_holds, law_plan
from chinchilla.planning.count import flops_per_token, num_params
from chinchilla.planning.laws import BESIROGLU
from chinchilla.planning.overtrain import OVERTRAIN_LAWS
from chinchilla.planning.repeat import law_loss, repeated
from chinchilla.planning.search import Facts, build, depth

budgets = st.floats(18.2, 24).map(lambda power: 10.0**power)
texts = st.floats(6, 12).map(lambda power: round(10.0**power))
some = settings(max_examples=7)


def with_text(unique: int, facts: Facts = WEB) -> Facts:
    return facts.model_copy(update={"unique_tokens": unique})


def planned(flops: float, unique: int) -> LawPlan:
    return law_plan(flops, with_text(unique), Model(), Limits())


def test_laws_hold_from_their_range_on() -> None:
    assert not law_holds(1e15, 1e12)
    assert law_holds(2e18, 1e12)
    assert law_holds(1e25, 1e12)


def test_laws_hold_from_the_shortest_text_on_that_repeats_were_measured_with() -> None:
    assert law_holds(2e18, 1e8)
    assert not law_holds(2e18, 99_999_999)
    assert not law_holds(1e25, 5_300_000)


@pytest.mark.parametrize("flops", [3e18, 1e20, 1e22])
def test_the_laws_plan_spends_the_budget_near_the_optimum(flops: float) -> None:
    plan = law_plan(flops, WEB, Model(), Limits())
    best_params, best_tokens = BESIROGLU.optimum(flops)
    assert num_params(plan.shape) == pytest.approx(best_params, rel=0.1)
    assert plan.size == BESIROGLU.allocation(flops)[0]
    assert plan.tokens * flops_per_token(plan.shape, WEB.batch(4096)) == pytest.approx(flops)
    assert plan.tokens == pytest.approx(best_tokens, rel=0.35)
    assert BESIROGLU.loss(num_params(plan.shape), plan.tokens) == pytest.approx(
        BESIROGLU.loss(best_params, best_tokens), rel=0.02
    )
    assert [line.name for line in plan.decisions] == ["parameters", "tokens", "learning rate", "batch"]


def test_the_laws_plan_says_whether_it_is_inside_the_range() -> None:
    assert "(inside its range)" in law_plan(1e21, WEB, Model(), Limits()).decisions[0].reason
    assert "(outside its range)" in law_plan(1e25, WEB, Model(), Limits()).decisions[0].reason
    assert "(outside its range)" in law_plan(1e21, HELP, Model(), Limits()).decisions[0].reason
    assert "(outside its range)" in planned(1e21, 10**9).decisions[0].reason


@some
@given(budgets, texts, st.sampled_from([None, 512, 2048]), st.sampled_from([None, 4 * 10**9]))
def test_no_shape_of_the_grid_has_less_loss(flops: float, unique: int, dim: int | None, size: int | None) -> None:
    """Against shapes built one by one, a part of all: every fourth width, every depth there."""
    facts, fixed = with_text(unique), Model(dim=dim)
    found = law_plan(flops, facts, fixed, Limits(size=size)).shape

    def loss(count: int) -> float:
        return repeated(BESIROGLU).loss(count, flops / 6 / count, unique)

    assert size is None or 4 * num_params(found) <= size
    for width in [dim] if dim else range(256, 8192, 512):
        for layers in range(width // 128, width // 64 + 1, max(1, width // 1024)):
            count = num_params(build(facts, fixed, width, *depth("decoder", fixed, layers)))
            if size is None or 4 * count <= size:
                assert loss(num_params(found)) <= loss(count) * (1 + 1e-12)
                assert count >= num_params(found) or loss(count) > loss(num_params(found))


@some
@given(budgets, texts, st.floats(1.5, 1e4))
def test_less_text_never_takes_a_larger_model_and_never_comes_to_less_loss(
    flops: float, unique: int, shortage: float
) -> None:
    rich, poor = planned(flops, unique), planned(flops, max(1, round(unique / shortage)))
    assert num_params(poor.shape) <= num_params(rich.shape)
    assert poor.size.p50 <= rich.size.p50 * (1 + 1e-6)
    assert poor.loss.p50 >= rich.loss.p50 * (1 - 0.005)  # tokens are counted by products, sizes weighed by 6·N·D


@some
@given(budgets, texts, st.floats(1, 1e3))
def test_a_larger_budget_never_takes_a_smaller_model(flops: float, unique: int, more: float) -> None:
    assert num_params(planned(more * flops, unique).shape) >= num_params(planned(flops, unique).shape)


@some
@given(budgets, st.floats(1.01, 1e6))
def test_text_enough_is_the_plain_optimum(flops: float, plenty: float) -> None:
    unique = math.ceil(plenty * BESIROGLU.optimum(flops)[1] * 1.1)
    plan, endless = planned(flops, unique), planned(flops, 10**30)
    assert plan.shape == endless.shape
    assert plan.size == BESIROGLU.allocation(flops)[0]
    assert endless.loss.p50 == BESIROGLU.loss(num_params(plan.shape), plan.tokens)


def test_scarce_data_moves_the_plan_to_fewer_parameters_for_more_epochs() -> None:
    """Muennighoff 2023: parameters beyond what the fresh tokens can use lose their worth before repeats do."""
    rich, poor = planned(1e20, 10**12), planned(1e20, 10**9)
    assert num_params(poor.shape) < num_params(rich.shape) / 1.1
    assert rich.epochs < 1 < poor.epochs
    assert poor.loss.p50 > rich.loss.p50
    assert "fresh text would take" not in rich.decisions[0].reason
    assert "fresh text would take 855M for this budget, but 1G unique tokens" in poor.decisions[0].reason


def test_a_book_is_not_read_by_a_giant() -> None:
    """5.3M tokens and 2e18 FLOPs once came to 175G parameters."""
    sizes = {}
    for flops in (2e18, 1e20, 1e22):
        plan = planned(flops, 5_300_000)
        sizes[flops] = num_params(plan.shape)
        assert plan.size.p10 < plan.size.p50 < plan.size.p90
        assert plan.size.source == "guess"
        assert plan.loss.p90 > 1.3 * plan.loss.p50  # the half-lives' own intervals, not transfer's 15 % alone
        assert plan.loss == law_loss(BESIROGLU, sizes[flops], plan.tokens, 5_300_000)
        size, tokens = (line.reason for line in plan.decisions[:2])
        assert "5.3M unique tokens cannot use so many" in size and "no text below 810M tokens" in size
        assert "measured up to 60 epochs" in tokens and "come within 1% of its loss by the law" in tokens
    assert sizes[2e18] <= sizes[1e20] <= sizes[1e22] < BESIROGLU.optimum(2e18)[0]


@pytest.mark.parametrize(
    ("flops", "size", "ends", "loss", "epochs"),
    [
        (2e18, 70e6, (5.4e6, 199e6), (2.7, 7.0), 40),
        (1e20, 438e6, (6.8e6, 1.49e9), (2.4, 7.0), 344),
        (1e22, 494e6, (7.6e6, 2.01e9), (2.2, 7.0), 30_400),
    ],
)
def test_a_hundred_million_tokens_are_planned_as_the_docs_say(
    flops: float, size: float, ends: tuple[float, float], loss: tuple[float, float], epochs: float
) -> None:
    facts = WEB.model_copy(update={"unique_tokens": 10**8, "vocab_size": 8000})
    plan = law_plan(flops, facts, Model(), Limits())
    assert num_params(plan.shape) == pytest.approx(size, rel=0.01)
    assert (plan.size.p10, plan.size.p90) == pytest.approx(ends, rel=0.01)
    assert (plan.loss.p10, plan.loss.p90) == pytest.approx(loss, abs=0.06)
    assert plan.epochs == pytest.approx(epochs, rel=0.01)


def test_a_limit_that_makes_a_model_over_trained_says_the_price() -> None:
    reason = law_plan(1e20, WEB, Model(), Limits(size=800_000_000)).decisions[0].reason
    said = re.search(r"over-trained at (\S+) tokens a parameter: (\S+) to (\S+) times .* inside its ratios", reason)
    assert said is not None
    ratio, *ends = map(float, said.groups())
    assert ratio == pytest.approx(1e20 / 6 / 2e8**2, rel=0.05)
    for law in OVERTRAIN_LAWS.values():
        # So much less at the best ratio comes to the same loss.
        price = (law.loss(1e20, ratio) - law.irreducible.value) / (
            law.loss(1e20, law.best_ratio) - law.irreducible.value
        )
        assert ends[0] * 0.9 < price ** (1 / law.exponent.value) < ends[1] * 1.1
    for limits in (Limits(), Limits(size=10**11)):
        assert "over-trained" not in law_plan(1e20, WEB, Model(), limits).decisions[0].reason


@pytest.mark.parametrize("limits", [Limits(), Limits(size=80_000_000)], ids=["free", "held small"])
def test_the_epochs_that_are_told_to_be_enough_are_enough_for_this_model(limits: Limits) -> None:
    plan = law_plan(1e20, with_text(10**8), Model(), limits)
    said = re.search(r"and (\d+\S*) come within 1% of its loss by the law", plan.decisions[1].reason)
    assert said is not None
    epochs = float(said[1])
    assert 1 < epochs < 60 < plan.epochs
    least = repeated(BESIROGLU).loss(num_params(plan.shape), plan.tokens, 10**8)
    nearly = repeated(BESIROGLU).loss(num_params(plan.shape), epochs * 10**8, 10**8)
    assert nearly == pytest.approx(1.01 * least, rel=1e-3)


def test_a_size_limit_gives_a_smaller_model_trained_for_longer() -> None:
    free = law_plan(1e20, WEB, Model(), Limits())
    held = law_plan(1e20, WEB, Model(), Limits(size=400_000_000))
    assert 5e7 < num_params(held.shape) <= 1e8
    assert held.tokens > free.tokens
    with pytest.raises(BudgetError, match=r"limits\.size is 1 kB, and the smallest model that may be built"):
        law_plan(1e20, WEB, Model(), Limits(size=1000))
