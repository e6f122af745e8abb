"""Matching against brute force, overlap against areas counted by hand, and a set that is learned."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_fakes import make_model

from chinchilla.config.errors import DataError
from chinchilla.config.shape import ImageStem
from chinchilla.data.boxes import Scenes
from chinchilla.data.classes import Classes
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_boxes import Framed, PictureBoxes, SceneBatches
from chinchilla.data.picture_classes import Colours
from chinchilla.models.boxes import BoxHead, corners, generalised_iou
from chinchilla.tasks.detect import Detect, Example, Found, average_precision, match, owners, predict
from chinchilla.tasks.task import Objective

STEM = ImageStem(height=16, width=24, channels=3, patch=8, pooled=True)
SIZE = Size(16, 24, 3)
CODEC = PictureBoxes(Classes(names=("cup", "ring")), SIZE, Colours(means=(0.5,) * 3, stds=(0.5,) * 3))


def finder(**changes):
    fixed = {"num_decoder_layers": 0, "num_classes": 2, "stem": STEM, "boxes": True, "vocab_size": 4, "max_len": 8}
    return make_model(**fixed | {"position": "learned"} | changes)


def scenes(count: int = 6) -> Scenes:
    random = np.random.default_rng(0)
    boxes = tuple(
        np.array([[2, 2, 10, 12], [14, 4, 22, 14]][: index % 3], np.float32).reshape(-1, 4) for index in range(count)
    )
    labels = tuple(np.arange(len(each)) for each in boxes)
    images = random.integers(0, 255, (count, *SIZE)).astype(np.uint8)
    sizes = np.array([[16, 24]] * count)
    names = tuple(f"{index}.png" for index in range(count))
    return Scenes(images, sizes, boxes, labels, ("cup", "ring"), names, ("",) * count)


BOX = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))


@given(BOX, BOX)
def test_overlap_is_that_of_counted_squares(one, other):
    a, b = ({(x, y) for x in range(x0, x0 + w) for y in range(y0, y0 + h)} for x0, y0, w, h in (one, other))
    xs, ys = zip(*(a | b), strict=True)
    hull = (max(xs) - min(xs) + 1) * (max(ys) - min(ys) + 1)
    expected = len(a & b) / len(a | b) - (hull - len(a | b)) / hull
    boxes = [torch.tensor([x, y, x + w, y + h], dtype=torch.float32) for x, y, w, h in (one, other)]
    assert float(generalised_iou(*boxes)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 3))
def test_a_match_is_the_cheapest_of_all(seed, count):
    torch.manual_seed(seed)
    logits, boxes = torch.randn(4, 2), torch.rand(4, 4)
    labels = torch.full((5,), -100)
    places = torch.randperm(5)[:count].sort().values
    labels[places] = torch.randint(0, 2, (count,))
    right = torch.rand(5, 4)
    ours, theirs = match(logits, boxes, labels, right)
    assert sorted(theirs.tolist()) == places.tolist() and len(set(ours.tolist())) == count
    if not count:
        return

    def cost(position: int, place: int) -> float:
        chance = logits[position, labels[place]].sigmoid()
        classes = 0.25 * (1 - chance) ** 2 * -chance.log() - 0.75 * chance**2 * -(1 - chance).log()
        overlap = generalised_iou(corners(boxes[position]), corners(right[place]))
        return float(2 * classes + 5 * (boxes[position] - right[place]).abs().sum() - 2 * overlap)

    every = itertools.permutations(range(4), count)
    cheapest = min(sum(cost(*pair) for pair in zip(chosen, places.tolist(), strict=True)) for chosen in every)
    found = sum(cost(*pair) for pair in zip(ours.tolist(), theirs.tolist(), strict=True))
    assert found == pytest.approx(cheapest, rel=1e-4, abs=1e-4)


def test_before_anything_is_learned_each_patch_looks_around_itself():
    head = BoxHead(8, STEM)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
    found = head(torch.randn(1, 6, 8))[0]
    assert found[:, 0].tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6] * 2)
    assert found[:, 1].tolist() == pytest.approx([0.25] * 3 + [0.75] * 3)


def test_a_new_model_looks_for_each_box_at_the_patch_s_own_place():
    """Else the noise of random weights, two patches wide, would say which patch is matched to what."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = finder(dim=64, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=64, num_encoder_layers=2)
        boxes = predict(model, torch.randn(8, 3, 16, 24))[1].detach()
        assert (boxes[..., :2] - model.box_head.centres).abs().mean() < 0.02
        assert (boxes[..., 2:] - 0.15).abs().mean() < 0.02


