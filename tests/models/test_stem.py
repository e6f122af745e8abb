"""What an image becomes: positions that begin as a grid, and patches that see beyond themselves."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from chinchilla.config.shape import ImageStem, Shape, TableStem
from chinchilla.models.position import grid_sinusoids
from chinchilla.models.stem import Columns, Patches
from chinchilla.models.transformer import Transformer

STEM = ImageStem(height=12, width=20, channels=3, patch=4, pooled=True)
STRIDED = STEM.model_copy(update={"pooled": False})


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


@pytest.mark.parametrize("stem", [STEM, STRIDED], ids=["pooled", "strided"])
def test_an_image_s_positions_begin_as_its_grid(stem):
    table, first = model(stem).embed.position.table, int(stem.class_token)
    assert torch.equal(table[first : first + 15], grid_sinusoids(3, 5, 16))
    # Those of the class token, and of what is beyond the image.
    assert table[15 + first].std() < 0.6 and not torch.equal(table[15 + first], torch.zeros(16))
    assert not first or not torch.equal(table[0], torch.zeros(16))
    assert table.requires_grad
    # A width that four does not divide, and a model whose positions are not learned.
    assert model(stem, dim=18, head_dim=9).embed.position.table[first : first + 15, 16:].eq(0).all()
    model(stem, position="rotary")


def test_a_stem_of_before_has_strides_and_a_class_token():
    """A shape that says nothing of pooling is of before, and computes what such a model did."""
    shape = model(STRIDED).shape.model_dump(mode="json")
    del shape["stem"]["pooled"]
    old = Transformer(Shape.model_validate(shape))
    assert old.shape.stem == STRIDED and old.shape.stem.num_positions == 16
    image, weights = torch.randn(2, 3, 12, 20), old.state_dict()
    assert not [name for name in weights if name.startswith("embed.inner.norms")]
    x = image
    for index, stride in enumerate((2, 1, 2, 1)):
        name = f"embed.inner.convs.{index}"
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1).relu()
    x = F.linear(x.flatten(2).mT, weights["embed.inner.out.weight"], weights["embed.inner.out.bias"])
    x = torch.cat([weights["embed.class_token"].expand(2, 1, -1), x], 1) + weights["embed.position.table"][:16]
    states = old.encoder(x, None, None)
    torch.testing.assert_close(old.encode(image), states)
    torch.testing.assert_close(old(image).hidden, states[:, :1])


def test_a_stem_norms_channels_and_pools_and_its_patches_mean_is_read():
    new = model()
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if "norms" in name:  # or a norm that is left out would not show in what it begins as
                parameter.uniform_(0.5, 1.5)
    image, weights = torch.randn(2, 3, 12, 20), new.state_dict()
    assert not [name for name in weights if "class_token" in name]
    x = image
    for index in range(4):
        conv, norm = f"embed.inner.convs.{index}", f"embed.inner.norms.{index}"
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], 1, 1)
        if index % 2 == 0:
            x = torch.stack([x[:, :, i::2, j::2] for i, j in itertools.product(range(2), range(2))]).amax(0)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = (x * weights[f"{norm}.weight"][:, None, None] + weights[f"{norm}.bias"][:, None, None]).relu()
    x = F.linear(x.flatten(2).mT, weights["embed.inner.out.weight"], weights["embed.inner.out.bias"])
    states = new.encoder(x + weights["embed.position.table"][:15], None, None)
    torch.testing.assert_close(new.encode(image), states)
    torch.testing.assert_close(new(image).hidden, states.sum(1, keepdim=True) / 15)
    assert torch.equal(new(image).memory, new.encode(image))


@pytest.mark.parametrize(("patch", "sees"), [(2, 8), (4, 22), (8, 50)])
def test_a_pooled_patch_sees_its_neighbours(patch, sees):
    side = 8 * patch
    torch.manual_seed(0)
    patches = Patches(16, ImageStem(height=side, width=side, channels=1, patch=patch, pooled=True)).double()
    image = torch.randn(1, 1, side, side, dtype=torch.float64)
    moved = image.expand(2 * side, -1, -1, -1).clone()
    for index in range(side):
        moved[index, 0, index] += 3 * torch.randn(side)
        moved[side + index, 0, :, index] += 3 * torch.randn(side)
    with torch.no_grad():
        changed = (patches(moved) - patches(image))[:, 8 * 4 + 4].abs().amax(1) > 0
    assert changed[:side].sum() == changed[side:].sum() == sees


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


@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=8), st.integers(1, 32))
def test_a_number_s_line_is_bent_between_equal_shares(numbers, pieces):
    columns = Columns(6, TableStem(num_numeric=1, pieces=pieces))
    with torch.no_grad():
        for parameter in columns.parameters():
            parameter.normal_()
        found = columns(torch.tensor(numbers)[:, None])[:, 0] - columns.column
    assert columns.pieces is not None
    line, vectors = columns.numbers.detach().numpy()[0], columns.pieces.detach().numpy()[0]
    knots = np.concatenate([np.zeros((1, 6)), vectors.cumsum(0)]) - vectors.sum(0) / 2
    shares = np.arange(pieces + 1) / pieces
    for number, vector in zip(numbers, found.numpy(), strict=True):
        bent = [np.interp(norm.cdf(number), shares, knots[:, each]) for each in range(6)]
        assert np.allclose(vector, number * line + bent, atol=1e-3)


def test_the_pieces_of_a_number_begin_as_long_as_its_line():
    embed = model(TableStem(num_numeric=40, pieces=32), dim=64, num_heads=8, num_kv_heads=8, max_len=41).embed
    with torch.no_grad():
        straight = embed.inner.numbers.norm(dim=1).mean()
        bent = embed.inner._bent(torch.full((1, 40), 6.0)).norm(dim=-1).mean()  # above every piece
    assert straight.item() == pytest.approx(1, abs=0.05)
    assert bent.item() == pytest.approx(1, abs=0.05)


def test_a_missing_number_has_a_vector_of_its_own_beside_pieces():
    columns = Columns(6, TableStem(num_numeric=2, pieces=4))
    with torch.no_grad():
        for parameter in columns.parameters():
            parameter.normal_()
        found = columns(torch.tensor([[torch.nan, 0.5]]))
    assert torch.equal(found[0, 0], columns.missing[0] + columns.column[0])
    assert found.isfinite().all()
