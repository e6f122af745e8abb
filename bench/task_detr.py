"""DETR as an opponent in bench/tasks.py: `transformers`' own, from random weights in the seconds of our run.

`DetrForObjectDetection` of about as many parameters as ours: a ResNet of three stages down to a position for each 16 x
16 pixels, encoder and decoder, and twice as many queries as the most boxes of a training image. Its loss is its own
(Hungarian matching by scipy, losses after every decoder layer), and it learns from the same batches as ours, mirrored
images included. Precision and rate are found as those of the other networks are (bench/task_networks.py).

It is made to start from a trained ResNet, whose convolutions and batch norms it freezes. From random weights that would
leave it blind, so both learn here.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from task_networks import Learner, best_of
from task_opponents import Contest, Outcome
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from chinchilla.data.picture_boxes import PictureBoxes
from chinchilla.data.stream import stream
from chinchilla.models.boxes import corners
from chinchilla.models.head import IGNORE
from chinchilla.tasks.detect import MOST_BOXES, Example, Found, average_precision
from chinchilla.verbs.prepare import prepare

RATES = (2e-4, 5e-4, 1e-3)
"""DETR's own is 1e-4, for weeks on GPUs."""

PIXELS, FEWEST_IMAGES = 16 * 128 * 128, 2
"""Of a step: 16 scenes, or two tiles."""

FEWEST_QUERIES = 20
SIZES = tuple(itertools.product((32, 64, 96, 128, 160, 192, 256), (2, 3)))
"""Widths and layers of both stacks."""


def detr(contest: Contest) -> Outcome:
    """A DETR of about our size."""
    prepared = prepare(contest.run)
    codec, scenes = prepared.codec, prepared.train
    assert isinstance(codec, PictureBoxes)
    queries = max(FEWEST_QUERIES, 2 * max(map(len, scenes.boxes)))
    config = nearest(contest.plan.num_params, len(codec.classes.names), codec.size.channels, queries)
    images = max(FEWEST_IMAGES, PIXELS // (codec.size.height * codec.size.width))
    train = prepared.make_batches(scenes, round(images * prepared.facts.labels_per_row), contest.run.seed)
    valid = prepared.make_batches(prepared.valid, 0, 0, train)

    def make(precision: str) -> Learner:
        torch.manual_seed(contest.run.seed)
        feed = (batch for _, batch in stream(train))
        return Learner(small_detr(config).train(), loss, feed, lambda: map(valid.batch, valid.order(0)), precision)

    model, train_s = best_of(make, RATES, contest)
    metrics = average_precision(prepared.test, find(model, codec, prepared.test))
    return Outcome(metrics, train_s, sum(each.numel() for each in model.parameters()))


def nearest(wanted: int, classes: int, channels: int, queries: int) -> DetrConfig:
    """The configuration with the nearest number of parameters."""

    def distance(config: DetrConfig) -> float:
        with torch.device("meta"):
            return abs(math.log(sum(each.numel() for each in small_detr(config).parameters()) / wanted))

    return min((configured(*size, classes, channels, queries) for size in SIZES), key=distance)


def configured(dim: int, layers: int, classes: int, channels: int, queries: int) -> DetrConfig:
    """A DETR with stacks of so many layers, on a ResNet that ends as wide as they are."""
    untyped: dict[str, Any] = {"out_features": ["stage3"]}
    backbone = ResNetConfig(
        num_channels=channels,
        embedding_size=dim // 4,
        hidden_sizes=[dim // 4, dim // 2, dim],
        depths=[1, 1, 1],
        layer_type="basic",
        **untyped,
    )
    stacks: dict[str, Any] = {f"{side}_layers": layers for side in ("encoder", "decoder")}
    stacks |= {f"{side}_attention_heads": dim // 32 for side in ("encoder", "decoder")}
    stacks |= {f"{side}_ffn_dim": 4 * dim for side in ("encoder", "decoder")}
    stacks |= {"num_labels": classes}
    return DetrConfig(backbone_config=backbone, d_model=dim, num_queries=queries, auxiliary_loss=True, **stacks)


def small_detr(config: DetrConfig) -> DetrForObjectDetection:
    """The model, all of which learns."""
    model = DetrForObjectDetection(config).requires_grad_(True)
    frozen = [(name, each) for name, each in model.named_modules() if type(each).__name__ == "DetrFrozenBatchNorm2d"]
    for name, each in frozen:
        model.set_submodule(name, nn.BatchNorm2d(len(each.weight)))
    return model


def loss(model: Any, batch: dict[str, Tensor], smoothing: float) -> tuple[Tensor, int]:
    """DETR's loss times the boxes it is a mean over; nothing is smoothed. Heads and losses are fp32, as ours are."""
    real = batch["labels"] != IGNORE
    pairs = zip(batch["labels"], batch["boxes"], real, strict=True)
    right = [{"class_labels": labels[kept], "boxes": boxes[kept]} for labels, boxes, kept in pairs]
    states = model.model(batch["source"]).intermediate_hidden_states
    with torch.autocast("cpu", enabled=False):
        logits, boxes = heads(model, states.float())
        mean, *_ = model.loss_function(logits[-1], right, model.device, boxes[-1], model.config, logits, boxes)
    count = int(real.sum())
    return mean * max(1, count), count


def heads(model: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of classes and of nothing, and boxes as centre and size in shares of the image."""
    return model.class_labels_classifier(states), model.bbox_predictor(states).sigmoid()


@torch.inference_mode()
def find(model: Any, codec: PictureBoxes, examples: Sequence[Example]) -> list[Found]:
    """What it finds in each image, as ours is asked: the surest pairs of query and class."""
    found: list[Found] = []
    scale = np.array([codec.size.width, codec.size.height] * 2, np.float32)
    for _, inputs in codec.batches([example.framed for example in examples]):
        logits, boxes = heads(model, model.model(inputs["source"]).last_hidden_state)
        for chances, places in zip(logits.softmax(-1)[..., :-1], boxes, strict=True):
            scores, order = chances.flatten().topk(min(MOST_BOXES, chances.numel()))
            kept = corners(places[order // chances.shape[1]]).numpy() * scale
            placed = codec.unframed(kept, examples[len(found)].framed)
            found.append(Found(placed, (order % chances.shape[1]).numpy(), scores.numpy()))
    return found
