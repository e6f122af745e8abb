"""Steps and memory of large GPT models on GPUs under tensor, sequence and pipeline parallelism, as Megatron runs them.

Everything is counted from the shapes and a datasheet: products with their waves of tiles, traffic of the other kernels,
all-reduces between the GPUs of a node, the pipeline's bubble, the update. One number is fitted: the efficiency, the
share of all the datasheet's rates together that a program reaches. Korthikanti 2022 (arXiv 2205.05198) is the check.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Recompute = Literal["none", "selective", "full"]

FP16, FP32, MASK = 2, 4, 1

TILE_M, TILE_N = 256, 128
"""The largest tile of cuBLAS's fp16 products (NVIDIA, Matrix Multiplication Background, "wave quantization")."""

STATE_BYTES = FP16 + 4 * FP32
"""A parameter: weight in fp16; gradient, master weight and Adam's two moments in fp32."""

UPDATE_BYTES = 58
"""Traffic of an update a parameter: zero, unscale, norm and clip of the gradient (28), Adam (30)."""

LOGIT_BYTES = 20
"""Traffic a logit of the loss, forward and backward, raised to fp32."""


@dataclass(frozen=True)
class Gpu:
    """A datasheet; bandwidths in one direction, `device_bytes_per_s` to the GPUs of its node together."""

    flops_per_s: float
    bytes_per_s: float
    device_bytes_per_s: float
    network_bytes_per_s: float
    processors: int


A100 = Gpu(312e12, 2.039e12, 300e9, 25e9, 108)
"""NVIDIA A100 SXM 80 GB, NVLink 3, one 200 Gbit/s adapter a GPU."""


@dataclass(frozen=True)
class Megatron:
    """A GPT and how it is divided; `interleave` is the number of pieces of the model on each stage."""

    name: str
    num_layers: int
    dim: int
    num_heads: int
    tensor: int
    pipeline: int
    interleave: int
    batch: int
    micro_batch: int
    length: int = 2048
    vocab_size: int = 51_200

    @property
    def stream(self) -> int:
        """Numbers in the residual stream of one micro-batch: s·b·h."""
        return self.length * self.micro_batch * self.dim

    @property
    def scores(self) -> int:
        """Attention scores of one layer and micro-batch: a·s²·b."""
        return self.num_heads * self.length**2 * self.micro_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return self.batch // self.micro_batch

    @property
    def params_a_gpu(self) -> float:
        """Numbers in the layers' matrices on one GPU: 12·L·h²/(t·p)."""
        return 12 * self.num_layers * self.dim**2 / (self.tensor * self.pipeline)


@dataclass(frozen=True)
class Published:
    """A model's row of Korthikanti 2022: seconds of an iteration (table 5), GiB of activations (figure 1).

    `full` recomputes whole layers; `selective` only attention's core, with sequence parallelism.
    """

    model: Megatron
    full_s: float
    selective_s: float
    none_gib: float
    selective_gib: float
    state_gib: float


PUBLISHED = (
    Published(Megatron("22B", 48, 6144, 64, 8, 1, 1, 4, 4), 1.42, 1.10, 59.25, 9.5625, 45.5625),
    Published(Megatron("175B", 96, 12288, 96, 8, 8, 3, 64, 1), 18.13, 13.75, 66.84375, 12.3515625, 45.5625),
    Published(Megatron("530B", 105, 20480, 128, 8, 35, 3, 280, 1), 49.05, 37.83, 114.0234375, 23.076171875, 31.640625),
    Published(Megatron("1T", 128, 25600, 160, 8, 64, 1, 512, 1), 94.42, 71.49, 131.25, 26.5625, 32.958984375),
)


def layer_activation_bytes(model: Megatron, recompute: Recompute, sequence_parallel: bool) -> float:
    """Bytes that one layer saves of one micro-batch on one GPU, in fp16 (Korthikanti 2022, eqs. 1, 2, 4 and 6)."""
    stream, split = model.stream, model.tensor
    if recompute == "full":
        return 2 * stream / (split if sequence_parallel else 1)
    whole = 10 * stream / (split if sequence_parallel else 1)
    core = 5 * model.scores / split if recompute == "none" else 0.0
    return whole + 24 * stream / split + core


