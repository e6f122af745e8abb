"""Muon (Jordan 2024): a matrix's momentum, made nearly orthogonal, is its update.

torch's own takes five Newton-Schulz steps with one polynomial. Here the polynomials differ from step to step, each the
best for the interval that the one before leaves (Polar Express, Amsel 2025, alg. 1), so that three do: at the sizes a
CPU trains, these products are a third of a step and more.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

POLYNOMIALS = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)
"""a, b, c of a·x + b·x³ + c·x⁵, for singular values between 0.01 and 1: they end between 0.72 and 1.27."""

ROUNDING = 1.01
"""Beyond the end of its interval a polynomial runs away, and bf16 rounds what the one before leaves: each gets it this
much shorter (Polar Express, section 4.4)."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. For matrices, and kernels of convolutions as such.

    A kernel (outputs, inputs, height, width) is the matrix of each output by all that it sees.

    An update is scaled by 0.2·√max(rows, columns), as large as AdamW's usual one, so that its rates carry over (Liu
    2025, eq. 4). Its products are made in `dtype`: bf16 is enough, but a processor without bf16 products took 10 to
    70 times as long for them as for fp32's.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state.clear()  # what AdamW kept, of a run from before Muon took convolutions
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"]).flatten(1)
        direction = orthogonal(ahead.to(self.dtype)).view_as(matrix)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * 0.2 * max(ahead.shape) ** 0.5)


def orthogonal(x: Tensor) -> Tensor:
    """About U·Vᵀ where `x` (rows, columns) is U·S·Vᵀ; those below 0.01 of the longest stay shorter."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    gram = x @ x.T
    # (Σσ⁴)^¼ bounds the largest singular value more tightly than (Σσ²)^½ does, and the product is there already.
    bound = ROUNDING**2 * gram.norm().clamp(min=1e-30).sqrt()
    x, gram = x / bound, gram / bound**2
    for step, (a, b, c) in enumerate(POLYNOMIALS):
        if step > 0:
            a, b, c = a / ROUNDING, b / ROUNDING**3, c / ROUNDING**5
            gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
