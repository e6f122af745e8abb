"""Changes to images: moves as scipy makes them, RandAugment's operations, mixtures; each image's by its draws alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from chinchilla.config.run import Images
from chinchilla.data import augment
from chinchilla.data.augment import changed, cutmix, mixup, moved, moves, num_draws, painted, recoloured, to_unit

STILL = Images(shift=0, rotate=0, zoom=0)
RNG = np.random.default_rng(0)


def pictures(count=3, height=12, width=9, channels=3):
    return RNG.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def by(**columns):
    """One image's move, by column."""
    found = np.zeros((1, 6), np.float32)
    for name, value in columns.items():
        found[0, getattr(augment, name.upper())] = value
    return found


def move_one(x, flip=False, **columns):
    return moved(x, by(**columns), np.array([flip]))


def draws_of(images, count, seed=0):
    return np.random.default_rng(seed).random((count, num_draws(images)), dtype=np.float32)


@settings(max_examples=40)
@given(*(st.integers(5, 16),) * 2, *(st.floats(-1, 1),) * 2, *(st.floats(-0.4, 0.4),) * 4, st.booleans())
def test_moves_are_those_of_scipy(height, width, turn, zoom, shift_x, shift_y, shear_x, shear_y, flip):
    zoom = 0.4 * zoom
    x = torch.from_numpy(RNG.random((1, 1, height, width), dtype=np.float32))
    found = move_one(x, flip, turn=turn, zoom=zoom, shift_x=shift_x, shift_y=shift_y, shear_x=shear_x, shear_y=shear_y)
    # From where each pixel comes, about the middle, in pixels.
    cos, sin = math.cos(turn), math.sin(turn)
    map_ = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear_x], [shear_y, 1]]) / (1 + zoom)
    offset = np.array([-shift_x * width, -shift_y * height])
    map_ = map_ @ np.diag([-1 if flip else 1, 1])
    middle = np.array([width - 1, height - 1]) / 2
    offset = (offset + middle - map_ @ middle)[::-1]
    wanted = ndimage.affine_transform(x[0, 0].numpy(), map_[::-1, ::-1], offset, order=1, mode="nearest")
    assert np.allclose(found[0, 0], wanted, atol=2e-3)


def test_whole_pixels_and_quarter_turns_are_exact():
    x = to_unit(pictures(1, 8, 8))
    image = x[0].permute(1, 2, 0).numpy()
    edge = np.pad(image, ((0, 0), (2, 0), (0, 0)), mode="edge")[:, :8]
    assert np.allclose(move_one(x, shift_x=0.25)[0].permute(1, 2, 0), edge, atol=1e-5)
    assert np.allclose(move_one(x, turn=math.pi / 2)[0].permute(1, 2, 0), np.rot90(image), atol=1e-5)
    assert np.allclose(move_one(x, flip=True)[0].permute(1, 2, 0), image[:, ::-1], atol=1e-5)


def test_without_settings_nothing_changes():
    images = pictures()
    assert torch.allclose(changed(images, draws_of(STILL, 3), STILL), to_unit(images), atol=1e-5)


EVERY = Images(flip=True, colour=0.4, randaugment=2)


def test_each_image_is_changed_by_its_own_draws_alone():
    images, draws = pictures(5), draws_of(EVERY, 5)
    together = changed(images, draws, EVERY)
    for row in range(5):
        assert torch.allclose(together[row], changed(images[[row]], draws[[row]], EVERY)[0], atol=1e-6)
    assert not torch.allclose(together, to_unit(images), atol=0.05)
    assert together.min() >= 0 and together.max() <= 1


def test_moves_stay_within_the_settings_and_reach_them():
    found = moves(draws_of(Images(), 4000), Images())
    assert np.allclose(np.abs(found).max(0), [math.radians(10), 0.1, 0.1, 0.1, 0, 0], rtol=0.01)
    assert np.abs(found.mean(0)).max() < 0.01
    more = moves(draws_of(Images(randaugment=1), 4000), Images(randaugment=1))
    # One operation of 14, five of which move.
    assert np.mean((np.abs(more[:, [augment.SHEAR_X, augment.SHEAR_Y]]) > 0).any(1)) == pytest.approx(2 / 14, abs=0.02)
    assert math.radians(30) < np.abs(more[:, augment.TURN]).max() < math.radians(40)


