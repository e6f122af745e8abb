"""Heads: hidden states to answers, and the losses that go with them."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE_TOKENS = 1024
"""Positions whose logits exist at one time."""

CHUNK_ROWS = 32
"""Positions whose chances exist at one time: 32 × 8,192 in fp32 stay inside a core's cache."""

ROUND_TOKENS = 128
"""Labelled positions are filled up to a multiple of this."""

IGNORE = -100
"""The label of a position that carries no loss."""


LEAST_LOSS = 1e-30
"""Of a label that is as good as certain, or powers of 1 - p would be 0 · ∞."""


class Emphasis(NamedTuple):
    """How much training makes of each label.

    `smoothing` (Szegedy 2016); `weights` (num_outputs,) of the answers, None: 1 each; `gamma` of focal loss (Lin 2017).
    """

    smoothing: float = 0.0
    weights: Tensor | None = None
    gamma: float = 0.0

    @property
    def by_label(self) -> bool:
        """Whether labels count for different amounts."""
        return self.weights is not None or self.gamma > 0

    def of(self, wanted: Tensor, missed: Tensor) -> tuple[Tensor, Tensor]:
        """What the losses of some labels count for, and what their gradients do; all (rows, 1).

        `missed` is m = -log p. The focal loss is w·(1 - p)^γ·m (arXiv 1708.02002, eq. 5), and its derivative by m
        w·((1 - p)^γ + γ·p·(1 - p)^(γ - 1)·m).
        """
        weights = torch.ones_like(missed) if self.weights is None else self.weights[wanted]
        if not self.gamma:
            return weights, weights
        missed = missed.clamp_min(LEAST_LOSS)
        wrong = -torch.expm1(-missed)
        focus = wrong**self.gamma
        return weights * focus, weights * (focus + self.gamma * (1 - wrong) * wrong ** (self.gamma - 1) * missed)


class _TokenLoss(torch.autograd.Function):
    """Cross-entropy of a linear head in pieces: neither the logits nor their gradient ever exist whole.

    The gradients are made in the forward pass, in the logits' place, and scaled in the backward pass. Matrix products
    take large pieces, since each prepares its weight anew; what is done to each logit takes chunks that stay in cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        count: int,
        emphasis: Emphasis,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        low = torch.get_autocast_dtype(hidden.device.type) if _autocast(hidden) else hidden.dtype
        table = weight.to(low)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight: Tensor | None = None
        # A frozen head's gradients would cost a third of all its products.
        needs_weight, needs_bias = (needs_grad and asked for asked in ctx.needs_input_grad[1:3])
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        total = torch.zeros((), device=hidden.device)
        plain = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), PIECE_TOKENS):
            piece = slice(start, start + PIECE_TOKENS)
            states, wanted = hidden[piece].to(low), labels[piece]
            logits = F.linear(states, table, None if bias is None else bias.to(low))
            missed, stressed, scale = _chances_(logits, wanted, count - start, emphasis, grad_bias, needs_grad)
            plain += missed
            total += stressed
            if grad_hidden is None:
                continue
            torch.mul(logits @ table, scale, out=grad_hidden[piece])
            if needs_weight:
                product = logits.t() @ (states * scale.to(low))
                grad_weight = product.float() if grad_weight is None else grad_weight.add_(product)
                del product
            del logits  # or it would stand beside the next piece's
        if needs_grad:
            if needs_weight and grad_weight is None:
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_plain: Tensor) -> Any:
        scaled = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _chances_(
    logits: Tensor, wanted: Tensor, count: int, emphasis: Emphasis, grad_bias: Tensor | None, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy of the first `count` rows, the same with emphasis, and each row's factor `(rows, 1)`.

    The gradient takes the place of `logits` (rows, vocab_size), but for that factor, which spares a pass over all of
    it; a bias's is added to `grad_bias`.
    """
    missed, sums = logits.new_zeros((2, len(logits), 1), dtype=torch.float32)
    smoothing = emphasis.smoothing
    stressed = missed.clone() if smoothing or emphasis.by_label else missed
    # On a GPU each chunk would cost more to launch than to compute.
    size = CHUNK_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        at = wanted[rows, None]
        chunk = logits[rows].float()  # the logits themselves where they are fp32
        highest = chunk.amax(1, keepdim=True)
        chosen = chunk.gather(1, at)
        mean = chunk.mean(1, keepdim=True) if smoothing else None
        chunk.sub_(highest).exp_()
        each = torch.sum(chunk, 1, keepdim=True, out=sums[rows])
        logs = each.log() + highest
        missed[rows] = logs - chosen
        if mean is not None:
            stressed[rows] = (1 - smoothing) * missed[rows] + smoothing * (logs - mean)
        if needs_grad:
            _less_wanted_(chunk, at, each, smoothing)
        if emphasis.by_label:
            counted, slope = emphasis.of(at, missed[rows])
            stressed[rows] = counted * (stressed[rows] if smoothing else missed[rows])
            each /= slope  # gradients are divided by these
        if needs_grad:
            if chunk.dtype != logits.dtype:
                logits[rows] = chunk
            if grad_bias is not None:
                real = each[: max(0, count - start)]
                grad_bias += (chunk[: len(real)] / real).sum(0)
    factors = sums.reciprocal_()
    factors[max(0, count) :] = 0
    return missed[: max(0, count)].sum(), stressed[: max(0, count)].sum(), factors


