"""Stochastic depth: branches dropped by example, more often from layer to layer, and nothing at all where it is off."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.block import Block, kept_paths
from chinchilla.models.transformer import Transformer
from chinchilla.training.workers import Workers


def make_shape(**changes: Any) -> Shape:
    common: dict[str, Any] = {
        "vocab_size": 30, "dim": 12, "num_heads": 3, "num_kv_heads": 3, "head_dim": 4, "ffn_dim": 20,
        "num_encoder_layers": 4, "num_decoder_layers": 0, "max_len": 32,
    }  # fmt: skip
    return Shape(**(common | changes))


def make_model(drop_path: float, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(make_shape(**changes)).train()
    model.drop_path_(drop_path)
    model.draw_from(torch.Generator().manual_seed(1))
    return model


def paths_of(model: Transformer, *args: Tensor, **rest: Tensor) -> list[Tensor]:
    """What each layer of the encoder and the decoder is told of its branches, in a forward pass."""
    told: list[Tensor] = []
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: told.append(given[7]))
        for stack in stacks
        for layer in stack.layers
    ]
    model(*args, **rest)
    for hook in hooks:
        hook.remove()
    return told


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_branch_counts_for_what_it_is_told_in_each_example(order: str) -> None:
    torch.manual_seed(0)
    block = Block(make_shape(norm_order=order, num_decoder_layers=1), True, True, 0.0)
    x, memory = torch.randn(3, 5, 12), torch.randn(3, 4, 12)
    paths = torch.tensor([[0.0, 2, 2], [2, 0, 2], [2, 2, 0]])[..., None, None]
    y, pre = x, order == "pre"
    branches = (
        (block.attention_norm, block.attention),
        (block.cross_norm, lambda hidden: block.cross(hidden, memory)),
        (block.mlp_norm, block.mlp),
    )
    for (norm, branch), factor in zip(branches, paths, strict=True):
        y = y + factor * branch(norm(y)) if pre else norm(y + factor * branch(y))
    torch.testing.assert_close(block(x, memory=memory, paths=paths), y)
    if pre:
        assert torch.equal(block(x, memory=memory, paths=0 * paths), x)


def test_the_rate_grows_linearly_with_depth_and_what_is_kept_is_scaled() -> None:
    told = paths_of(make_model(0.4), torch.randint(4, 30, (4000, 2)))
    assert len(told) == 4
    for index, paths in enumerate(told, start=1):
        rate = 0.4 * index / 4
        assert paths.shape == (2, 4000, 1, 1)
        assert paths.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
        assert float((paths == 0).float().mean()) == pytest.approx(rate, abs=0.02)
        assert not torch.equal(paths[0], paths[1])  # each branch by itself


def test_both_stacks_drop_and_a_decoder_has_three_branches() -> None:
    model = make_model(0.5, num_encoder_layers=1, num_decoder_layers=2)
    ids = torch.randint(4, 30, (6, 5))
    segments = torch.tensor([[1, 1, 2, 2, 0]] * 6)
    told = paths_of(model, ids, ids, source_segments=segments != 0, target_segments=segments)
    assert [tuple(paths.shape) for paths in told] == [(2, 6, 1, 1), (3, 6, 5, 1), (3, 6, 5, 1)]


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=5), st.floats(0.05, 0.9))
def test_packed_examples_are_dropped_whole_and_each_by_itself(lengths: list[list[int]], rate: float) -> None:
    segments = torch.zeros(len(lengths), 24, dtype=torch.int64)
    for row, examples in enumerate(lengths):
        numbers = [number for number, length in enumerate(examples, start=1) for _ in range(length)]
        segments[row, : len(numbers)] = torch.tensor(numbers)
    x = torch.zeros(*segments.shape, 3)
    paths = kept_paths(2, x, segments, rate, torch.Generator().manual_seed(0))
    assert paths.shape == (2, *segments.shape, 1)
    # What a row's example gets hangs on its row and number alone, not on how long it or the others are.
    draws = torch.rand(2, len(lengths), 25, generator=torch.Generator().manual_seed(0)) >= rate
    for row, examples in enumerate(lengths):
        for number in range(1, len(examples) + 1):
            inside = paths[:, row, segments[row] == number, 0]
            torch.testing.assert_close(inside, (draws[:, row, number, None] / (1 - rate)).expand_as(inside))


def test_examples_of_one_row_differ() -> None:
    segments = torch.tensor([[1, 2, 3, 4] * 50]).sort(1).values
    paths = kept_paths(2, torch.zeros(1, 200, 3), segments, 0.5, torch.Generator().manual_seed(3))
    assert set(paths[:, 0, ::50, 0].flatten().tolist()) == {0.0, 2.0}


def test_off_is_the_plain_path_to_the_bit_and_draws_nothing() -> None:
    ids = torch.randint(4, 30, (3, 7))
    off, never = make_model(0.0), Transformer(make_shape())
    never.load_state_dict(off.state_dict())
    before = off.generator.get_state()
    assert torch.equal(off(ids).hidden, never(ids).hidden)
    assert torch.equal(off.generator.get_state(), before)
    assert all(paths is None for paths in paths_of(off, ids))


def test_evaluation_drops_and_scales_nothing() -> None:
    ids = torch.randint(4, 30, (3, 7))
    model, plain = make_model(0.6), make_model(0.0)
    assert not torch.equal(model(ids).hidden, plain(ids).hidden)
    before = model.generator.get_state()
    assert torch.equal(model.eval()(ids).hidden, plain.eval()(ids).hidden)
    assert torch.equal(model.generator.get_state(), before)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_computing_again_drops_the_same(dropout: float) -> None:
    ids, found = torch.randint(4, 30, (5, 7)), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Transformer(make_shape(), dropout).train()
        model.drop_path_(0.5)
        model.draw_from(torch.Generator().manual_seed(1))
        model.recompute_(recompute)
        loss = model(ids).hidden.square().sum()
        found.append([loss, *torch.autograd.grad(loss, [p for n, p in model.named_parameters() if "head" not in n])])
        found[-1].append(model.generator.get_state())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_workers_draw_from_their_own_generators() -> None:
    model = make_model(0.5)
    workers = Workers(model, 2, seed=7)
    ids = torch.randint(4, 30, (40, 3))
    first, second = (paths_of(each.train(), ids) for each in workers.models)
    assert not torch.equal(first[-1], second[-1])
    workers.load({f"worker{index}": torch.Generator().manual_seed(7).get_state() for index in range(2)})
    assert torch.equal(paths_of(workers.models[1], ids)[-1], first[-1])
    workers.close()


def test_a_dropped_branch_learns_nothing_from_its_example() -> None:
    block = Block(make_shape(), False, False, 0.0)
    paths = torch.tensor([[0.0], [2.0]])[..., None, None]
    block(torch.randn(1, 4, 12), paths=paths).square().sum().backward()
    assert not block.attention.out.weight.grad.any() and block.mlp.down.weight.grad.any()