def activation_bytes(model: Megatron, recompute: Recompute, sequence_parallel: bool) -> float:
    """Bytes of activations on a GPU of the first stage, which holds those of p micro-batches (ibid., §4.2.3).

    An interleaved schedule holds 1 + (p−1)/(p·m) times as many.
    """
    more = 1 + (model.pipeline - 1) / (model.pipeline * model.interleave) if model.interleave > 1 else 1.0
    return model.num_layers * more * layer_activation_bytes(model, recompute, sequence_parallel)


def state_bytes(model: Megatron) -> float:
    """Bytes of weights, gradients and optimizer on one GPU, of the layers' matrices alone."""
    return STATE_BYTES * model.params_a_gpu


@dataclass(frozen=True)
class Step:
    """Seconds of one iteration at the datasheet's rates, by what they are spent on."""

    products_s: float
    traffic_s: float
    exchange_s: float
    pipeline_s: float
    update_s: float

    @property
    def total_s(self) -> float:
        """All of it: one GPU's kernels and exchanges follow one another."""
        return self.products_s + self.traffic_s + self.exchange_s + self.pipeline_s + self.update_s


def step_time(model: Megatron, recompute: Recompute, sequence_parallel: bool, gpu: Gpu = A100) -> Step:
    """An iteration as the last stage sees it, which also makes the logits."""
    count, layers = model.micro_batches, model.num_layers / model.pipeline
    products_s = sum(_product_time(product, recompute, gpu) for product in _layer_products(model))
    head_s = _product_time(_head(model), "none", gpu)
    traffic_s = _layer_traffic(model, recompute, sequence_parallel) / gpu.bytes_per_s
    logits = LOGIT_BYTES * model.length * model.micro_batch * model.vocab_size / model.tensor
    exchange_s = (6 if recompute == "full" else 4) * _all_reduce(model, gpu)
    waiting_s = (model.pipeline - 1) / model.interleave * layers * (products_s + traffic_s + exchange_s)
    return Step(
        products_s=count * (layers * products_s + head_s),
        traffic_s=count * (layers * traffic_s + logits / gpu.bytes_per_s),
        exchange_s=count * layers * exchange_s,
        pipeline_s=waiting_s + count * _hops(model, gpu),
        update_s=UPDATE_BYTES * model.params_a_gpu / gpu.bytes_per_s,
    )


def flops_only(model: Megatron, recompute: Recompute, gpu: Gpu = A100) -> float:
    """Seconds by FLOPs and bubble alone, without waves, traffic and exchanges: shows what those are worth."""
    again = {"none": 0, "selective": 0, "full": 1}[recompute]
    work = sum((3 + max(again, recompute == "selective" and p.core)) * p.flops for p in _layer_products(model))
    layers_s = model.num_layers / model.pipeline * work / gpu.flops_per_s
    head_s = 3 * _head(model).flops / gpu.flops_per_s
    return model.micro_batches * (layers_s + head_s) + (model.pipeline - 1) / model.interleave * layers_s


def fit_efficiency(untuned_s: Sequence[float], measured_s: Sequence[float]) -> float:
    """The share of the datasheet's rates that leaves least squared relative error: e = Σx²/Σx, x = untuned/measured."""
    ratios = [untuned / measured for untuned, measured in zip(untuned_s, measured_s, strict=True)]
    return sum(ratio**2 for ratio in ratios) / sum(ratios)


@dataclass(frozen=True)
class _Product:
    """`count` products of (m, k) by (k, n) on one GPU; `core` marks attention's, which have no weights."""

    m: int
    k: int
    n: int
    count: int = 1
    core: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n * self.count