def test_half_of_the_images_are_mirrored_where_that_is_asked():
    images = np.repeat(pictures(1), 400, axis=0)
    same = Images(shift=0, rotate=0, zoom=0, flip=True)
    found = changed(images, draws_of(same, 400), same)
    straight = to_unit(images[:1])
    kept = (found - straight).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (found - straight.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all() and 150 < int(kept.sum()) < 250


def test_colours_change_by_their_shares():
    x = to_unit(pictures())
    brighter = recoloured(x, np.full((3, 3), [[0.2, 0, 0]], np.float32))
    assert torch.allclose(brighter, (x * 1.2).clamp(0, 1))
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(recoloured(grey, np.full((3, 3), [[0, 0, 0.9]], np.float32)), grey, atol=1e-6)
    flat = recoloured(x, np.full((3, 3), [[0, -1, 0]], np.float32))
    assert torch.allclose(flat, x.mean((1, 2, 3), keepdim=True).expand_as(flat), atol=1e-6)
    drained = recoloured(x, np.full((3, 3), [[0, 0, -1]], np.float32))
    assert torch.allclose(drained, x.mean(1, keepdim=True).expand_as(x), atol=1e-6)


def operation(number, level):
    """Draws of one RandAugment operation at a level."""
    draws = np.full((1, num_draws(Images(randaugment=1))), 0.5, np.float32)
    count = len(augment.PAINTS) + len(augment.MOVES)
    draws[0, augment.FIRST :] = (number + 0.5) / count, (level + 1) / 2
    return draws


def test_operations_of_randaugment():
    images = pictures(1)
    identity, contrast, _, solarise, posterise, *_, brightness, _ = (
        painted(images, operation(number, 0.5), 1) for number in range(len(augment.PAINTS))
    )
    assert (identity == images).all()
    assert (solarise == np.where(images < 128, images, 255 - images)).all()
    assert (posterise == images & 0b11111100).all()
    assert np.abs(brightness.astype(int) - np.clip(images * 1.45, 0, 255).astype(int)).max() <= 1
    assert contrast.min() == 0 and contrast.max() == 255
    assert (painted(images, operation(len(augment.PAINTS), 1), 1) == images).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_takes_grey_and_colours(channels):
    images = pictures(1, channels=channels)
    for number in range(len(augment.PAINTS)):
        for level in (-1, 0, 1):
            assert painted(images, operation(number, level), 1).shape == images.shape


def test_mixtures():
    x, other = torch.zeros(50, 1, 10, 20), torch.ones(50, 1, 10, 20)
    draws = draws_of(Images(), 50)
    mixed, share = mixup(x, other, draws)
    assert np.allclose(mixed.mean((1, 2, 3)), share) and (mixed == mixed[:, :, :1, :1]).all()
    cut, share = cutmix(x, other, draws)
    assert np.allclose(cut.mean((1, 2, 3)), share) and set(cut.unique().tolist()) == {0.0, 1.0}
    # A box: the product of the rows and the columns that it touches.
    for image in cut[:, 0]:
        touched = image.amax(1, keepdim=True) * image.amax(0, keepdim=True)
        assert torch.equal(image, touched)
    assert 0.2 < share.mean() < 0.5


def window(width, height, left, top):
    return np.array([[width, height, left, top]], np.float32)


def test_a_crop_takes_the_wholes_place():
    x = to_unit(pictures(1, 16, 12))
    found = moved(x, by(), np.array([False]), window(0.5, 0.25, 0.25, 0.5))[0]
    wanted = torch.nn.functional.interpolate(x[:, :, 8:12, 3:9], size=(16, 12), mode="bilinear")[0]
    # At its edge a crop sees one pixel of what is beyond.
    assert torch.allclose(found[:, 2:-2, 1:-1], wanted[:, 2:-2, 1:-1], atol=1e-5)
    turned = moved(x, by(), np.array([True]), window(0.5, 0.25, 0.25, 0.5))[0]
    assert torch.allclose(turned, found.flip(2), atol=1e-5)
    whole = moved(x, by(shift_x=0.2), np.array([False]), window(1, 1, 0, 0))
    assert torch.allclose(whole, move_one(x, shift_x=0.2), atol=1e-6)


def test_crops_lie_within_the_image_and_keep_what_is_asked():
    found = augment.windows(np.random.default_rng(0).random((5000, 4), dtype=np.float32), 0.3)
    sides, corners = found[:, :2], found[:, 2:]
    assert (sides > 0).all() and (corners >= 0).all() and (corners + sides <= 1 + 1e-6).all()
    area, shape = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert 0.29 < area.min() < 0.32 and 0.97 < area.max() <= 1
    inner = sides.max(1) < 1
    assert np.abs(np.log(shape)).max() <= math.log(4 / 3) + 1e-5 and np.std(np.log(shape[inner])) > 0.1
    assert np.std(corners[area < 0.4], axis=0).min() > 0.1


def test_crops_are_off_unless_asked_for_and_leave_other_draws_as_they_are():
    assert num_draws(Images(crop=0.5, randaugment=2)) == num_draws(Images(randaugment=2)) + 4
    images, cropped = pictures(4), Images(shift=0, rotate=0, zoom=0, crop=0.4)
    draws = draws_of(cropped, 4)
    found = changed(images, draws, cropped)
    assert not torch.allclose(found, to_unit(images), atol=0.05)
    for row in range(4):
        assert torch.allclose(found[row], changed(images[[row]], draws[[row]], cropped)[0], atol=1e-6)
