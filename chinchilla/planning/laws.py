"""Scaling laws: loss as a function of parameters and tokens, with source and range of every constant.

L(N, D) = E + A/N^alpha + B/D^beta with N parameters (embeddings included: Pearce & Song 2024) and D tokens, in nats a
token of the law's own tokenizer and text. The shape of the law carries over to other text, its level does not.
Repeats in full are in `repeat`, over-training in `overtrain`, serving in `inference`.
"""

import difflib
import math
from collections.abc import Collection
from functools import partial

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.frozen import Frozen
from chinchilla.planning.constants import Constant as Constant
from chinchilla.planning.constants import Span as Span
from chinchilla.planning.constants import Spread, log_normal

FLOPS_PER_PARAM_TOKEN = 6.0
"""The `paper6nd` convention C = 6·N·D that these laws were fitted under."""

TRANSFER_SPREAD = 0.15
"""Relative spread put on a loss taken from a law to another text and tokenizer: a guess, no data behind it."""

ALLOCATION_SPREAD = math.log(2)
"""Standard deviation put on log N_opt where no bootstrap is known: a guess; good fits differ by a factor of two."""


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
    spread: Spread | None = None

    def floor(self, num_params: float) -> float:
        """The loss that `num_params` parameters reach with unlimited tokens: E + A/N^alpha, nats a token."""
        return self.irreducible.value + self.param_scale.value / num_params**self.param_exponent.value

    def loss(self, num_params: float, tokens: float) -> float:
        """L(N, D) in nats a token; both arguments > 0."""
        return self.floor(num_params) + self.token_scale.value / tokens**self.token_exponent.value

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss under 6·N·D = `flops`.

        N = G·(C/6)^(beta/(alpha+beta)), D = (C/6)/N, G = (alpha·A/(beta·B))^(1/(alpha+beta)) (Hoffmann 2022, eq. 4).

        Raises:
            BudgetError: `flops` is not a positive, finite number.
        """
        _check_budget(flops)
        alpha, beta = self.param_exponent.value, self.token_exponent.value
        budget = flops / FLOPS_PER_PARAM_TOKEN
        num_params = self._balance * budget ** (beta / (alpha + beta))
        return num_params, budget / num_params

    def params_for(self, tokens: float) -> float:
        """N_opt(D): the parameters for which `tokens` are the optimum's, N = G·(G·D)^(beta/alpha)."""
        exponent = self.token_exponent.value / self.param_exponent.value
        return self._balance * (self._balance * tokens) ** exponent

    def tokens_for(self, num_params: float) -> float:
        """D_opt(N), the inverse of `params_for`."""
        exponent = self.param_exponent.value / self.token_exponent.value
        return (num_params / self._balance) ** exponent / self._balance

    @property
    def _balance(self) -> float:
        """G: where the two terms' marginal gains meet."""
        alpha, beta = self.param_exponent.value, self.token_exponent.value
        return (alpha * self.param_scale.value / (beta * self.token_scale.value)) ** (1 / (alpha + beta))

    def allocation(self, flops: float) -> tuple[Estimate, Estimate]:
        """`optimum` with its uncertainty: parameters and tokens, `law` inside the fitted budgets, else `guess`.

        Raises:
            BudgetError: `flops` is not a positive, finite number.
        """
        num_params, tokens = self.optimum(flops)
        deviation = ALLOCATION_SPREAD if self.spread is None else self.spread.deviation(flops)
        source: Source = "law" if self.spread is not None and self.flops.holds(flops) else "guess"
        return (
            log_normal(num_params, deviation, "parameters", source),
            log_normal(tokens, deviation, "tokens", source),
        )

    def covers(self, flops: float, num_params: float, tokens: float) -> bool:
        """Whether a run lies inside the range the law was fitted on."""
        return self.flops.holds(flops) and self.params.holds(num_params) and self.tokens.holds(tokens)


# Ranges: the 240 points that Besiroglu traced from Hoffmann's figure 4 and fitted (D = C/6N).
_PARAMS = Span(low=5.7e7, high=1.62e10)
_TOKENS = Span(low=8.1e8, high=3.2e11)
_FLOPS = Span(low=1.39e18, high=1.3e22)

_SPREAD = Spread(pivot_flops=2.02e19, level=0.0230, exponent=0.0190)
"""400 bootstraps of approach 3 over the same points; at 5.88e23 FLOPs 11 to 30 tokens a parameter (80 %)."""

_BESIROGLU = partial(
    Constant, source="Besiroglu 2024 (arXiv 2404.10102), notebook: refit of approach 3, 240 points", tag="verified"
)
_EPOCH = partial(Constant, source="grid optimum in the notebook of Besiroglu 2024, the same 240 points", tag="verified")
_HOFFMANN = partial(
    Constant, source="Hoffmann 2022 (arXiv 2203.15556), TeX source of eq. 10, before rounding", tag="verified"
)
_MUENNIGHOFF = partial(
    Constant,
    source="Muennighoff 2023 (arXiv 2305.16264), repository; alpha = beta fitted to Hoffmann's C4 runs",
    tag="verified",
)