def _layer_products(model: Megatron) -> list[_Product]:
    """The products of a layer's forward pass: column-parallel, attention's core, row-parallel (Shoeybi 2019)."""
    rows, dim, split, length = model.length * model.micro_batch, model.dim, model.tensor, model.length
    head, heads = dim // model.num_heads, model.num_heads * model.micro_batch // split
    return [
        _Product(rows, dim, 3 * dim // split),
        _Product(length, head, length, heads, core=True),
        _Product(length, length, head, heads, core=True),
        _Product(rows, dim // split, dim),
        _Product(rows, dim, 4 * dim // split),
        _Product(rows, 4 * dim // split, dim),
    ]


def _head(model: Megatron) -> _Product:
    return _Product(model.length * model.micro_batch, model.dim, model.vocab_size // model.tensor)


def _product_time(product: _Product, recompute: Recompute, gpu: Gpu) -> float:
    """Seconds of a product's forward pass (twice where it is made again) and of its two backward ones."""
    m, k, n, count, core = product.m, product.k, product.n, product.count, product.core
    again = recompute == "full" or (recompute == "selective" and core)
    forward_s = _kernel_time(product, FP16, gpu)
    input_s = _kernel_time(_Product(m, n, k, count, core), FP16, gpu)
    # A weight's gradient is added to a sum in fp32, which is read and written.
    weight_s = _kernel_time(_Product(n, m, k, count, core), FP16 if core else 2 * FP32, gpu)
    return (2 if again else 1) * forward_s + input_s + weight_s


def _kernel_time(product: _Product, output_bytes: int, gpu: Gpu) -> float:
    """The roofline of one product: its FLOPs, in whole waves of tiles over the processors, or its traffic."""
    m, k, n = product.m, product.k, product.n
    flops_s = product.flops / gpu.flops_per_s
    if not product.core:
        waves = math.ceil(math.ceil(m / TILE_M) * math.ceil(n / TILE_N) / gpu.processors)
        flops_s = waves * gpu.processors * 2 * TILE_M * TILE_N * k / gpu.flops_per_s
    traffic = product.count * (FP16 * (m * k + k * n) + output_bytes * m * n)
    return max(flops_s, traffic / gpu.bytes_per_s)


def _layer_traffic(model: Megatron, recompute: Recompute, sequence_parallel: bool) -> float:
    """Bytes that a layer's other kernels move for one micro-batch on one GPU, fused as Megatron fuses them.

    Forward: two norms (read, write), two sums of bias, dropout and residual (read twice, write, mask); GELU, and the
    turning of queries, keys, values and answers; softmax and its dropout. Backward: the same kernels' gradients.
    """
    whole = model.stream / (model.tensor if sequence_parallel else 1)
    split, scores = model.stream / model.tensor, model.scores / model.tensor
    norms, sums = 2 * 2 * FP16, 2 * (3 * FP16 + MASK)
    gelu, turns = 4 * 2 * FP16, (3 + 1) * 2 * FP16
    softmax = 2 * 2 * FP16 + MASK
    forward = (norms + sums) * whole + (gelu + turns) * split + softmax * scores
    norms, sums = 2 * 3 * FP16, 2 * (2 * FP16 + MASK) + 2 * 3 * FP16
    gelu, softmax_back = 4 * 3 * FP16, 3 * FP16 + 2 * FP16 + MASK
    backward = (norms + sums) * whole + (gelu + turns) * split + softmax_back * scores
    again = {"none": 0.0, "selective": softmax * scores, "full": forward}[recompute]
    return forward + backward + again


def _all_reduce(model: Megatron, gpu: Gpu) -> float:
    """Ring over the GPUs of a node: 2(t−1)/t·s/β; a reduce-scatter and an all-gather move as much."""
    return 2 * (model.tensor - 1) / model.tensor * FP16 * model.stream / gpu.device_bytes_per_s


def _hops(model: Megatron, gpu: Gpu) -> float:
    """Seconds a micro-batch spends between stages, forward and back, each GPU sending its part of the stream."""
    if model.pipeline == 1:
        return 0.0
    return 2 * model.interleave * FP16 * model.stream / model.tensor / gpu.network_bytes_per_s
