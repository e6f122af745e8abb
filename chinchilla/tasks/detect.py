"""Detection: a set of boxes with classes, matched one to one with those that are there; COCO's average precision."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.data.picture_boxes import Framed, PictureBoxes
from chinchilla.models.boxes import corners, generalised_iou
from chinchilla.models.head import IGNORE
from chinchilla.models.transformer import Transformer
from chinchilla.tasks.task import Batch, Loss, Objective, Sample, Score

log = logging.getLogger("chinchilla")

CLASS_WEIGHT, CORNER_WEIGHT, OVERLAP_WEIGHT = 2.0, 5.0, 2.0
"""Of the parts of loss and matching (DETR; Carion 2020, arXiv 2005.12872; classes as Deformable DETR has them)."""

FOCUS, RARE = 2.0, 0.25
"""Gamma and alpha of the focal loss (Lin 2017, arXiv 1708.02002): nearly all positions hold nothing."""

NOTHING = -4.6
"""Added to every logit: before anything is learned a position holds nothing, with 99 in 100 (Lin 2017, §3.3)."""

MOST_BOXES = 100
"""An image's surest boxes that are scored: what COCO counts."""

SURE = 0.3
"""Boxes surer than this are shown and served."""


class Found(NamedTuple):
    """What was found in one image, the surest first: boxes (n, 4) as x0, y0, x1, y1 in its pixels, classes, scores."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


class Example(NamedTuple):
    """An image in its frame, and what is in it: boxes (n, 4) as x0, y0, x1, y1 in its own pixels, and classes."""

    framed: Framed
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    name: str


class Detect:
    """An image to the things in it."""

    name: TaskName = "detect"

    def loss(self, model: Transformer, batch: Batch, objective: Objective) -> Loss:
        """Focal loss of classes everywhere; distance and overlap of the boxes that are matched, one to one.

        `boxes` (batch, most, 4) are centre x, y, width, height as shares of the image, `labels` (batch, most) their
        classes, -100 where there is none. Matches are those of least cost (Kuhn 1955), made anew for each batch.

        Three matches an image are little to learn from, so training also asks every patch that lies in a thing for its
        box, and which class it would be of (one for many; Jia 2022, arXiv 2207.13080). Whether to answer stays with the
        one that is matched: to add the same to all of a patch's logits changes nothing of which.
        """
        logits, boxes = predict(model, batch["source"])
        with torch.no_grad():
            pairs = [match(*each) for each in zip(logits, boxes, batch["labels"], batch["boxes"], strict=True)]
        image = torch.cat([torch.full_like(ours, index) for index, (ours, _) in enumerate(pairs)])
        ours, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
        wanted = torch.zeros_like(logits)
        wanted[image, ours, batch["labels"][image, theirs]] = 1.0
        found, right = boxes[image, ours], batch["boxes"][image, theirs]
        total = CLASS_WEIGHT * focal_loss(logits, wanted).sum() + place_loss(found, right).sum()
        return Loss(total + self._within(model, logits, boxes, batch), total.detach())

    def _within(self, model: Transformer, logits: Tensor, boxes: Tensor, batch: Batch) -> Tensor:
        """What the patches within things miss of their boxes and classes; a thing counts the same, large or small."""
        assert model.box_head is not None
        owner = owners(model.box_head.centres, batch["boxes"], batch["labels"])
        image, patch = (owner >= 0).nonzero(as_tuple=True)
        thing = owner[image, patch]
        number = image * batch["labels"].shape[1] + thing
        share = 1 / number.bincount()[number]
        missed = place_loss(boxes[image, patch], batch["boxes"][image, thing])
        missed = missed + F.cross_entropy(logits[image, patch], batch["labels"][image, thing], reduction="none")
        return (share * missed).sum()

    def score(
        self,
        model: Transformer,
        codec: PictureBoxes,
        examples: Sequence[Example],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Score:
        """`ap` (mean over overlaps from 0.5 to 0.95), `ap50` and `ap75`, as faster-coco-eval reckons COCO's.

        Raises:
            DataError: there are no images, or none with a box.
        """
        if not sum(len(example.boxes) for example in examples):
            raise DataError("the test data has no box to score on; name some in data.test")
        found = self._find(model, codec, [example.framed for example in examples], on_progress)
        metrics = average_precision(examples, found)
        told = [
            Sample(example.name, self._told(codec, example.labels), self._told(codec, each.labels[each.scores > SURE]))
            for example, each in zip(examples, found, strict=True)
        ]
        return Score(metrics, tuple(told))

    def question(self, example: Example) -> Framed:
        """The image."""
        return example.framed

    def reply(self, model: Transformer, codec: PictureBoxes, question: Any) -> str:
        """What is in it, in words."""
        (found,) = self._find(model, codec, [codec.read_question(question).question])
        return self._told(codec, found.labels[found.scores > SURE])

    def serve(self, model: Transformer, codec: PictureBoxes, questions: Sequence[Any]) -> list[dict[str, Any]]:
        """`boxes` of each: label, score, and x0, y0, x1, y1 as shares of the image's width and height."""
        answers = []
        for framed, found in zip(questions, self._find(model, codec, questions), strict=True):
            kept = found.scores > SURE
            shares = found.boxes[kept] / np.array([framed.width, framed.height] * 2, np.float32)
            rows = zip(found.labels[kept], found.scores[kept], shares, strict=True)
            answers.append(
                {
                    "boxes": [
                        {"label": codec.classes.names[label], "score": float(score), "box": box.tolist()}
                        for label, score, box in rows
                    ]
                }
            )
        return answers

    def show(self, example: Example) -> tuple[str, str | None]:
        """The image's name, and how many boxes are in it."""
        return example.name, f"{len(example.boxes)} boxes"

    @torch.inference_mode()
    def _find(
        self,
        model: Transformer,
        codec: PictureBoxes,
        images: Sequence[Framed],
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> list[Found]:
        """What is in each image; boxes in its pixels."""
        found: list[Found] = []
        device = model.head.weight.device
        for _, inputs in codec.batches(images):
            logits, boxes = predict(model, inputs["source"].to(device))
            for one, places in zip(logits.sigmoid(), boxes, strict=True):
                scores, order = one.flatten().topk(min(MOST_BOXES, one.numel()))
                kept = corners(places[order // one.shape[1]]).cpu().numpy()
                scale = np.array([codec.size.width, codec.size.height] * 2, np.float32)
                placed = codec.unframed(kept * scale, images[len(found)])
                found.append(Found(placed, (order % one.shape[1]).cpu().numpy(), scores.cpu().numpy()))
            on_progress(len(found) / len(images))
        return found

    def _told(self, codec: PictureBoxes, labels: NDArray[np.int64]) -> str:
        numbers, counts = np.unique(labels, return_counts=True)
        pairs = zip(numbers, counts, strict=True)
        return ", ".join(f"{count} {codec.classes.names[number]}" for number, count in pairs) or "nothing"


def predict(model: Transformer, source: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits (batch, patches, classes) and boxes (batch, patches, 4), both fp32."""
    assert model.box_head is not None and model.shape.stem is not None
    states = model.encode(source)[:, model.shape.stem.class_token :]
    return model.logits(states).float() + NOTHING, model.box_head(states)


def owners(centres: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """The box that each patch lies in (batch, patches), of several the smallest (Tian 2019, §3.1); -1 in none.

    `centres` (patches, 2), `boxes` (batch, most, 4), `labels` (batch, most).
    """
    low, high = corners(boxes)[:, :, None].split(2, dim=-1)
    inside = ((centres > low) & (centres < high)).all(-1) & (labels != IGNORE)[:, :, None]
    area = boxes[:, :, 2:].prod(-1, keepdim=True)
    smallest, owner = area.where(inside, torch.inf).min(1)
    return owner.where(smallest.isfinite(), -1)


def place_loss(found: Tensor, right: Tensor) -> Tensor:
    """Distance and overlap of boxes (n, 4) as centre and size, weighed: of each."""
    distance = (found - right).abs().sum(-1)
    return CORNER_WEIGHT * distance + OVERLAP_WEIGHT * (1 - generalised_iou(corners(found), corners(right)))


def match(logits: Tensor, boxes: Tensor, labels: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """One position for each box of an image, at the least cost in all: both as indices (n,).

    `logits` (patches, classes), `boxes` (patches, 4), `labels` (most,), `right` (most, 4).
    """
    theirs = (labels != IGNORE).nonzero()[:, 0]
    chances = logits.sigmoid()[:, labels[theirs]]
    hit = RARE * (1 - chances) ** FOCUS * -(chances + 1e-8).log()
    miss = (1 - RARE) * chances**FOCUS * -(1 - chances + 1e-8).log()
    far = torch.cdist(boxes, right[theirs], p=1)
    overlap = generalised_iou(corners(boxes)[:, None], corners(right[theirs])[None])
    cost = CLASS_WEIGHT * (hit - miss) + CORNER_WEIGHT * far - OVERLAP_WEIGHT * overlap
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(rows, device=labels.device), theirs[torch.as_tensor(columns, device=labels.device)]


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy weighed by how wrong it is (Lin 2017, eq. 5), of each logit."""
    chances = logits.sigmoid()
    right = chances * wanted + (1 - chances) * (1 - wanted)
    weight = (RARE * wanted + (1 - RARE) * (1 - wanted)) * (1 - right) ** FOCUS
    return weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def average_precision(examples: Sequence[Example], found: Sequence[Found]) -> dict[str, float]:
    """COCO's average precision of what was found, in pixels of the original images."""
    right = COCO()
    right.dataset = {
        "images": [
            {"id": index, "height": example.framed.height, "width": example.framed.width}
            for index, example in enumerate(examples, start=1)
        ],
        "categories": [{"id": int(label) + 1, "name": str(label)} for label in _labels(examples)],
        "annotations": [
            {"id": place, "image_id": index, "category_id": int(label) + 1, "iscrowd": 0, **_coco_box(box)}
            for place, (index, label, box) in enumerate(_truths(examples), start=1)
        ],
    }
    right.createIndex()
    answers = [
        {"image_id": index, "category_id": int(label) + 1, "score": float(score), **_coco_box(box)}
        for index, each in enumerate(found, start=1)
        for box, label, score in zip(*each, strict=True)
    ]
    if not answers:
        return dict.fromkeys(("ap", "ap50", "ap75"), 0.0)
    scored = COCOeval_faster(right, right.loadRes(answers), "bbox", print_function=log.debug)
    scored.run()
    return {
        name: float(scored.stats_as_dict[key]) for name, key in (("ap", "AP_all"), ("ap50", "AP_50"), ("ap75", "AP_75"))
    }


def _labels(examples: Sequence[Example]) -> list[int]:
    return sorted({int(label) for example in examples for label in example.labels})


def _truths(examples: Sequence[Example]) -> list[tuple[int, int, NDArray[np.float32]]]:
    return [
        (index, int(label), box)
        for index, example in enumerate(examples, start=1)
        for label, box in zip(example.labels, example.boxes, strict=True)
    ]


def _coco_box(box: NDArray[np.float32]) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
