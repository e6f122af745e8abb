"""The front of plans: nobody on it is beaten, everybody off it is, and the chosen one stands on it by every rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rows import first_plan
from test_search import HELP, MACHINE, WEB

from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Plan, Probe
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import Shape
from chinchilla.planning import halving
from chinchilla.planning.by_law import APART, law_plan, sizes_beside
from chinchilla.planning.count import num_params
from chinchilla.planning.design import best_shape
from chinchilla.planning.front import Rival, by_own_law, by_probes, by_published_law, considered, objectives, pareto
from chinchilla.planning.frontier import frontier
from chinchilla.planning.laws import BESIROGLU, LAWS, ChinchillaLaw, Constant, Span
from chinchilla.planning.own_law import OwnLaw, Settings
from chinchilla.planning.repeat import repeated
from chinchilla.planning.search import build

COARSE = st.integers(0, 4).map(float)
POINTS = st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[COARSE] * width), min_size=1, max_size=24))


@pytest.fixture(scope="module")
def own_law() -> OwnLaw:
    """A law of a small text, with draws about it that agree with each other."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((200, 2)) * (0.02, 0.1)
    middle = np.array([np.log(1.2), np.log(60.0), np.log(150.0), 0.3, 0.32, 0.01])
    # What moves an exponent moves its scale along, as it does where runs hold their product.
    slopes = np.array([[1, 0], [0, 5], [0, 5.5], [0, 0.35], [0, 0.35], [0, 0]]).T
    draws = middle + common @ slopes
    names = ("irreducible", "param_scale", "token_scale", "param_exponent", "token_exponent")
    values = (1.2, 60.0, 150.0, 0.3, 0.32)
    constants = {name: Constant(value=value, source="runs") for name, value in zip(names, values, strict=True)}
    span = Span(low=1e12, high=1e14)
    law = ChinchillaLaw(name="own", params=span, tokens=span, flops=span, **constants)
    return OwnLaw(
        law=law, draws=tuple(map(tuple, draws.tolist())), task="translate", vocab_size=8000, bytes_per_token=3.5,
        unique_tokens=900_000, settings=Settings.of(first_plan().training),
    )  # fmt: skip


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(POINTS)
def test_nobody_on_the_front_is_beaten_and_everybody_off_it_is_by_one_on_it(points) -> None:
    stays = pareto(points)
    front = [point for point, on in zip(points, stays, strict=True) if on]
    assert front
    for point, on in zip(points, stays, strict=True):
        assert any(beats(other, point) for other in front) is not on
        assert not any(beats(other, point) for other in points) or not on


def shapes(count: int) -> list[Shape]:
    return [build(HELP, Model(), dim, layers, layers) for dim in (128, 192, 256) for layers in (2, 3)][:count]


def made(shape: Shape) -> Plan:
    """A plan of a shape, its predictions those of a probe."""
    told = {
        "loss": Estimate.around(2.4, 0.1, "nats/token", "guess"),
        "latency_s": Estimate.around(0.2, 0.5, "s", "measured"),
        "memory_bytes": Estimate.around(1e9, 0.1, "bytes", "measured"),
    }
    changes = {"shape": shape, "num_params": num_params(shape), "machine": MACHINE, "predicted": told}
    return first_plan().model_copy(update=changes)


def weighed(shape: Shape, rivals: tuple[Rival, ...]):
    return considered(made(shape), rivals, HELP.request, lambda each: 1e8 + 40.0 * num_params(each))


@settings(max_examples=40)
@given(st.integers(2, 6), st.data())
def test_the_winner_of_the_probes_is_on_its_own_front(count, data) -> None:
    """Successive halving as the planner does it, with any predicted losses, ties among them."""
    alive, probes = shapes(count), []
    for stage in halving.rounds(count, 60.0):
        losses = data.draw(st.lists(st.integers(20, 30), min_size=len(alive), max_size=len(alive)))
        seen = [
            Probe(
                shape=shape, precision="fp32", compile=False, num_params=num_params(shape), tokens=1, time_s=1.0,
                step_time_s=1.0, loss=4.0, predicted_loss=loss / 10,
            )
            for shape, loss in zip(alive, losses, strict=True)
        ]  # fmt: skip
        probes += seen
        alive = [each.shape for each in halving.survivors(seen, stage.keep)]
    rivals = by_probes(probes, alive[0])
    assert {rival.shape for rival in rivals} == set(shapes(count)) - {alive[0]}
    assert min(rival.loss_ratio for rival in rivals) >= 1
    found = weighed(alive[0], rivals)
    assert [each.num_params for each in found] == sorted(each.num_params for each in found)
    assert next(each for each in found if each.shape == alive[0]).on_front
    assert [each.on_front for each in found] == pareto([objectives(each) for each in found])


def test_a_rival_is_compared_in_the_last_round_that_both_were_in() -> None:
    first, second, third = shapes(3)
    told = [(first, 3.0), (second, 2.5), (third, 2.75), (second, 2.0), (third, 2.2), (second, 1.9)]
    blank = Probe(
        shape=first, precision="fp32", compile=False, num_params=1, tokens=1, time_s=1.0, step_time_s=1.0, loss=4.0
    )
    probes = [blank.model_copy(update={"shape": shape, "predicted_loss": loss}) for shape, loss in told]
    ratios = {rival.shape: rival.loss_ratio for rival in by_probes(probes, second)}
    assert ratios == {first: pytest.approx(3.0 / 2.5), third: pytest.approx(2.2 / 2.0)}
    assert by_probes([blank], first) == ()  # without predictions there is nothing to compare


