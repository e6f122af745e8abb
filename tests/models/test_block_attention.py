"""Block attention against full attention over keys with the summaries appended, and against a loop over queries."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chinchilla.config.shape import Shape
from chinchilla.models import block_attention as blocks
from chinchilla.models.attention import SelfAttention, attend
from chinchilla.models.block_attention import block_attention, block_mask, rolled, with_summaries

PIECES = st.sampled_from([1, 4000, 12_000, blocks.PIECE_BYTES])
"""From a block a piece to the whole sequence in one."""


class Case(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    block_len: int
    causal: bool
    summaries: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    length, block_len = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    batch, kv_heads, group, head_dim = draw(st.sampled_from([(1, 1, 1, 4), (2, 2, 1, 4), (2, 1, 3, 4), (3, 2, 2, 2)]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    query, key, value = (
        torch.randn(batch, heads, length, head_dim, generator=seed, dtype=torch.float64)
        for heads in (kv_heads * group, kv_heads, kv_heads)
    )
    mask = None
    if draw(st.booleans()):
        lengths = torch.tensor(draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch)))
        mask = torch.arange(length) < lengths[:, None]
    return Case(query, key, value, mask, block_len, draw(st.booleans()), draw(st.booleans()))


def reference(case: Case) -> Tensor:
    """Full attention under the published mask, over keys with every block's mean appended."""
    length = case.key.shape[2]
    keys, values = with_summaries(case.key, case.value, case.mask, case.block_len)
    asking = torch.arange(length)[None]
    keep = block_mask(asking, length, case.mask, case.block_len, case.causal, case.summaries)
    return attend(case.query, keys, values, keep, causal=False)


