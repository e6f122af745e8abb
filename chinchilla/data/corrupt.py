"""What happens to inputs without anybody's malice: typing errors in texts; noise, blur and poor light in images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

SEVERITIES = (1, 2, 3, 4, 5)
TYPOS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Share of characters that are mistyped."""

NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""As ImageNet-C sets them (Hendrycks & Dietterich 2019, arXiv 1903.12261)."""

BLUR = (0.02, 0.03, 0.04, 0.06, 0.08)
"""Standard deviation of a Gaussian blur as a share of the shorter side."""


def mistyped(text: str, severity: int, random: np.random.Generator) -> str:
    """A text in which letters are swapped with their neighbour, left out, or struck twice."""
    letters, place, typed = list(text), 0, []
    while place < len(letters):
        if random.random() >= TYPOS[severity - 1]:
            typed.append(letters[place])
        else:
            match int(random.integers(3)):
                case 0 if place + 1 < len(letters):
                    typed += [letters[place + 1], letters[place]]
                    place += 1
                case 1:
                    pass
                case _:
                    typed += [letters[place]] * 2
        place += 1
    return "".join(typed)


def noisy(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Gaussian noise on every value."""
    return _pixels(image / 255 + random.normal(0, NOISE[severity - 1], image.shape))


def blurred(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """A Gaussian blur."""
    radius = BLUR[severity - 1] * min(image.shape[:2])
    planes = [
        Image.fromarray(image[..., channel]).filter(ImageFilter.GaussianBlur(radius))
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def faded(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Less contrast."""
    means = (image / 255).mean(axis=(0, 1))
    return _pixels((image / 255 - means) * CONTRAST[severity - 1] + means)


def bright(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """More light."""
    return _pixels(image / 255 + BRIGHTNESS[severity - 1])


def _pixels(values: NDArray[np.float64]) -> Pixels:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


Corrupt = Callable[[Any, int, np.random.Generator], Any]
TEXTS: Mapping[str, Corrupt] = {"typos": mistyped}
IMAGES: Mapping[str, Corrupt] = {"noise": noisy, "blur": blurred, "contrast": faded, "brightness": bright}
