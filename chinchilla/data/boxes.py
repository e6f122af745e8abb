"""Images with boxes around the things in them, letterboxed to one size."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from chinchilla.data.letterbox import Boxes, Size, letterbox
from chinchilla.data.pictures import default_size
from chinchilla.data.raster import Invalid, Pixels, decode, read_all, read_header
from chinchilla.data.rows import MalformedError

OWN_SIDE = 512
"""Images that are all alike keep their size up to this many pixels a side, where none is asked for."""

DEFAULT_SIDE = 128

log = logging.getLogger("chinchilla")


class Object(NamedTuple):
    """A box as annotated (x0, y0, x1, y1 in pixels), the name of its class, and how to call it in a message."""

    box: tuple[float, float, float, float]
    kind: str
    mark: str


class Annotated(NamedTuple):
    """An image file and the objects in it; `shape` is the height and width it was annotated at, where that is known.

    A `problem` makes the image malformed.
    """

    path: Path
    name: str
    shape: tuple[int, int] | None
    objects: tuple[Object, ...]
    group: str = ""
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with boxes: images uint8 (count, height, width, channels), letterboxed; sizes int64 (count, 2).

    `boxes[i]` is float32 (n, 4): x0, y0, x1, y1 in pixels of the original image, whose height and width are
    `sizes[i]` (`letterbox.into_frame` puts them in the frame); `labels[i]` is int64 (n,), an index into `classes`.
    n may be 0. What shares a `groups[i]` other than "" is split as one.
    """

    images: Pixels
    sizes: NDArray[np.int64]
    boxes: tuple[Boxes, ...]
    labels: tuple[NDArray[np.int64], ...]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> Size:
        """Height, width and channels of every letterboxed image."""
        return Size(*self.images.shape[1:])

    def take(self, rows: NDArray[np.bool_]) -> Self:
        """The images of the chosen rows, copied."""
        chosen = np.flatnonzero(rows)
        return replace(
            self,
            images=self.images[rows],
            sizes=self.sizes[rows],
            boxes=tuple(self.boxes[row] for row in chosen),
            labels=tuple(self.labels[row] for row in chosen),
            names=tuple(self.names[row] for row in chosen),
            groups=tuple(self.groups[row] for row in chosen),
        )


class _Sound(NamedTuple):
    """What is known of a good image before it is decoded."""

    size: Size
    upright: bool
    boxes: Boxes
    labels: NDArray[np.int64]
    clipped: int


def read_scenes(
    annotated: Sequence[Annotated],
    classes: tuple[str, ...],
    place: object,
    size: Size | None = None,
    invalid: Invalid = "refuse",
) -> Scenes:
    """Decode annotated images, letterboxed to one size, and clip their boxes at their edges.

    Raises:
        DataError: a malformed image or box (under "skip": in more than a tenth of the images), or more than memory
            holds.
    """
    index = {name: number for number, name in enumerate(classes)}
    images, rows, sound = read_all(
        [each.path for each in annotated],
        lambda row: _inspect(annotated[row], index),
        lambda found: size or default_size([each.size for each in found], OWN_SIDE, DEFAULT_SIDE),
        lambda row, each, chosen: decode(annotated[row].path, chosen, letterbox, each.upright),
        place,
        invalid,
    )
    clipped = sum(each.clipped for each in sound)
    if clipped:
        log.info("%s: clipped %d boxes that reached more than a pixel beyond their images", place, clipped)
    return Scenes(
        images,
        np.array([each.size[:2] for each in sound], dtype=np.int64),
        tuple(each.boxes for each in sound),
        tuple(each.labels for each in sound),
        classes,
        tuple(annotated[row].name for row in rows),
        tuple(annotated[row].group for row in rows),
    )


def _inspect(annotated: Annotated, index: dict[str, int]) -> _Sound:
    if annotated.problem:
        raise MalformedError(annotated.problem)
    header = read_header(annotated.path)
    size, upright = header.size, True
    if annotated.shape not in (None, size[:2]):
        # Some tools annotate a photograph as the file holds it, not as its EXIF data says to show it.
        if not header.turned or annotated.shape != (size.width, size.height):
            raise MalformedError(
                f"{size.width} x {size.height} pixels, and annotated as {annotated.shape[1]} x {annotated.shape[0]}; "
                "give the image that was annotated"
            )
        size, upright = Size(size.width, size.height, size.channels), False
    boxes = np.array([each.box for each in annotated.objects], dtype=np.float64).reshape(-1, 4)
    clipped = clip(boxes, size.height, size.width, annotated.objects)
    reach = np.abs(clipped - boxes).max(axis=1, initial=0)
    labels = np.array([_label(each, index) for each in annotated.objects], dtype=np.int64)
    return _Sound(size, upright, clipped, labels, int((reach > 1).sum()))


def _label(thing: Object, index: dict[str, int]) -> int:
    if thing.kind not in index:
        raise MalformedError(f"{thing.mark}: {thing.kind!r} is not among the classes: {', '.join(index)}")
    return index[thing.kind]


def clip(boxes: NDArray[np.float64], height: int, width: int, objects: Sequence[Object]) -> Boxes:
    """Boxes (n, 4) cut at the edges of an image of `height` x `width`.

    Raises:
        MalformedError: a box that is not finite, has no area, or lies outside; with the mark of its object.
    """
    inside = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    finite = np.all(np.isfinite(boxes), axis=1)
    area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    seen = np.all(inside[:, 2:] > inside[:, :2], axis=1)
    wrong = np.flatnonzero(~(finite & area & seen))
    if len(wrong):
        row = int(wrong[0])
        what = "is not of numbers" if not finite[row] else "has no area" if not area[row] else "lies outside"
        shown = ", ".join(f"{number:g}" for number in boxes[row])
        raise MalformedError(
            f"{objects[row].mark}: its box ({shown} as x0, y0, x1, y1) {what}, and the image has {width} x {height} "
            "pixels; mend it, or take it away"
        )
    return inside
