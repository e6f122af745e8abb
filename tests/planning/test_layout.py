"""Layouts against brute force and simulation, and what may and may not be recommended."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chinchilla.config.cluster import Cluster, Link, Node
from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Training
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.planning.count import Batch, flops, num_params
from chinchilla.planning.layout import (
    MARGIN,
    batch_shares,
    candidates,
    layouts,
    pareto_front,
    partition,
)
from chinchilla.planning.memory import memory
from chinchilla.planning.network import Network, pipeline_bubble
from chinchilla.planning.price import Layout, Priced, price
from chinchilla.planning.stages import Piece
from chinchilla.planning.work import Work, layer_exchanges, layer_shares, step_work
from chinchilla.reporting.layout_tables import layout_table
from chinchilla.reporting.tables import plain

GB = 10**9


def network(
    speeds: list[float], bytes_per_s: float = 1e9, latency_s: float = 1e-4, memory_bytes: int = 64 * GB, **facts: object
) -> Network:
    names = "abcdefgh"[: len(speeds)]
    nodes = tuple(
        Node(name=name, flops_per_s={"fp32": speed}, memory_bytes=memory_bytes, bytes_per_s=1e11, **facts)
        for name, speed in zip(names, speeds, strict=True)
    )
    if len(names) == 1:
        return Network(Cluster(node=nodes))
    link = Link(between=tuple(names), bytes_per_s=bytes_per_s, latency_s=latency_s)
    return Network(Cluster(node=nodes, link=(link,)))


def work(**changes: object) -> Work:
    plain_step = Work(
        flops=1e14,
        num_params=10**8,
        precision="fp32",
        layer_shares=(1 / 12,) * 12,
        cut_bytes=(4e8,) * 11,
        pieces=tuple(Piece((layer,), 10**8 // 12, 1.6e9 / 12, 4e9 / 12) for layer in range(12)),
        beside_bytes=(0.4e9,) * 12,
        layer_exchanges=((4e8,) * 4,) * 12,
        saved_bytes=4e9,
        peak_bytes=6e9,
        buckets=(4 * 10**8,),
    )
    return replace(plain_step, **changes)


@settings(max_examples=60)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9), st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_a_cut_is_the_best_of_all_cuts(costs: list[float], rates: list[float]) -> None:
    if len(costs) < len(rates):
        return
    cuts = [(0, *cut, len(costs)) for cut in combinations(range(1, len(costs)), len(rates) - 1)]
    best = min(max(sum(costs[a:b]) / r for (a, b), r in zip(pairwise(cut), rates, strict=True)) for cut in cuts)
    runs = partition(costs, rates)
    assert max(run / rate for run, rate in zip(runs, rates, strict=True)) == pytest.approx(best)
    assert sum(runs) == pytest.approx(sum(costs))


@settings(max_examples=40)
@given(st.lists(st.floats(1e11, 1e13), min_size=2, max_size=3), st.integers(2, 20))
def test_rows_are_divided_so_that_the_slowest_node_is_soonest_done(speeds: list[float], rows: int) -> None:
    net = network(speeds)
    names = [node.name for node in net.cluster.node]
    shares = batch_shares(work(rows=rows), net, names, "one device")
    if rows < len(speeds):
        assert shares is None
        return
    assert shares is not None
    assert sum(shares) == pytest.approx(1)
    ways = [(0, *cut, rows) for cut in combinations(range(1, rows), len(speeds) - 1)]
    best = min(max((b - a) / s for (a, b), s in zip(pairwise(way), speeds, strict=True)) for way in ways)
    assert max(share * rows / s for share, s in zip(shares, speeds, strict=True)) == pytest.approx(best)


def simulate_gpipe(stages: list[float], hops: list[float], count: int) -> float:
    """All micro-batches forward, then all back, message by message; a stage and a link do one thing at a time."""
    end = 0.0
    for share, servers in ((1 / 3, _servers(stages, hops)), (2 / 3, _servers(stages, hops)[::-1])):
        arrive = [end] * count  # the last stage turns to the backward passes when it is through with the forward ones
        for kind, time_s in servers:
            free = 0.0
            for index in range(count):
                free = max(free, arrive[index]) + time_s * (share if kind == "stage" else 1)
                arrive[index] = free
        end = arrive[-1]
    return end


def _servers(stages: list[float], hops: list[float]) -> list[tuple[str, float]]:
    servers = [("stage", stages[0])]
    for hop, stage in zip(hops, stages[1:], strict=True):
        servers += [("hop", hop), ("stage", stage)]
    return servers


@settings(max_examples=60)
@given(
    st.lists(st.floats(1e11, 1e13), min_size=2, max_size=5),
    st.sampled_from([2, 5, 8, 32]),
    st.floats(1e6, 1e11),
    st.floats(0, 0.5),
)
def test_a_pipeline_takes_what_its_messages_take_one_by_one(
    speeds: list[float], count: int, bytes_per_s: float, latency_s: float
) -> None:
    net, step = network(speeds, bytes_per_s, latency_s), work()
    names = tuple(node.name for node in net.cluster.node)
    shares = partition(step.layer_shares, speeds)
    layout = Layout(kind="pipeline", nodes=names, shares=shares, micro_batches=count)
    hops = [net.send(a, b, step.cut_bytes[0] / count) for a, b in pairwise(names)]
    floor = 3 * 4 * step.num_params / 1e11
    stages = [
        max(step.flops * share / speed / count, share * floor) for share, speed in zip(shares, speeds, strict=True)
    ]
    found = price(layout, step, net).step_time_s.p50
    assert found == pytest.approx(simulate_gpipe(stages, hops, count))


@pytest.mark.parametrize(
    ("stages", "count", "hop", "bubble"),
    [(4, 8, 0.0, 0.273), (4, 8, 0.3, 0.310), (8, 16, 0.0, 0.304), (8, 16, 0.3, 0.344)],
)
def test_bubbles_that_torchs_own_schedules_have(stages: int, count: int, hop: float, bubble: float) -> None:
    # A forward pass of one micro-batch takes 1 s, a backward pass 2 s, a hop 0.3 s (simulated action lists of GPipe).
    net = network([1e12] * stages, bytes_per_s=1e30, latency_s=hop)
    step = work(flops=3e12 * stages * count, layer_shares=(1 / stages,) * stages)
    names = tuple(node.name for node in net.cluster.node)
    layout = Layout(kind="pipeline", nodes=names, shares=(1 / stages,) * stages, micro_batches=count)
    found = price(layout, step, net)
    assert 1 - 3 * count / found.step_time_s.p50 == pytest.approx(bubble, abs=1e-3)
    if not hop:
        assert 1 - 3 * count / found.step_time_s.p50 == pytest.approx(pipeline_bubble(stages, count))


def test_shares_by_speed_beat_even_shares_as_far_as_speeds_differ() -> None:
    net = network([4e12, 2e12, 1e12, 1e12], bytes_per_s=1e13)
    step = work(flops=1e15)
    names = ("a", "b", "c", "d")
    shares = batch_shares(step, net, names, "one device")
    assert shares == (0.5, 0.25, 0.125, 0.125)
    by_speed = price(Layout(kind="data parallel", nodes=names, shares=shares), step, net)
    even = price(Layout(kind="data parallel", nodes=names, shares=(0.25,) * 4), step, net)
    assert even.step_time_s.p50 / by_speed.step_time_s.p50 == pytest.approx(2.0, rel=0.01)


@settings(max_examples=25)
@given(
    st.lists(st.floats(1e11, 1e14), min_size=1, max_size=4),
    st.floats(1e5, 1e11),
    st.floats(0, 0.1),
    st.floats(1e9, 1e16),
    st.sampled_from([1, 8]),
)
# Two nodes that are within the margin of three, and of one too.
@example([1e11, 510620025903.0, 19632194577351.0], 72313757173.0, 0.0, 57587085844769.0, 1)
def test_what_is_recommended_is_never_slower_than_one_node(
    speeds: list[float], bytes_per_s: float, latency_s: float, step_flops: float, micro_batches: int
) -> None:
    net = network(speeds, bytes_per_s, latency_s)
    step = work(flops=step_flops, micro_batches=micro_batches)
    found = layouts(step, net)
    single_s = min(
        item.step_time_s.p50
        for item in (price(one, step, net) for one in candidates(step, net))
        if item.layout.runnable
    )
    assert found.recommended.step_time_s.p50 <= single_s * (1 + 1e-9)
    assert found.recommended.fits
    assert found.runs_today is not None
    assert found.runs_today.step_time_s.p50 == pytest.approx(single_s)
    if len(found.recommended.layout.nodes) > 1:
        assert found.recommended.step_time_s.p50 <= single_s * (1 - MARGIN) * (1 + 1e-9)


def test_a_cluster_that_loses_is_refused_with_the_reason() -> None:
    found = layouts(work(flops=1e11), network([1e13, 1e10], bytes_per_s=1e5, latency_s=0.05))
    assert found.recommended.layout.nodes == ("a",)
    assert found.reason.startswith("never slower: the best of several nodes")
    assert "slower than one node" in found.reason


def test_rows_set_a_bound_to_what_a_batch_can_be_divided_into() -> None:
    found = {layout.kind for layout in candidates(work(rows=2), network([1e12] * 3))}
    assert "pipeline" in found  # over two nodes, with one row a micro-batch
    assert not [layout for layout in candidates(work(rows=1), network([1e12] * 3)) if len(layout.nodes) > 1]


def test_the_front_holds_all_that_nothing_beats_and_no_more() -> None:
    net = network([4e12, 2e12, 1e12], bytes_per_s=1e8, price_per_hour=1.0, watts=100.0)
    items = [price(layout, work(), net) for layout in candidates(work(), net)]
    front = pareto_front(items)

    def marks(item: object) -> tuple[float, ...]:
        return tuple(getattr(item, name).p50 for name in ("step_time_s", "memory_bytes", "cost", "energy_j"))

    for item in items:
        beaten = any(
            all(a <= b for a, b in zip(marks(o), marks(item), strict=True)) and marks(o) != marks(item) for o in items
        )
        if beaten:
            assert item not in front
        else:
            assert marks(item) in [marks(kept) for kept in front]


def test_money_is_not_held_against_energy() -> None:
    one = price(Layout(kind="one node", nodes=("a",), shares=(1.0,)), work(), network([1e12]))
    priced = one.model_copy(update={"cost": Estimate.around(1000.0, 0.1, "money", "guess")})
    drawing = one.model_copy(update={"energy_j": Estimate.around(500.0, 0.1, "J", "guess")})
    slower = drawing.model_copy(update={"step_time_s": Estimate.around(200.0, 0.1, "s", "guess")})
    less = slower.model_copy(update={"energy_j": Estimate.around(400.0, 0.1, "J", "guess")})
    assert pareto_front([priced, slower]) == [priced]  # in time and memory, which both have, nowhere worse
    assert pareto_front([drawing, less]) == [drawing, less]


def test_money_and_energy_count_every_node_of_a_layout_for_the_whole_step() -> None:
    net = network([1e12, 1e12], price_per_hour=3.6, watts=100.0)
    layout = Layout(kind="data parallel", nodes=("a", "b"), shares=(0.5, 0.5))
    item = price(layout, work(), net)
    assert item.cost is not None
    assert item.energy_j is not None
    assert item.cost.p50 == pytest.approx(2 * 3.6 * item.step_time_s.p50 / 3600)
    assert item.energy_j.p50 == pytest.approx(200 * item.step_time_s.p50)
    assert price(layout, work(), network([1e12, 1e12])).cost is None


def test_what_does_not_fit_is_not_recommended() -> None:
    small = network([1e13, 1e12], memory_bytes=5_300_000_000, bytes_per_s=1e8)
    found = layouts(work(peak_bytes=5.6e9, beside_bytes=(0.0,) * 12), small)
    assert found.runs_today is None
    assert len(found.recommended.layout.nodes) == 2
    assert found.recommended.memory_bytes.p50 <= 5.3e9
    assert found.reason == "no single node has the memory"
    with pytest.raises(BudgetError, match=r"no layout fits the memory.*take a smaller model"):
        layouts(work(), network([1e13, 1e12], memory_bytes=GB))


def test_a_precision_that_a_node_lacks_is_named() -> None:
    with pytest.raises(UsageError, match=r"node 'a' has no bf16 rate.*train\.precision to fp32"):
        layouts(work(precision="bf16"), network([1e12]))


def test_devices_of_a_node_divide_work_and_memory() -> None:
    node = Node(name="a", devices=8, flops_per_s={"fp32": 1e13}, memory_bytes=2 * GB, bytes_per_s=1e12)
    inside = Link(between=("a", "a"), bytes_per_s=3e11, latency_s=1e-5)
    found = layouts(work(), Network(Cluster(node=(node,), link=(inside,))))
    assert found.recommended.layout.inside == "tensor"
    assert found.recommended.memory_bytes.p50 == pytest.approx(6e9 / 8)
    # Two all-reduces forward and two back in each of twelve layers, on top of an eighth of the compute.
    exchanges = 4 * 12 * (14e-5 + 2 * 7 / 8 * 4e8 / 3e11)
    assert found.recommended.step_time_s.p50 == pytest.approx(1e14 / 8e13 + exchanges)


def test_each_layer_exchanges_its_own_sides_activations() -> None:
    """Counted by hand as Megatron's column and row parallel products do it: a block adds up once each way."""
    shape = Shape(
        vocab_size=64, dim=8, num_heads=2, num_kv_heads=2, head_dim=4, ffn_dim=32, num_encoder_layers=1,
        num_decoder_layers=2,
    )  # fmt: skip
    batch = Batch(2, source_len=5, target_len=3)
    source, target = 4.0 * 10 * 8, 4.0 * 6 * 8
    # Attention and feed-forward, forward and back; across: its output, its queries' gradient, and the source's.
    decoder = (*[target] * 4, target, target, source)
    found = layer_exchanges(shape, batch, 4)
    assert [sorted(layer) for layer in found] == [[source] * 4, sorted(decoder), sorted(decoder)]
    alone = shape.model_copy(update={"num_encoder_layers": 0})
    assert layer_exchanges(alone, Batch(2, target_len=3), 2) == ((target / 2,) * 4,) * 2