def test_a_patch_belongs_to_the_smallest_thing_it_lies_in():
    # Patches of 8 x 8 pixels in 24 x 16: the first thing covers all of them, the second the right half.
    boxes = torch.tensor([[[0.5, 0.5, 1, 1], [0.75, 0.5, 0.5, 1], [0.5, 0.5, 0.1, 0.1]]])
    centres = BoxHead(8, STEM).centres
    assert owners(centres, boxes, torch.tensor([[0, 1, -100]])).tolist() == [[0, 0, 1, 0, 0, 1]]
    assert owners(centres, boxes, torch.tensor([[-100, 1, -100]])).tolist() == [[-1, -1, 1, -1, -1, 1]]
    # What is smaller than a patch and between four of them is no patch's.
    assert owners(centres, boxes, torch.tensor([[-100, -100, 1]])).tolist() == [[-1] * 6]
    assert owners(centres, boxes, torch.full((1, 3), -100)).tolist() == [[-1] * 6]


def test_what_is_reported_is_of_the_matches_and_all_patches_of_a_thing_count_as_one(monkeypatch):
    answer = torch.tensor([0.4, 0.4, 0.3, 0.3])
    chances = torch.tensor([1.0, -2.0])
    same = chances.expand(1, 6, 2), answer.expand(1, 6, 4)
    monkeypatch.setattr("chinchilla.tasks.detect.predict", lambda model, source: same)
    right = torch.tensor([[[0.35, 0.5, 0.7, 1], [0.85, 0.5, 0.3, 1], [0, 0, 0, 0]]])
    labels = torch.tensor([[0, 1, -100]])
    loss = Detect().loss(finder(), {"source": torch.empty(1), "boxes": right, "labels": labels}, Objective())
    missed = [
        5 * (answer - box).abs().sum() + 2 * (1 - generalised_iou(corners(answer), corners(box)))
        for box in right[0, :2]
    ]
    log_chances = chances.log_softmax(0)
    within = sum(missed) - log_chances[0] - log_chances[1]
    assert float(loss.total - loss.plain) == pytest.approx(float(within), rel=1e-5)
    hit, miss = (-(sign * chances).sigmoid().log() * (1 - (sign * chances).sigmoid()) ** 2 for sign in (1, -1))
    # Each class is right once, and wrong at five patches.
    classes = 2 * (0.25 * hit.sum() + 5 * 0.75 * miss.sum())
    assert float(loss.plain) == pytest.approx(float(classes + sum(missed)), rel=1e-5)


def test_every_weight_learns_and_an_image_without_boxes_does_no_harm():
    model = finder().train()
    batches = SceneBatches(scenes(), CODEC, 6, seed=0)
    batch = batches.batch(np.arange(6))
    loss = Detect().loss(model, batch, Objective())
    loss.total.backward()
    for name, parameter in model.named_parameters():
        if name != "embed.position.table":
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    empty = {"source": batch["source"][:1], "boxes": batch["boxes"][:1], "labels": batch["labels"][:1]}
    assert (empty["labels"] == -100).all()
    assert 0 < float(Detect().loss(model, empty, Objective()).plain) < float(loss.plain)


