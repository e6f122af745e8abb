"""Stages of a pipeline against the real module: their parameters, what autograd keeps, what crosses a cut."""

from typing import Any

import pytest
import torch
from tensor_bytes import kept_by
from torch import Tensor, nn

from chinchilla.config.plan import Training
from chinchilla.config.shape import ImageStem, Shape
from chinchilla.models.transformer import Transformer
from chinchilla.planning.count import Batch, num_params
from chinchilla.planning.memory import Memory, memory
from chinchilla.planning.stages import Piece, beside, cuts, held_by, pieces

BOTH = Shape(
    vocab_size=500, dim=40, num_heads=4, num_kv_heads=4, head_dim=10, ffn_dim=100, num_encoder_layers=3,
    num_decoder_layers=3, max_len=64, norm="layer", position="learned",
)  # fmt: skip
BATCH = Batch(3, 20, 24)
TRAINING = Training(
    steps=1, batch_tokens=2048, accumulation=2, optimizer="muon", learning_rate=1e-3, embedding_learning_rate=1e-3,
    weight_decay=0, schedule="wsd", warmup_steps=1, decay_fraction=0.4, clip_norm=1, label_smoothing=0, dropout=0,
    ema_decay=0.99, reconstruct_weight=0, mask_rate=0, precision="fp32", compile=False, threads=1, eval_every=1,
    checkpoint_every=1, keep_checkpoints=1, log_every=1, seed=0,
)  # fmt: skip

VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": False, "position": "sinusoidal", "embed_norm": True},
    {"num_encoder_layers": 0, "position": "rotary"},
    {"num_decoder_layers": 0, "norm_order": "post"},
    {"reconstruct": True},
    {"num_decoder_layers": 0, "num_classes": 5, "stem": ImageStem(height=16, width=8, channels=3, patch=4)},
]


def counted(shape: Shape, batch: Batch, training: Training = TRAINING) -> tuple[Memory, tuple[Piece, ...]]:
    held = memory(
        shape, batch, training.precision, training.optimizer, ema=training.ema_decay > 0,
        accumulation=training.accumulation, recompute=training.recompute,
    )  # fmt: skip
    return held, pieces(shape, batch, training, held)


