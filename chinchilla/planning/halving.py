"""Probe runs: how long each, which go on, and what loss a short curve promises for a long run.

Where no published law holds, the plan comes from a few short runs. Successive halving (Jamieson & Talwalkar 2016) gives
every candidate the same time, keeps the better half by predicted final loss, and gives those more time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import FAMILIES, Family, Probe, TaskName
from chinchilla.planning.laws import effective_tokens

Floats = NDArray[np.float64]

FLOOR_SPREAD = 0.4
EXPONENT_SPREAD = 0.35
"""Standard deviations of the logarithms of the two priors."""

PRIOR_PARAMS = 5_000_000
"""Size of the models whose runs the priors come from."""

WINDOW = 4.0
"""Only the last part of a curve is fitted, from `tokens / WINDOW` on: the start belongs to the warm-up."""

LATEST = 4
"""Points that the last level is read from, and that a fit counts for: neighbours on a curve say the same."""

MISFIT = 0.12
"""Relative error of the form itself on an early curve: real ones have plateaus and falls that no power law has."""

DECAY_GAIN = 0.96
"""What letting the rate decay to zero makes of a loss at the peak rate: 0.95 to 0.97 in the runs behind this."""

LEAST_SPREAD = 0.01
SPREAD_A_DECADE = 0.06
"""Relative spread added to a prediction: at least that of a validation loss, and more the further it reaches."""

NEAR = 4.0
"""A curve extended by less than this factor, with no repeats, still counts as measured."""


@dataclass(frozen=True)
class Prior:
    """What a task's loss curves were like: floor + gain · tokens^-exponent.

    The floor is a share of the loss at the end of a probe, for a model of `PRIOR_PARAMS`; it falls with the size as
    N^-size_exponent. `chance` is the loss of knowing nothing, `least` that of labels learned perfectly. A curve is not
    `telling` whose beginning has another form than the rest.
    """

    floor: float
    exponent: float
    size_exponent: float
    chance: float = math.inf
    least: float = 0.0
    telling: bool = True


PRIORS: dict[TaskName, Prior] = {
    "translate": Prior(floor=0.15, exponent=0.7, size_exponent=0.35),
    "generate": Prior(floor=0.5, exponent=0.28, size_exponent=0.2),
    "classify_image": Prior(floor=0.03, exponent=0.9, size_exponent=0.0),
}
"""From a few runs of minutes each (docs/planning.md): a source leaves little to guess, running text much; digits fall
from chance to next to nothing within a few batches, once it begins."""

UNTRIED: dict[Family, Prior] = {
    "encoder-decoder": PRIORS["translate"],
    "decoder": PRIORS["generate"],
    "encoder": Prior(floor=0.4, exponent=0.4, size_exponent=0.1),
}
"""For tasks without runs behind them: what is like them, and for classes a guess."""


TABLES = Prior(floor=0.9, exponent=0.3, size_exponent=0.0)
"""A guess: what a table's columns leave open no model learns, however large."""


TUNED = Prior(floor=0.6, exponent=0.4, size_exponent=0.0, telling=False)
"""A guess for models that know the task already: within a few steps they learn how answers look here, what they say
much later. SmolLM2 on small talk had 2.2 nats in its fourth step, and 1.5 on validation chats after 62."""

NOTHING = 0.9
"""Share of chance's loss above which a curve of images' classes has nothing to show yet."""


def prior_of(task: TaskName, num_classes: int = 0, smoothing: float = 0.0, tuned: bool = False) -> Prior:
    """What a task's loss curves were like, or those of tasks like it; of images' classes, between which bounds.

    `tuned`: the whole model is taken from elsewhere. What learns smoothed labels perfectly gives the right class
    1 - smoothing · (1 - 1 / num_classes).
    """
    if tuned:
        return TUNED
    found = TABLES if task == "classify_table" else PRIORS.get(task, UNTRIED[FAMILIES[task]])
    if task != "classify_image" or num_classes == 0:
        return found
    return replace(found, chance=math.log(num_classes), least=-math.log(1 - smoothing * (1 - 1 / num_classes)))


@dataclass(frozen=True)
class Round:
    """One round of probes: how many candidates train, for how long each, and how many of them go on."""

    candidates: int
    time_s: float
    keep: int


def rounds(candidates: int, time_s: float) -> tuple[Round, ...]:
    """Divide `time_s` of training into rounds of equal cost that halve the candidates down to one.

    A single candidate needs no probing: no rounds.
    """
    counts = []
    while candidates > 1:
        counts.append(candidates)
        candidates = (candidates + 1) // 2
    keeps = [*counts[1:], 1]
    return tuple(
        Round(candidates=count, time_s=time_s / len(counts) / count, keep=keep)
        for count, keep in zip(counts, keeps, strict=False)
    )


def survivors(probes: Sequence[Probe], keep: int) -> list[Probe]:
    """The `keep` probes of least predicted final loss, best first; of equals, the smaller model.

    Raises:
        DataError: a probe without a predicted loss.
    """
    unknown = [probe for probe in probes if probe.predicted_loss is None]
    if unknown:
        raise DataError(f"a probe of {unknown[0].num_params} parameters has no predicted loss: predict before choosing")
    return sorted(probes, key=lambda probe: (probe.predicted_loss or 0.0, probe.num_params))[:keep]


