"""The piecewise token loss against torch's cross-entropy: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chinchilla.models import head as head_module
from chinchilla.models.head import IGNORE, Reconstruction, TokenHead


def make(vocab_size: int, dim: int, bias: bool, seed: int = 0) -> TokenHead:
    torch.manual_seed(seed)
    head = TokenHead(dim, vocab_size, bias, None)
    nn.init.normal_(head.weight)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head


def labels_for(rows: int, length: int, vocab_size: int, ignored: float) -> Tensor:
    labels = torch.randint(0, vocab_size, (rows, length))
    return labels.masked_fill(torch.rand(rows, length) < ignored, IGNORE)


def wanted(head: TokenHead, hidden: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(hidden, head.weight, head.bias).flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing, ignore_index=IGNORE)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 30),
    vocab_size=st.integers(2, 50),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.floats(0.1, 8.0),
)
def test_loss_and_gradients_equal_cross_entropy(
    length: int, vocab_size: int, bias: bool, smoothing: float, ignored: float, scale: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "PIECE_TOKENS", 7)
        head = make(vocab_size, 9, bias, seed=length)
        hidden = torch.randn(2, length, 9, requires_grad=True)
        labels = labels_for(2, length, vocab_size, ignored)
        leaves = [hidden, *head.parameters()]
        total, plain = head.loss(hidden, labels, smoothing)
        mine = torch.autograd.grad(total * scale, leaves)
    reference = wanted(head, hidden, labels, smoothing)
    theirs = torch.autograd.grad(reference * scale, leaves)
    torch.testing.assert_close(total, reference, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(plain, wanted(head, hidden, labels, 0.0), rtol=1e-5, atol=1e-4)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * scale)


def test_large_logits_do_not_overflow() -> None:
    head = make(20, 8, True)
    hidden = 200 * torch.randn(1, 600, 8, requires_grad=True)
    labels = labels_for(1, 600, 20, 0.2)
    total, _ = head.loss(hidden, labels)
    torch.testing.assert_close(total, wanted(head, hidden, labels, 0.0), rtol=1e-5, atol=1e-2)
    assert torch.autograd.grad(total, head.weight)[0].isfinite().all()


def test_autocast_to_bfloat16_is_close() -> None:
    head = make(300, 64, False)
    nn.init.normal_(head.weight, std=0.125)
    hidden, labels = torch.randn(2, 700, 64, requires_grad=True), labels_for(2, 700, 300, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        total, plain = head.loss(hidden, labels, 0.1)
    mine = torch.autograd.grad(total, [hidden, head.weight])
    reference = wanted(head, hidden, labels, 0.1)
    theirs = torch.autograd.grad(reference, [hidden, head.weight])
    assert total.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(total, reference, rtol=2e-3, atol=0)
    for ours, other in zip(mine, theirs, strict=True):
        assert (ours - other).norm() < 0.01 * other.norm()


def test_tied_head_adds_its_gradient_to_the_embeddings() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(13, 6)
    head = TokenHead(6, 13, False, table.weight)
    ids, labels = torch.randint(0, 13, (2, 5)), torch.randint(0, 13, (2, 5))
    head.loss(table(ids), labels)[0].backward()
    gradient = table.weight.grad
    table.weight.grad = None
    F.cross_entropy((table(ids) @ table.weight.t()).flatten(0, 1), labels.flatten(), reduction="sum").backward()
    assert gradient is not None and table.weight.grad is not None
    torch.testing.assert_close(gradient, table.weight.grad, rtol=1e-4, atol=1e-5)


def test_no_gradient_is_made_where_none_is_asked() -> None:
    head = make(10, 4, True)
    with torch.no_grad():
        total, plain = head.loss(torch.randn(1, 3, 4), torch.tensor([[1, IGNORE, 2]]))
    assert not total.requires_grad and total == plain


def test_reconstruction_is_the_masked_error_of_normed_targets() -> None:
    torch.manual_seed(0)
    part = Reconstruction(6)
    hidden = torch.randn(2, 5, 6)
    clean = torch.randn(2, 5, 6, requires_grad=True)
    masked = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    target = (clean - clean.mean(2, keepdim=True)) / (clean.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    squares = (part.map(hidden) - target).square()
    loss = part.loss(hidden, clean, masked)
    torch.testing.assert_close(loss, squares[masked].mean(), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(loss, clean, allow_unused=True) == (None,)
    assert part.loss(hidden, clean, torch.zeros_like(masked)) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_costs_two_products_and_not_three(bias: bool) -> None:
    torch.manual_seed(0)
    hidden, labels = torch.randn(2, 64, 9, requires_grad=True), torch.randint(0, 20, (2, 64))
    head = make(20, 9, bias)
    found, flops = [], []
    for frozen in (False, True):
        head.requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            found.append(torch.autograd.grad(head.loss(hidden, labels, 0.1)[0], hidden)[0])
        flops.append(counter.get_total_flops())
    assert torch.equal(*found)
    assert flops == [3 * 2 * 128 * 20 * 9, 2 * 2 * 128 * 20 * 9]
