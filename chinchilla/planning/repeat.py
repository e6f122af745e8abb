"""Repeated data in full: what the epochs after the first are worth, and which model to train on too little text.

Muennighoff 2023 (arXiv 2305.16264), eqs. 5 and 6, with R_D = D/U_D - 1 repetitions and R_N = N/U_N - 1 excess:

    L = E + A/(U_N + U_N·R_N*·(1 - e^(-R_N/R_N*)))^alpha + B/(U_D + U_D·R_D*·(1 - e^(-R_D/R_D*)))^beta

U_D = min(U, D) tokens are fresh, and U_N = min(N, N_opt(U)) parameters are what U unique tokens can use: with unlimited
text a law is itself, for every model. The paper takes N_opt(U_D), which is the same from one epoch on. Within one epoch
it discounts what the law of one epoch was fitted with: of Besiroglu's points it misses the 25 with 5 to 20 times
N_opt(D) parameters by 1.9 % (median) and the 9 with more by 5.3 %, the plain law by 0.4 % and 1.7 %.
"""

import math
from typing import Self

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
from chinchilla.planning.valley import last

MEASURED_EPOCHS = Span(low=1, high=60)
"""Where most of the fitted runs lie; those with more overfit, which the form cannot follow (R² = 0.77)."""

NEVER, ALWAYS = 1e-9, 1e9
"""Half-lives in repetitions at which a repeat is worth nothing, and as much as a fresh token."""

SAME_LOSS = 1e-13
"""Relative difference of two losses that rounding alone makes. Where repeats and parameters are worn out, a wide range
of sizes comes to the same loss: of these the smallest is the best."""

SPREAD_A_DECADE = 0.15
"""Relative spread that each decade of fresh tokens outside the law's range adds to its loss: a guess."""