def test_a_stage_of_several_devices_exchanges_its_own_layers_alone() -> None:
    """Two encoder layers on one node, two decoder layers of half the rows on the other, each on two devices."""
    nodes = tuple(
        Node(name=name, devices=2, flops_per_s={"fp32": 1e13}, memory_bytes=64 * GB, bytes_per_s=1e15) for name in "ab"
    )
    links = [Link(between=(n, n), bytes_per_s=1e9, latency_s=0) for n in "ab"]
    links += [Link(between=("a", "b"), bytes_per_s=1e20, latency_s=0)]
    net = Network(Cluster(node=nodes, link=tuple(links)))
    step = work(
        flops=4e13, layer_shares=(0.25,) * 4, layer_exchanges=((8e8,) * 4,) * 2 + ((4e8,) * 6 + (8e8,),) * 2
    )  # fmt: skip
    layout = Layout(kind="pipeline", nodes=("a", "b"), shares=(0.5, 0.5), inside="tensor", micro_batches=2)
    found = price(layout, step, net)
    encoder_s, decoder_s = 1 + 2 * 4 * 0.8, 1 + 2 * (6 * 0.4 + 0.8)
    assert found.compute_s.p50 == pytest.approx((encoder_s + decoder_s) / 2 + encoder_s / 2)