def batch_of(shape: Shape) -> Batch:
    if shape.stem is not None:
        return Batch(3, shape.stem.num_positions, labelled=3)
    source, target = 20 * (shape.num_encoder_layers > 0), 24 * (shape.num_decoder_layers > 0)
    masked = (2 * (source > 0), 2 * (target > 0)) if shape.reconstruct else (0, 0)
    return Batch(3, source, target, masked_source=masked[0], masked_target=masked[1])


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"recompute": True}], ids=["fp32", "bf16", "again"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_one_stage_holds_what_one_device_does(variant: dict[str, Any], changes: dict[str, Any]) -> None:
    shape, training = BOTH.model_copy(update=variant), TRAINING.model_copy(update=changes)
    batch = batch_of(shape)
    held, found = counted(shape, batch, training)
    whole = held_by(found, range(shape.num_encoder_layers + shape.num_decoder_layers))
    assert whole.num_params == num_params(shape)
    assert whole.state_bytes == held.state.total
    assert whole.saved_bytes == held.saved
    assert len(beside(shape, batch, training, held)) == len(whole.layers)


def modules(model: Transformer, stage: range) -> nn.ModuleList:
    """What a stage of these layers needs, as a person would write it down."""
    encoder, decoder = (list(stack.layers) if stack else [] for stack in (model.encoder, model.decoder))
    blocks = [*encoder, *decoder]
    found: list[nn.Module] = [blocks[layer] for layer in stage]
    if (encoder and 0 in stage) or (decoder and len(encoder) in stage):
        found.append(model.embed)
    for stack, last in ((model.encoder, len(encoder) - 1), (model.decoder, len(blocks) - 1)):
        if stack is not None and last in stage:
            found.append(stack.norm)
    if len(blocks) - 1 in stage:
        found.append(model.head)
    rest = (model.encoder_reconstruction, len(encoder) - 1), (model.decoder_reconstruction, len(blocks) - 1)
    return nn.ModuleList([*found, *(module for module, last in rest if module is not None and last in stage)])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_stage_has_the_parameters_of_its_modules(variant: dict[str, Any]) -> None:
    shape = BOTH.model_copy(update=variant)
    with torch.device("meta"):
        model = Transformer(shape)
    _, found = counted(shape, batch_of(shape))
    layers = shape.num_encoder_layers + shape.num_decoder_layers
    for first in range(layers):
        for last in range(first + 1, layers + 1):
            numbers = sum(parameter.numel() for parameter in modules(model, range(first, last)).parameters())
            assert held_by(found, range(first, last)).num_params == numbers, (first, last)


def inputs_of(model: Transformer, block: nn.Module) -> tuple[Any, ...]:
    """What a block is given in a forward pass of `BATCH`, cut off from what made it."""
    seen: list[tuple[Any, ...]] = []
    hook = block.register_forward_pre_hook(lambda _, given: seen.append(given))
    source, target = (torch.randint(3, 500, (BATCH.size, length)) for length in (BATCH.source_len, BATCH.target_len))
    model(source, target, source_segments=torch.ones_like(source, dtype=torch.bool))
    hook.remove()
    return tuple(
        each.detach().requires_grad_(each.is_floating_point()) if isinstance(each, Tensor) else each for each in seen[0]
    )


@pytest.mark.parametrize(
    ("stage", "ends"),
    [(range(1, 2), False), (range(1, 3), True), (range(4, 5), False)],
    ids=["inner", "last", "decoder"],
)
def test_a_stage_keeps_what_autograd_keeps_of_its_layers_alone(stage: range, ends: bool) -> None:
    """Of a decoder's inner layer too, which keeps the encoder's output although the first layer is elsewhere."""
    torch.manual_seed(0)
    model = Transformer(BOTH)
    assert model.encoder is not None and model.decoder is not None
    blocks = [*model.encoder.layers, *model.decoder.layers]
    first, *rest = inputs_of(model, blocks[stage.start])

    def run() -> Tensor:
        x = first
        for layer in stage:
            x = blocks[layer](x, *rest)
        return (model.encoder.norm(x) if ends else x).sum()

    _, found = counted(BOTH, BATCH)
    assert held_by(found, stage).saved_bytes == pytest.approx(kept_by(model, run), rel=0.01)


def test_what_crosses_a_cut_is_of_the_layers_on_its_sides() -> None:
    source, target = 4.0 * 3 * 20 * 40, 4.0 * 3 * 24 * 40
    assert cuts(BOTH, BATCH, 4) == (source, source, source, source + target, source + target)
    alone = BOTH.model_copy(update={"num_encoder_layers": 0})
    assert cuts(alone, Batch(3, target_len=24), 2) == (target / 2, target / 2)


def test_an_encoders_stage_does_not_know_how_long_the_target_is() -> None:
    longer = Batch(3, 20, 60)
    for stage in (range(0, 2), range(0, 3)):
        costs = []
        for batch in (BATCH, longer):
            held, found = counted(BOTH, batch)
            most = max(beside(BOTH, batch, TRAINING, held)[layer] for layer in stage)
            costs.append((held_by(found, stage), most))
        assert costs[0] == costs[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("vocab_size", [500, 8000])
def test_all_on_one_stage_is_near_the_peak_of_one_device(precision: str, vocab_size: int) -> None:
    shape = BOTH.model_copy(update={"vocab_size": vocab_size})
    batch = Batch(32, 60, 60)
    training = TRAINING.model_copy(update={"precision": precision, "accumulation": 1})
    held, found = counted(shape, batch, training)
    whole = held_by(found, range(6))
    needs = whole.state_bytes + whole.saved_bytes + max(beside(shape, batch, training, held))
    assert held.peak <= needs <= 1.15 * held.peak
