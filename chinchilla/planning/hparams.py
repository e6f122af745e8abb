"""Learning rate and batch size for a model and a number of tokens, with where the advice holds and how far it spreads.

A rate means nothing without its batch, schedule and parameterisation: every advice is all four. It is for AdamW; Muon
takes it too when its updates are scaled to AdamW's size (Liu 2025).
"""

import math
from functools import partial

from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.frozen import Frozen
from chinchilla.planning.constants import Constant, Span, log_normal

_STEP_LAW = partial(Constant, source="Step Law 2025 (arXiv 2503.04715), 1,911 dense runs", tag="verified")
_DEEPSEEK = partial(Constant, source="DeepSeek LLM 2024 (arXiv 2401.02954), eq. 1", tag="memory")

RATE_SCALE = _STEP_LAW(value=1.79, interval=(0.52, 5.8))
RATE_PARAM_EXPONENT = _STEP_LAW(value=-0.713, error=0.030, interval=(-0.774, -0.655))
RATE_TOKEN_EXPONENT = _STEP_LAW(value=0.307, error=0.019, interval=(0.271, 0.345))
BATCH_SCALE = _STEP_LAW(value=0.58, interval=(0.26, 1.38))
BATCH_TOKEN_EXPONENT = _STEP_LAW(value=0.571, error=0.019, interval=(0.534, 0.606))
"""Errors and intervals from the law's 1,000 bootstraps. The three digits printed cost nothing: the advice is broad."""

PARAMS = Span(low=2.14e8, high=1.08e9)
TOKENS = Span(low=4e9, high=1e11)

CENTRE_PARAMS, CENTRE_TOKENS = 3.78332e8, 2.21785e10
"""Geometric means over the 17 cells of the runs."""

_RATE_COVARIANCE = ((5.23e-4, -1.04e-4, 1.51e-4), (-1.04e-4, 8.91e-4, -1.74e-4), (1.51e-4, -1.74e-4, 3.66e-4))
"""Of log rate at the centre and its exponents in N and D, over the 1,000 bootstraps."""
_BATCH_COVARIANCE = ((5.86e-4, 1.51e-4), (1.51e-4, 3.49e-4))
"""Of log batch at the centre and its exponent in D."""

POWER_LINES_EXPONENT = Constant(
    value=0.383, source="Power Lines 2025 (arXiv 2505.13738), as nanochat applies it", tag="verified"
)
"""B ∝ D^0.383. The rule has no scale of its own: it carries a batch that is known to be good to other durations."""

DEEPSEEK_RATE_SCALE = _DEEPSEEK(value=0.3118)
DEEPSEEK_RATE_EXPONENT = _DEEPSEEK(value=-0.1250)
DEEPSEEK_BATCH_SCALE = _DEEPSEEK(value=0.2920)
DEEPSEEK_BATCH_EXPONENT = _DEEPSEEK(value=0.3271)

UNKNOWN_SPREAD = math.log(2)
"""Standard deviation of the log where an advice has no bootstrap: a factor of two, a guess."""

SMALL_PARAMS = 2e7
SMALL_TOKENS = 2e8
"""Below either, `small_scale` holds; its batch bound is what the Step Law says at 2e8 tokens."""

SMALL_RATE = Span(low=3e-4, high=4e-3)
SMALL_BATCH = Span(low=2_000, high=32_000)

COSINE = "warm-up, then cosine to 1e-5"
STEPS = "warm-up, then steps to 31.6 % at 80 % and 10 % at 90 % of the run"
STANDARD = "standard (one rate for every matrix), AdamW"


class Advice(Frozen):
    """A peak learning rate and a batch size that belong together, with their source and the reason to print.

    They hold under this `schedule` and `parameterisation`; `rate` and `batch` are the two with their spread: where the
    law's own bootstraps put the optimum, not how much a miss would cost, which is little.
    """

    learning_rate: float
    batch_tokens: int
    schedule: str
    parameterisation: str
    rate: Estimate
    batch: Estimate
    source: Source
    reason: str


def advise(matrix_params: int, tokens: float) -> Advice:
    """The small-scale rule far below the Step Law's range, else the law, marked as a guess outside its range.

    `matrix_params` counts the parameters without the vocabulary's (the law's convention); `tokens` those seen.
    """
    if matrix_params < SMALL_PARAMS or tokens < SMALL_TOKENS:
        return small_scale(matrix_params, tokens)
    return step_law(matrix_params, tokens)


def step_law(matrix_params: int, tokens: float) -> Advice:
    """Peak rate 1.79·N^-0.713·D^0.307 and batch 0.58·D^0.571 tokens (Step Law 2025).

    Fitted with AdamW, cosine decay to a fixed 1e-5, N without the vocabulary. Rounding a batch to the nearest grid
    point of the 1,911 runs costs 0.1 % of loss on average: the optimum is broad, so read two figures, not four.
    """
    inside = PARAMS.holds(matrix_params) and TOKENS.holds(tokens)
    rate, batch = _step_law(matrix_params, tokens)
    where = "inside" if inside else "outside"
    return _advice(
        rate,
        batch,
        _step_law_deviations(matrix_params, tokens),
        COSINE,
        "law" if inside else "guess",
        f"Step Law 2025, {where} its range (0.2-1.1G parameters, 4-100G tokens)",
    )


