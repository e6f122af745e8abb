"""Random changes to training images: cropped, moved, turned, scaled, mirrored, recoloured, mixed; RandAugment.

Every change follows from numbers given with the images, so that whoever keeps those can repeat it. (kornia's draw from
torch's global generator, and take 2.5 to 3.6 times as long on a CPU.) Whatever moves an image becomes one affine map
and one resampling; beyond the edges its outermost pixels go on, be they black, white or sky.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from chinchilla.config.run import Images
from chinchilla.data.raster import Pixels

Floats = NDArray[np.float32]

TURN, ZOOM, SHIFT_X, SHIFT_Y, SHEAR_X, SHEAR_Y = range(6)
"""Columns of what moves an image: radians, a share of its size, shares of its sides, slopes."""

FLIP, BRIGHTNESS, CONTRAST, SATURATION, PARTNER, SHARE, LABEL, CUT_X, CUT_Y, FIRST = range(4, 14)
"""Columns of an image's draws; before them are four for turn, zoom and shift, from `FIRST` on RandAugment's (Cubuk
2019) and then, where images are cropped, four of the crop."""

CROP = 4
"""Draws of a crop: share of the area, shape, and where it lies."""

LONGEST = 4 / 3
"""Most that one side's share exceeds the other's in a crop, as is usual (Szegedy 2015, arXiv 1409.4842)."""

MOVES = ((TURN, math.radians(30)), (SHEAR_X, 0.3), (SHEAR_Y, 0.3), (SHIFT_X, 0.33), (SHIFT_Y, 0.33))
"""What RandAugment moves by, at most."""

PAINTS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, level: image,
    lambda image, level: ImageOps.autocontrast(image),
    lambda image, level: ImageOps.equalize(image),
    lambda image, level: ImageOps.solarize(image, round(256 * (1 - abs(level)))),
    lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
)
"""RandAugment's other operations, at a level from -1 to 1."""


def num_draws(images: Images) -> int:
    """Numbers in [0, 1) that an image's changes follow from."""
    return FIRST + 2 * images.randaugment + (CROP if images.crop < 1 else 0)


def changed(pixels: Pixels, draws: Floats, images: Images) -> Tensor:
    """Images uint8 (batch, height, width, channels) → (batch, channels, height, width) in [0, 1].

    `draws` (batch, `num_draws`) say how each is changed. RandAugment takes its operations at levels drawn evenly (its
    authors found no difference), and moves after it paints.
    """
    x = to_unit(painted(pixels, draws, images.randaugment))
    if images.colour:
        x = recoloured(x, images.colour * (2 * draws[:, [BRIGHTNESS, CONTRAST, SATURATION]] - 1))
    window = windows(draws[:, -CROP:], images.crop) if images.crop < 1 else None
    return moved(x, moves(draws, images), draws[:, FLIP] < (0.5 if images.flip else 0), window)


