"""Scenes to detect things in: glyphs pasted at random on photographs and drawn backgrounds, with exact boxes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

SIDE = 128
"""Height and width of a scene in pixels."""

GLYPHS = (1, 6)
GLYPH_SIDE = (18, 56)
MAX_TURN = 40.0
MAX_OVERLAP = 0.1
"""The largest share of the smaller of two boxes that both cover."""

TRIES = 20
OPAQUE = 128
"""A pixel belongs to a glyph when it is covered by half."""


Choice = TypeVar("Choice")


class Pasted(NamedTuple):
    """A glyph in a scene: its class, and its box in whole pixels, x1 and y1 being the first ones beyond it."""

    kind: str
    x0: int
    y0: int
    x1: int
    y1: int


def compose(
    glyphs: Mapping[str, Sequence[Image.Image]], photographs: Sequence[Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, list[Pasted]]:
    """One scene of `SIDE` pixels and what was pasted, each class being as likely.

    Args:
        glyphs: by class, images with transparency.
        photographs: what backgrounds are cut from; one in two is drawn instead.
        rng: decides everything.
    """
    scene = _cut(_one(photographs, rng), rng) if rng.random() < 0.5 else _drawn(rng)
    pasted: list[Pasted] = []
    kinds = sorted(glyphs)
    for _ in range(rng.integers(GLYPHS[0], GLYPHS[1] + 1)):
        kind = _one(kinds, rng)
        glyph = _turned(_one(glyphs[kind], rng), rng)
        for _ in range(TRIES):
            x, y = (int(rng.integers(SIDE - side + 1)) for side in glyph.size)
            place = Pasted(kind, x, y, x + glyph.width, y + glyph.height)
            if all(_overlap(place, other) <= MAX_OVERLAP for other in pasted):
                scene.paste(glyph, (x, y), glyph)
                pasted.append(place)
                break
    return scene, pasted


def _one(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _turned(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph scaled, turned, and cut to what is seen of it."""
    side = int(rng.integers(GLYPH_SIDE[0], GLYPH_SIDE[1] + 1))
    scaled = ImageOps.expand(glyph.resize((side, side), Image.Resampling.BICUBIC), 2, (0, 0, 0, 0))  # else edges fray
    turned = scaled.rotate(float(rng.uniform(-MAX_TURN, MAX_TURN)), Image.Resampling.BICUBIC, expand=True)
    seen = turned.getchannel("A").point(lambda alpha: 255 if alpha >= OPAQUE else 0)
    return turned.crop(seen.getbbox())


def _overlap(one: Pasted, other: Pasted) -> float:
    """The area that two boxes share, in terms of the smaller one."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    areas = [(each.x1 - each.x0) * (each.y1 - each.y0) for each in (one, other)]
    return max(0, width) * max(0, height) / min(areas)


def _cut(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of a photograph, now and then mirrored."""
    side = int(rng.integers(SIDE * 3 // 4, min(photograph.size) + 1))
    x, y = int(rng.integers(photograph.width - side + 1)), int(rng.integers(photograph.height - side + 1))
    cut = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def _drawn(rng: np.random.Generator) -> Image.Image:
    """A plain colour, a gradient from corner to corner, or coloured noise, from coarse to fine."""
    cells = int(rng.choice([1, 2, 8, 32]))
    colours = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
