"""Traffic against every operator that PyTorch runs: bytes of what each takes and gives."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import Batch, flops, num_params
from chinchilla.planning.latency import Request
from chinchilla.planning.traffic import Traffic, decoding_traffic, step_traffic, token_bytes, told_step

SHAPE = Shape(
    vocab_size=200, dim=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=256, num_decoder_layers=3, norm="layer",
    max_len=256,
)  # fmt: skip
IN_CACHE = ("sub_", "scatter_add_", "exp_", "gather", "amax", "fill_", "random_", "mean")
"""What the loss does to chunks of chances."""


class Moved(TorchDispatchMode):
    """Bytes of the operands and results of every operator that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        taken = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        given = [tensor for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)]
        name = function.name().split("::")[1].split(".")[0]
        places = {tensor.untyped_storage().data_ptr() for tensor in taken}
        view = all(tensor.untyped_storage().data_ptr() in places for tensor in given)
        if not name.startswith(("empty", "new_empty", "detach")) and (not view or name.endswith("_")):
            self.sizes[name] += sum(tensor.numel() * tensor.element_size() for tensor in taken + given)
        return made


def measured(shape: Shape, batch: Batch, precision: str) -> Counter[str]:
    model = Transformer(shape)
    source = torch.randint(3, 200, (batch.size, batch.source_len)) if shape.num_encoder_layers else None
    target = torch.randint(3, 200, (batch.size, batch.target_len))
    labels = target.clone()
    labels.view(-1)[batch.loss_rows :] = -100
    with Moved() as moved, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model.head.loss(model(source, target).hidden, labels, 0.1)[0]
    with moved:
        torch.autograd.grad(loss, list(model.parameters()))
    return moved.sizes


def sizes(found: list[Traffic]) -> dict[str, int]:
    return {each.operator: each.size_bytes for each in found}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"norm": "rms"},
        {"attention": "gated", "activation": "swiglu"},
        {"position": "learned", "num_kv_heads": 2, "activation": "gelu", "norm_order": "post"},
        {"num_encoder_layers": 2},
    ],
    ids=str,
)
def test_a_step_moves_what_its_operators_do(variant: dict[str, object], precision: str) -> None:
    shape = SHAPE.model_copy(update=variant)
    batch = Batch(4, 200 if shape.num_encoder_layers else 0, 200, labelled=128)
    seen = measured(shape, batch, precision)
    counted = sizes(step_traffic(shape, batch, precision, "adamw"))
    whole = sum(size for name, size in seen.items() if name not in IN_CACHE)
    assert sum(counted.values()) - counted["optimizer"] == pytest.approx(whole, rel=0.07)
    if precision == "fp32":
        fused = sum(size for name, size in seen.items() if "flash" in name)
        assert counted["attention"] == pytest.approx(fused, rel=0.03)
    if shape.norm == "layer":
        norms = sum(size for name, size in seen.items() if "layer_norm" in name)
        assert counted["norm"] == pytest.approx(norms, rel=0.04)


def test_products_move_their_factors_and_results() -> None:
    batch = Batch(4, 0, 200, labelled=128)
    counted = sizes(step_traffic(SHAPE, batch, "fp32", "adamw"))
    products = sum(counted[name] for name in ("qkv", "out", "up", "down"))
    head = 3 * 4 * (128 * 64 + 64 * 200 + 128 * 200)
    assert products + head == measured(SHAPE, batch, "fp32")["mm"]


def test_flops_are_those_of_the_matmul_convention() -> None:
    batch = Batch(4, 0, 200)
    found = step_traffic(SHAPE, batch, "bf16", "adamw", accumulation=3)
    assert sum(each.flops for each in found) == 3 * flops(SHAPE, batch).step
    muon = step_traffic(SHAPE, batch, "bf16", "muon", accumulation=3)
    assert sum(each.flops for each in muon) > sum(each.flops for each in found)


def test_products_are_denser_than_all_else() -> None:
    found = step_traffic(SHAPE.model_copy(update={"dim": 512, "ffn_dim": 2048}), Batch(8, 0, 200), "fp32", "muon")
    intensity = {each.operator: each.intensity for each in found}
    assert min(intensity["qkv"], intensity["up"], intensity["down"]) > 50
    assert intensity["norm"] == intensity["activation"] == intensity["residual"] == 0