def test_a_stage_is_priced_by_its_own_layers_alone() -> None:
    """A third of the layers, with a table that the last needs too; small activations cross there, large ones later."""
    net = network([1e12, 1e12], bytes_per_s=1e8, latency_s=0.0)
    own = tuple(Piece((layer,), 10**7, 1e8, 2e8) for layer in range(6))
    step = work(
        flops=1e10, layer_shares=(1 / 6,) * 6, cut_bytes=(1e6, 1e6, 9e6, 9e6, 9e6), micro_batches=3,
        pieces=(*own, Piece((0, 5), 10**8, 5e8)), beside_bytes=(1e7,) * 5 + (4e8,),
    )  # fmt: skip

    def cut(after: int, count: int = 6) -> Priced:
        shares = (after / 6, 1 - after / 6)
        return price(Layout(kind="pipeline", nodes=("a", "b"), shares=shares, micro_batches=count), step, net)

    assert cut(2).memory_bytes.p50 == pytest.approx(4 * 1e8 + 5e8 + 3 * 4 * 2e8 + 4e8)
    assert cut(5).memory_bytes.p50 == pytest.approx(5 * 1e8 + 5e8 + 3 * 5 * 2e8 + 1e7)
    assert cut(2, count=1).memory_bytes.p50 == pytest.approx(cut(2).memory_bytes.p50 + 2 * 4e8)  # thrice as large
    # Both stages read the table: 140 million numbers are more than its share of the FLOPs.
    assert cut(2, count=1).compute_s.p50 == pytest.approx(3 * 4 * (1.2e8 + 1.4e8) / 1e11)
    assert cut(2, count=1).exposed_s.p50 == pytest.approx(2 * 1e6 / 1e8)
    assert cut(3, count=1).exposed_s.p50 == pytest.approx(2 * 9e6 / 1e8)


