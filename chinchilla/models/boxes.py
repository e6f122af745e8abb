"""A box for every position of an image, looked for near that position."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.shape import ImageStem

FIRST_SIDE = 0.15
"""Side of a box before anything is learned, as a share of the image's."""


class BoxHead(nn.Module):
    """Centre and size from a position's state, as an offset from the position's own place.

    Every position may answer with one box, so that no queries have to be learned first (OWL-ViT; Minderer 2022, arXiv
    2205.06230, whose location bias this is).
    """

    def __init__(self, dim: int, stem: ImageStem) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, 4)
        self.register_buffer("place", places(stem), persistent=False)

    @property
    def centres(self) -> Tensor:
        """Each patch's x and y (patches, 2) as shares of the image."""
        assert isinstance(self.place, Tensor)
        return self.place[:, :2].sigmoid()

    def forward(self, states: Tensor) -> Tensor:
        """`states` (batch, patches, dim) → centre x, y, width and height (batch, patches, 4) as shares of the image."""
        assert isinstance(self.place, Tensor)
        return (self.out(F.gelu(self.hidden(states))).float() + self.place).sigmoid()


def places(stem: ImageStem) -> Tensor:
    """Logits of each patch's centre and of the first size (patches, 4), row by row."""
    rows, columns = stem.height // stem.patch, stem.width // stem.patch
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    side = torch.full_like(x, FIRST_SIDE)
    return torch.stack([x, y, side, side], dim=-1).flatten(0, 1).logit()


def corners(boxes: Tensor) -> Tensor:
    """Boxes (…, 4) as centre x, y, width, height → x0, y0, x1, y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def generalised_iou(ones: Tensor, others: Tensor) -> Tensor:
    """GIoU (Rezatofighi 2019, arXiv 1902.09630) of boxes x0, y0, x1, y1 whose shapes (…, 4) broadcast: from -1 to 1."""
    area = (ones[..., 2:] - ones[..., :2]).clamp_min(0).prod(-1)
    other = (others[..., 2:] - others[..., :2]).clamp_min(0).prod(-1)
    low, high = torch.maximum(ones[..., :2], others[..., :2]), torch.minimum(ones[..., 2:], others[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    joined = area + other - shared
    low, high = torch.minimum(ones[..., :2], others[..., :2]), torch.maximum(ones[..., 2:], others[..., 2:])
    hull = (high - low).clamp_min(0).prod(-1)
    return shared / joined.clamp_min(1e-9) - (hull - joined) / hull.clamp_min(1e-9)
