"""Messages and collectives against simulations that know no formula, and the formulas against their sources."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.cluster import Cluster, Link, Node
from chinchilla.planning.network import (
    Network,
    compute_efficiency,
    link_time,
    network_efficiency,
    overlapped_step,
    pipeline_bubble,
)

SIZES = st.floats(1, 1e10)
TABLE = ((1000, 0.001), (10_000, 0.002), (1_000_000, 0.101))


def node(name: str, devices: int = 1) -> Node:
    return Node(name=name, devices=devices, flops_per_s={"fp32": 1e12}, memory_bytes=10**9, bytes_per_s=1e10)


def network(lines: dict[str, tuple[float, float]]) -> Network:
    """A network from pairs of letters: {"ab": (latency_s, bytes_per_s)}."""
    links = tuple(Link(between=tuple(pair), latency_s=a, bytes_per_s=b) for pair, (a, b) in lines.items())
    return Network(Cluster(node=tuple(node(name) for name in sorted(set("".join(lines)))), link=links))


def equal(count: int, latency_s: float = 1e-3, bytes_per_s: float = 1e9) -> Network:
    names = "abcdefghijkl"[:count]
    link = Link(between=tuple(names), latency_s=latency_s, bytes_per_s=bytes_per_s)
    return Network(Cluster(node=tuple(map(node, names)), link=(link,)))


@st.composite
def meshes(draw: st.DrawFn) -> Network:
    """Three to six nodes, every pair with a link of its own, all unequal."""
    names = "abcdef"[: draw(st.integers(3, 6))]
    pairs = [a + b for i, a in enumerate(names) for b in names[i + 1 :]]
    return network({pair: (draw(st.floats(1e-6, 0.1)), draw(st.floats(1e5, 1e10))) for pair in pairs})


def simulate_ring(links_s: list[float], steps: int) -> float:
    """Messages around a ring: node i sends over link i once it holds the piece and its link is free."""
    count = len(links_s)
    holds, free = [0.0] * count, [0.0] * count
    for _ in range(steps):
        done = [max(holds[i], free[i]) + links_s[i] for i in range(count)]
        free = done
        holds = [done[i - 1] for i in range(count)]
    return max(free)


@settings(max_examples=30)
@given(meshes(), SIZES)
def test_a_ring_all_reduce_takes_what_its_messages_take_one_by_one(net: Network, size: float) -> None:
    names = [node.name for node in net.cluster.node]
    piece = size / len(names)
    order = net.ring(names, piece)
    links_s = [net.send(a, b, piece) for a, b in zip(order, (*order[1:], order[0]), strict=True)]
    simulated = simulate_ring(links_s, 2 * (len(names) - 1))
    assert net.ring_all_reduce(names, size) == pytest.approx(simulated, rel=1e-9)
    assert sorted(order) == names


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 12])
def test_on_equal_links_the_published_forms_come_out(count: int) -> None:
    net, alpha, beta, size = equal(count), 1e-3, 1e9, 4e8
    names = [node.name for node in net.cluster.node]
    ring = 2 * (count - 1) * alpha + 2 * (count - 1) / count * size / beta
    tree = 2 * math.ceil(math.log2(count)) * (alpha + size / beta)
    assert net.ring_all_reduce(names, size) == pytest.approx(ring)
    assert net.tree_all_reduce(names, size) == pytest.approx(tree)
    assert net.all_gather(names, size) + net.reduce_scatter(names, size) == pytest.approx(ring)
    assert net.all_reduce(names, size) == pytest.approx(min(ring, tree))


def test_trees_are_for_small_arrays_and_rings_for_large_ones() -> None:
    net = equal(8)
    names = "abcdefgh"
    assert net.all_reduce(names, 10) == net.tree_all_reduce(names, 10) < net.ring_all_reduce(names, 10)
    assert net.all_reduce(names, 1e9) == net.ring_all_reduce(names, 1e9) < net.tree_all_reduce(names, 1e9)


@pytest.mark.parametrize("count", range(1, 13))
def test_a_broadcast_reaches_every_node_in_as_many_rounds_as_doubling_takes(count: int) -> None:
    names = [node.name for node in equal(max(count, 2)).cluster.node][:count]
    rounds = equal(max(count, 2), latency_s=1.0, bytes_per_s=1e30).broadcast(names, 1)
    assert rounds == pytest.approx(math.ceil(math.log2(count)))


def test_the_ring_goes_around_the_slow_link() -> None:
    fast, slow = (0.0, 1e9), (0.0, 1e6)
    net = network({"ab": slow, "ac": fast, "ad": fast, "bc": fast, "bd": fast, "cd": slow})
    assert net.ring_all_reduce("abcd", 4e8) == pytest.approx(2 * 3 / 4 * 0.4)


def test_nodes_without_a_link_speak_over_the_quickest_path() -> None:
    net = network({"ab": (0.001, 1e9), "bc": (0.001, 1e9), "ac": (0.5, 1e12)})
    assert net.send("a", "c", 1000) == pytest.approx(0.002, rel=1e-2)
    assert net.send("a", "c", 1e9) == pytest.approx(0.501)
    assert net.send("c", "a", 1e9) == net.send("a", "c", 1e9)


@pytest.mark.parametrize(
    ("size", "time_s"),
    [(1, 0.001), (1000, 0.001), (5500, 0.0015), (10_000, 0.002), (505_000, 0.0515), (1_990_000, 0.2)],
)
def test_a_table_is_read_straight_between_its_points_and_goes_on_beyond_them(size: float, time_s: float) -> None:
    assert link_time(Link(between=("a", "b"), table=TABLE), size) == pytest.approx(time_s)


@settings(max_examples=30)
@given(SIZES, SIZES)
def test_a_larger_message_is_never_quicker(size: float, other: float) -> None:
    small, large = sorted((size, other))
    for link in (Link(between=("a", "b"), table=TABLE), Link(between=("a", "b"), latency_s=0.1, bytes_per_s=1e6)):
        assert link_time(link, small) <= link_time(link, large)


def test_devices_of_one_node_speak_over_its_link_with_itself() -> None:
    link = Link(between=("a", "a"), latency_s=1e-5, bytes_per_s=3e11)
    net = Network(Cluster(node=(node("a", 8),), link=(link,)))
    assert net.all_reduce_inside("a", 8, 1e8) == pytest.approx(14e-5 + 2 * 7 / 8 * 1e8 / 3e11)
    assert net.all_reduce_inside("a", 1, 1e8) == 0


@settings(max_examples=30)
@given(st.integers(2, 12), SIZES, st.floats(0, 0.1), st.floats(1e5, 1e10))
def test_the_networks_efficiency_is_the_share_that_latency_leaves(
    count: int, size: float, alpha: float, beta: float
) -> None:
    net = equal(count, alpha, beta)
    names = [node.name for node in net.cluster.node]
    found = network_efficiency(size, count, beta, net.ring_all_reduce(names, size))
    assert found == pytest.approx(1 / (1 + alpha * beta * count / size))
    assert 0 < found <= 1 + 1e-9


def test_a_node_that_computes_all_the_time_is_fully_used() -> None:
    assert compute_efficiency(4e13, 1.0, [1e13] * 4) == 1
    assert compute_efficiency(4e13, 1.0, [1e13, 7e13]) == 0.5


@settings(max_examples=30)
@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_overlap_hides_at_most_the_backward_pass_and_never_the_last_bucket(
    compute: float, comm: float, hidden: float, share: float
) -> None:
    last = share * comm
    step = overlapped_step(compute, comm, hidden, last)
    assert compute + last <= step * (1 + 1e-9)
    assert compute + comm - hidden <= step + 1e-9
    assert step <= compute + comm + 1e-9


def test_bubbles_of_the_table_in_the_literature() -> None:
    # Four stages and eight micro-batches, eight and sixteen: simulated from torch's own schedules.
    assert pipeline_bubble(4, 8) == pytest.approx(0.273, abs=5e-4)
    assert pipeline_bubble(8, 16) == pytest.approx(0.304, abs=5e-4)