BESIROGLU = ChinchillaLaw(
    name="besiroglu",
    irreducible=_BESIROGLU(value=math.exp(0.5971119598), error=0.02566, interval=(1.769, 1.871)),
    param_scale=_BESIROGLU(value=math.exp(6.177955976), error=124.52, interval=(285, 744)),
    token_scale=_BESIROGLU(value=math.exp(7.642732362), error=1293.28, interval=(1042, 5810)),
    param_exponent=_BESIROGLU(value=0.347813029, error=0.01540, interval=(0.317, 0.373)),
    token_exponent=_BESIROGLU(value=0.365854117, error=0.02060, interval=(0.331, 0.415)),
    params=_PARAMS,
    tokens=_TOKENS,
    flops=_FLOPS,
    spread=_SPREAD,
)
"""The default law, with the notebook's digits (the paper prints beta 0.3658, which moves a served model's FLOPs by
0.1 %). The errors are strongly correlated: the spread of the optimum is that of a bootstrap."""

EPOCH_GRID = ChinchillaLaw(
    name="epoch-grid",
    irreducible=_EPOCH(value=1.817235504),
    param_scale=_EPOCH(value=477.8417125),
    token_scale=_EPOCH(value=2143.863788),
    param_exponent=_EPOCH(value=0.3473126576),
    token_exponent=_EPOCH(value=0.3671826174),
    params=_PARAMS,
    tokens=_TOKENS,
    flops=_FLOPS,
    spread=_SPREAD,
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
"""For comparison: at 5.88e23 FLOPs its optimum lies three deviations outside the bootstrap of its own points. The
constants printed in the paper (0.34, 0.28) are rounded so far that they move that optimum from 59 to 93 tokens a
parameter; they are not offered."""

MUENNIGHOFF_C4 = ChinchillaLaw(
    name="muennighoff-c4",
    irreducible=_MUENNIGHOFF(value=math.exp(0.6254804)),
    param_scale=_MUENNIGHOFF(value=math.exp(6.255414)),
    token_scale=_MUENNIGHOFF(value=math.exp(7.3049974)),
    param_exponent=_MUENNIGHOFF(value=0.3526596),
    token_exponent=_MUENNIGHOFF(value=0.3526596),
    params=Span(low=7.1e6, high=8.67e9),
    tokens=Span(low=1e8, high=9e11),
    flops=Span(low=1e19, high=1e21),
)
"""The first epoch of Muennighoff's law. `flops` spans the fitted C4 runs, the other two the runs with repeats."""

LAWS = {law.name: law for law in (BESIROGLU, EPOCH_GRID, HOFFMANN, MUENNIGHOFF_C4)}

_ROUNDED = (
    "Hoffmann's printed constants (alpha 0.34, beta 0.28) are rounded so far that the optimum at 5.88e23 FLOPs moves "
    "from 59 to 93 tokens a parameter: take `hoffmann-tex` (the same fit, all digits) or `besiroglu` (the default)"
)
_UNREAD = "its constants are known from memory only; nothing here confirmed them: fit your own runs (`chinchilla fit`)"
REFUSED = {"hoffmann": _ROUNDED, "hoffmann-rounded": _ROUNDED, "kaplan": _UNREAD, "farseer": _UNREAD}
"""Names that people will ask for, and why there is no such law here."""

REPEAT_HALF_LIFE = Constant(
    value=15.387756,
    interval=(5.1, None),
    source="Muennighoff 2023 (arXiv 2305.16264), R*_D; interval: a bootstrap of its 182 runs",
    tag="verified",
)
"""Repetitions after which repeated tokens have lost 1 - 1/e of their worth; never show it without its interval."""


def named(name: str) -> ChinchillaLaw:
    """The law of a name in `LAWS`.

    Raises:
        UsageError: as for `require_offered`.
    """
    require_offered(name, LAWS)
    return LAWS[name]


def require_offered(name: str, known: Collection[str]) -> None:
    """Check that a law of that name is among `known`.

    Raises:
        UsageError: it is refused (`REFUSED`), with the reason; or there is none, with the nearest name.
    """
    if name in REFUSED:
        raise UsageError(f"law {name!r} is not offered: {REFUSED[name]}")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no law {name!r}: there are {', '.join(known)}{hint}")


FRESH_EPOCHS = 4.0
"""So far repeats are worth nearly what fresh tokens are (Muennighoff 2023); beyond, the discount itself is a guess."""


def effective_tokens(unique: float, seen: float, half_life: float = REPEAT_HALF_LIFE.value) -> float:
    """What `seen` tokens drawn from `unique` different ones are worth, in fresh tokens (Muennighoff 2023).

    U + U·R*·(1 - e^(-R/R*)) with R = seen/U - 1 repetitions; up to one epoch every token counts fully.
    """
    if seen <= unique:
        return seen
    repetitions = seen / unique - 1
    return unique + unique * half_life * -math.expm1(-repetitions / half_life)


def bits_per_byte(loss_nats: float, tokens: float, num_bytes: float) -> float:
    """Plain (unsmoothed) loss in nats a token → bits a byte, which compares across tokenizers."""
    return loss_nats * tokens / (num_bytes * math.log(2))


def _check_budget(flops: float) -> None:
    if not (math.isfinite(flops) and flops > 0):
        raise BudgetError(f"a budget of {flops} FLOPs buys nothing: give a positive, finite number (budget.flops)")