def test_what_a_rival_comes_to_is_the_plans_own_times_a_ratio() -> None:
    small, chosen = shapes(3)[0], shapes(3)[2]
    found = weighed(chosen, (Rival(small, 1.1, "law"),))
    theirs, ours = found
    assert (theirs.shape, ours.shape) == (small, chosen)
    assert (ours.loss, ours.latency_s) == (made(chosen).predicted["loss"], made(chosen).predicted["latency_s"])
    assert theirs.loss.p50 == pytest.approx(1.1 * 2.4)
    assert (theirs.loss.source, theirs.latency_s.source, theirs.memory_bytes.source) == ("law", "guess", "guess")
    assert theirs.latency_s.p50 < ours.latency_s.p50
    assert theirs.memory_bytes.p50 < ours.memory_bytes.p50
    assert theirs.on_front and ours.on_front
    assert considered(made(chosen), (), HELP.request, num_params) == ()


@settings(max_examples=8)
@given(
    flops=st.floats(18.2, 24).map(lambda power: 10.0**power),
    unique=st.floats(8, 12).map(lambda power: round(10.0**power)),
    dim=st.sampled_from([None, 512, 2048]),
    size=st.sampled_from([None, 4 * 10**9]),
)
def test_the_choice_of_a_published_law_is_on_its_own_front(flops, unique, dim, size) -> None:
    facts = WEB.model_copy(update={"unique_tokens": unique})
    fixed, limits = Model(dim=dim), Limits(size=size)
    chosen = law_plan(flops, facts, fixed, limits).shape
    beside = sizes_beside(chosen, facts, fixed, limits)
    for shape in beside:
        assert size is None or 4 * num_params(shape) <= size
        assert not 1 / APART < num_params(shape) / num_params(chosen) < APART
    rivals = by_published_law(BESIROGLU, flops, unique, beside, chosen, known=True)
    for rival in rivals:
        # Smaller ones lose by the law; larger ones are beaten by the chosen one in everything.
        assert rival.loss_ratio > 1
    for shape in set(beside) - {rival.shape for rival in rivals}:
        # So little text that the larger one's loss is the same to the last digits.
        assert num_params(shape) > num_params(chosen)
        level = [repeated(BESIROGLU).loss(n, flops / 6 / n, unique) for n in map(num_params, (shape, chosen))]
        assert level[0] == pytest.approx(level[1], rel=1e-12)


def test_the_published_law_says_where_it_guesses() -> None:
    chosen = law_plan(1e20, WEB, Model(), Limits()).shape
    beside = sizes_beside(chosen, WEB, Model(), Limits())
    assert len(beside) == 4
    by = {known: by_published_law(BESIROGLU, 1e20, WEB.unique_tokens, beside, chosen, known=known) for known in (1, 0)}
    assert {rival.source for rival in by[0]} == {"guess"}
    assert by[1][2].source == "law"
    few = by_published_law(BESIROGLU, 1e20, 10**8, beside, chosen, known=True)
    assert {rival.source for rival in few} == {"guess"}  # repeats mix two fits


@pytest.mark.parametrize("law", LAWS.values(), ids=str)
def test_the_frontier_of_a_published_law_is_its_optima(law) -> None:
    kept = frontier(law, 1e23)
    assert kept.flops[0] <= law.flops.low and kept.flops[-1] >= 4e23 * (1 - 1e-9)
    for index in (0, 11, 23):
        assert kept.best[index] == pytest.approx(law.optimum(kept.flops[index])[0])
        assert kept.low[index] < kept.best[index] < kept.high[index]


def test_the_frontier_of_an_own_law_is_that_of_its_draws(own_law) -> None:
    kept = frontier(own_law, 1e15)
    sizes = np.array(
        [
            (alpha / beta * np.exp(a - b) * (kept.flops[5] / 6) ** beta) ** (1 / (alpha + beta))
            for _, a, b, alpha, beta, _ in own_law.draws
        ]
    )
    assert (kept.low[5], kept.high[5]) == pytest.approx(tuple(np.percentile(sizes, (10, 90))))

    # A little more or less than the optimum does not do better by the law.
    def loss(n):
        return own_law.law.loss(n, kept.flops[5] / 6 / n)

    assert loss(kept.best[5]) < min(loss(1.1 * kept.best[5]), loss(kept.best[5] / 1.1))


def test_the_choice_of_an_own_law_is_on_its_own_front(own_law) -> None:
    for budget in (1e13, 1e14, 1e15, 1e16):
        options = [(shape, budget / 6 / num_params(shape)) for shape in shapes(6)]
        chosen = best_shape(own_law, options).shape
        rivals = by_own_law(own_law, options, chosen)
        assert len(rivals) == 5
        assert min(rival.loss_ratio for rival in rivals) >= 1
        assert next(each for each in weighed(chosen, rivals) if each.shape == chosen).on_front
