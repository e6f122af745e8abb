"""The worked case of docs/math.md: what four nodes are worth to a small step, and why the batch decides it.

Every figure comes from `network.py` and `layout.py`; the text only says what it is.
"""

from dataclasses import dataclass

from chinchilla.config.cluster import Cluster, Link, Node
from chinchilla.config.units import show_bytes, show_count, show_time
from chinchilla.planning.layout import Layouts, layouts
from chinchilla.planning.network import Network, compute_efficiency, network_efficiency
from chinchilla.planning.price import CODEC_BYTES
from chinchilla.planning.stages import Piece
from chinchilla.planning.work import Work

NUM_NODES = 4
NODE_FLOPS_PER_S = 1e13
LINK_BYTES_PER_S = 1e9
NUM_PARAMS = 10**8
SMALL_STEP_FLOPS = 1e10
BATCH_TOKENS = 262_144
SYNC_EVERY = 500
MICRO_BATCHES = 32

NUM_LAYERS, DIM = 12, 768
SAVED_BYTES_A_TOKEN = 68 * NUM_LAYERS * DIM
"""34 numbers' worth of bytes a channel in fp16 (Korthikanti 2022, without attention's matrix), twice that in fp32."""

STATE_BYTES_A_PARAM = 16
"""Weight, gradient and AdamW's two moments in fp32."""


