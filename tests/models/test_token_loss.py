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


@settings(max_examples=40)
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


def focal(logits: Tensor, labels: Tensor, gamma: float, weights: Tensor) -> Tensor:
    """FL = -α (1 - p)^γ log p of Lin 2017, eq. 5, over the labelled rows, by autograd."""
    real = labels != IGNORE
    chances = logits.double().softmax(-1)[real].gather(1, labels[real][:, None])[:, 0]
    return (-weights.double()[labels[real]] * (1 - chances) ** gamma * chances.log()).sum()


@settings(max_examples=40)
@given(
    length=st.integers(1, 30),
    classes=st.integers(2, 12),
    bias=st.booleans(),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    weighted=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.floats(0.1, 8.0),
)
def test_weighted_and_focal_loss_and_gradients_equal_autograds(
    length: int, classes: int, bias: bool, gamma: float, weighted: bool, ignored: float, scale: float
) -> None:
    head = make(classes, 9, bias, seed=length)
    hidden = torch.randn(2, length, 9, requires_grad=True)
    labels = labels_for(2, length, classes, ignored)
    weights = torch.rand(classes) * 5 + 0.1 if weighted else None
    leaves = [hidden, *head.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "PIECE_TOKENS", 7)
        total, plain = head.loss(hidden, labels, 0.0, weights, gamma)
        mine = torch.autograd.grad(total * scale, leaves)
    logits = F.linear(hidden, head.weight, head.bias).flatten(0, 1)
    reference = focal(logits, labels.flatten(), gamma, torch.ones(classes) if weights is None else weights)
    if not gamma:
        torchs = F.cross_entropy(logits, labels.flatten(), weights, reduction="sum", ignore_index=IGNORE)
        torch.testing.assert_close(reference.float(), torchs, rtol=1e-5, atol=1e-4)
    theirs = torch.autograd.grad(reference * scale, leaves)
    torch.testing.assert_close(total, reference.float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(plain, wanted(head, hidden, labels, 0.0), rtol=1e-5, atol=1e-4)
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * scale)


def test_two_classes_have_the_focal_loss_of_a_sigmoid() -> None:
    """The form it was published in: p by a sigmoid, α for the positive class and 1 - α for the other."""
    head = make(2, 5, False)
    hidden, labels = torch.randn(1, 40, 5), torch.randint(0, 2, (1, 40))
    logits = head(hidden)[0].double()
    chance = torch.sigmoid(logits[:, 1] - logits[:, 0])
    positive = -0.25 * (1 - chance) ** 2 * chance.log() * labels[0]
    negative = -0.75 * chance**2 * (1 - chance).log() * (1 - labels[0])
    total, _ = head.loss(hidden, labels, 0.0, torch.tensor([0.75, 0.25]), 2.0)
    torch.testing.assert_close(total, (positive + negative).sum().float(), rtol=1e-5, atol=1e-5)


def test_the_weight_of_a_label_multiplies_its_smoothed_loss() -> None:
    head = make(6, 5, True)
    hidden, labels = torch.randn(2, 20, 5, requires_grad=True), labels_for(2, 20, 6, 0.2)
    weights = torch.rand(6) + 0.2
    each = F.cross_entropy(
        head(hidden).flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=0.1, ignore_index=IGNORE
    )
    reference = (each * weights[labels.flatten().clamp_min(0)]).sum()
    leaves = [hidden, *head.parameters()]
    total, _ = head.loss(hidden, labels, 0.1, weights)
    torch.testing.assert_close(total, reference, rtol=1e-5, atol=1e-4)
    for ours, other in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(reference, leaves), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_focal_loss_of_certain_labels_is_nothing_and_of_hopeless_ones_finite(gamma: float) -> None:
    head = make(3, 3, True)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
        head.bias.zero_()
    hidden = 200 * torch.eye(3)[None, [0, 0]]
    hidden.requires_grad_()
    for label, expected in ((0, 0.0), (1, 200.0)):
        total, plain = head.loss(hidden, torch.full((1, 2), label), gamma=gamma)
        gradient = torch.autograd.grad(total, hidden)[0]
        assert float(total.detach()) == pytest.approx(2 * expected, abs=1e-6) and gradient.isfinite().all()
        assert float(plain) == pytest.approx(2 * expected)


def test_weights_and_focus_under_autocast_are_close() -> None:
    head = make(12, 64, True)
    nn.init.normal_(head.weight, std=0.125)
    hidden, labels = torch.randn(2, 300, 64, requires_grad=True), labels_for(2, 300, 12, 0.1)
    weights = torch.rand(12) + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = head.loss(hidden, labels, 0.0, weights, 2.0)
    mine = torch.autograd.grad(total, [hidden, head.weight])
    reference = focal(head(hidden).flatten(0, 1), labels.flatten(), 2.0, weights)
    theirs = torch.autograd.grad(reference, [hidden, head.weight])
    torch.testing.assert_close(total, reference.float(), rtol=5e-3, atol=0)
    for ours, other in zip(mine, theirs, strict=True):
        assert (ours - other).norm() < 0.02 * other.norm()


def test_equal_weights_are_none_to_the_bit() -> None:
    head, labels = make(7, 5, True), labels_for(2, 20, 7, 0.2)
    hidden = torch.randn(2, 20, 5, requires_grad=True)
    found = []
    for weights in (None, torch.ones(7)):
        total, _ = head.loss(hidden, labels, 0.1, weights)
        found.append([total, *torch.autograd.grad(total, [hidden, *head.parameters()])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_focal_loss_of_smoothed_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="smooth no labels"):
        make(3, 3, False).loss(torch.randn(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), 0.1, gamma=2.0)


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
