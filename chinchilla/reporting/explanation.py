"""The page of `chinchilla explain`: what speaks for a class, what was looked at, and whether removing it matters."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chinchilla.config.plan import TaskName
from chinchilla.reporting.canvas import FIRST, MUTED, PREDICTED, SECOND, drawable, drawing, figure, svg
from chinchilla.reporting.page import Card, charts, fill

if TYPE_CHECKING:  # torch takes long, and nothing here needs it
    from chinchilla.tasks.explain import Explanation
    from chinchilla.tasks.subject import Part

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

MOST_BARS = 30
"""Columns that bars are drawn for, the heaviest."""

MOST_ROWS = 200
"""Parts in the table of numbers, the heaviest."""

MOST_CLASSES = 10
ENLARGED = 320
"""Pixels that the longer side of a small image is drawn with, at least."""


class Piece(NamedTuple):
    """A piece of a text: its colour's name and strength in per cent, and what the mouse shows over it."""

    text: str
    colour: str
    strength: int
    hint: str


class Picture(NamedTuple):
    """An image as a data URI."""

    title: str
    uri: str
    caption: str


def explanation_page(name: str, task: TaskName, found: "Explanation", pixels: Pixels | None = None) -> str:
    """The page as HTML; `pixels` (height, width, channels) are the image's, where one was explained."""
    texts, pictures, bars = [], [], ("", "")
    if task == "classify_image" and pixels is not None:
        pictures = list(_pictures(found, pixels))
    elif task == "classify_table":
        bars = (
            _bars(found, found.attribution, "attribution", "nats"),
            _bars(found, found.attention, "attention", "share"),
        )
    else:
        texts = [
            _pieces(found.parts, found.attribution, "{:+.3f}"),
            _pieces(found.parts, found.attention, "{:.3f}", True),
        ]
    return fill(
        "explain.html",
        title=f"{name}: why {found.label}",
        lead=f"What speaks for the class {found.label}, against {found.baseline}.",
        cards=_cards(found),
        chances=_chances(found),
        texts=texts,
        pictures=pictures,
        bars=charts(
            ("What speaks for it", bars[0], "Blue: for the class; orange: against it."),
            ("What was looked at", bars[1], "Attention rollout, shares in what the class is read from."),
        ),
        deletion=charts(("The class's probability as parts are removed", deletion_chart(found), "")),
        parts=list(_rows(found)),
        num_parts=len(found.parts),
    )


def _cards(found: "Explanation") -> list[Card]:
    chance = found.probabilities[found.label]
    return [
        Card("probability", f"{chance:.4f}", f"of {found.label}"),
        Card("log-odds", f"{found.odds:+.2f}", f"{found.baseline_odds:+.2f} at the baseline"),
        Card(
            "left unexplained",
            f"{found.gap:+.2g}",
            f"of {found.odds - found.baseline_odds:+.2f}, with {found.steps} points",
        ),
        Card("deletion area", f"{found.areas['attribution']:.3f}", f"{found.areas['random']:.3f} in random order"),
        Card("by attention", f"{found.areas['attention']:.3f}", "deletion area"),
    ]


def _chances(found: "Explanation") -> list[tuple[str, str]]:
    best = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
    return [(name, f"{chance:.4f}") for name, chance in best[:MOST_CLASSES]]


def _pieces(parts: Sequence["Part"], values: Floats, form: str, attention: bool = False) -> list[Piece]:
    """A text's pieces, as strong as they weigh: blue for, orange against, violet for attention."""
    most = float(np.abs(values).max()) or 1.0
    colours = ("predicted" if attention else ("first" if value >= 0 else "second") for value in values)
    return [
        Piece(part.name, colour, round(70 * abs(value) / most), form.format(value))
        for part, colour, value in zip(parts, colours, values, strict=True)
    ]


def _rows(found: "Explanation") -> Iterator[tuple[str, str, str]]:
    for place in np.argsort(-np.abs(found.attribution), kind="stable")[:MOST_ROWS]:
        part = found.parts[place]
        shown = f"{part.name} = {part.value}" if part.value else part.name
        yield shown, f"{found.attribution[place]:+.4f}", f"{found.attention[place]:.4f}"


def _bars(found: "Explanation", values: Floats, name: str, unit: str) -> str:
    """Each column's value as a bar, the heaviest attribution first."""
    chosen = np.argsort(-np.abs(found.attribution), kind="stable")[:MOST_BARS]
    signed = (FIRST, SECOND) if name == "attribution" else (PREDICTED, PREDICTED)
    with drawing(name):
        drawn, (axes,) = figure(height_in=0.7 + 0.22 * len(chosen))
        axes.grid(visible=False, axis="y")
        axes.barh(range(len(chosen)), values[chosen], 0.7, color=[signed[int(values[each] < 0)] for each in chosen])
        axes.axvline(0, color=MUTED, linewidth=0.7)
        labels = (drawable(f"{part.name} = {part.value}", 30) for part in (found.parts[each] for each in chosen))
        axes.set_yticks(range(len(chosen)), list(labels))
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        heaviest = found.parts[chosen[0]].name
        return svg(drawn, name, f"{name} of {len(chosen)} columns; the heaviest is {heaviest}")


def deletion_chart(found: "Explanation") -> str:
    """The probability of the class over the share of parts removed, by each order."""
    styles: dict[str, dict[str, Any]] = {
        "attribution": {"color": FIRST, "label": "most attributed first"},
        "attention": {"color": PREDICTED, "label": "most attended to first"},
        "random": {"color": MUTED, "linestyle": ":", "label": "random order, mean"},
    }
    with drawing("deletion"):
        drawn, (axes,) = figure()
        for name, style in styles.items():
            axes.plot(found.removed, found.deletion[name], **style)
        axes.set(xlabel="share of parts removed", ylabel="probability", ylim=(-0.03, 1.03))
        axes.legend()
        areas = ", ".join(f"{name} {area:.3f}" for name, area in found.areas.items())
        return svg(drawn, "deletion", f"Deletion curves; areas under them: {areas}")


def _pictures(found: "Explanation", pixels: Pixels) -> Iterator[Picture]:
    """The image, and over its greys what speaks for the class and what was looked at."""
    patch = math.isqrt(pixels.shape[0] * pixels.shape[1] // len(found.parts))
    grid = pixels.shape[0] // patch, pixels.shape[1] // patch
    signed = (FIRST, SECOND)
    yield Picture("The image", _uri(pixels), "As the model is given it.")
    heat = _heat(pixels, found.attribution.reshape(grid), signed)
    yield Picture("What speaks for it", _uri(heat), "Blue: for the class; orange: against it.")
    heat = _heat(pixels, found.attention.reshape(grid), (PREDICTED, PREDICTED))
    yield Picture("What was looked at", _uri(heat), "Attention rollout to what the class is read from.")


def _heat(pixels: Pixels, values: Floats, colours: tuple[str, str]) -> Pixels:
    """The image in pale greys, each patch coloured as strongly as it weighs (height, width, 3)."""
    scale = pixels.shape[0] // values.shape[0]
    spread = np.kron(values / (np.abs(values).max() or 1.0), np.ones((scale, scale)))[..., None]
    paints = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours])
    grey = 128 + pixels.mean(2, keepdims=True) / 2
    strength = 0.75 * np.abs(spread)
    return (grey * (1 - strength) + np.where(spread >= 0, *paints) * strength).round().astype(np.uint8)


def _uri(pixels: Pixels) -> str:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = -(-ENLARGED // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
