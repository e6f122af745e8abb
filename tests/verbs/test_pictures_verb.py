"""Images from a recipe to batches and the planner's facts: sizes, patches, classes; and that real digits are learnt."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from chinchilla.config.errors import DataError
from chinchilla.config.plan import Training
from chinchilla.config.run import Model, Run
from chinchilla.config.shape import ImageStem
from chinchilla.data.letterbox import Size
from chinchilla.models.transformer import Transformer
from chinchilla.planning import search
from chinchilla.store.run_folder import RunFolder
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Objective
from chinchilla.training.monitor import Silent
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.decisions import _patches
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.prepare import prepare


def write(folder, classes, count, size=(8, 8, 3), seed=0):
    draws = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 256, size, dtype=np.uint8).squeeze()
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def run_of(folder, **changes):
    return Run.model_validate({"task": "classify_image", "data": {"train": folder}, "budget": {"time": 60}} | changes)


def training(batch, **changes):
    rest = dict.fromkeys(Training.model_fields, 0) | {"class_weights": ()}
    kinds = {"optimizer": "muon", "schedule": "wsd", "precision": "fp32", "compile": False, "accumulation": 1}
    return Training(**rest | kinds | {"batch_tokens": batch, "seed": 0} | changes)


def test_facts_and_batches(tmp_path):
    prepared = prepare(run_of(write(tmp_path, ["cat", "dog", "owl"], 40)))
    facts = prepared.facts
    assert isinstance(prepared.task, Classify) and prepared.task.name == "classify_image"
    assert facts.stem == ImageStem(height=8, width=8, channels=3, patch=2, pooled=True)
    assert (facts.num_classes, facts.vocab_size, facts.labels_per_row) == (3, 3, 1)
    assert facts.mean_source_len == facts.max_len == prepared.row_len == 16
    assert facts.unique_tokens == facts.num_examples == len(prepared.train.pictures)
    assert facts.bytes_per_token == 8 * 8 * 3
    train, valid = prepared.batches(training(16)), prepared.valid_batches(training(16))
    shapes = [{name: each.shape for name, each in b.batch(b.order(0)[0]).items()} for b in (train, valid)]
    assert shapes[0] == shapes[1] == {"source": (16, 3, 8, 8), "labels": (16, 16)}
    image, label, name = prepared.test[0]
    assert image.shape == (8, 8, 3) and name.startswith(f"{label}/")
    # The shape that the planner builds for these facts takes these batches.
    shape, batch = search.build(facts, prepared.run.model, 32, 1, 0), train.batch(train.order(0)[0])
    assert Transformer(shape).encode(batch["source"]).shape == (16, 16, 32)
    # So does a run of before, with a class token among its positions, that goes on.
    before = shape.model_copy(update={"stem": facts.stem.model_copy(update={"pooled": False}), "max_len": 17})
    model = Transformer(before)
    with torch.no_grad():
        logits = model.logits(model.encode(batch["source"])[:, 0])
        plain = prepared.task.loss(model, batch, Objective()).plain
    expected = F.cross_entropy(logits, batch["labels"][:, 0], reduction="sum")
    assert float(plain) == pytest.approx(float(expected), rel=1e-5)


def test_validation_looks_at_images_as_they_are(tmp_path):
    prepared = prepare(run_of(write(tmp_path, ["cat", "dog"], 40)))
    valid = prepared.valid_batches(training(16))
    first = valid.batch(valid.order(0)[0])["source"]
    pictures = prepared.valid.pictures
    asked = next(prepared.codec.batches(list(pictures.images[valid.order(0)[0]])))[1]["source"]
    assert torch.allclose(first[: len(asked)], asked, atol=1e-6)
    train = prepared.batches(training(16))
    seen = [train.batch(train.order(epoch)[0])["source"] for epoch in (0, len(prepared.train.pictures))]
    assert not torch.allclose(*seen)


@pytest.mark.parametrize(
    ("size", "images", "wanted"),
    [
        ((28, 28, 1), {}, (28, 28, 1, 4)),
        ((30, 20, 3), {}, (32, 20, 3, 4)),
        ((64, 64, 3), {}, (64, 64, 3, 8)),
        ((200, 120, 3), {}, (208, 128, 3, 16)),
        ((28, 28, 1), {"patch": 8}, (32, 32, 1, 8)),
        ((28, 28, 1), {"size": 20}, (20, 20, 1, 2)),
        ((30, 20, 3), {"size": [12, 16]}, (12, 16, 3, 2)),
        ((30, 20, 3), {"size": [48, 50], "patch": 16}, (48, 64, 3, 16)),
    ],
)
def test_images_are_brought_to_whole_patches(tmp_path, size, images, wanted):
    prepared = prepare(run_of(write(tmp_path, ["a", "b"], 24, size), images=images))
    *shape, patch = wanted
    assert prepared.codec.size == Size(*shape)
    assert (prepared.facts.stem.height, prepared.facts.stem.width, prepared.facts.stem.patch) == (*wanted[:2], patch)
    assert prepared.test[0][0].shape == tuple(shape)


def test_classes_that_are_numbers_go_by_size(tmp_path):
    prepared = prepare(run_of(write(tmp_path, ["1", "2", "10"], 30)))
    assert prepared.codec.classes.names == ("1", "2", "10")
    pictures = prepared.train.pictures
    for label, name in zip(pictures.labels, pictures.names, strict=True):
        assert prepared.codec.classes.names[label] == name.partition("/")[0]


def test_two_classes_have_one_that_scores_are_for(tmp_path):
    folder = write(tmp_path, ["common"], 60)
    write(tmp_path, ["rare"], 30, seed=1)
    assert prepare(run_of(folder)).codec.classes.positive == "rare"
    data = {"train": folder, "positive": "common"}
    prepared = prepare(run_of(folder, data=data))
    assert prepared.codec.classes.positive == "common"
    # The shape's special tokens have their places even so: a model folder is refused without.
    assert prepared.facts.vocab_size == 3


def test_a_class_of_a_single_image_is_refused(tmp_path):
    folder = write(tmp_path, ["a", "b"], 40)
    write(tmp_path, ["lonely"], 1, seed=1)
    with pytest.raises(DataError, match="'lonely'"):
        prepare(run_of(folder))


def test_a_class_of_three_images_has_one_in_each_part(tmp_path):
    folder = write(tmp_path, ["a", "b"], 40)
    write(tmp_path, ["rare"], 3, seed=1)
    prepared = prepare(run_of(folder, evaluate={"max_examples": 9}))
    assert prepared.codec.classes.names == ("a", "b", "rare")
    # The folder is sorted by class: the first nine would be of one.
    assert {example[1] for example in prepared.test} >= {"a", "b"}


@pytest.mark.parametrize(("images", "dropout"), [(190_000, 0.0), (31_000, 0.1)])
def test_dropout_waits_for_images_seen_often_whatever_their_patches(tmp_path, small_machine, images, dropout):
    run = run_of(write(tmp_path, ["a", "b"], 24), budget={"flops": 1e13})
    prepared = prepare(run)
    facts = prepared.facts.model_copy(update={"unique_tokens": images})
    # By the rule of thumb 217,000 parameters, which see 480,000 images of 16 positions.
    assert facts.sparsity == 16
    training = draft_training(run, small_machine, replace(prepared, facts=facts), 60.0)
    assert training.dropout == dropout
    # Positions and heads are not Muon's, and learn at a lower rate; who asks for half, has half of both.
    assert (training.optimizer, training.learning_rate, training.embedding_learning_rate) == ("muon", 5e-3, 1e-3)
    asked = run.model_copy(update={"train": run.train.model_copy(update={"learning_rate": 2.5e-3})})
    assert draft_training(asked, small_machine, prepared, 60.0).embedding_learning_rate == 5e-4


@pytest.mark.parametrize(("side", "patch"), [(64, 8), (128, 8), (160, 8), (168, 16), (400, 16)])
def test_boxes_are_looked_for_in_the_smallest_patches_that_are_few(tmp_path, side, patch):
    folder = tmp_path / "images"
    folder.mkdir()
    things = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "spot"}]}
    for number in range(30):
        name = f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        things["images"].append({"id": number, "file_name": name, "width": side, "height": side})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
        things["annotations"].append(box)
    (tmp_path / "boxes.json").write_text(json.dumps(things))
    run = run_of(folder, task="detect", data={"train": [tmp_path / "boxes.json", folder]})
    stem = prepare(run).facts.stem
    assert stem == ImageStem(
        height=-(-side // patch) * patch, width=-(-side // patch) * patch, patch=patch, pooled=True
    )
    asked = run_of(folder, task="detect", data={"train": [tmp_path / "boxes.json", folder]}, images={"patch": 4})
    assert prepare(asked).facts.stem.patch == 4


def test_the_plan_says_what_an_image_is_cut_into(tmp_path):
    facts = prepare(run_of(write(tmp_path, ["a", "b"], 24))).facts
    ((name, value, _, why),) = _patches(search.build(facts, Model(), 32, 1, 0))
    assert (name, value) == ("patches", "16 of 2 x 2 pixels") and "gelu" in why and "by images" in why
    texts = facts.model_copy(update={"task": "classify_text", "stem": None})
    assert _patches(search.build(texts, Model(), 32, 1, 0)) == []


def test_real_digits_are_learnt(tmp_path):
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(tmp_path / str(label) / f"{number}.png")
    prepared = prepare(run_of(tmp_path))
    settings = training(64, steps=150, learning_rate=5e-3, embedding_learning_rate=5e-3, warmup_steps=10,
                        decay_fraction=0.4, label_smoothing=0.1, threads=1, clip_norm=1.0, eval_every=10**9,
                        checkpoint_every=10**9, log_every=10**9)  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(
        model=Transformer(search.build(prepared.facts, prepared.run.model, 64, 2, 0)),
        task=prepared.task,
        training=settings,
        batches=prepared.batches(settings),
        valid=prepared.valid_batches(settings),
        folder=RunFolder(tmp_path / "run"),
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
    )
    for _ in trainer.steps():
        pass
    score = prepared.task.score(trainer.model.eval(), prepared.codec, prepared.test)
    assert score.metrics["accuracy"] > 0.85
    assert sum(map(sum, score.details["confusion"]["counts"])) == len(prepared.test)
