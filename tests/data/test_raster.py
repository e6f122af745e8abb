"""Image files of every kind become the same 8-bit numbers, or are refused for what is wrong with them."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from chinchilla.config.errors import DataError
from chinchilla.data.headroom import check_fits, free_bytes
from chinchilla.data.letterbox import Size, letterbox
from chinchilla.data.raster import MAX_PIXELS, PADDING, decode, read_header, resize
from chinchilla.data.rows import MalformedError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]], [[9, 99, 199], [0, 0, 0]]], np.uint8)
SIZE = Size(3, 2, 3)


def written(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_give_their_pixels(kind, tmp_path):
    data = written(Image.fromarray(COLOURS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (decode(data, SIZE) == COLOURS).all()
    (tmp_path / "a").write_bytes(data)
    assert (decode(tmp_path / "a", SIZE) == COLOURS).all()
    assert read_header(data).size == SIZE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    # As a camera held that way writes it: the stored image, turned as the tag says, is the upright one.
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: COLOURS.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert (decode(data, SIZE) == COLOURS).all()
    assert read_header(data) == (SIZE, orientation >= 5)
    assert (decode(data, Size(*stored.shape), upright=False) == stored).all()


def test_transparency_is_laid_on_white():
    half = np.dstack([COLOURS, np.full((3, 2), 128, np.uint8)])
    half[0, 0, 3] = 0
    expected = np.rint(half[..., 3:] / 255 * COLOURS + (1 - half[..., 3:] / 255) * 255)
    assert np.abs(decode(written(Image.fromarray(half), "PNG"), SIZE) - expected).max() <= 1
    palette = Image.fromarray(COLOURS).quantize(8)
    data = written(palette, "PNG", transparency=palette.getpixel((0, 0)))
    found = decode(data, SIZE)
    assert (found[0, 0] == 255).all() and (found[0, 1] == COLOURS[0, 1]).all()
    grey = written(Image.merge("LA", [Image.new("L", (2, 3), 0), Image.new("L", (2, 3), 0)]), "PNG")
    assert read_header(grey).size == Size(3, 2, 1)
    assert (decode(grey, Size(3, 2, 1)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight(kind):
    values = np.array([[0, 128, 129], [257 * 77, 65534, 65535]], np.uint16)
    data = written(Image.fromarray(values), kind)
    assert read_header(data).size == Size(2, 3, 1)
    assert decode(data, Size(2, 3, 1))[..., 0].tolist() == [[0, 0, 1], [77, 255, 255]]


def test_grey_colour_and_print_colours():
    grey = np.arange(6, dtype=np.uint8).reshape(3, 2) * 40
    data = written(Image.fromarray(grey), "PNG")
    assert (decode(data, SIZE) == grey[..., None]).all()
    assert decode(written(Image.fromarray(COLOURS), "PNG"), Size(3, 2, 1))[0, 0, 0] == 76  # 0.299 of red
    black = written(Image.new("1", (8, 8), 1), "PNG")
    assert (decode(black, Size(8, 8, 1)) == 255).all()
    ink = written(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert (decode(ink, Size(8, 8, 3)) == [255, 0, 0]).all()


def test_a_letterboxed_image_keeps_its_shape_and_is_padded():
    image = written(Image.new("RGB", (40, 20), (1, 2, 3)), "PNG")
    found = decode(image, Size(32, 32, 3), letterbox)
    assert (found[8:24] == [1, 2, 3]).all()
    assert (found[:8] == PADDING).all() and (found[24:] == PADDING).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    ramp = np.broadcast_to(np.linspace(0, 255, 1600).astype(np.uint8)[None, :, None], (1203, 1600, 3))
    data = written(Image.fromarray(np.ascontiguousarray(ramp)), "JPEG", quality=95)
    found = decode(data, Size(30, 40, 3)).astype(int)
    assert np.abs(found - resize(np.ascontiguousarray(ramp), Size(30, 40, 3))).max() <= 2


def png_of(width: int, height: int) -> bytes:
    """The start of a PNG file that claims to be so large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


@pytest.mark.parametrize("side", [MAX_PIXELS // 9000 + 1, 10_000, 60_000])
def test_a_decompression_bomb_is_refused(side):
    # The middle one is what Pillow only warns of.
    with pytest.raises(MalformedError, match="more than the 80 million that are decoded"):
        read_header(png_of(9000, side))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"
GOOD = written(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
WRONG = {
    "truncated": (GOOD[: len(GOOD) // 2], r"damaged image \(image file is truncated"),
    "empty": (b"", "not an image of a kind that is read"),
    "a text": (b"hello " * 100, "not an image of a kind that is read"),
    "a program for a printer": (POSTSCRIPT, "not an image of a kind that is read"),
    "a PNG broken off": (png_of(9, 9), "damaged image"),
    "fractions": (written(Image.new("F", (4, 4), 0.5), "TIFF"), "32-bit numbers"),
    "32 bits": (written(Image.new("I", (4, 4), 70_000), "TIFF"), "32-bit numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_good_image_is_refused(kind):
    data, message = WRONG[kind]
    with pytest.raises(MalformedError, match=message):
        decode(data, SIZE)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(MalformedError, match="no such file"):
        read_header(tmp_path / "a.png")
    with pytest.raises(MalformedError, match="damaged"):
        read_header(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File", "ignore:Metadata", "ignore:Tag data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_no_damage_escapes_the_reader(kind):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    data = written(Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)), kind, **options)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        try:
            read_header(bytes(damaged))
            decode(bytes(damaged[: rng.integers(1, len(data) + 1)]), SIZE)
        except MalformedError:
            refused += 1
    assert refused > 10


def test_what_memory_does_not_hold_is_refused_with_a_size_that_fits(monkeypatch):
    assert free_bytes() > 1_000_000
    monkeypatch.setattr("chinchilla.data.headroom.free_bytes", lambda: 2 * 1000 * 50 * 40 * 3)
    check_fits(1000, Size(50, 40, 3), "here")
    with pytest.raises(DataError, match=r"here: 1,000 images of 100 x 80 .* 48 MB .* at most 50 x 40, or give fewer"):
        check_fits(1000, Size(100, 80, 3), "here")
