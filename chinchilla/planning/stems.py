"""Parameters and products of the stems that take an embedding table's place: `models.stem`, counted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla.config.shape import ImageStem, Shape, TableStem

KERNEL = 3
"""Pixels a side that a convolution looks at."""

OUT = "embed.inner.out"
"""The linear map after an image's convolutions."""

PIECES = "embed.inner.pieces"
"""The vectors that bend the lines of a table's numbers."""


@dataclass(frozen=True)
class Conv:
    """A convolution as a product: each of `positions` outputs an image is `inputs` numbers by `outputs` channels.

    `pixels` are the positions of its input, `kept` those that max-pooling leaves of its output.
    """

    name: str
    positions: int
    pixels: int
    kept: int
    channels: int
    outputs: int

    @property
    def inputs(self) -> int:
        """Numbers that an output is a product of."""
        return self.channels * KERNEL**2


def convs(dim: int, stem: ImageStem) -> list[Conv]:
    """The convolutions of an image stem, in order of execution: `models.stem.Patches`."""
    found: list[Conv] = []
    height, width, channels = stem.height, stem.width, stem.channels
    count = int(math.log2(stem.patch))
    for index in range(count):
        pixels, outputs = height * width, max(8, dim >> (count - 1 - index))
        height, width = height // 2, width // 2
        kept = height * width
        for taken, given, inputs in ((pixels, pixels if stem.pooled else kept, channels), (kept, kept, outputs)):
            found.append(Conv(f"embed.inner.convs.{len(found)}", given, taken, kept, inputs, outputs))
        channels = outputs
    return found


def stem_parameters(shape: Shape, stem: ImageStem | TableStem) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and sizes of a stem's tensors but those of positions and norm."""
    dim = shape.dim
    if stem.class_token:
        yield "embed.class_token", (1, dim)
    if isinstance(stem, ImageStem):
        for conv in convs(dim, stem):
            yield f"{conv.name}.weight", (conv.outputs, conv.channels, KERNEL, KERNEL)
            yield f"{conv.name}.bias", (conv.outputs,)
        for index, conv in enumerate(convs(dim, stem) if stem.pooled else ()):
            yield f"embed.inner.norms.{index}.weight", (conv.outputs,)
            yield f"embed.inner.norms.{index}.bias", (conv.outputs,)
        yield f"{OUT}.weight", (dim, convs(dim, stem)[-1].outputs)
        yield f"{OUT}.bias", (dim,)
        return
    yield "embed.inner.numbers", (stem.num_numeric, dim)
    yield "embed.inner.missing", (stem.num_numeric, dim)
    yield "embed.inner.categories", (sum(stem.cardinalities), dim)
    yield "embed.inner.column", (stem.num_numeric + len(stem.cardinalities), dim)
    if stem.pieces:
        yield PIECES, (stem.num_numeric, stem.pieces, dim)