def test_compression_and_rare_exchanges_divide_what_travels() -> None:
    net = network([1e12, 1e12], bytes_per_s=1e6, latency_s=0.0)
    halves = {"nodes": ("a", "b"), "shares": (0.5, 0.5)}
    often = price(Layout(kind="local steps", sync_every=10, codec="fp32", **halves), work(), net)
    rare = price(Layout(kind="local steps", sync_every=500, codec="int8", **halves), work(), net)
    coding_s = 2 * 5 * 1e8 / 1e11 / 500
    assert often.exposed_s.p50 == pytest.approx(4e8 / 1e6 / 10)
    assert rare.exposed_s.p50 == pytest.approx(often.exposed_s.p50 / 200 + coding_s)
    assert rare.memory_bytes.p50 == pytest.approx(work().peak_bytes - 0.5 * work().saved_bytes + 8e8)


def test_those_that_exchange_gradients_hold_them_in_buckets_too() -> None:
    def memory_bytes(net: Network, **layout: object) -> float:
        return price(Layout(**{"shares": (0.5, 0.5), "nodes": ("a", "b")} | layout), work(), net).memory_bytes.p50

    step, net = work(), network([1e12, 1e12])
    half = step.peak_bytes - 0.5 * step.saved_bytes
    ring = 2 * 2**20  # of the one bucket, two segments
    assert memory_bytes(net, kind="data parallel") == pytest.approx(half + 4e8 + ring, abs=1e4)
    assert memory_bytes(net, kind="local steps", sync_every=10) == pytest.approx(half + 8e8)
    assert memory_bytes(net, kind="one node", nodes=("a",), shares=(1.0,)) == step.peak_bytes
    several = Node(name="a", devices=4, flops_per_s={"fp32": 1e13}, memory_bytes=GB, bytes_per_s=1e12)
    inside = Network(Cluster(node=(several,), link=(Link(between=("a", "a"), bytes_per_s=1e11, latency_s=0),)))
    one = {"kind": "one node", "nodes": ("a",), "shares": (1.0,)}
    assert memory_bytes(inside, inside="data", **one) > step.peak_bytes + 4e8
    assert memory_bytes(inside, inside="tensor", **one) == pytest.approx(step.peak_bytes / 4)


