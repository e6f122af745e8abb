"""Repeated data in full: what the epochs after the first are worth, and which model to train on too little text.

Muennighoff 2023 (arXiv 2305.16264), eqs. 5 and 6, with R_D = D/U_D - 1 repetitions and R_N = N/U_N - 1 excess:

    L = E + A/(U_N + U_N·R_N*·(1 - e^(-R_N/R_N*)))^alpha + B/(U_D + U_D·R_D*·(1 - e^(-R_D/R_D*)))^beta

U_D = min(U, D) tokens are fresh, and U_N = min(N, N_opt(U_D)) parameters are what so many fresh tokens can use.
"""

import math

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen
from chinchilla.planning.constants import Constant, Span
from chinchilla.planning.laws import (
    FLOPS_PER_PARAM_TOKEN,
    MUENNIGHOFF_C4,
    REPEAT_HALF_LIFE,
    TRANSFER_SPREAD,
    ChinchillaLaw,
    effective_tokens,
)
from chinchilla.planning.valley import lowest

MEASURED_EPOCHS = Span(low=1, high=60)
"""Where most of the fitted runs lie; those with more overfit, which the form cannot follow (R² = 0.77)."""

NEVER, ALWAYS = 1e-9, 1e9
"""Half-lives in repetitions at which a repeat is worth nothing, and as much as a fresh token."""


class RepeatLaw(Frozen):
    """A law of one epoch, and how repeated tokens and excess parameters lose their worth.

    The two half-lives are known by their intervals only: on the law's own 182 runs (47.0, 2.33) fits better than the
    published (15.4, 5.31).
    """

    name: str
    base: ChinchillaLaw
    token_half_life: Constant
    param_half_life: Constant
    epochs: Span

    def loss(self, num_params: float, tokens: float, unique: float) -> float:
        """L in nats a token after seeing `tokens`, drawn from `unique` different ones; all > 0."""
        return self._loss(num_params, tokens, unique, self.token_half_life.value, self.param_half_life.value)

    def worth(self, unique: float, seen: float) -> Estimate:
        """What `seen` tokens drawn from `unique` are worth, in fresh tokens.

        p10 and p90 are the ends of the half-life's 95 % interval; without an upper end, repeats may be worth as much as
        fresh tokens. Equal to `seen` up to one epoch.
        """
        low, high = _ends(self.token_half_life)
        return Estimate(
            p10=effective_tokens(unique, seen, low),
            p50=effective_tokens(unique, seen, self.token_half_life.value),
            p90=effective_tokens(unique, seen, high),
            unit="tokens",
            source="law" if self.epochs.holds(max(1.0, seen / unique)) else "guess",
        )

    def predict(self, num_params: float, tokens: float, unique: float) -> Estimate:
        """`loss` between the ends of both half-lives, widened by what another text and tokenizer may do: a guess."""
        ends = zip(_ends(self.token_half_life), _ends(self.param_half_life), strict=True)
        worst, best = (self._loss(num_params, tokens, unique, *pair) for pair in ends)
        return Estimate(
            p10=best / (1 + TRANSFER_SPREAD),
            p50=self.loss(num_params, tokens, unique),
            p90=worst * (1 + TRANSFER_SPREAD),
            unit="nats/token",
            source="guess",
        )

    def optimum(self, flops: float, unique: float) -> tuple[float, float]:
        """Parameters and tokens seen of least loss under 6·N·D = `flops` when only `unique` tokens exist.

        Equal to the base law's optimum where that stays within one epoch. Beyond, excess parameters lose their worth
        faster than repeated tokens: the optimum trains a smaller model for more epochs.

        Raises:
            BudgetError: `flops` or `unique` is not a positive, finite number.
        """
        if not (math.isfinite(unique) and unique > 0):
            raise BudgetError(f"{unique} unique tokens teach nothing: give a positive, finite number")
        fresh = self.base.optimum(flops)
        if fresh[1] <= unique:
            return fresh
        budget = flops / FLOPS_PER_PARAM_TOKEN

        def loss(log_tokens: float) -> float:
            tokens = math.exp(log_tokens)
            return self.loss(budget / tokens, tokens, unique)

        # Fewer tokens than there are would only be the fresh case again; at the upper end one parameter is left.
        tokens = math.exp(lowest(loss, math.log(unique), math.log(fresh[1]) + math.log(fresh[0])))
        return budget / tokens, tokens

    def _loss(
        self, num_params: float, tokens: float, unique: float, token_half_life: float, param_half_life: float
    ) -> float:
        fresh = min(unique, tokens)
        useful = min(num_params, self.base.params_for(fresh))
        return self.base.loss(
            effective_tokens(useful, num_params, param_half_life), effective_tokens(fresh, tokens, token_half_life)
        )


def _ends(half_life: Constant) -> tuple[float, float]:
    """The interval's ends, open ones as far out as they can be."""
    low, high = half_life.interval or (None, None)
    return low or NEVER, high or ALWAYS


MUENNIGHOFF = RepeatLaw(
    name="muennighoff",
    base=MUENNIGHOFF_C4,
    token_half_life=REPEAT_HALF_LIFE,
    param_half_life=Constant(
        value=5.309743,
        interval=(0.28, 18.9),
        source="Muennighoff 2023 (arXiv 2305.16264), R*_N; interval: a bootstrap of its 182 runs",
        tag="verified",
    ),
    epochs=MEASURED_EPOCHS,
)
"""The one published law of repeats."""
