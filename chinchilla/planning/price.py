"""What a layout costs: time by compute and communication, memory, money, energy."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from chinchilla.config.cluster import Node
from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Precision
from chinchilla.planning.activations import BYTES, FP32
from chinchilla.planning.exchange_memory import BUCKET_BYTES, exchange_bytes
from chinchilla.planning.network import Network, overlapped_step
from chinchilla.planning.stages import held_by
from chinchilla.planning.work import Work

Kind = Literal["one node", "data parallel", "pipeline", "local steps"]
Inside = Literal["one device", "data", "tensor"]
Codec = Literal["fp32", "bf16", "int8"]

CODEC_BYTES: dict[Codec, int] = {"fp32": 4, "bf16": 2, "int8": 1}
"""Bytes a number on the wire; int8's scales, one for some hundred numbers, are left out."""

BACKWARD_SHARE = 2 / 3
"""Share of the compute that is the backward pass, behind which gradients can travel."""

WEIGHT_READS = 3
"""Times that a micro-batch reads the weights: forward, and for the gradients of inputs and of weights."""

OUTER_BYTES = 8
"""Bytes a parameter that local steps add: the weights of the last exchange, the outer momentum."""


class Layout(Frozen):
    """Who does what in a step. `shares` are the nodes' shares of the batch, or of the FLOPs in a pipeline."""

    kind: Kind
    nodes: tuple[str, ...]
    shares: tuple[float, ...]
    inside: Inside = "one device"
    micro_batches: int = 1
    sync_every: int = 1
    codec: Codec = "fp32"

    @property
    def runnable(self) -> bool:
        """Whether `chinchilla train` can run it today."""
        return self.kind == "one node" and self.inside == "one device"


class Priced(Frozen):
    """A layout with its predictions a step; `memory_bytes` is the most on one device, `fits` whether all have it.

    `compute_s` is the slowest node's; `exposed_s` is what communication (and a pipeline's waiting for it) adds to the
    step, `overlapped_s` what compute hides of it. Money is in the cluster file's currency.
    """

    layout: Layout
    step_time_s: Estimate
    compute_s: Estimate
    exposed_s: Estimate
    overlapped_s: Estimate
    memory_bytes: Estimate
    fits: bool
    cost: Estimate | None
    energy_j: Estimate | None


@dataclass(frozen=True)
class _Time:
    """Seconds of a step. `comm_s` is how long the network is busy for it."""

    step_s: float
    compute_s: float
    comm_s: float


def require_rate(node: Node, precision: Precision) -> None:
    """Refuse a node of which nobody knows how fast it is in a precision.

    Raises:
        UsageError: names the node, and what to add.
    """
    if precision not in node.flops_per_s:
        raise UsageError(
            f"cluster: node {node.name!r} has no {precision} rate: add one to its flops_per_s, "
            f"or set train.precision to {' or '.join(node.flops_per_s)}"
        )


def node_rate(node: Node, work: Work, inside: Inside) -> float:
    """FLOP/s that this work gets out of a node.

    Raises:
        UsageError: the node's rate in the work's precision is not known.
    """
    require_rate(node, work.precision)
    devices = 1 if inside == "one device" else node.devices
    return devices * node.flops_per_s[work.precision] * work.efficiency


def price(layout: Layout, work: Work, network: Network) -> Priced:
    """Predict a step of `work` under a layout."""
    time = _time(layout, work, network)
    nodes = [network.cluster.find(name) for name in layout.nodes]
    needs = [_memory(layout, work, node, index) for index, node in enumerate(nodes)]
    exposed_s = time.step_s - time.compute_s
    overlapped_s = time.comm_s - exposed_s

    def seconds(value: float) -> Estimate:
        return Estimate.around(max(value, 0.0), work.spread, "s", work.source)

    return Priced(
        layout=layout,
        step_time_s=seconds(time.step_s),
        compute_s=seconds(time.compute_s),
        exposed_s=seconds(exposed_s),
        overlapped_s=seconds(overlapped_s if overlapped_s > 1e-9 * time.comm_s else 0.0),  # not a rounding error
        memory_bytes=Estimate.around(max(needs), 0.1, "bytes", work.source),
        fits=all(need <= node.memory_bytes for need, node in zip(needs, nodes, strict=True)),
        cost=_spent([node.price_per_hour for node in nodes], time.step_s / 3600, work, "money"),
        energy_j=_spent([node.watts for node in nodes], time.step_s, work, "J"),
    )


