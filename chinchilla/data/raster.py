"""Image files as 8-bit numbers of one size, whatever they hold; what can't be read is named."""

import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from chinchilla.config.errors import DataError
from chinchilla.data.headroom import check_fits
from chinchilla.data.letterbox import Placement, Size, stretch
from chinchilla.data.rows import MalformedError
from chinchilla.data.split import MAX_SKIPPED, NAMED_SKIPS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow reads more, but starts other programs for some of them."""

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))

MAX_PIXELS = 80_000_000
"""A small file can claim to be a huge image; the largest cameras stay below this."""

PADDING = 114
"""The grey around a letterboxed image, as YOLOv5 and YOLOX pad."""

_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error)
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by EXIF's orientation."""

_ON_THE_SIDE = (5, 6, 7, 8)
_THREADS = min(8, os.cpu_count() or 1)

Invalid = Literal["refuse", "skip"]
Pixels = NDArray[np.uint8]
Place = Callable[[int, int, Size], Placement]
Item = TypeVar("Item")
Made = TypeVar("Made")

log = logging.getLogger("chinchilla")


class Header(NamedTuple):
    """What an image file says of itself: its size as it is to be shown, and whether it lies on its side in the file."""

    size: Size
    turned: bool


def read_header(source: Path | bytes) -> Header:
    """Size and orientation, without decoding.

    Raises:
        MalformedError: no such file, not an image of `FORMATS`, more than `MAX_PIXELS`, or damaged.
    """
    with _opened(source) as image:
        height, width = _shape(image, upright=True)
        return Header(Size(height, width, 1 if image.mode in _GREY else 3), (height, width) != _shape(image, False))


def decode(source: Path | bytes, size: Size, place: Place = stretch, upright: bool = True) -> Pixels:
    """An image file (or its bytes) as (height, width, channels): bilinear with antialiasing, the rest `PADDING`.

    Transparency is laid on white, 16 bits become 8, CMYK and palettes become RGB, of several frames the first is
    taken. `upright` turns it as its EXIF data says.

    Raises:
        MalformedError: see `read_header`; or a file that breaks off.
    """
    with _opened(source) as image:
        height, width = _shape(image, upright)
        where = place(height, width, size)
        side = 2 * max(where.height, where.width)
        image.draft(None, (side, side))  # a JPEG decodes at 1/2, 1/4 or 1/8, and faster
        image.load()
        plain = _plain(image)
        turn = _TURNS.get(_orientation(image) or 1) if upright else None
        return _framed(plain.transpose(turn) if turn is not None else plain, where, size)


def resize(pixels: Pixels, size: Size) -> Pixels:
    """An image (height, width, channels) stretched to `size`."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _framed(image, stretch(image.height, image.width, size), size)


def read_all(
    names: Sequence[object],
    inspect: Callable[[int], Made],
    choose: Callable[[Sequence[Made]], Size],
    pixels: Callable[[int, Made, Size], Pixels],
    place: object,
    invalid: Invalid,
) -> tuple[Pixels, list[int], list[Made]]:
    """Inspect every image, choose a size, decode all: the images, their rows, and what `inspect` made of them.

    Raises:
        DataError: a malformed image (under "skip": more than a tenth), or more than memory holds.
    """
    inspected = _attempt(inspect, range(len(names)), names, invalid)
    rows = [row for row, made in enumerate(inspected) if not isinstance(made, DataError)]
    failures = [made for made in inspected if isinstance(made, DataError)]
    _refuse_many(failures, len(names), place)
    made = [each for each in inspected if not isinstance(each, DataError)]
    size = choose(made)
    check_fits(len(rows), size, place)
    images = np.empty((len(rows), *size), dtype=np.uint8)

    def fill(slot: int) -> None:
        images[slot] = pixels(rows[slot], made[slot], size)

    filled = _attempt(fill, range(len(rows)), [names[row] for row in rows], invalid)
    failures += [done for done in filled if isinstance(done, DataError)]
    _refuse_many(failures, len(names), place)
    _name(failures, len(names), place)
    kept = [slot for slot, done in enumerate(filled) if not isinstance(done, DataError)]
    if len(kept) == len(rows):
        return images, rows, made
    return images[kept], [rows[slot] for slot in kept], [made[slot] for slot in kept]


def _attempt(
    work: Callable[[Item], Made], items: Sequence[Item], names: Sequence[object], invalid: Invalid
) -> list[Made | DataError]:
    """What `work` makes of each item, in threads; under "skip" a malformed one gives its error instead.

    Raises:
        DataError: under "refuse", the first malformed item.
    """

    def one(item: Item, name: object) -> Made | DataError:
        try:
            return work(item)
        except MalformedError as problem:
            error = DataError(f"{name}: {problem}")
            if invalid == "refuse":
                raise error from None
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(one, items, names))


def _refuse_many(failures: Sequence[DataError], count: int, place: object) -> None:
    if failures and (len(failures) > MAX_SKIPPED * count or len(failures) == count):
        raise DataError(
            f"{place}: {len(failures)} of {count} images are malformed, more than a tenth, which is no slip; mend or "
            f"fetch them anew; the first: {failures[0]}"
        )


def _name(failures: Sequence[DataError], count: int, place: object) -> None:
    for error in failures[:NAMED_SKIPS]:
        log.warning("leaving out a malformed image: %s", error)
    if failures:
        log.warning("%s: left out %d malformed images of %d", place, len(failures), count)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MalformedError(_too_large(f"{image.width} x {image.height} pixels"))
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise MalformedError("holds 32-bit numbers, whose white nobody knows; convert it to 8 or 16 bits")
            yield image
    except FileNotFoundError:
        raise MalformedError("no such file; put it there, or take it off the list") from None
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise MalformedError(f"not an image of a kind that is read ({kinds}); convert it, or take it away") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MalformedError(_too_large("huge")) from None
    except _DAMAGED as error:
        raise MalformedError(f"a damaged image ({error}); fetch it anew, or take it away") from None


def _orientation(image: Image.Image) -> int | None:
    # Not PNG's own getexif, which decodes the whole image in case EXIF data follows it.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation)


def _shape(image: Image.Image, upright: bool) -> tuple[int, int]:
    """Height and width, as the file holds them or as it is to be shown."""
    if upright and _orientation(image) in _ON_THE_SIDE:
        return image.width, image.height
    return image.height, image.width


def _too_large(what: str) -> str:
    return f"{what}, more than the {MAX_PIXELS // 10**6} million that are decoded; scale it down before"


def _plain(image: Image.Image) -> Image.Image:
    """The same image in 8 bits, grey or RGB, on white where it was transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        white.alpha_composite(coloured)
        return white.convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _framed(image: Image.Image, where: Placement, size: Size) -> Pixels:
    image = image.convert("L" if size.channels == 1 else "RGB")
    if image.size != (where.width, where.height):
        image = image.resize((where.width, where.height), Image.Resampling.BILINEAR)
    frame = np.full(size, PADDING, dtype=np.uint8)
    inner = frame[where.top : where.top + where.height, where.left : where.left + where.width]
    inner[:] = np.asarray(image).reshape(inner.shape)
    return frame
