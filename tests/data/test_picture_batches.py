"""Batches of images: every image once an epoch, one size, changes that follow from seed, epoch and place."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.run import Images
from chinchilla.data.batches import IGNORED
from chinchilla.data.classes import Classes
from chinchilla.data.letterbox import Size
from chinchilla.data.picture_batches import PictureBatches, Views
from chinchilla.data.picture_classes import PictureClasses, colours_of
from chinchilla.data.pictures import Pictures

CLASSES = ("a", "b", "c")
POSITIONS = 5


def pictures(count, channels=1, seed=0):
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 256, (count, 8, 6, channels), dtype=np.uint8)
    return Pictures(images, draws.integers(0, 3, count), CLASSES, tuple(map(str, range(count))))


def codec_of(given):
    return PictureClasses(Classes(names=CLASSES), Size(*given.images.shape[1:]), colours_of(given))


def make(given, labels=8, seed=0, changes=None, like=None):
    return PictureBatches(Views(given, changes), codec_of(given), POSITIONS, labels, seed, like)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_every_image_once_an_epoch_in_batches_of_one_size(count, labels, seed, epoch):
    batches = make(pictures(count), labels, seed)
    order = batches.order(epoch)
    assert len(order) == batches.num_batches(epoch)
    assert sorted(np.concatenate(order) - epoch * count) == list(range(count))
    sizes = [len(rows) for rows in order]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= labels
    found = [batches.batch(rows) for rows in order]
    assert len({batch["source"].shape for batch in found}) == 1
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in found) == count == batches.unique_tokens
    filled = sum(batch["labels"].shape[0] for batch in found)
    assert batches.padding == pytest.approx(1 - count / filled)


def test_a_batch_holds_normalised_images_and_their_classes():
    given = pictures(20, 3)
    batches = make(given)
    (rows, *_) = batches.order(1)
    batch = batches.batch(rows)
    source = given.images[rows - 20].transpose(0, 3, 1, 2) / 255
    means, deviations = ((given.images / 255).reshape(-1, 3).mean(0), (given.images / 255).reshape(-1, 3).std(0))
    wanted = (source - means[:, None, None]) / deviations[:, None, None]
    assert np.allclose(batch["source"][: len(rows)], wanted, atol=1e-5)
    assert batch["source"].dtype == torch.float32
    assert batch["source"].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"][: len(rows), 0].tolist() == given.labels[rows - 20].tolist()
    assert batch["labels"].shape == (8, POSITIONS) and (batch["labels"][:, 1:] == IGNORED).all()


def test_what_a_batch_lacks_are_empty_images_without_a_label():
    batches = make(pictures(9), 8)
    batch = batches.batch(batches.order(0)[1])
    assert (batch["source"][4:] == 0).all() and (batch["labels"][4:] == IGNORED).all()
    assert (batch["labels"][:4, 0] != IGNORED).all()


def test_other_batches_may_have_the_same_size():
    train, valid = pictures(40), pictures(3, seed=1)
    like = make(train, 16)
    batch = (batches := make(valid, 16, like=like)).batch(batches.order(0)[0])
    assert batch["source"].shape == like.batch(like.order(0)[0])["source"].shape
    assert int((batch["labels"] != IGNORED).sum()) == 3


CHANGES = [
    Images(),
    Images(flip=True, colour=0.3, randaugment=2),
    Images(mix="mixup"),
    Images(mix="cutmix", flip=True),
]


def every_image(batches, epoch):
    """Source and class of each image of an epoch, by its place."""
    found = {}
    for rows in batches.order(epoch):
        batch = batches.batch(rows)
        for place, row in enumerate(rows % batches.unique_tokens):
            found[int(row)] = batch["source"][place], int(batch["labels"][place, 0])
    return found


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_changes_follow_from_seed_epoch_and_place(changes):
    given = pictures(30, 3)
    first, again, other = (every_image(make(given, 8, seed, changes), 2) for seed in (5, 5, 6))
    cut = every_image(make(given, 11, 5, changes), 2)
    later = every_image(make(given, 8, 5, changes), 3)
    assert len(first) == 30
    for place, (source, label) in first.items():
        assert torch.equal(source, again[place][0]) and label == again[place][1] == cut[place][1]
        assert torch.allclose(source, cut[place][0], atol=1e-5)
        assert not torch.allclose(source, other[place][0], atol=1e-3)
        assert not torch.allclose(source, later[place][0], atol=1e-3)


def test_an_epoch_may_begin_anywhere():
    given = pictures(30)
    whole, resumed = (make(given, 8, 1, CHANGES[1]) for _ in range(2))
    order = whole.order(1)
    expected = [whole.batch(rows)["source"] for rows in order][2]
    assert torch.equal(resumed.batch(resumed.order(1)[2])["source"], expected)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_mixed_image_has_either_class_by_its_share(mix):
    """Black images of one class and white ones of another: what is white is the other's share."""
    count = 4000
    labels = np.arange(count) % 2
    images = np.repeat(labels * 255, 48).reshape(count, 8, 6, 1).astype(np.uint8)
    given = Pictures(images, labels, CLASSES, ("",) * count)
    batches = make(given, 500, 0, Images(shift=0, rotate=0, zoom=0, mix=mix))
    white, ones = [], []
    for rows in batches.order(0):
        batch = batches.batch(rows)
        white += (batch["source"].mean((1, 2, 3)) / 2 + 0.5).tolist()  # normalised by 0.5 and 0.5
        ones += batch["labels"][:, 0].tolist()
    shares, chosen = np.array(white), np.array(ones)
    assert Counter(ones).keys() == {0, 1}
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        near = (shares >= low) & (shares < low + 0.2)
        assert chosen[near].mean() == pytest.approx(shares[near].mean(), abs=0.08)
