"""What time costs, and what time money and energy buy."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.cluster import Cluster, Link, Node
from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.run import Budget, Here
from chinchilla.planning.cost import Tariff, costs, in_time, tariff

HOUR = Estimate.around(3600.0, 0.5, "s", "guess")
WATTS = Estimate.around(250.0, 0.2, "W", "datasheet")


def node(name: str, price: float | None = 3.0, watts: float | None = 400.0) -> Node:
    return Node(
        name=name,
        flops_per_s={"fp32": 1e12},
        memory_bytes=10**9,
        bytes_per_s=1e10,
        price_per_hour=price,
        watts=watts,
    )


def test_an_hour() -> None:
    found = costs(HOUR, Tariff(1.5, WATTS, 300.0))
    assert found["money"].p50 == pytest.approx(1.5)
    assert (found["money"].unit, found["money"].source) == ("money", "guess")
    assert found["energy_j"].p50 == pytest.approx(250 * 3600)
    assert found["co2_g"].p50 == pytest.approx(0.25 * 300)


def test_what_is_not_known_is_not_told() -> None:
    assert costs(HOUR, Tariff()) == {}
    assert set(costs(HOUR, Tariff(price_per_hour=1.0))) == {"money"}
    assert set(costs(HOUR, Tariff(watts=WATTS))) == {"energy_j"}
    assert costs(HOUR, Tariff(grams_per_kwh=300.0)) == {}  # without power there is no energy to count from


def test_energy_is_as_firm_as_the_weaker_of_time_and_power() -> None:
    measured = HOUR.model_copy(update={"source": "measured"})
    assert costs(measured, Tariff(watts=WATTS))["energy_j"].source == "datasheet"
    assert costs(HOUR, Tariff(watts=WATTS))["energy_j"].source == "guess"
    assert costs(measured, Tariff(2.0))["money"].source == "measured"


def test_the_interval_of_a_product_holds_eight_of_ten_products() -> None:
    """Against draws of two log-normal numbers with those quantiles."""
    energy, rng = costs(HOUR, Tariff(watts=WATTS))["energy_j"], random.Random(0)
    ten = 1.2815515655446004

    def draw(estimate: Estimate) -> float:
        return estimate.p50 * math.exp(rng.gauss(0, 1) * math.log(estimate.p90 / estimate.p50) / ten)

    drawn = sorted(draw(HOUR) * draw(WATTS) for _ in range(20_000))
    assert drawn[2_000] == pytest.approx(energy.p10, rel=0.02)
    assert drawn[18_000] == pytest.approx(energy.p90, rel=0.02)


def test_a_certain_time_leaves_the_spread_of_the_power() -> None:
    energy = costs(Estimate.around(60.0, 0.0, "s", "measured"), Tariff(watts=WATTS))["energy_j"]
    assert energy.p90 / energy.p50 == pytest.approx(1.2)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e3), st.floats(1.0, 1e4))
def test_money_and_energy_become_the_time_that_costs_them(seconds: float, price: float, watts: float) -> None:
    rates = Tariff(price, Estimate.around(watts, 0.2, "W", "measured"))
    spent = costs(Estimate.around(seconds, 0.0, "s", "measured"), rates)
    for budget in (Budget(money=spent["money"].p50), Budget(energy=spent["energy_j"].p50)):
        found, told = in_time(budget, rates)
        assert found.time == pytest.approx(seconds, rel=1e-6)
        assert told


def test_time_and_flops_stay_as_they_are() -> None:
    for budget in (Budget(time=60), Budget(flops=1e15)):
        assert in_time(budget, Tariff(1.0, WATTS)) == (budget, "")


def test_it_is_told_how_the_time_was_reckoned() -> None:
    assert in_time(Budget(money=2.5), Tariff(0.4))[1] == "budget.money: 2.5 at 0.4 an hour: 6h15m"
    told = in_time(Budget(energy=3.6e6), Tariff(watts=WATTS))[1]
    assert told == "budget.energy: 1 kWh at 250 W (datasheet): 4h00m"


@pytest.mark.parametrize(
    ("budget", "rates", "words"),
    [
        (Budget(money=5), Tariff(), ["budget.money", "machine.price_per_hour", "cluster file"]),
        (Budget(money=5), Tariff(0.0), ["budget.money", "costs 0", "budget.time"]),
        (Budget(money=1e12), Tariff(0.1), ["budget.money", "century"]),
        (Budget(money=5e-324), Tariff(1e10), ["budget.money", "no time at all"]),
        (Budget(energy=5), Tariff(1.0), ["budget.energy", "machine.watts"]),
        (Budget(energy=1e30), Tariff(watts=WATTS), ["budget.energy", "century"]),
    ],
)
def test_what_cannot_be_turned_into_time(budget: Budget, rates: Tariff, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        in_time(budget, rates)
    for word in words:
        assert word in str(error.value)


def test_the_recipe_comes_before_the_measurement_and_that_before_the_node() -> None:
    one, power = Cluster(node=(node("a"),)), Estimate.around(120.0, 0.05, "W", "measured")
    assert tariff(Here(), None) == Tariff()
    from_node = tariff(Here(grams_per_kwh=50), one)
    assert (from_node.price_per_hour, from_node.grams_per_kwh) == (3.0, 50)
    assert from_node.watts is not None
    assert (from_node.watts.p50, from_node.watts.source) == (400.0, "datasheet")
    assert tariff(Here(), one, power).watts == power
    guessed = tariff(Here(), one, Estimate.around(16.0, 1.0, "W", "guess"))
    assert guessed.watts == from_node.watts
    assert tariff(Here(), None, Estimate.around(16.0, 1.0, "W", "guess")).watts is not None
    said = tariff(Here(price_per_hour=0, watts=90), one, power)
    assert said.price_per_hour == 0
    assert said.watts is not None
    assert said.watts.p50 == 90


def test_of_several_nodes_none_is_taken_for_this_machine() -> None:
    several = Cluster(
        node=(node("a"), node("b", price=9.0)), link=(Link(between=("a", "b"), bytes_per_s=1e9, latency_s=0.0),)
    )
    assert tariff(Here(), several) == Tariff()
