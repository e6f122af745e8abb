"""Noise on the rows of a table: on numbers, on categories (as SCARF corrupts them; Bahri 2022), and missing cells."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.noise import Noise

Cells = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TableNoise:
    """How much noise, on rows whose first `num_numbers` columns are numbers and the others codes of categories.

    `deviations` (num_numbers,) are those of the training rows, and `least` and `greatest` their bounds, which noise
    does not leave; `column` (rows, categories) holds the codes that others are swapped for.
    """

    settings: Noise
    num_numbers: int
    deviations: Cells
    least: Cells
    greatest: Cells
    column: Cells

    def varied(self, cells: Cells, place: tuple[int, ...]) -> Cells:
        """Rows (rows, columns) with noise that follows from `place`, numbers from 0. What is missing stays so."""
        random, settings = np.random.default_rng(place), self.settings
        count, width = cells.shape
        numbers, codes = cells[:, : self.num_numbers], cells[:, self.num_numbers :]
        added = random.standard_normal(numbers.shape, np.float32) * (settings.numbers * self.deviations)
        moved = np.clip(numbers + added, self.least, self.greatest) if settings.numbers else numbers
        others = np.take_along_axis(self.column, random.integers(len(self.column), size=codes.shape), 0)
        swapped = np.where(random.random(codes.shape, np.float32) < settings.swap, others, codes)
        gone = random.random((count, width), np.float32) < settings.missing
        empty = np.array([np.nan] * self.num_numbers + [0.0] * codes.shape[1], np.float32)
        return np.where(gone, empty, np.concatenate([moved, swapped], axis=1))


def table_noise(noise: Noise, cells: Cells, num_numbers: int) -> TableNoise | None:
    """The noise that a recipe asks for, by the training rows (rows, columns); None where it asks for none."""
    if not noise.of_tables:
        return None
    numbers = cells[:, :num_numbers]
    known = np.where(np.isnan(numbers).all(0), 0, numbers)  # a column without a number has no bounds
    return TableNoise(
        noise,
        num_numbers,
        np.nanstd(known, axis=0).astype(np.float32),
        np.nanmin(known, axis=0),
        np.nanmax(known, axis=0),
        cells[:, num_numbers:],
    )