def to_unit(pixels: Pixels) -> Tensor:
    """Images uint8 (batch, height, width, channels) → (batch, channels, height, width) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def moves(draws: Floats, images: Images) -> Floats:
    """How each image is to be moved (batch, 6), by column."""
    found = np.zeros((len(draws), 6), np.float32)
    most = np.array([math.radians(images.rotate), images.zoom, images.shift, images.shift], np.float32)
    found[:, :4] = most * (2 * draws[:, :4] - 1)
    for choice, level in _chosen(draws, images.randaugment):
        for number, (column, largest) in enumerate(MOVES, start=len(PAINTS)):
            found[:, column] += np.where(choice == number, largest * level, 0)
    return found


def windows(draws: Floats, least: float) -> Floats:
    """Crops of at least a share of the area, by four draws each: shares of width and height, and of left and top."""
    area = least + (1 - least) * draws[:, 0]
    shape = LONGEST ** (2 * draws[:, 1] - 1)
    sides = np.minimum(np.sqrt(area[:, None] * np.stack([shape, 1 / shape], 1)), 1)
    return np.concatenate([sides, (1 - sides) * draws[:, 2:]], 1).astype(np.float32)


def moved(x: Tensor, by: Floats, flip: NDArray[np.bool_], window: Floats | None = None) -> Tensor:
    """Images (batch, channels, height, width) resampled after turn, shear, zoom, shift and then `flip` (batch,).

    With a `window` (batch, 4), as `windows` gives it, that part of each image takes the whole's place first.
    """
    height, width = x.shape[2:]
    cos, sin = np.cos(by[:, TURN]), np.sin(by[:, TURN])
    shear_x, shear_y = by[:, SHEAR_X], by[:, SHEAR_Y]
    # From where in the image each pixel comes, in halves of its sides: turns are of pixels, so sides enter.
    map_ = np.zeros((len(x), 2, 3), np.float32)
    map_[:, 0, 0], map_[:, 0, 1] = cos - sin * shear_y, (cos * shear_x - sin) * height / width
    map_[:, 1, 0], map_[:, 1, 1] = (sin + cos * shear_y) * width / height, sin * shear_x + cos
    map_ /= 1 + by[:, ZOOM, None, None]
    map_[:, 0, 2], map_[:, 1, 2] = -2 * by[:, SHIFT_X], -2 * by[:, SHIFT_Y]
    map_[flip, :, 0] *= -1
    if window is not None:
        sides, corners = window[:, :2], window[:, 2:]
        map_ *= sides[:, :, None]
        map_[:, :, 2] += 2 * corners + sides - 1
    grid = F.affine_grid(torch.from_numpy(map_), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recoloured(x: Tensor, by: Floats) -> Tensor:
    """Images in [0, 1] with brightness, contrast and saturation changed by shares (batch, 3)."""
    brightness, contrast, saturation = (torch.from_numpy(column)[:, None, None, None] for column in 1 + by.T)
    x = x * brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * saturation
    middle = x.mean((1, 2, 3), keepdim=True)
    return (middle + (x - middle) * contrast).clamp_(0, 1)


def painted(pixels: Pixels, draws: Floats, operations: int) -> Pixels:
    """RandAugment's operations that move nothing."""
    result = pixels.copy() if operations else pixels
    for choice, level in _chosen(draws, operations):
        for row in np.flatnonzero(choice < len(PAINTS)):
            image = Image.fromarray(result[row].squeeze(-1) if result.shape[3] == 1 else result[row])
            result[row] = np.asarray(PAINTS[choice[row]](image, float(level[row]))).reshape(result[row].shape)
    return result


def mixup(x: Tensor, other: Tensor, draws: Floats) -> tuple[Tensor, Floats]:
    """Images blended with others (Zhang 2018), and the others' share (batch,), drawn evenly."""
    share = draws[:, SHARE]
    return torch.lerp(x, other, torch.from_numpy(share)[:, None, None, None]), share


def cutmix(x: Tensor, other: Tensor, draws: Floats) -> tuple[Tensor, Floats]:
    """Images with a box out of others (Yun 2019), and the others' share (batch,) of the pixels."""
    inside = []
    for middle, length in ((draws[:, CUT_Y], x.shape[2]), (draws[:, CUT_X], x.shape[3])):
        half = length * np.sqrt(draws[:, SHARE]) / 2
        centre = length * middle
        place = np.arange(length) + 0.5
        inside.append(np.abs(place - centre[:, None]) < half[:, None])
    box = inside[0][:, :, None] & inside[1][:, None, :]
    share = box.mean((1, 2), dtype=np.float32)
    return torch.where(torch.from_numpy(box)[:, None], other, x), share


def _chosen(draws: Floats, operations: int) -> list[tuple[NDArray[np.int64], Floats]]:
    """Of each of RandAugment's turns: the operation's number and its level (batch,), from -1 to 1."""
    pairs = draws[:, FIRST : FIRST + 2 * operations].reshape(len(draws), operations, 2)
    count = len(PAINTS) + len(MOVES)
    return [((pairs[:, turn, 0] * count).astype(np.int64), 2 * pairs[:, turn, 1] - 1) for turn in range(operations)]