def _less_wanted_(chances: Tensor, at: Tensor, sums: Tensor, smoothing: float) -> None:
    """Take the smoothed labels `at` (rows, 1) off chances (rows, vocab_size) that add up to `sums`."""
    if smoothing:
        chances -= sums * (smoothing / chances.shape[1])
    chances.scatter_add_(1, at, (smoothing - 1) * sums)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


class TokenHead(nn.Module):
    """A linear map from hidden states to the vocabulary; its weight is the embedding table's when tied."""

    def __init__(self, dim: int, vocab_size: int, bias: bool, tied: Tensor | None) -> None:
        super().__init__()
        self.weight = tied if tied is not None else nn.Parameter(torch.empty(vocab_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (…, dim) → logits (…, vocab_size)."""
        return F.linear(hidden, self.weight, self.bias)

    def loss(
        self, hidden: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None, gamma: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the labelled positions.

        `hidden` (batch, length, dim), `labels` (batch, length) with `IGNORE` where there is no loss. Returns the sum
        to minimise, by `Emphasis(smoothing, weights, gamma)`, and the plain sum in nats, to report.

        Raises:
            ValueError: both smoothing and gamma: focal loss is of one right answer.
        """
        if smoothing and gamma:
            raise ValueError("focal loss is of one right answer: smooth no labels")
        labels = labels.flatten()
        rows = (labels != IGNORE).nonzero()[:, 0]
        # Filled up with rows that count for nothing: products of a new size are dear to prepare, so few sizes are used.
        filling = rows.new_zeros(-len(rows) % ROUND_TOKENS)
        chosen = torch.cat([rows, filling])
        wanted = torch.cat([labels[rows], filling])
        # Asked here, since inside a Function the answer is always no.
        needs_grad = torch.is_grad_enabled()
        states = hidden.flatten(0, -2)[chosen]
        emphasis = Emphasis(smoothing, weights, gamma)
        return _TokenLoss.apply(states, self.weight, self.bias, wanted, len(rows), emphasis, needs_grad)


class Reconstruction(nn.Module):
    """Predicts the clean input features at masked positions (denoising autoencoder; data2vec's targets).

    The target is the clean embedding, normalised over its channels, with no gradient; the loss is the mean squared
    error over masked positions and channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def loss(self, hidden: Tensor, clean: Tensor, masked: Tensor) -> Tensor:
        """`hidden`, `clean` (batch, length, dim), `masked` (batch, length) bool → a scalar; 0 when none is masked."""
        if not masked.any():
            return hidden.new_zeros(())
        target = F.layer_norm(clean.detach()[masked].float(), clean.shape[-1:])
        return F.mse_loss(self.map(hidden[masked]).float(), target)
