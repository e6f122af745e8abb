"""Random inputs of the stems that take no tokens."""

import torch
from torch import Tensor

from chinchilla.config.shape import ImageStem, TableStem


def stem_source(stem: ImageStem | TableStem, size: int) -> Tensor:
    """`source` of `size` examples: pixels, or rows of a table with the first number of the first row missing."""
    if isinstance(stem, ImageStem):
        return torch.randn(size, stem.height, stem.width, stem.channels).permute(0, 3, 1, 2)  # as batches are
    numbers = torch.randn(size, stem.num_numeric)
    numbers[0, :1] = torch.nan
    codes = [torch.randint(0, count, (size, 1)).float() for count in stem.cardinalities]
    return torch.cat([numbers, *codes], dim=1)


def class_labels(hidden: Tensor, num_classes: int) -> Tensor:
    """Labels of `hidden` (batch, length, dim): a class at the first position, nothing elsewhere."""
    labels = torch.full(hidden.shape[:2], -100)
    labels[:, 0] = torch.randint(0, num_classes, (len(hidden),))
    return labels
