"""Which nodes should do what: enumerate layouts, price each, keep the Pareto front, recommend one and say why."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import get_args

from chinchilla.config.errors import BudgetError
from chinchilla.config.frozen import Frozen
from chinchilla.config.units import show_bytes, show_time
from chinchilla.planning.network import Network
from chinchilla.planning.price import Codec, Inside, Layout, Priced, node_rate, price
from chinchilla.planning.work import Work

MARGIN = 0.03
"""A layout on more nodes must be faster by this share; less is within what any prediction is good for."""

LOCAL_GAIN = 1.25
"""Local steps change what is learned, so they must be faster than exchanging every step by this factor."""

MOST_SUBSETS = 6
"""Nodes up to which every subset is tried; above, the fastest ones and each node with its nearest."""

LOCAL_STEPS = (10, 50, 500)

NOT_BUILT = "running over several nodes or devices is not built yet: what runs today is one device of one node"


class Layouts(Frozen):
    """The answer: every layout on the Pareto front, the recommended one, and what runs today.

    `front` is sorted by time; `best_of_kind` holds the fastest of each kind that fits the memory. `runs_today` is None
    where no single device has the memory. `num_priced` counts all that were looked at.
    """

    recommended: Priced
    reason: str
    runs_today: Priced | None
    front: tuple[Priced, ...]
    best_of_kind: tuple[Priced, ...]
    num_priced: int


def layouts(work: Work, network: Network) -> Layouts:
    """Price every layout of `work` and choose.

    Raises:
        BudgetError: no layout fits the memory of its nodes.
        UsageError: a node's rate in the work's precision is not known.
    """
    priced = [price(layout, work, network) for layout in candidates(work, network)]
    fitting = sorted((item for item in priced if item.fits), key=lambda item: item.step_time_s.p50)
    if not fitting:
        raise BudgetError(_too_large(priced, network))
    recommended, reason = _recommend(fitting)
    kinds: dict[tuple[str, str], Priced] = {}
    for item in fitting:
        kinds.setdefault((item.layout.kind, item.layout.inside), item)
    return Layouts(
        recommended=recommended,
        reason=reason,
        runs_today=next((item for item in fitting if item.layout.runnable), None),
        front=tuple(pareto_front(fitting)),
        best_of_kind=tuple(kinds.values()),
        num_priced=len(priced),
    )


def candidates(work: Work, network: Network) -> Iterator[Layout]:
    """Every layout to price; in each the batch or the layers are divided by the nodes' speed."""
    for inside in _insides(network):
        for node in network.cluster.node:
            if inside == "one device" or node.devices > 1:
                yield Layout(kind="one node", nodes=(node.name,), shares=(1.0,), inside=inside)
        for names in _subsets(work, network, inside):
            shares = batch_shares(work, network, names, inside)
            if shares is not None:
                yield Layout(kind="data parallel", nodes=names, shares=shares, inside=inside)
                yield from _local(names, shares, inside)
            if inside != "data":
                yield from _pipelines(work, network, names, inside)


def _insides(network: Network) -> list[Inside]:
    """Ways to use the devices of a node; with one device each there is one."""
    several = any(node.devices > 1 for node in network.cluster.node)
    return ["one device", "data", "tensor"] if several else ["one device"]


def _subsets(work: Work, network: Network, inside: Inside) -> list[tuple[str, ...]]:
    """Sets of two and more nodes, the fastest node first in each."""
    fast = sorted(network.cluster.node, key=lambda node: -node_rate(node, work, inside))
    names = [node.name for node in fast]
    sizes = range(2, len(names) + 1)
    if len(names) <= MOST_SUBSETS:
        return [subset for size in sizes for subset in combinations(names, size)]
    chains = [names, *(sorted(names, key=lambda other: _distance(network, name, other)) for name in names)]
    return list(dict.fromkeys(tuple(chain[:size]) for chain in chains for size in sizes))


def _distance(network: Network, name: str, other: str) -> float:
    return 0.0 if name == other else network.send(name, other, 1e6)


def batch_shares(work: Work, network: Network, names: Sequence[str], inside: Inside) -> tuple[float, ...] | None:
    """Shares of the batch by speed, in whole rows; None where the batch has fewer rows than there are nodes.

    Every node gets one row, each further one goes where it is done soonest, which makes the slowest node's time least.
    """
    rates = [node_rate(network.cluster.find(name), work, inside) for name in names]
    if work.rows is None:
        return tuple(rate / sum(rates) for rate in rates)
    if work.rows < len(names):
        return None
    rows = [1] * len(rates)
    for _ in range(work.rows - len(rows)):
        soonest = min(range(len(rows)), key=lambda i: (rows[i] + 1) / rates[i])
        rows[soonest] += 1
    return tuple(count / work.rows for count in rows)


def _local(names: tuple[str, ...], shares: tuple[float, ...], inside: Inside) -> Iterator[Layout]:
    if inside == "tensor":
        return
    for sync_every in LOCAL_STEPS:
        for codec in get_args(Codec):
            yield Layout(
                kind="local steps", nodes=names, shares=shares, inside=inside, sync_every=sync_every, codec=codec
            )


def _pipelines(work: Work, network: Network, names: tuple[str, ...], inside: Inside) -> Iterator[Layout]:
    """One stage a node, in the order with the quickest links, with several numbers of micro-batches."""
    if work.num_layers < len(names):
        return
    path = _path(network, names, max(work.cut_bytes) / (4 * len(names)))
    shares = partition(work.layer_shares, [node_rate(network.cluster.find(name), work, inside) for name in path])
    for count in (len(names), 2 * len(names), 4 * len(names), 8 * len(names)):
        if work.rows is None or work.rows >= count:
            yield Layout(kind="pipeline", nodes=path, shares=shares, inside=inside, micro_batches=count)


