"""Serving counted in: the cheapest model of a given quality over training and its whole life.

Sardana 2024 (arXiv 2401.00448), eq. 3: minimise 6·N·D + 2·N·D_inf subject to L(N, D) = loss, where D_inf is the number
of tokens, read and written, that the model will ever serve. It counts FLOPs, and serving gets fewer of them a second.
"""

import math
from dataclasses import dataclass

from chinchilla.config.errors import BudgetError
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.valley import lowest

SERVED_FLOPS_PER_PARAM = 2.0
"""FLOPs a parameter and served token: a forward pass."""


@dataclass(frozen=True)
class Lifetime:
    """A model, the tokens it is trained on and serves, and the FLOPs of both."""

    num_params: float
    tokens: float
    served_tokens: float

    @property
    def train_flops(self) -> float:
        """6·N·D."""
        return FLOPS_PER_PARAM_TOKEN * self.num_params * self.tokens

    @property
    def flops(self) -> float:
        """Training and serving: 6·N·D + 2·N·D_inf."""
        return self.train_flops + SERVED_FLOPS_PER_PARAM * self.num_params * self.served_tokens


def chinchilla_lifetime(law: ChinchillaLaw, loss: float, served_tokens: float) -> Lifetime:
    """The model that reaches `loss` with the fewest training FLOPs, whatever serving costs.

    On the optimum's line both terms of the loss fall as one power: alpha·A/N^alpha = beta·B/D^beta.

    Raises:
        BudgetError: as for `serving_optimum`.
    """
    _check(law, loss, served_tokens)
    alpha, beta = law.param_exponent.value, law.token_exponent.value
    share = beta / (alpha + beta)
    num_params = (law.param_scale.value / (share * (loss - law.irreducible.value))) ** (1 / alpha)
    return Lifetime(num_params, law.tokens_for(num_params), served_tokens)


def serving_optimum(law: ChinchillaLaw, loss: float, served_tokens: float) -> Lifetime:
    """The model that reaches `loss` (nats a token) with the fewest FLOPs over training and `served_tokens`.

    Without serving it is Hoffmann's optimum; the more is served, the smaller the model and the longer its training.
    Laws fitted at usual tokens a parameter overrate the extra ones (Sardana 2024, who tried up to 10,000).

    Raises:
        BudgetError: no model reaches `loss` (it is at or below the law's E), or the tokens are negative or not finite.
    """
    fresh = chinchilla_lifetime(law, loss, served_tokens)
    if served_tokens == 0:
        return fresh

    def flops(log_params: float) -> float:
        num_params = math.exp(log_params)
        return Lifetime(num_params, _tokens(law, loss, num_params), served_tokens).flops

    # Both terms are log-convex in log N, so is their sum: one valley, between the model that would need endless
    # training and the one that serving does not weigh on.
    reducible = loss - law.irreducible.value
    smallest = math.log(law.param_scale.value / reducible) / law.param_exponent.value
    num_params = math.exp(lowest(flops, smallest, math.log(fresh.num_params)))
    return Lifetime(num_params, _tokens(law, loss, num_params), served_tokens)


def _tokens(law: ChinchillaLaw, loss: float, num_params: float) -> float:
    """The tokens with which `num_params` parameters reach `loss`; endless where they never do."""
    gap = loss - law.floor(num_params)
    return (law.token_scale.value / gap) ** (1 / law.token_exponent.value) if gap > 0 else math.inf


def _check(law: ChinchillaLaw, loss: float, served_tokens: float) -> None:
    if not (math.isfinite(loss) and loss > law.irreducible.value):
        raise BudgetError(
            f"a loss of {loss} nats a token is out of reach: by law {law.name!r} even endless training of the largest "
            f"model ends above {law.irreducible.value:.4g}; ask for a higher one"
        )
    if not (math.isfinite(served_tokens) and served_tokens >= 0):
        raise BudgetError(f"{served_tokens} tokens cannot be served: give a number that is finite and not negative")