def _spent(rates: Sequence[float | None], time: float, work: Work, unit: str) -> Estimate | None:
    """What all nodes of a layout cost for a time, those that wait included; None where a node's rate is not known."""
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        return None
    return Estimate.around(sum(known) * time, work.spread, unit, work.source)


def _time(layout: Layout, work: Work, network: Network) -> _Time:
    if layout.kind == "pipeline":
        return _pipeline(layout, work, network)
    if layout.kind == "local steps":
        return _local_steps(layout, work, network)
    return _data_parallel(layout, work, network)


def _compute(layout: Layout, work: Work, network: Network) -> list[float]:
    """Seconds that each node computes: its FLOPs or its reading of the weights, and its devices' exchanges."""
    times = []
    for index, (name, share) in enumerate(zip(layout.nodes, layout.shares, strict=True)):
        node = network.cluster.find(name)
        flops_s = share * work.flops / node_rate(node, work, layout.inside)
        exchange_s = _tensor_exchange(node, index, layout, work, network)
        times.append(max(flops_s, _reading(node, share, layout, work)) + exchange_s)
    return times


def _rounds(layout: Layout, work: Work, share: float) -> int:
    """Micro-batches that a node goes through in a step."""
    if layout.kind == "pipeline":
        return layout.micro_batches
    return max(1, math.ceil(share * work.micro_batches - 1e-9))


def _reading(node: Node, share: float, layout: Layout, work: Work) -> float:
    """Seconds that a node's weights take to be read for every micro-batch: what bounds steps of few tokens."""
    held = work.num_params
    if layout.kind == "pipeline":
        held = held_by(work.pieces, _stage(layout, work, layout.nodes.index(node.name))).num_params
    traffic = WEIGHT_READS * BYTES[work.precision] * held / (node.devices if layout.inside == "tensor" else 1)
    return _rounds(layout, work, share) * traffic / node.bytes_per_s


def _tensor_exchange(node: Node, index: int, layout: Layout, work: Work, network: Network) -> float:
    """Seconds of tensor parallelism's all-reduces in a step, which nothing hides."""
    if layout.inside != "tensor":
        return 0.0
    micro_batches = max(work.micro_batches, layout.micro_batches)
    layers, part = work.layer_exchanges, layout.shares[index] / micro_batches
    if layout.kind == "pipeline":
        stage = _stage(layout, work, index)
        layers, part = layers[stage.start : stage.stop], 1 / micro_batches
    sizes = Counter(size for layer in layers for size in layer)
    times = (count * network.all_reduce_inside(node.name, node.devices, part * size) for size, count in sizes.items())
    return micro_batches * sum(times)


def _stage(layout: Layout, work: Work, index: int) -> range:
    """The layers of a pipeline's stage: the cut is where the shares of the FLOPs add up to the stages' before it."""
    ends = [0.0, *accumulate(work.layer_shares)]
    cuts = [sum(layout.shares[:stages]) for stages in (index, index + 1)]
    first, last = (min(range(len(ends)), key=lambda layer: abs(ends[layer] - cut)) for cut in cuts)
    return range(first, last)


def _data_parallel(layout: Layout, work: Work, network: Network) -> _Time:
    """Gradients travel behind the last micro-batch's backward pass; one node exchanges between its devices only."""
    compute_s = max(_compute(layout, work, network))
    comm_s = _exchange(layout, work.gradient_bytes, network, layout.nodes)
    last_s = _exchange(layout, min(BUCKET_BYTES, work.gradient_bytes), network, layout.nodes)
    overlappable_s = BACKWARD_SHARE * compute_s / _rounds(layout, work, max(layout.shares))
    return _Time(overlapped_step(compute_s, comm_s, overlappable_s, min(comm_s, last_s)), compute_s, comm_s)