def predict_loss(
    curve: Sequence[tuple[float, float]],
    num_params: int,
    tokens: float,
    unique_tokens: float,
    prior: Prior,
    valid_loss: float | None = None,
) -> Estimate:
    """The loss at the end of a run of `tokens` tokens that began with `curve`, in the curve's unit.

    The curve was taken at the peak learning rate, and the rate decays to zero by the end (no gain where the curve
    reaches the end already). A training curve gives the form, and `valid_loss`, measured where it ends, the height: the
    prediction is then of the validation loss, which can lie a fifth above the training loss on unseen documents.

    `curve` holds (tokens seen, loss) in order. The form is L(D) = floor + B·D^-beta with D in effective tokens, so that
    repeats beyond `unique_tokens` are worth less. Floor and beta have the task's priors, and larger models
    a lower floor. All pairs on a grid are weighed by how well they fit (a grid posterior), so that a short curve gives
    a wide answer instead of a wrong one. One that begins near chance, or is not telling, shows no form: there the prior
    stands alone.

    Raises:
        DataError: no curve, tokens that don't grow, or a loss that is not a positive, finite number.
    """
    seen, losses = _checked(curve)
    fresh = np.array([effective_tokens(unique_tokens, value) for value in seen])
    target = effective_tokens(unique_tokens, max(tokens, seen[-1]))
    late = seen >= seen[-1] / WINDOW
    reach = target / fresh[-1]
    values, weights = _posterior(fresh[late] / fresh[-1], losses[late], reach, _scaled(prior, num_params))
    spread = float(np.hypot(LEAST_SPREAD, SPREAD_A_DECADE * np.log10(reach)))
    gain = DECAY_GAIN if tokens > seen[-1] else 1.0
    height = 1.0 if valid_loss is None else valid_loss / _level(fresh[late], losses[late])
    low, middle, high = (max(prior.least, gain * height * value) for value in _quantiles(values, weights))
    measured = tokens <= NEAR * seen[-1] and tokens <= unique_tokens
    return Estimate(
        p10=max(prior.least, low / (1 + spread)),
        p50=middle,
        p90=high * (1 + spread),
        unit="nats/token",
        source="measured" if measured else "guess",
    )


def _checked(curve: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    if not curve:
        raise DataError("a probe without a loss curve says nothing: train it for at least one evaluation")
    seen, losses = (np.array(values, dtype=float) for values in zip(*curve, strict=True))
    if not (np.isfinite(losses).all() and (losses > 0).all()):
        raise DataError(f"a probe's loss is not a positive number: {losses[~(losses > 0)][:1]}: it diverged")
    if not ((np.diff(seen) > 0).all() and seen[0] > 0):
        raise DataError("a probe's curve must go forward in tokens, from more than none")
    return seen, losses


def _scaled(prior: Prior, num_params: int) -> Prior:
    """The prior for a model of this size."""
    return replace(prior, floor=prior.floor * (num_params / PRIOR_PARAMS) ** -prior.size_exponent)


def _level(seen: Floats, losses: Floats) -> float:
    """The loss at the last point, from a straight line through the logarithms of the last few."""
    back, latest = np.log(seen[-LATEST:] / seen[-1]), np.log(losses[-LATEST:])
    if back[0] > -0.001:
        # One point, or repeats so stale that the points stand in one place: there is no line to draw.
        return float(np.exp(latest.mean()))
    _, level = np.polyfit(back, latest, 1)
    return float(np.exp(level))


def _posterior(seen: Floats, losses: Floats, reach: float, prior: Prior) -> tuple[Floats, Floats]:
    """Predicted losses over the grid of floors and exponents, and their weights.

    `seen` are effective tokens as shares of the last point's; `reach` is the target in the same unit. Every curve of
    the grid goes through the last point's level.
    """
    level = _level(seen, losses)
    floors = np.linspace(0.02, 0.98, 49)[:, None] * level
    exponents = np.geomspace(0.08, 1.6, 49)[None, :]
    fitted = floors[:, :, None] + (level - floors)[:, :, None] * seen ** -exponents[:, :, None]
    misfit = np.square(np.log(fitted / losses)).mean(2)
    noise = max(MISFIT, float(np.sqrt(misfit.min())))
    shows = prior.telling and losses.max() < NOTHING * prior.chance
    told = min(len(seen), LATEST) if shows else 0
    log_weight = -0.5 * misfit / noise**2 * told
    log_weight -= 0.5 * np.square(np.log(floors / (prior.floor * level)) / FLOOR_SPREAD)
    log_weight -= 0.5 * np.square(np.log(exponents / prior.exponent) / EXPONENT_SPREAD)
    values = floors + (level - floors) * reach**-exponents
    return values.ravel(), np.exp(log_weight - log_weight.max()).ravel()


def _quantiles(values: Floats, weights: Floats) -> tuple[float, float, float]:
    order = np.argsort(values)
    share = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    low, middle, high = np.interp((0.1, 0.5, 0.9), share, values[order])
    return float(low), float(middle), float(high)