def _path(network: Network, names: tuple[str, ...], size_bytes: float) -> tuple[str, ...]:
    """The best ring, cut open at its slowest link."""
    ring = network.ring(names, size_bytes)
    times = [network.send(a, b, size_bytes) for a, b in pairwise((*ring, ring[0]))]
    start = (times.index(max(times)) + 1) % len(ring)
    return ring[start:] + ring[:start]


def partition(costs: Sequence[float], rates: Sequence[float]) -> tuple[float, ...]:
    """Cut layers in order into one run a node so that the slowest node's cost / rate is least; the runs' costs.

    Exact, by dynamic programming over (nodes used, layers placed); O(layers² · nodes). Every node gets a layer.
    """
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    least = {(0, 0): (0.0, 0)}
    for used, rate in enumerate(rates, 1):
        for placed in range(used, len(costs) - len(rates) + used + 1):
            least[used, placed] = min(
                (max(least[used - 1, cut][0], (before[placed] - before[cut]) / rate), cut)
                for cut in range(used - 1, placed)
                if (used - 1, cut) in least
            )
    runs, end = [], len(costs)
    for used in range(len(rates), 0, -1):
        start = least[used, end][1]
        runs.append(before[end] - before[start])
        end = start
    return tuple(reversed(runs))


def pareto_front(items: Sequence[Priced]) -> list[Priced]:
    """Those that no other beats in time, memory, money and energy at once, as far as both have them."""
    kept: list[Priced] = []
    for item in sorted(items, key=lambda item: [math.inf if mark is None else mark for mark in _objectives(item)]):
        if not any(_beats(other, item) for other in kept):
            kept.append(item)
    return kept


def _objectives(item: Priced) -> list[float | None]:
    """Time, memory, money and energy; None where a node of the layout does not say what it costs or draws."""
    estimates = (item.step_time_s, item.memory_bytes, item.cost, item.energy_j)
    return [None if estimate is None else estimate.p50 for estimate in estimates]


def _beats(other: Priced, item: Priced) -> bool:
    """Whether `other` is nowhere worse, in what is known of both."""
    marks = zip(_objectives(other), _objectives(item), strict=True)
    return all(mine <= its for mine, its in marks if mine is not None and its is not None)


def _recommend(fitting: Sequence[Priced]) -> tuple[Priced, str]:
    """The fastest, but for these: fewer nodes within the margin, and no local steps without need."""
    synchronous = _fewest([item for item in fitting if item.layout.kind != "local steps"])
    local = _fewest([item for item in fitting if item.layout.kind == "local steps"])
    if synchronous is None or (local is not None and _gain(local, synchronous) > LOCAL_GAIN):
        assert local is not None
        return local, _why_local(local, synchronous)
    return synchronous, _why(synchronous, _first(fitting, "one node"), fitting)


def _first(fitting: Sequence[Priced], *kinds: str) -> Priced | None:
    return next((item for item in fitting if item.layout.kind in kinds), None)


def _fewest(items: Sequence[Priced]) -> Priced | None:
    """Of those within the margin of the fastest the one on fewest nodes; the fastest of those.

    One on several nodes beats every single node by the margin too, not only what is slower than the fastest.
    """
    if not items:
        return None
    limit_s = items[0].step_time_s.p50 / (1 - MARGIN)
    single_s = min((item.step_time_s.p50 for item in items if len(item.layout.nodes) == 1), default=math.inf)
    near = [
        item
        for item in items
        if item.step_time_s.p50 <= (limit_s if len(item.layout.nodes) == 1 else min(limit_s, single_s * (1 - MARGIN)))
    ]
    return min(near, key=lambda item: (len(item.layout.nodes), item.layout.sync_every, item.step_time_s.p50))


def _gain(fast: Priced, slow: Priced) -> float:
    return slow.step_time_s.p50 / fast.step_time_s.p50


def _why(chosen: Priced, single: Priced | None, fitting: Sequence[Priced]) -> str:
    many = _first(fitting, "data parallel", "pipeline")
    if chosen.layout.kind != "one node":
        if single is None:
            return "no single node has the memory"
        return f"{_gain(chosen, single):.3g} times as fast as the best single node, which takes {_time(single)} a step"
    if many is None:
        return "there is no other layout that fits"
    verdict = "slower than one node" if _gain(many, chosen) < 1 else f"within {MARGIN:.0%} of one node"
    return (
        f"never slower: the best of several nodes ({many.layout.kind} over {', '.join(many.layout.nodes)}) takes "
        f"{_time(many)} a step, {show_time(many.exposed_s.p50)} of it for the network: {verdict} ({_time(chosen)})"
    )


def _why_local(local: Priced, synchronous: Priced | None) -> str:
    if synchronous is None:
        return "nothing that exchanges every step has the memory; local steps learn otherwise: compare the losses"
    return (
        f"{_gain(local, synchronous):.3g} times as fast as the best that exchanges every step ({_time(synchronous)}); "
        "but local steps learn otherwise: compare the losses"
    )


def _time(item: Priced) -> str:
    return show_time(item.step_time_s.p50)


def _too_large(priced: Sequence[Priced], network: Network) -> str:
    least = min(priced, key=lambda item: item.memory_bytes.p50)
    largest = max(network.cluster.node, key=lambda node: node.memory_bytes)
    return (
        f"cluster: no layout fits the memory: the smallest ({least.layout.kind} over {', '.join(least.layout.nodes)}) "
        f"needs {show_bytes(least.memory_bytes.p50)} on a device, {largest.name!r} has "
        f"{show_bytes(largest.memory_bytes)}: take a smaller model (limits.size, model.dim) or recompute activations"
    )
