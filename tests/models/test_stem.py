"""What an image becomes: positions that begin as a grid, and patches that see beyond themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.shape import ImageStem, Shape
from chinchilla.models.position import grid_sinusoids
from chinchilla.models.stem import Patches
from chinchilla.models.transformer import Transformer

STEM = ImageStem(height=12, width=20, channels=3, patch=4)


def model(stem: ImageStem = STEM, **changes) -> Transformer:
    fixed = {"vocab_size": 4, "dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 32}
    fixed |= {"num_encoder_layers": 1, "position": "learned", "num_classes": 3, "stem": stem, "max_len": 20}
    return Transformer(Shape(**fixed | changes))


@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([32, 64, 100]))
def test_positions_of_a_grid_are_as_alike_as_they_are_near(rows, columns, dim):
    table = grid_sinusoids(rows, columns, dim)
    assert table.shape == (rows * columns, dim)
    alike = (table @ table.T).view(rows, columns, rows, columns)
    # How alike two are follows from how far apart they are by rows and by columns, wherever they lie.
    assert torch.allclose(alike[1:, 1:, 1:, 1:], alike[:-1, :-1, :-1, :-1], atol=1e-4)
    assert torch.allclose(alike[0, 0, 1, 0], alike[0, 0, 0, 1], atol=1e-4)
    near = alike.flatten(0, 1).flatten(1)
    assert torch.equal(near.argmax(1), torch.arange(rows * columns))
    # Next to a place is the most alike of the others.
    near.fill_diagonal_(-torch.inf)
    most = near.argmax(1)
    places = torch.arange(rows * columns)
    apart = (most // columns - places // columns).abs() + (most % columns - places % columns).abs()
    assert (apart == 1).all()


def test_an_image_s_positions_begin_as_its_grid():
    table = model().embed.position.table
    assert torch.equal(table[1:16], grid_sinusoids(3, 5, 16))
    assert table[0].std() < 0.6 and not torch.equal(table[0], torch.zeros(16))
    assert table.requires_grad
    # A width that four does not divide, and a model whose positions are not learned.
    assert model(dim=18, head_dim=9).embed.position.table[1:16, 16:].eq(0).all()
    model(position="rotary")


@pytest.mark.parametrize(("patch", "sees"), [(2, 7), (4, 19), (8, 43)])
def test_a_patch_sees_its_neighbours(patch, sees):
    side = 8 * patch
    patches = Patches(16, ImageStem(height=side, width=side, channels=1, patch=patch)).double()
    for parameter in patches.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    image = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    patches(image)[0, 8 * 4 + 4].sum().backward()
    seen = image.grad[0, 0] != 0
    assert seen.any(0).sum() == seen.any(1).sum() == sees
