"""What time costs: money by a price an hour, energy by the power drawn, CO2 by grams a kilowatt-hour; and back.

Prices are a contract and taken as they are. Declared watts are those of full load, which training nearly is.
"""

import math
from dataclasses import dataclass

from chinchilla.config.cluster import Cluster
from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.run import LONGEST_S, Budget, Here
from chinchilla.config.units import show_energy, show_time

DECLARED_SPREAD = 0.2
"""Relative spread of watts that were declared, not measured."""

HOUR_S = 3600.0
KWH_J = 3.6e6

SOURCES: tuple[Source, ...] = ("measured", "law", "datasheet", "guess")
"""From the firmest to the weakest."""


@dataclass(frozen=True)
class Tariff:
    """What the machine costs an hour (in any currency), draws, and emits; None is unknown."""

    price_per_hour: float | None = None
    watts: Estimate | None = None
    grams_per_kwh: float | None = None


def tariff(here: Here, cluster: Cluster | None, power: Estimate | None = None) -> Tariff:
    """What is known of this machine: as the recipe says, else as measured (`power`), else as the one node's entry says.

    A `power` that is itself a guess comes last. A cluster of several nodes says nothing of the machine that trains: a
    plan's steps run on this one.
    """
    node = cluster.node[0] if cluster is not None and len(cluster.node) == 1 else None
    price = here.price_per_hour
    if price is None and node is not None:
        price = node.price_per_hour
    counted = power is not None and power.source != "guess"
    declared = here.watts or (node.watts if node is not None and not counted else None)
    watts = Estimate.around(declared, DECLARED_SPREAD, "W", "datasheet") if declared else power
    return Tariff(price, watts, here.grams_per_kwh)


def later(time_s: Estimate, spent_s: float) -> Estimate:
    """A time with the seconds that are spent already."""
    return time_s.model_copy(update={end: getattr(time_s, end) + spent_s for end in ("p10", "p50", "p90")})


def costs(time_s: Estimate, rates: Tariff) -> dict[str, Estimate]:
    """Money, energy and CO2 of `time_s` seconds, as far as they are known: `money`, `energy_j`, `co2_g`."""
    found = {}
    if rates.price_per_hour is not None:
        found["money"] = _scaled(time_s, rates.price_per_hour / HOUR_S, "money")
    if rates.watts is not None:
        found["energy_j"] = energy = _product(time_s, rates.watts, "J")
        if rates.grams_per_kwh is not None:
            found["co2_g"] = _scaled(energy, rates.grams_per_kwh / KWH_J, "g")
    return found


def in_time(budget: Budget, rates: Tariff) -> tuple[Budget, str]:
    """The budget with money or energy turned into seconds, and how that was reckoned; "" where nothing was.

    Raises:
        UsageError: the price or the power is not known, money does not bound the time, or it lasts for centuries.
    """
    if budget.money is not None:
        return _spent(budget.money, rates)
    if budget.energy is not None:
        return _drawn(budget.energy, rates)
    return budget, ""


def _spent(money: float, rates: Tariff) -> tuple[Budget, str]:
    price = rates.price_per_hour
    if price is None:
        raise UsageError(
            "budget.money: what an hour of this machine costs is not known: set machine.price_per_hour, or "
            "price_per_hour of the only node in the cluster file"
        )
    if price == 0:
        raise UsageError("budget.money: an hour costs 0, so that money bounds nothing: give budget.time instead")
    return _lasting(money / price * HOUR_S, f"budget.money: {money:g} at {price:g} an hour")


def _drawn(energy_j: float, rates: Tariff) -> tuple[Budget, str]:
    if rates.watts is None:
        raise UsageError(
            "budget.energy: what this machine draws is not known: set machine.watts, or watts of the only node in the "
            "cluster file, or run `chinchilla measure`"
        )
    watts = rates.watts
    return _lasting(energy_j / watts.p50, f"budget.energy: {show_energy(energy_j)} at {watts.p50:g} W ({watts.source})")


def _lasting(time_s: float, told: str) -> tuple[Budget, str]:
    if time_s > LONGEST_S:
        raise UsageError(f"{told} lasts more than a century; are the units right?")
    if time_s == 0:
        raise UsageError(f"{told} lasts no time at all; are the units right?")
    return Budget(time=time_s), f"{told}: {show_time(time_s)}"


def _scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    p10, p50, p90 = (factor * value for value in (estimate.p10, estimate.p50, estimate.p90))
    return Estimate(p10=p10, p50=p50, p90=p90, unit=unit, source=estimate.source)


def _product(left: Estimate, right: Estimate, unit: str) -> Estimate:
    """Two positive numbers that err independently, multiplied; as firm as the weaker of the two."""
    middle = left.p50 * right.p50
    below, above = (
        math.exp(math.hypot(*(math.log(getattr(each, end) / each.p50) for each in (left, right))))
        for end in ("p10", "p90")
    )
    source = max(left.source, right.source, key=SOURCES.index)
    return Estimate(p10=middle / below, p50=middle, p90=middle * above, unit=unit, source=source)