def test_an_epoch_s_boxes_are_those_of_images_that_are_not_dropped():
    some = scenes()
    batches = SceneBatches(some, CODEC, 4 * sum(map(len, some.boxes)) // len(some), seed=0)
    seen = [int((batches.batch(rows)["labels"] != -100).sum()) for epoch in range(200) for rows in batches.order(epoch)]
    assert len(some) % 4 and batches.unique_tokens == pytest.approx(sum(seen) / 200, rel=0.1)
    assert batches.unique_tokens < 0.9 * sum(map(len, some.boxes))


def test_a_scene_is_learned_by_heart():
    torch.manual_seed(0)
    model = finder(dim=32, num_heads=2, num_kv_heads=2, head_dim=16, ffn_dim=64, num_encoder_layers=2).train()
    few = scenes(3)
    batch = SceneBatches(few, CODEC, 3, seed=0, flips=False).batch(np.arange(3))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        Detect().loss(model, batch, Objective()).total.backward()
        optimizer.step()
    examples = [
        Example(Framed(image, 16, 24), boxes, labels, name)
        for image, boxes, labels, name in zip(few.images, few.boxes, few.labels, few.names, strict=True)
    ]
    score = Detect().score(model.eval(), CODEC, examples)
    assert score.metrics["ap50"] > 0.9
    assert [sample.output for sample in score.samples] == [sample.reference for sample in score.samples]
    answer = Detect().serve(model, CODEC, [Framed(few.images[2], 16, 24)])[0]["boxes"]
    assert {each["label"] for each in answer} == {"cup", "ring"} and all(0 <= v <= 1 for b in answer for v in b["box"])


def test_flips_turn_boxes_with_their_images():
    some = scenes()
    plain, flipped = (SceneBatches(some, CODEC, 6, seed=3, flips=flips).batch(np.arange(6)) for flips in (False, True))
    turned = 0
    for one, other, box, mirrored, label in zip(
        plain["source"], flipped["source"], plain["boxes"], flipped["boxes"], plain["labels"], strict=True
    ):
        if torch.equal(one.flip(-1), other) and not torch.equal(one, other):
            turned += 1
            real = label != -100
            assert torch.allclose(mirrored[real, 0], 1 - box[real, 0]) and torch.equal(mirrored[:, 1:], box[:, 1:])
        else:
            assert torch.equal(one, other) and torch.equal(box, mirrored)
    assert 0 < turned < 6


def test_precision_is_cocos():
    box = np.array([[10, 10, 30, 30]], np.float32)
    example = Example(Framed(np.zeros((1, 1, 3), np.uint8), 64, 64), box, np.array([1]), "a")
    right = Found(box, np.array([1]), np.array([0.9], np.float32))
    # Moved by 2 of 20 pixels: 18 * 20 shared of 22 * 20, an overlap of 0.82, past seven of the ten marks.
    moved = Found(box + np.array([2, 0, 2, 0], np.float32), np.array([1]), np.array([0.9], np.float32))
    assert average_precision([example], [right]) == pytest.approx({"ap": 1.0, "ap50": 1.0, "ap75": 1.0})
    assert average_precision([example], [moved])["ap"] == pytest.approx(0.7)
    nothing = Found(box[:0], np.array([], np.int64), np.array([], np.float32))
    assert average_precision([example], [nothing]) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    with pytest.raises(DataError, match="no box to score on"):
        Detect().score(finder(), CODEC, [example._replace(boxes=box[:0], labels=np.array([], np.int64))])


@pytest.mark.parametrize("pooled", [True, False])
def test_every_patch_and_nothing_else_answers(pooled):
    model = finder(stem=STEM.model_copy(update={"pooled": pooled}), max_len=7)
    source = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        logits, boxes = predict(model, source)
        states = model.encode(source)[:, -6:]
        assert torch.equal(logits, model.logits(states) - 4.6) and torch.equal(boxes, model.box_head(states))
    assert logits.shape == (2, 6, 2)


def test_predictions_do_not_depend_on_the_batch():
    model = finder()
    source = torch.randn(4, 3, 16, 24)
    with torch.no_grad():
        logits, boxes = predict(model, source)
        one, alone = predict(model, source[2:3])
    assert torch.allclose(logits[2:3], one, atol=1e-5) and torch.allclose(boxes[2:3], alone, atol=1e-5)
