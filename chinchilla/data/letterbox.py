"""Where an image lies in a frame of another shape, and its boxes with it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


class Size(NamedTuple):
    """What every image is brought to; `channels` is 1 (grey) or 3 (red, green, blue)."""

    height: int
    width: int
    channels: int


class Placement(NamedTuple):
    """The part of a frame that an image is scaled to fill, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def stretch(height: int, width: int, size: Size) -> Placement:
    """The whole frame, whatever the shape of the image: nothing is cut off, nothing padded."""
    return Placement(0, 0, size.height, size.width)


def letterbox(height: int, width: int, size: Size) -> Placement:
    """As large as the frame allows in the image's own shape, and in its middle."""
    scale = min(size.height / height, size.width / width)
    inner_height = min(size.height, max(1, round(height * scale)))
    inner_width = min(size.width, max(1, round(width * scale)))
    return Placement((size.height - inner_height) // 2, (size.width - inner_width) // 2, inner_height, inner_width)


def into_frame(boxes: Boxes, height: int, width: int, size: Size) -> Boxes:
    """Boxes (n, 4) as x0, y0, x1, y1 in pixels of an image of `height` x `width`, as pixels of its frame."""
    place = letterbox(height, width, size)
    return (boxes * _scale(place, height, width) + _shift(place)).astype(np.float32)


def out_of_frame(boxes: Boxes, height: int, width: int, size: Size) -> Boxes:
    """The inverse of `into_frame`, cut at the image's edges."""
    place = letterbox(height, width, size)
    found = (boxes - _shift(place)) / _scale(place, height, width)
    return np.clip(found, 0, [width, height, width, height]).astype(np.float32)


def _scale(place: Placement, height: int, width: int) -> NDArray[np.float64]:
    # By side, since each was rounded to whole pixels by itself.
    return np.array([place.width / width, place.height / height] * 2)


def _shift(place: Placement) -> NDArray[np.float64]:
    return np.array([place.left, place.top] * 2, dtype=np.float64)