def test_only_the_last_micro_batch_hides_the_exchange() -> None:
    net = network([1e13, 1e13], latency_s=0.0)
    halves = Layout(kind="data parallel", nodes=("a", "b"), shares=(0.5, 0.5))
    whole = price(halves, work(), net)
    pieces = price(halves, work(micro_batches=32), net)
    assert whole.exposed_s.p50 == pytest.approx(25 * 2**20 / 1e9, rel=1e-6)
    assert pieces.exposed_s.p50 == pytest.approx(0.4 - 5 * 2 / 3 / 16, rel=1e-6)


def test_work_is_counted_from_the_shape() -> None:
    shape = Shape(
        vocab_size=8000, dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=1024, num_encoder_layers=3,
        num_decoder_layers=3,
    )  # fmt: skip
    batch = Batch(16, 64, 64)
    numbers = {"steps": 1, "batch_tokens": 2048, "accumulation": 2, "warmup_steps": 1, "threads": 1, "eval_every": 1}
    rates = {"learning_rate": 1e-3, "embedding_learning_rate": 1e-3, "weight_decay": 0, "decay_fraction": 0.4}
    off = {"clip_norm": 1, "label_smoothing": 0, "dropout": 0, "ema_decay": 0, "reconstruct_weight": 0, "mask_rate": 0}
    rest = {"checkpoint_every": 1, "keep_checkpoints": 1, "log_every": 1, "seed": 0, "compile": False}
    training = Training(optimizer="adamw", schedule="wsd", precision="fp32", **numbers, **rates, **off, **rest)
    found = step_work(shape, batch, training, 0.5, "guess", 0.5)
    assert found.flops == 2 * flops(shape, batch).step
    assert found.num_params == num_params(shape)
    assert found.peak_bytes == memory(shape, batch, "fp32", "adamw", accumulation=2).peak
    assert (found.rows, found.micro_batches, found.num_layers) == (32, 2, 6)
    assert sum(found.layer_shares) == pytest.approx(1)
    assert found.layer_shares[0] < found.layer_shares[3] < found.layer_shares[-1]  # cross-attention, then the head


def test_a_stem_belongs_to_the_first_layer() -> None:
    stem = ImageStem(height=32, width=32, channels=3, patch=8)
    shape = Shape(
        vocab_size=8, dim=64, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=256, num_encoder_layers=3, max_len=17,
        num_classes=10, stem=stem,
    )  # fmt: skip
    shares = layer_shares(shape, Batch(4, source_len=17, labelled=4))
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > shares[1]


def test_the_table_says_what_is_recommended_and_what_runs_today() -> None:
    text = plain(layout_table(layouts(work(), network([1e12, 1e12], watts=100.0))), 160)
    assert "recommended (*): data parallel" in text
    assert "not built yet: what runs today is one device of one node (a:" in text
    assert "energy" in text
