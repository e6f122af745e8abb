"""Learning rate and batch size for a model and a number of tokens, with where the advice holds.

Advice is for AdamW; Muon takes it too when its updates are scaled to AdamW's size (`match_rms_adamw`, Liu 2025).
"""

from chinchilla.config.estimate import Source
from chinchilla.config.frozen import Frozen
from chinchilla.planning.laws import Constant, Span

_SOURCE = "Step Law 2025 (arXiv 2503.04715), 1,911 dense runs"
RATE_SCALE = Constant(value=1.79, source=_SOURCE)
RATE_PARAM_EXPONENT = Constant(value=-0.713, error=0.030, source=f"{_SOURCE}; error from its 1,000 bootstrap laws")
RATE_TOKEN_EXPONENT = Constant(value=0.307, error=0.019, source=f"{_SOURCE}; error from its 1,000 bootstrap laws")
BATCH_SCALE = Constant(value=0.58, source=_SOURCE)
BATCH_TOKEN_EXPONENT = Constant(value=0.571, error=0.019, source=f"{_SOURCE}; error from its 1,000 bootstrap laws")

PARAMS = Span(low=2.14e8, high=1.08e9)
TOKENS = Span(low=4e9, high=1e11)

SMALL_PARAMS = 2e7
SMALL_TOKENS = 2e8
"""Below either, `small_scale` holds; its batch bound is what the Step Law says at 2e8 tokens."""

SMALL_RATE = Span(low=3e-4, high=4e-3)
SMALL_BATCH = Span(low=2_000, high=32_000)


class Advice(Frozen):
    """A peak learning rate and a batch size that belong together, with their source and the reason to print."""

    learning_rate: float
    batch_tokens: int
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
    return Advice(
        learning_rate=rate,
        batch_tokens=round(batch),
        source="law" if inside else "guess",
        reason=f"Step Law 2025, {where} its range (0.2-1.1G parameters, 4-100G tokens)",
    )


def small_scale(matrix_params: int, tokens: float) -> Advice:
    """The Step Law's values held inside the bounds of what small models train well with: a rule of thumb.

    The law's form is kept because its direction is sound (smaller models take higher rates, longer runs larger
    batches); the bounds keep the extrapolation, up to three decades, from running away.
    """
    rate, batch = _step_law(matrix_params, tokens)
    bounded_rate = min(max(rate, SMALL_RATE.low), SMALL_RATE.high)
    bounded_batch = min(max(batch, SMALL_BATCH.low), SMALL_BATCH.high)
    return Advice(
        learning_rate=bounded_rate,
        batch_tokens=round(bounded_batch),
        source="guess",
        reason=(
            f"rule of thumb far below the Step Law's range: {_bound('rate', rate, bounded_rate, '.1e')}, "
            f"{_bound('batch', batch, bounded_batch, '.0f')} tokens"
        ),
    )


def _step_law(matrix_params: float, tokens: float) -> tuple[float, float]:
    rate = RATE_SCALE.value * matrix_params**RATE_PARAM_EXPONENT.value * tokens**RATE_TOKEN_EXPONENT.value
    return rate, BATCH_SCALE.value * tokens**BATCH_TOKEN_EXPONENT.value


def _bound(name: str, value: float, bounded: float, style: str) -> str:
    """How a bound changed a value, in words."""
    if value == bounded:
        return f"{name} {value:{style}} as extrapolated"
    return f"{name} {value:{style}} {'lowered' if bounded < value else 'raised'} to {bounded:{style}}"