NEARLY = 0.01
"""Relative difference of loss that more epochs are not worth their time for."""


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
        """`loss` between the ends of both half-lives, widened by what another text and tokenizer may do: a guess.

        The further its fresh tokens lie outside what the law was fitted to, the wider.
        """
        fresh, fitted = min(unique, tokens), self.base.tokens
        decades = abs(math.log10(fresh / min(max(fresh, fitted.low), fitted.high)))
        spread = TRANSFER_SPREAD + SPREAD_A_DECADE * decades
        ends = zip(_ends(self.token_half_life), _ends(self.param_half_life), strict=True)
        worst, best = (self._loss(num_params, tokens, unique, *pair) for pair in ends)
        return Estimate(
            p10=best / (1 + spread),
            p50=self.loss(num_params, tokens, unique),
            p90=worst * (1 + spread),
            unit="nats/token",
            source="guess",
        )

    def optimum(self, flops: float, unique: float) -> tuple[float, float]:
        """Parameters and tokens seen of least loss under 6·N·D = `flops` when only `unique` tokens exist.

        Equal to the base law's optimum where that stays within one epoch. Beyond, excess parameters lose their worth
        faster than repeated tokens: the optimum trains a smaller model for more epochs. Of sizes that come to the same
        loss (`SAME_LOSS`) it is the smallest.

        Raises:
            BudgetError: `flops` or `unique` is not a positive, finite number.
        """
        if not (math.isfinite(unique) and unique > 0):
            raise BudgetError(f"{unique} unique tokens teach nothing: give a positive, finite number")
        fresh = self.base.optimum(flops)
        if fresh[1] <= unique:
            return fresh
        budget = flops / FLOPS_PER_PARAM_TOKEN

        def lowest(log_tokens: float) -> bool:
            """Whether the loss is at its least, or falls: told by its rise, since of losses rounding alone is left."""
            tokens = math.exp(log_tokens)
            num_params = budget / tokens
            # Where parameters are worn out the rise is of the form e^(-N/worn), and so is what it has added up to.
            worn = self.base.params_for(unique) * self.param_half_life.value
            added = self._rise(num_params, tokens, unique) / max(1.0, num_params / worn)
            return added <= SAME_LOSS * self.loss(num_params, tokens, unique)

        # Fewer tokens than there are would only be the fresh case again; at the upper end one parameter is left.
        tokens = math.exp(last(lowest, math.log(unique), math.log(fresh[1]) + math.log(fresh[0])))
        return budget / tokens, tokens

    def best_size(self, flops: float, unique: float) -> Estimate:
        """N of `optimum`. p10 and p90 are those of the base law, widened by the ends of the two half-lives' intervals.

        The more repeats are worth beside excess parameters, the smaller is the best model.

        Raises:
            BudgetError: as `optimum`.
        """
        size, (plain, fresh) = self.optimum(flops, unique)[0], self.base.allocation(flops)
        if fresh.p50 <= unique:
            return plain
        tokens, params = _ends(self.token_half_life), _ends(self.param_half_life)
        smallest, largest = (
            self._with(*pair).optimum(flops, unique)[0] for pair in ((tokens[1], params[0]), (tokens[0], params[1]))
        )
        return Estimate(
            p10=min(size, smallest) * plain.p10 / plain.p50,
            p50=size,
            p90=max(size, largest) * plain.p90 / plain.p50,
            unit=plain.unit,
            source="guess",
        )

    def enough(self, num_params: float, tokens: float, unique: float) -> float:
        """The tokens after which such a run is within 1 % (`NEARLY`) of its loss after `tokens` (> 1)."""
        most = self.loss(num_params, tokens, unique) * (1 + NEARLY)

        def near(fewer: float) -> bool:
            return self.loss(num_params, tokens * math.exp(-fewer), unique) <= most

        return tokens * math.exp(-last(near, 0.0, math.log(tokens)))

    def discounts(self, num_params: float, tokens: float, unique: float) -> bool:
        """Whether the loss of such a run is not the base law's: tokens repeat, or parameters are in excess."""
        return tokens > unique or num_params > self.base.params_for(unique)

    def _rise(self, num_params: float, tokens: float, unique: float) -> float:
        """dL/d(log D) where N·D stays: what fewer parameters cost, less what more tokens gain."""
        base, useful = self.base, min(num_params, self.base.params_for(unique))
        tokens_life, params_life = self.token_half_life.value, self.param_half_life.value
        alpha, beta = base.param_exponent.value, base.token_exponent.value
        size, seen = effective_tokens(useful, num_params, params_life), effective_tokens(unique, tokens, tokens_life)
        cost = alpha * base.param_scale.value * size ** -(alpha + 1) * _kept(useful, num_params, params_life)
        gain = beta * base.token_scale.value * seen ** -(beta + 1) * _kept(unique, tokens, tokens_life)
        return cost * num_params - gain * tokens

    def _with(self, token_half_life: float, param_half_life: float) -> Self:
        """The law with other half-lives."""
        values = {"token_half_life": token_half_life, "param_half_life": param_half_life}
        changes = {name: getattr(self, name).model_copy(update={"value": value}) for name, value in values.items()}
        return self.model_copy(update=changes)

    def _loss(
        self, num_params: float, tokens: float, unique: float, token_half_life: float, param_half_life: float
    ) -> float:
        useful = min(num_params, self.base.params_for(unique))
        return self.base.loss(
            effective_tokens(useful, num_params, param_half_life), effective_tokens(unique, tokens, token_half_life)
        )


def _kept(unique: float, seen: float, half_life: float) -> float:
    """What one more is worth after `seen` of `unique`: the derivative of `effective_tokens`."""
    return math.exp(-max(0.0, seen / unique - 1) / half_life)


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


def repeated(law: ChinchillaLaw) -> RepeatLaw:
    """Another law with Muennighoff's half-lives of repeats and of excess parameters: two fits mixed, so a guess."""
    return MUENNIGHOFF.model_copy(update={"name": f"{law.name} with muennighoff's repeats", "base": law})


def law_loss(law: ChinchillaLaw, num_params: float, tokens: float, unique: float) -> Estimate:
    """The law's loss for a run that sees `tokens` of `unique` different ones, in nats a token.

    Always a guess: the level belongs to the law's own text and tokenizer, and repeats mix two fits.
    """
    return repeated(law).predict(num_params, tokens, unique)