def small_scale(matrix_params: int, tokens: float) -> Advice:
    """The Step Law's values held inside the bounds of what small models train well with: a rule of thumb.

    The law's form is kept because its direction is sound (smaller models take higher rates, longer runs larger
    batches); the bounds keep the extrapolation, up to three decades, from running away.
    """
    rate, batch = _step_law(matrix_params, tokens)
    bounded_rate = min(max(rate, SMALL_RATE.low), SMALL_RATE.high)
    bounded_batch = min(max(batch, SMALL_BATCH.low), SMALL_BATCH.high)
    return _advice(
        bounded_rate,
        bounded_batch,
        (UNKNOWN_SPREAD, UNKNOWN_SPREAD),
        COSINE,
        "guess",
        f"rule of thumb far below the Step Law's range: {_bound('rate', rate, bounded_rate, '.1e')}, "
        f"{_bound('batch', batch, bounded_batch, '.0f')} tokens",
    )


def power_lines(matrix_params: int, tokens: float, anchor: Advice | None = None, anchor_tokens: float = 0.0) -> Advice:
    """A batch that was good for `anchor_tokens`, carried over by D^0.383 (Power Lines 2025); the rate goes as √batch.

    Without an `anchor` it is the Step Law's advice for this model at the centre of its range. To compare with: a guess.
    """
    if anchor is None:
        anchor, anchor_tokens = step_law(matrix_params, CENTRE_TOKENS), CENTRE_TOKENS
    growth = (tokens / anchor_tokens) ** POWER_LINES_EXPONENT.value
    return _advice(
        anchor.learning_rate * math.sqrt(growth),
        anchor.batch_tokens * growth,
        (UNKNOWN_SPREAD, UNKNOWN_SPREAD),
        anchor.schedule,
        "guess",
        f"Power Lines: the batch at {anchor_tokens:.3g} tokens times (D/that)^0.383, the rate with its root",
    )


def deepseek(matrix_params: int, tokens: float) -> Advice:
    """Peak rate 0.3118·C^-0.1250 and batch 0.2920·C^0.3271 tokens with C = 6·N·D (DeepSeek LLM 2024).

    To compare with, never planned by: the constants were quoted from memory.
    """
    flops = 6.0 * matrix_params * tokens
    return _advice(
        DEEPSEEK_RATE_SCALE.value * flops**DEEPSEEK_RATE_EXPONENT.value,
        DEEPSEEK_BATCH_SCALE.value * flops**DEEPSEEK_BATCH_EXPONENT.value,
        (UNKNOWN_SPREAD, UNKNOWN_SPREAD),
        STEPS,
        "guess",
        "DeepSeek LLM 2024, by compute alone; constants from memory",
    )


def _advice(
    rate: float, batch: float, deviations: tuple[float, float], schedule: str, source: Source, reason: str
) -> Advice:
    return Advice(
        learning_rate=rate,
        batch_tokens=round(batch),
        schedule=schedule,
        parameterisation=STANDARD,
        rate=log_normal(rate, deviations[0], "", source),
        batch=log_normal(batch, deviations[1], "tokens", source),
        source=source,
        reason=reason,
    )


def _step_law(matrix_params: float, tokens: float) -> tuple[float, float]:
    rate = RATE_SCALE.value * matrix_params**RATE_PARAM_EXPONENT.value * tokens**RATE_TOKEN_EXPONENT.value
    return rate, BATCH_SCALE.value * tokens**BATCH_TOKEN_EXPONENT.value


def _step_law_deviations(matrix_params: float, tokens: float) -> tuple[float, float]:
    """Standard deviations of log rate and log batch over the law's bootstraps: √(x·covariance·x)."""
    size, duration = math.log(matrix_params / CENTRE_PARAMS), math.log(tokens / CENTRE_TOKENS)
    return _deviation((1, size, duration), _RATE_COVARIANCE), _deviation((1, duration), _BATCH_COVARIANCE)


def _deviation(point: tuple[float, ...], covariance: tuple[tuple[float, ...], ...]) -> float:
    return math.sqrt(
        sum(a * b * c for a, row in zip(point, covariance, strict=True) for b, c in zip(point, row, strict=True))
    )


def _bound(name: str, value: float, bounded: float, style: str) -> str:
    """How a bound changed a value, in words."""
    if value == bounded:
        return f"{name} {value:{style}} as extrapolated"
    return f"{name} {value:{style}} {'lowered' if bounded < value else 'raised'} to {bounded:{style}}"
