"""Scaling laws: loss as a function of parameters and tokens, with source and range of every constant.

L(N, D) = E + A/N^alpha + B/D^beta with N parameters (embeddings included: Pearce & Song 2024) and D tokens, in nats a
token of the law's own tokenizer and text. The shape of the law carries over to other text, its level does not.
"""

import math
from collections.abc import Callable
from functools import partial

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate
from chinchilla.config.frozen import Frozen

FLOPS_PER_PARAM_TOKEN = 6.0
"""The `paper6nd` convention C = 6·N·D that these laws were fitted under."""

TRANSFER_SPREAD = 0.15
"""Relative spread put on a loss taken from a law to another text and tokenizer: a guess, no data behind it."""


class Constant(Frozen):
    """A fitted constant, its standard error where one was published, and where it was read."""

    value: float
    error: float | None = None
    source: str


class Span(Frozen):
    """A closed interval in which a law was fitted."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


class ChinchillaLaw(Frozen):
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann 2022, approach 3), fitted on runs inside the three spans."""

    name: str
    irreducible: Constant
    param_scale: Constant
    token_scale: Constant
    param_exponent: Constant
    token_exponent: Constant
    params: Span
    tokens: Span
    flops: Span

    def floor(self, num_params: float) -> float:
        """The loss that `num_params` parameters reach with unlimited tokens: E + A/N^alpha, nats a token."""
        return self.irreducible.value + self.param_scale.value / num_params**self.param_exponent.value

    def loss(self, num_params: float, tokens: float) -> float:
        """L(N, D) in nats a token; both arguments > 0."""
        return self.floor(num_params) + self.token_scale.value / tokens**self.token_exponent.value

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss under 6·N·D = `flops`.

        N = G·(C/6)^(beta/(alpha+beta)), D = (C/6)/N, G = (alpha·A/(beta·B))^(1/(alpha+beta)).

        Raises:
            BudgetError: `flops` is not a positive, finite number.
        """
        _check_budget(flops)
        alpha, beta = self.param_exponent.value, self.token_exponent.value
        ratio = alpha * self.param_scale.value / (beta * self.token_scale.value)
        budget = flops / FLOPS_PER_PARAM_TOKEN
        num_params = ratio ** (1 / (alpha + beta)) * budget ** (beta / (alpha + beta))
        return num_params, budget / num_params

    def covers(self, flops: float, num_params: float, tokens: float) -> bool:
        """Whether a run lies inside the range the law was fitted on."""
        return self.flops.holds(flops) and self.params.holds(num_params) and self.tokens.holds(tokens)


# Ranges: the 240 points that Besiroglu traced from Hoffmann's figure 4 and fitted (D = C/6N).
_PARAMS = Span(low=5.7e7, high=1.62e10)
_TOKENS = Span(low=8.1e8, high=3.2e11)
_FLOPS = Span(low=1.39e18, high=1.3e22)

_BESIROGLU = partial(Constant, source="Besiroglu 2024 (arXiv 2404.10102), refit of approach 3, 240 points")
_EPOCH = partial(Constant, source="grid optimum in the notebook of Besiroglu 2024, the same 240 points")
_HOFFMANN = partial(Constant, source="Hoffmann 2022 (arXiv 2203.15556), TeX source of eq. 10, before rounding")

BESIROGLU = ChinchillaLaw(
    name="besiroglu",
    irreducible=_BESIROGLU(value=1.8169, error=0.0257),
    param_scale=_BESIROGLU(value=482.01, error=124.5),
    token_scale=_BESIROGLU(value=2085.43, error=1293.3),
    param_exponent=_BESIROGLU(value=0.3478, error=0.0154),
    token_exponent=_BESIROGLU(value=0.3659, error=0.0206),
    params=_PARAMS,
    tokens=_TOKENS,
    flops=_FLOPS,
)
"""The default law."""

EPOCH_GRID = ChinchillaLaw(
    name="epoch-grid",
    irreducible=_EPOCH(value=1.81724),
    param_scale=_EPOCH(value=477.84),
    token_scale=_EPOCH(value=2143.86),
    param_exponent=_EPOCH(value=0.34731),
    token_exponent=_EPOCH(value=0.36718),
    params=_PARAMS,
    tokens=_TOKENS,
    flops=_FLOPS,
)
"""The same data, the notebook's own optimum: how much the last digits of the default matter."""