@dataclass(frozen=True)
class Line:
    """One step of the reasoning; `value` is in base units (seconds, FLOPs, tokens, shares)."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Example:
    """The reasoning line by line, the layouts at the small step and at the batch that a user would take."""

    lines: tuple[Line, ...]
    small: Layouts
    large: Layouts


def example_cluster(link_bytes_per_s: float = LINK_BYTES_PER_S) -> Cluster:
    """Four servers of 10 TFLOP/s and 256 GB, every two joined by a link without latency."""
    names = tuple("abcd"[:NUM_NODES])
    nodes = tuple(
        Node(name=name, flops_per_s={"fp32": NODE_FLOPS_PER_S}, memory_bytes=256 * 10**9, bytes_per_s=1e11)
        for name in names
    )
    return Cluster(node=nodes, link=(Link(between=names, bytes_per_s=link_bytes_per_s, latency_s=0.0),))


def example_work(flops: float, micro_batches: int = 1) -> Work:
    """A step of a model with 10⁸ parameters that sees flops / 6N tokens."""
    tokens = flops / (6 * NUM_PARAMS)
    state = STATE_BYTES_A_PARAM * NUM_PARAMS
    saved = SAVED_BYTES_A_TOKEN * tokens / micro_batches
    return Work(
        flops=flops,
        num_params=NUM_PARAMS,
        precision="fp32",
        layer_shares=(1 / NUM_LAYERS,) * NUM_LAYERS,
        cut_bytes=(4 * DIM * tokens,) * (NUM_LAYERS - 1),
        pieces=tuple(
            Piece((layer,), NUM_PARAMS // NUM_LAYERS, state / NUM_LAYERS, saved / NUM_LAYERS)
            for layer in range(NUM_LAYERS)
        ),
        beside_bytes=(0.0,) * NUM_LAYERS,
        layer_exchanges=((4 * DIM * tokens,) * 4,) * NUM_LAYERS,
        saved_bytes=saved,
        peak_bytes=state + saved,
        buckets=(4 * NUM_PARAMS,),
        micro_batches=micro_batches,
    )


def cluster_example() -> Example:
    """The case, priced and reasoned."""
    network = Network(example_cluster())
    small = layouts(example_work(SMALL_STEP_FLOPS), network)
    large_flops = 6.0 * NUM_PARAMS * BATCH_TOKENS
    large = layouts(example_work(large_flops), network)
    pieces = layouts(example_work(large_flops, MICRO_BATCHES), network)
    lines = (
        *_small_step(network, small),
        *_large_step(network, large, pieces, large_flops),
        *_slower_links(large_flops),
    )
    return Example(lines, small, large)


def _names(network: Network) -> list[str]:
    return [node.name for node in network.cluster.node]


def _rates(network: Network) -> list[float]:
    return [node.flops_per_s["fp32"] for node in network.cluster.node]


def _small_step(network: Network, small: Layouts) -> tuple[Line, ...]:
    names, rates, size = _names(network), _rates(network), 4.0 * NUM_PARAMS
    ideal_s = SMALL_STEP_FLOPS / sum(rates)
    single_s = SMALL_STEP_FLOPS / max(rates)
    ring_s = network.ring_all_reduce(names, size)
    efficiency = compute_efficiency(SMALL_STEP_FLOPS, ideal_s + ring_s, rates)
    bus = network_efficiency(size, len(names), LINK_BYTES_PER_S, ring_s)
    tokens = SMALL_STEP_FLOPS / (6 * NUM_PARAMS)
    rare_s = network.ring_all_reduce(names, CODEC_BYTES["int8"] * NUM_PARAMS) / SYNC_EVERY
    chosen = small.recommended
    return (
        Line("ideal_s", ideal_s, f"ideal compute: {SMALL_STEP_FLOPS:.0e} FLOP over {len(names)} nodes of "
             f"{show_count(rates[0])}FLOP/s: {_ms(ideal_s)}; one node alone takes {_ms(single_s)}"),
        Line("ring_s", ring_s, f"ring all-reduce of {show_bytes(size)} of gradients over links of "
             f"{show_bytes(LINK_BYTES_PER_S)}/s: 2 (N-1)/N s/β = {_ms(ring_s)}; η_B = {bus:.0%}"),
        Line("efficiency", efficiency, f"η_C = T / (t ΣC) = {_ms(ideal_s)} / {_ms(ideal_s + ring_s)} "
             f"= {efficiency:.4%}"),
        Line("bound", ring_s / ideal_s, f"communication takes {ring_s / ideal_s:,.0f} times as long as compute; "
             f"against one node the four are {(ideal_s + ring_s) / single_s:,.0f} times slower"),
        Line("tokens", tokens, f"such a step sees T/6N = {tokens:.0f} tokens"),
        Line("rare_s", rare_s, f"exchanging every {SYNC_EVERY} steps in int8 divides the exchange by "
             f"{ring_s / rare_s:,.0f}: {_ms(rare_s)} a step, still more than the {_ms(ideal_s)} of compute"),
        Line("small_step_s", chosen.step_time_s.p50, f"recommended: {chosen.layout.kind}, "
             f"{_ms(chosen.step_time_s.p50)} (so few tokens are bound by reading the weights): "
             f"{small.reason}. The batch is what is wrong"),
    )  # fmt: skip


def _large_step(network: Network, large: Layouts, pieces: Layouts, flops: float) -> tuple[Line, ...]:
    names, rates = _names(network), _rates(network)
    ideal_s = flops / sum(rates)
    ring_s = network.ring_all_reduce(names, 4.0 * NUM_PARAMS)
    exposed = compute_efficiency(flops, ideal_s + ring_s, rates)
    step_s = large.recommended.step_time_s.p50
    overlapped = compute_efficiency(flops, step_s, rates)
    piecewise_s = pieces.recommended.step_time_s.p50
    layout = large.recommended.layout
    return (
        Line("large_flops", flops, f"a batch that a user would take is {BATCH_TOKENS:,} tokens: "
             f"6ND = {flops:.3g} FLOP"),
        Line("large_ideal_s", ideal_s, f"ideal compute: {ideal_s:.3g} s"),
        Line("exposed_efficiency", exposed, f"the same {ring_s:.1f} s exchange, nothing hidden: η_C = {exposed:.1%}"),
        Line("overlapped_efficiency", overlapped, "hidden behind the backward pass, all but the last bucket: "
             f"η_C = {overlapped:.1%}"),
        Line("recommended_s", step_s, f"recommended: {layout.kind} over {', '.join(layout.nodes)}, {step_s:.3g} s "
             f"a step, {step_s / ideal_s - 1:.1%} above the ideal: {large.reason}"),
        Line("pieces_s", piecewise_s, f"where memory asks for {MICRO_BATCHES} micro-batches "
             f"({MICRO_BATCHES // NUM_NODES} a node), only the last one's backward pass hides the exchange: "
             f"{piecewise_s:.3g} s, η_C = {compute_efficiency(flops, piecewise_s, rates):.1%}"),
    )  # fmt: skip


def _slower_links(flops: float) -> tuple[Line, ...]:
    """Where local steps and compression begin to matter."""
    lines = []
    for slower in (10, 100, 1000):
        rate = LINK_BYTES_PER_S / slower
        answer = layouts(example_work(flops), Network(example_cluster(rate)))
        chosen, layout = answer.recommended, answer.recommended.layout
        how = f", every {layout.sync_every} steps in {layout.codec}" if layout.sync_every > 1 else ""
        text = (
            f"links {slower} times slower ({show_bytes(rate)}/s): {layout.kind} on {len(layout.nodes)} nodes{how}, "
            f"{show_time(chosen.step_time_s.p50)} a step"
        )
        lines.append(Line(f"slower_{slower}_s", chosen.step_time_s.p50, text))
    return tuple(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.6g} ms"