def _exchange(layout: Layout, size_bytes: float, network: Network, across: Sequence[str]) -> float:
    """Seconds of an all-reduce: between the devices of each node, then over the nodes `across`."""
    inside_s = 0.0
    if layout.inside == "data":
        nodes = [network.cluster.find(name) for name in layout.nodes]
        inside_s = max(network.all_reduce_inside(node.name, node.devices, size_bytes) for node in nodes)
    return inside_s + network.all_reduce(across, size_bytes)


def _local_steps(layout: Layout, work: Work, network: Network) -> _Time:
    """Every node trains alone and exchanges weights after `sync_every` steps, while all wait (Douillard 2023)."""
    compute_s = max(_compute(layout, work, network))
    inside_s = _exchange(layout, work.gradient_bytes, network, ())
    width = CODEC_BYTES[layout.codec]
    comm_s = network.all_reduce(layout.nodes, width * work.num_params) / layout.sync_every
    slowest = min(network.cluster.find(name).bytes_per_s for name in layout.nodes)
    coding_s = 0.0 if layout.codec == "fp32" else 2 * (FP32 + width) * work.num_params / slowest / layout.sync_every
    return _Time(compute_s + inside_s + comm_s + coding_s, compute_s, inside_s + comm_s)


def _pipeline(layout: Layout, work: Work, network: Network) -> _Time:
    """GPipe: the first micro-batch goes through all stages and back, the others follow at the bottleneck's pace.

    Without links and with equal stages this is (M + P − 1)·t (Huang 2019).
    """
    count = layout.micro_batches
    stages = [time_s / count for time_s in _compute(layout, work, network)]
    crossing = [work.cut_bytes[_stage(layout, work, index).stop - 1] for index in range(len(layout.nodes) - 1)]
    hops = [network.send(*pair, size / count) for pair, size in zip(pairwise(layout.nodes), crossing, strict=True)]
    forward_s, backward_s = (1 - BACKWARD_SHARE) * max(stages), BACKWARD_SHARE * max(stages)
    pace_s = max(forward_s, *hops) + max(backward_s, *hops)
    step_s = sum(stages) + 2 * sum(hops) + (count - 1) * pace_s
    free_s = sum(stages) + (count - 1) * max(stages)
    comm_s = 2 * count * max(hops)
    return _Time(step_s, free_s, max(comm_s, step_s - free_s))


def _stage_bytes(work: Work, stage: range, micro_batches: int) -> float:
    """Bytes on a stage: its layers' state, their activations of all micro-batches at once (GPipe), and what is beside.

    A validation copies the weights instead.
    """
    held = held_by(work.pieces, stage)
    larger = max(1.0, work.micro_batches / micro_batches)
    needs = work.micro_batches * held.saved_bytes + larger * max(work.beside_bytes[layer] for layer in stage)
    return held.state_bytes + max(needs, FP32 * held.num_params)


def _memory(layout: Layout, work: Work, node: Node, index: int) -> float:
    """Bytes on one device of a node.

    A node whose share is less than a micro-batch saves that much less. Where gradients are exchanged they are in
    buckets too.
    """
    whole = min(1.0, layout.shares[index] * work.micro_batches)
    needs = work.peak_bytes - (1 - whole) * work.saved_bytes
    if layout.kind == "pipeline":
        needs = _stage_bytes(work, _stage(layout, work, index), layout.micro_batches)
    if layout.kind == "local steps":
        needs += OUTER_BYTES * work.num_params
    processes = len(layout.nodes) if layout.kind == "data parallel" else 1
    needs += exchange_bytes(work.buckets, processes * (node.devices if layout.inside == "data" else 1))
    return needs / node.devices if layout.inside == "tensor" else needs
