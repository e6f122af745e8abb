"""How long messages and collectives take over unequal links, and how well a step used its nodes and links.

A link takes α + s/β (Thakur 2005), or what its measured table says. Links are full-duplex and their two directions
equal. Two nodes without a link of their own speak over others: each hop stores the message and sends it on.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, permutations

from chinchilla.config.cluster import Cluster, Link

MOST_TRIED = 7
"""Nodes up to which the best ring is found by trying all; above, each goes on to its nearest."""


def link_time(link: Link, size_bytes: float) -> float:
    """Seconds that one message takes: α + s/β, or the measured table, straight between its points.

    Below the smallest size measured a message takes that one's time; above the largest the last line goes on.
    """
    if link.table is None:
        assert link.latency_s is not None
        assert link.bytes_per_s is not None
        return link.latency_s + size_bytes / link.bytes_per_s
    sizes = [size for size, _ in link.table]
    if size_bytes <= sizes[0]:
        return link.table[0][1]
    index = min(bisect_right(sizes, size_bytes), len(sizes) - 1)
    (left, left_s), (right, right_s) = link.table[index - 1], link.table[index]
    return left_s + (right_s - left_s) * (size_bytes - left) / (right - left)


class Network:
    """The links of a cluster, and the time of each way to use them. Nodes go by their names, sizes are in bytes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._times: dict[float, dict[tuple[str, str], float]] = {}

    @cached_property
    def _links(self) -> dict[frozenset[str], Link]:
        return {pair: link for link in self.cluster.link for pair in link.pairs}

    def send(self, source: str, target: str, size_bytes: float) -> float:
        """Point to point: the quickest path's time; within one node, that between two of its devices."""
        if size_bytes not in self._times:
            self._times[size_bytes] = self._quickest(size_bytes)
        return self._times[size_bytes][source, target]

    def _quickest(self, size_bytes: float) -> dict[tuple[str, str], float]:
        """Seconds between every two nodes over the quickest path (Floyd 1962)."""
        names = [node.name for node in self.cluster.node]
        times = {(a, b): math.inf for a in names for b in names}
        for pair, link in self._links.items():
            times[min(pair), max(pair)] = times[max(pair), min(pair)] = link_time(link, size_bytes)
        for middle in names:
            for a in names:
                for b in names:
                    if a != b:
                        times[a, b] = min(times[a, b], times[a, middle] + times[middle, b])
        return times

    def ring(self, names: Sequence[str], size_bytes: float) -> tuple[str, ...]:
        """The order in which a ring over these nodes has the quickest slowest link, for messages of this size."""
        first, *rest = names
        if len(names) > MOST_TRIED:
            return self._nearest_next(names, size_bytes)
        orders = ((first, *order) for order in permutations(rest) if not rest or order[0] <= order[-1])
        return min(orders, key=lambda order: self._slowest(order, size_bytes))

    def _nearest_next(self, names: Sequence[str], size_bytes: float) -> tuple[str, ...]:
        order, left = [names[0]], list(names[1:])
        while left:
            order.append(min(left, key=lambda name: self.send(order[-1], name, size_bytes)))
            left.remove(order[-1])
        return tuple(order)

    def _slowest(self, order: Sequence[str], size_bytes: float) -> float:
        """Seconds of the slowest message when every node of a ring sends to the next at the same time."""
        return max(self.send(a, b, size_bytes) for a, b in pairwise((*order, order[0])))

    def ring_step(self, names: Sequence[str], size_bytes: float) -> float:
        """Seconds of one step of a ring over an array of `size_bytes`: a piece of 1/N goes over every link."""
        piece = size_bytes / len(names)
        return self._slowest(self.ring(names, piece), piece)

    def reduce_scatter(self, names: Sequence[str], size_bytes: float) -> float:
        """Ring: N−1 steps; every node then holds 1/N of the sum (Patarasuk & Yuan 2009, §3)."""
        return (len(names) - 1) * self.ring_step(names, size_bytes) if len(names) > 1 else 0.0

    def all_gather(self, names: Sequence[str], size_bytes: float) -> float:
        """Ring: N−1 steps; every node then holds all of an array of `size_bytes` that lay in pieces."""
        return self.reduce_scatter(names, size_bytes)

    def ring_all_reduce(self, names: Sequence[str], size_bytes: float) -> float:
        """Reduce-scatter, then all-gather: 2(N−1)·α + 2(N−1)/N·s/β on equal links (Patarasuk & Yuan 2009)."""
        return self.reduce_scatter(names, size_bytes) + self.all_gather(names, size_bytes)

    def broadcast(self, names: Sequence[str], size_bytes: float) -> float:
        """Binomial tree from the first name: ⌈log₂ N⌉ rounds, each as slow as its slowest message (Thakur 2005, §4)."""
        total_s, reached = 0.0, 1
        while reached < len(names):
            pairs = zip(names[:reached], names[reached : 2 * reached], strict=False)
            total_s += max(self.send(a, b, size_bytes) for a, b in pairs)
            reached *= 2
        return total_s

    def tree_all_reduce(self, names: Sequence[str], size_bytes: float) -> float:
        """A reduction up a binomial tree and a broadcast down: 2⌈log₂ N⌉·(α + s/β) on equal links (Thakur 2005, §4)."""
        return 2 * self.broadcast(names, size_bytes)

    def all_reduce(self, names: Sequence[str], size_bytes: float) -> float:
        """The quicker of ring and tree: rings for large arrays, trees for small ones; nothing for one node."""
        return min(self.ring_all_reduce(names, size_bytes), self.tree_all_reduce(names, size_bytes))

    def all_reduce_inside(self, name: str, devices: int, size_bytes: float) -> float:
        """Ring all-reduce over the devices of one node."""
        if devices == 1:
            return 0.0
        return 2 * (devices - 1) * self.send(name, name, size_bytes / devices)


def compute_efficiency(flops: float, time_s: float, flops_per_s: Sequence[float]) -> float:
    """η_C = T / (t · ΣC_i): the share of what the nodes could have computed in that time; in (0, 1]."""
    return flops / (time_s * sum(flops_per_s))


def network_efficiency(size_bytes: float, num_nodes: int, slowest_bytes_per_s: float, busy_s: float) -> float:
    """η_B = (2(N−1)/N · s/β_min) / t_busy of an all-reduce: the share of the narrowest link's bandwidth; in (0, 1]."""
    return 2 * (num_nodes - 1) / num_nodes * size_bytes / slowest_bytes_per_s / busy_s


def overlapped_step(compute_s: float, comm_s: float, overlappable_s: float, last_s: float) -> float:
    """t = t_compute + max(0, t_comm − t_last − t_overlappable) + t_last: nothing hides the last bucket (Li 2020)."""
    return compute_s + max(0.0, comm_s - last_s - overlappable_s) + last_s


def pipeline_bubble(num_stages: int, micro_batches: int) -> float:
    """Share of a GPipe or 1F1B step in which a stage waits, without links: (P−1)/(M+P−1) (Huang 2019)."""
    return (num_stages - 1) / (micro_batches + num_stages - 1)