HOFFMANN = ChinchillaLaw(
    name="hoffmann-tex",
    irreducible=_HOFFMANN(value=math.exp(0.5267228)),
    param_scale=_HOFFMANN(value=math.exp(6.0073404)),
    token_scale=_HOFFMANN(value=math.exp(6.0179186)),
    param_exponent=_HOFFMANN(value=0.33917084),
    token_exponent=_HOFFMANN(value=0.2849083),
    params=_PARAMS,
    tokens=_TOKENS,
    flops=_FLOPS,
)
"""For comparison. The constants printed in the paper (0.34, 0.28) are rounded so far that they move the optimum at
5.88e23 FLOPs from 59 to 93 tokens a parameter; they are not offered."""

LAWS = {law.name: law for law in (BESIROGLU, EPOCH_GRID, HOFFMANN)}

REPEAT_HALF_LIFE = Constant(
    value=15.3878,
    source="Muennighoff 2023 (arXiv 2305.16264), R*_D; a bootstrap of its 182 runs gives 95 % [5.1, unbounded)",
)
"""Repetitions after which repeated tokens have lost 1 - 1/e of their worth; never show it without its interval."""


def effective_tokens(unique: float, seen: float, half_life: float = REPEAT_HALF_LIFE.value) -> float:
    """What `seen` tokens drawn from `unique` different ones are worth, in fresh tokens (Muennighoff 2023).

    U + U·R*·(1 - e^(-R/R*)) with R = seen/U - 1 repetitions; up to one epoch every token counts fully.
    """
    if seen <= unique:
        return seen
    repetitions = seen / unique - 1
    return unique + unique * half_life * -math.expm1(-repetitions / half_life)


def repeated_optimum(law: ChinchillaLaw, flops: float, unique: float) -> tuple[float, float]:
    """Parameters and tokens seen of least loss under 6·N·D = `flops` when only `unique` tokens exist.

    Equal to `law.optimum` where that stays within one epoch. Beyond it two fits are mixed (the law's constants,
    Muennighoff's half-life): mark what comes of it as a guess.

    Raises:
        BudgetError: `flops` is not a positive, finite number.
    """
    fresh = law.optimum(flops)
    if fresh[1] <= unique:
        return fresh
    budget = flops / FLOPS_PER_PARAM_TOKEN

    def loss(log_tokens: float) -> float:
        tokens = math.exp(log_tokens)
        return law.loss(budget / tokens, effective_tokens(unique, tokens))

    # Repeats are worth less than fresh tokens, so the best number of them lies between one epoch and D_opt.
    tokens = math.exp(_minimize(loss, math.log(unique), math.log(fresh[1])))
    return budget / tokens, tokens


def law_loss(law: ChinchillaLaw, num_params: float, tokens: float, unique: float) -> Estimate:
    """The law's loss for a run that sees `tokens` of `unique` different ones, in nats a token.

    Always a guess: the level belongs to the law's own text and tokenizer, and repeats mix two fits.
    """
    value = law.loss(num_params, effective_tokens(unique, tokens))
    return Estimate.around(value, TRANSFER_SPREAD, "nats/token", "guess")


def bits_per_byte(loss_nats: float, tokens: float, num_bytes: float) -> float:
    """Plain (unsmoothed) loss in nats a token → bits a byte, which compares across tokenizers."""
    return loss_nats * tokens / (num_bytes * math.log(2))


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search for the least value of a function with one valley; Kiefer 1953."""
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


def _check_budget(flops: float) -> None:
    if not (math.isfinite(flops) and flops > 0):
        raise BudgetError(f"a budget of {flops} FLOPs buys nothing: give a positive, finite number (budget.flops)")
