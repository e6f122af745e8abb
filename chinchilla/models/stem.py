"""Stems for what is no text: images and rows of tables as sequences, with a class token before them or without."""

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.block import Dropout
from chinchilla.models.norm import make_norm
from chinchilla.models.position import LearnedPosition, SinusoidalPosition, grid_sinusoids


def make_stem(shape: Shape, stem: ImageStem | TableStem, dropout: float) -> "Stem":
    """The stem of a shape that has one."""
    inner = Patches(shape.dim, stem) if isinstance(stem, ImageStem) else Columns(shape.dim, stem)
    return Stem(shape, inner, stem.class_token, dropout)


class Stem(nn.Module):
    """What `inner` makes of an input, after a class token or alone; scaled, normed, with positions, by the shape."""

    def __init__(self, shape: Shape, inner: nn.Module, class_token: bool, dropout: float) -> None:
        super().__init__()
        self.scale = math.sqrt(shape.dim) if shape.embed_scale else 1.0
        self.class_token = nn.Parameter(torch.empty(1, shape.dim)) if class_token else None
        self.inner = inner
        self.position: nn.Module | None = None
        if shape.position == "sinusoidal":
            self.position = SinusoidalPosition(shape.max_len, shape.dim)
        elif shape.position == "learned":
            self.position = LearnedPosition(shape.max_len, shape.dim)
        self.norm = make_norm(shape) if shape.embed_norm else None
        self.dropout = Dropout(dropout)

    @torch.no_grad()
    def lay_out_(self) -> None:
        """Begin learned positions of an image with where its patches lie: what is near is known from the first step.

        The pieces of a table's numbers begin so small that all of a number's add up to a vector of the usual length.
        """
        if isinstance(self.inner, Columns) and self.inner.pieces is not None:
            self.inner.pieces.mul_(2 / math.sqrt(self.inner.pieces.shape[1]))
        if isinstance(self.inner, Patches) and isinstance(self.position, LearnedPosition):
            table = self.position.table
            places = grid_sinusoids(*self.inner.grid, table.shape[1])
            first = 0 if self.class_token is None else 1
            table[first : first + len(places)] = places

    def forward(self, source: Tensor, positions: Tensor) -> Tensor:
        """`source` as `inner` takes it, `positions` (length,), the class token's among them → (batch, length, dim)."""
        x = self.inner(source)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.scale != 1.0:
            x = x * self.scale
        if self.position is not None:
            x = self.position(x, positions)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


class Patches(nn.Module):
    """Stages of two 3×3 convolutions, the first of which halves the sides, then a linear map of every position.

    Early convolutions train more steadily than one map of flat patches (Xiao 2021, arXiv 2106.14881). They are a
    third faster where the pixels' channels lie last in memory: their kernels then copy nothing in and out. With one
    convolution a stage a network of minutes made half as many errors again, and with strides in place of norms and
    pooling more too (docs/images.md). What is pooled first costs a quarter to norm.
    """

    def __init__(self, dim: int, stem: ImageStem) -> None:
        super().__init__()
        widths = [stem.channels, *patch_widths(dim, stem.patch)]
        self.convs = nn.ModuleList()
        for old, new in itertools.pairwise(widths):
            self.convs.append(nn.Conv2d(old, new, 3, stride=1 if stem.pooled else 2, padding=1))
            self.convs.append(nn.Conv2d(new, new, 3, padding=1))
        outputs = [new for new in widths[1:] for _ in range(2)]
        self.norms = nn.ModuleList(nn.LayerNorm(new) for new in outputs) if stem.pooled else None
        self.out = nn.Linear(widths[-1], dim)
        self.grid = (stem.height // stem.patch, stem.width // stem.patch)

    def forward(self, source: Tensor) -> Tensor:
        """`source` (batch, channels, height, width) fp32, normalised pixels → (batch, patches, dim), row by row."""
        for index, conv in enumerate(self.convs):
            source = conv(source)
            if self.norms is not None:
                source = F.max_pool2d(source, 2) if index % 2 == 0 else source
                source = self.norms[index](source.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            source = F.relu(source)
        return self.out(source.permute(0, 2, 3, 1).flatten(1, 2))


def patch_widths(dim: int, patch: int) -> Iterator[int]:
    """Channels of each stage: doubling up to the width of the model."""
    count = int(math.log2(patch))
    return (max(8, dim >> (count - 1 - index)) for index in range(count))


class Columns(nn.Module):
    """A vector a column (FT-Transformer; Gorishniy 2021, arXiv 2106.11959, §3.3).

    A number scales its column's vector, a category looks its own up, each on its column's bias; a missing number (NaN)
    has a vector of its own. Where there are `pieces`, the number's line is bent between as many equal shares of N(0, 1)
    (piecewise linear encoding; Gorishniy 2022, arXiv 2203.05556, §3.2): a range of a number, or one that comes often,
    then has a vector of its own at once, which layers over straight lines take long to make.
    """

    def __init__(self, dim: int, stem: TableStem) -> None:
        super().__init__()
        self.num_numeric = stem.num_numeric
        first = torch.tensor([0, *stem.cardinalities]).cumsum(0)[:-1]
        self.register_buffer("first", first, persistent=False)
        self.numbers = nn.Parameter(torch.empty(stem.num_numeric, dim))
        self.missing = nn.Parameter(torch.empty(stem.num_numeric, dim))
        self.categories = nn.Parameter(torch.empty(sum(stem.cardinalities), dim))
        self.column = nn.Parameter(torch.empty(stem.num_numeric + len(stem.cardinalities), dim))
        self.pieces = nn.Parameter(torch.empty(stem.num_numeric, stem.pieces, dim)) if stem.pieces else None
        self.register_buffer("steps", torch.arange(stem.pieces, dtype=torch.float32), persistent=False)

    def forward(self, source: Tensor) -> Tensor:
        """`source` (batch, columns) fp32: numbers with NaN where missing, then codes → (batch, columns, dim)."""
        numbers, codes = source[:, : self.num_numeric], source[:, self.num_numeric :].long()
        known = torch.where(numbers.isnan()[..., None], self.missing, self.lines(numbers.nan_to_num()))
        assert isinstance(self.first, Tensor)
        looked_up = F.embedding(codes + self.first, self.categories)
        return torch.cat([known, looked_up.to(known.dtype)], dim=1) + self.column

    def lines(self, numbers: Tensor) -> Tensor:
        """Vectors (batch, numbers, dim) of numbers (batch, numbers), on which their columns' own come."""
        straight = numbers[..., None] * self.numbers
        return straight if self.pieces is None else straight + self._bent(numbers)

    def _bent(self, numbers: Tensor) -> Tensor:
        """(batch, numbers) → (batch, numbers, dim): every piece below a number in full, its own up to it."""
        assert isinstance(self.steps, Tensor) and self.pieces is not None
        with torch.autocast(numbers.device.type, enabled=False):  # bf16 would blur where in a piece a number is
            ranks = torch.special.ndtr(numbers) * len(self.steps)
            reached = (ranks[..., None] - self.steps).clamp(0, 1) - 0.5
            return torch.einsum("bnp,npd->bnd", reached, self.pieces)