def by_hand(case: Case) -> Tensor:
    """One query at a time, from the definition; padding queries stay zero."""
    out = torch.zeros_like(case.query)
    batch, heads, length, head_dim = case.query.shape
    group = heads // case.key.shape[1]
    for row in range(batch):
        real = torch.ones(length, dtype=torch.bool) if case.mask is None else case.mask[row]
        for head in range(heads):
            keys, values = case.key[row, head // group], case.value[row, head // group]
            for at in range(length):
                if real[at]:
                    seen = _seen(at, keys, values, real, case)
                    scores = torch.stack([case.query[row, head, at] @ key for key, _ in seen]) / math.sqrt(head_dim)
                    out[row, head, at] = scores.softmax(0) @ torch.stack([value for _, value in seen])
    return out


def _seen(at: int, keys: Tensor, values: Tensor, real: Tensor, case: Case) -> list[tuple[Tensor, Tensor]]:
    own = at // case.block_len
    seen = []
    for block in range(-(-len(keys) // case.block_len)):
        members = [i for i in range(len(keys)) if i // case.block_len == block and real[i]]
        if not members or (case.causal and block > own):
            continue
        if abs(block - own) <= 1:
            seen += [(keys[i], values[i]) for i in members if not case.causal or i <= at]
        elif case.summaries:
            seen.append((keys[members].mean(0), values[members].mean(0)))
    return seen


def run(case: Case) -> Tensor:
    return block_attention(*case)


def real_only(x: Tensor, case: Case) -> Tensor:
    return x if case.mask is None else x * case.mask[:, None, :, None]


@settings(max_examples=60)
@given(cases(), PIECES)
def test_blocks_equal_masked_full_attention(case: Case, piece_bytes: int) -> None:
    with patch.object(blocks, "PIECE_BYTES", piece_bytes):
        mine = run(case)
    torch.testing.assert_close(real_only(mine, case), real_only(reference(case), case), rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(cases())
def test_blocks_equal_the_definition(case: Case) -> None:
    torch.testing.assert_close(real_only(run(case), case), by_hand(case), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(cases(), PIECES)
def test_gradients_equal_masked_full_attention(case: Case, piece_bytes: int) -> None:
    with patch.object(blocks, "PIECE_BYTES", piece_bytes):
        mine = gradients(run, case)
    for found, wanted in zip(mine, gradients(reference, case), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def gradients(form: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in case[:3]]
    out = real_only(form(case._replace(query=leaves[0], key=leaves[1], value=leaves[2])), case)
    return torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("summaries", [True, False])
def test_gradients_equal_differences(causal: bool, summaries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 2500)
    query, key, value = (torch.randn(2, heads, 11, 2, dtype=torch.float64).requires_grad_() for heads in (2, 1, 1))
    mask = torch.arange(11) < torch.tensor([[11], [7]])

    def real_answers(*tensors: Tensor) -> Tensor:
        return block_attention(*tensors, mask, 3, causal, summaries) * mask[:, None, :, None]

    assert torch.autograd.gradcheck(real_answers, (query, key, value))


def test_only_queries_keys_values_and_summaries_are_kept() -> None:
    query, key, value = torch.randn(3, 2, 4, 256, 8).requires_grad_().unbind()
    kept = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block_attention(query, key, value, None, 16, True, True)
    assert kept == 3 * query.nbytes + 2 * key.nbytes // 16


class Largest(TorchDispatchMode):
    """Notes the size of the largest storage that any operator gives."""

    size_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self.size_bytes = max(self.size_bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("causal", [True, False])
def test_neither_scores_nor_neighbourhoods_ever_exist_whole(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 2**16)
    query, key, value = (torch.randn(1, 2, 2048, 16, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        block_attention(query, key, value, None, 32, causal, True).sum().backward()
    # The gradient of the keys has a block more at either end.
    assert query.nbytes <= largest.size_bytes <= query.nbytes * 66 / 64


@pytest.mark.parametrize("causal", [True, False])
def test_compiled_equals_eager(causal: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 40, 8).unbind()
    compiled = torch.compile(block_attention, backend="eager", dynamic=False)
    answers = [form(query, key, value, None, 8, causal, True) for form in (compiled, block_attention)]
    torch.testing.assert_close(*answers, rtol=0, atol=0)


@pytest.mark.parametrize("summaries", [True, False])
def test_two_blocks_are_plain_causal_attention(summaries: bool) -> None:
    query, key, value = torch.randn(3, 2, 2, 16, 8).unbind()
    mine = block_attention(query, key, value, None, 8, True, summaries)
    torch.testing.assert_close(mine, attend(query, key, value, None, causal=True), rtol=1e-5, atol=1e-5)


def test_the_future_never_leaks() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 50, 8).unbind()
    before = block_attention(query, key, value, None, 6, True, True)
    key[:, :, 33:] = torch.randn_like(key[:, :, 33:])
    value[:, :, 33:] = torch.randn_like(value[:, :, 33:])
    after = block_attention(query, key, value, None, 6, True, True)
    torch.testing.assert_close(after[:, :, :33], before[:, :, :33], rtol=0, atol=0)
    assert not torch.equal(after[:, :, 33:], before[:, :, 33:])


def test_summaries_reach_far_and_their_absence_does_not() -> None:
    query, key, value = torch.randn(3, 1, 1, 64, 8).unbind()
    changed = value.clone()
    changed[:, :, 0] += 1
    for summaries in (True, False):
        one = block_attention(query, key, value, None, 8, True, summaries)
        two = block_attention(query, key, changed, None, 8, True, summaries)
        assert torch.equal(one[:, :, 63], two[:, :, 63]) is not summaries


def test_padding_queries_stay_finite() -> None:
    query, key, value = torch.randn(3, 2, 2, 20, 8, requires_grad=True).unbind()
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, :3] = True
    for causal in (True, False):
        out = block_attention(query, key, value, mask, 4, causal, True)
        assert out.isfinite().all()
        assert torch.autograd.grad(out[0, :, :3].sum(), key)[0].isfinite().all()


def test_rolled_moves_rows_left_and_back() -> None:
    x = torch.arange(12.0).view(2, 1, 6, 1)
    by = torch.tensor([2, 0])
    moved = rolled(x, by)
    assert moved[0].flatten().tolist() == [2, 3, 4, 5, 0, 1]
    assert torch.equal(rolled(moved, -by), x)


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    shape = Shape(
        vocab_size=8,
        dim=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=8,
        num_decoder_layers=1,
        attention="block",
        block_len=8,
    )
    layer = SelfAttention(shape, causal=True)
    x = torch.randn(2, 70, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.02)
    of_low, wanted = (torch.autograd.grad(out.float().square().sum(), layer.qkv.weight)[0] for out in (low, layer(x)))
    assert (of_low - wanted).norm() < 0.01 * wanted.norm()