def test_a_decoding_step_reads_the_weights_once_and_the_cache_for_each_row() -> None:
    shape = SHAPE.model_copy(update={"tied_embeddings": False, "num_kv_heads": 2})
    one, many = (sum(sizes(decoding_traffic(shape, rows, 100)).values()) for rows in (1, 16))
    matrices = 4 * (num_params(shape) - shape.vocab_size * shape.dim - 7 * 2 * shape.dim)
    cache = 2 * 4 * shape.num_decoder_layers * 2 * 16 * 101
    assert one > matrices + cache
    assert many - one == pytest.approx(15 * (one - matrices), rel=0.001)
    assert one - matrices < 1.6 * cache


def test_intensity_of_decoding_grows_with_the_batch() -> None:
    for shape in (SHAPE, SHAPE.model_copy(update={"num_encoder_layers": 2})):
        few, many = (decoding_traffic(shape, rows, 10, source_len=10, number_bytes=2) for rows in (1, 32))
        dense = [sum(e.flops for e in found) / sum(e.size_bytes for e in found) for found in (few, many)]
        assert dense[1] > 10 * dense[0]
        assert sum(e.flops for e in many) == 32 * sum(e.flops for e in few)


def test_a_step_is_told_by_the_narrower_of_two_rates() -> None:
    rates = tuple(MatmulRate(m=64, k=64, n=64, precision=p, flops_per_s=1e10) for p in ("fp32", "bf16"))
    machine = Machine(
        name="a processor", device="cpu", threads=1, memory_bytes=10**9, torch_version="2", measured_at="2026-01-01",
        noise=0.1, matmul=rates, bytes_per_s=1e9, op_overhead_s=5e-6, has_compiler=False,
    )  # fmt: skip
    found = [Traffic("norm", 0, 3 * 10**9), Traffic("up", 44 * 10**9, 10**9)]
    value, why = told_step(found, machine, "fp32")
    assert value == "44G FLOP, 4 GB moved"
    assert why == "11 FLOP a byte; at 10 fp32 products and memory are even here; products limit it; norm moves 75%"
    assert "memory limits it" in told_step(found, machine.model_copy(update={"bytes_per_s": 0.9e9}), "fp32")[1]


@pytest.mark.parametrize("encoder", [0, 2])
def test_a_pass_of_the_decoder_moves_what_is_read_halfway_through_an_answer(encoder: int) -> None:
    shape = SHAPE.model_copy(update={"num_encoder_layers": encoder})
    past, source_len = (5, 30) if encoder else (35, 0)
    wanted = sizes(decoding_traffic(shape, 4, past, source_len=source_len))
    assert token_bytes(shape, Request(30, 10, 4)) == sum(wanted.values())
    assert token_bytes(shape, Request(30, 0)) == 0


@pytest.mark.parametrize("boxes", [False, True])
def test_a_classifier_of_images_moves_no_vocabulary(boxes: bool) -> None:
    stem = ImageStem(height=16, width=16, channels=3, patch=4)
    changes = {"num_encoder_layers": 2, "num_decoder_layers": 0, "num_classes": 3, "stem": stem, "boxes": boxes}
    found = [
        sum(
            sizes(
                step_traffic(SHAPE.model_copy(update=changes | {"vocab_size": vocab}), batch, "fp32", "adamw")
            ).values()
        )
        for vocab in (8, 80_000)
        for batch in [Batch(4, 17, labelled=4)]
    ]
    assert found[0] == found[1] > 0


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_a_stem_moves_what_its_norms_and_its_pooling_read_and_write(precision: str, size: int) -> None:
    changes = {"num_encoder_layers": 1, "num_decoder_layers": 0, "num_classes": 3, "dim": 16}
    found = {}
    for pooled in (False, True):
        stem = ImageStem(height=8, width=4, channels=1, patch=2, pooled=pooled)
        shape = SHAPE.model_copy(update=changes | {"stem": stem})
        found[pooled] = sizes(step_traffic(shape, Batch(3, stem.num_positions, labelled=3), precision, "adamw"))["stem"]
    # Two convolutions end with 4 x 2 pixels of 16 channels; the first begins, where it is pooled, with 8 x 4.
    relu = norm = 2 * 5 * size * 8 * 16
    pooling = (2 * size * 32 + 2 * size * 8 + 2 * 8 * 8) * 16
    assert found == {False: 3 * relu, True: 3 * (relu + norm + pooling)}
