"""How the best size grows with compute, without a law of the loss: approaches 1 and 2 of Hoffmann 2022.

Both find the best size at several budgets and fit N_opt = k·C^a and D_opt = l·C^b through them in logs. Approach 1
takes the best run of about each compute, unless a cheaper one beats it; approach 2 the lowest points of parabolas
through runs of equal compute. Parabolas are biased where the exponents differ or the sizes lie off centre
(arXiv 2603.22339): prefer approach 3.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import BudgetError, DataError
from chinchilla.planning.fit import Interval, interval
from chinchilla.planning.huber import Array
from chinchilla.planning.runs import Runs

LEVEL_WIDTH = 1.17
"""Runs whose compute differs by no more than this factor (±8 %) are of one level."""

LEAST_SIZES = 5
"""Of a level: a parabola has three constants."""

LEAST_LEVELS = 3
LEAST_FRONT, LEAST_FRONT_SIZES = 5, 3


@dataclass(frozen=True)
class Optimum:
    """The best size at one compute."""

    flops: float
    num_params: float
    tokens: float
    loss: float


@dataclass(frozen=True, eq=False)
class Level:
    """Runs of about one compute, the parabola loss = c0·x² + c1·x + c2 in x = log N, and its lowest point.

    `trouble` says why the level does not count, and is empty where it does.
    """

    runs: Runs
    parabola: Array
    optimum: Optimum
    trouble: str


@dataclass(frozen=True, eq=False)
class Allocation:
    """N_opt = k·C^a and D_opt = l·C^b; `intervals` are those of a and b; `levels` are approach 2's."""

    approach: int
    runs: Runs
    a: float
    b: float
    log_k: float
    log_l: float
    optima: tuple[Optimum, ...]
    levels: tuple[Level, ...]
    intervals: dict[str, Interval]

    def optimum(self, flops: float) -> tuple[float, float]:
        """Best parameters and tokens at `flops`.

        Raises:
            BudgetError: `flops` is not a positive, finite number.
        """
        if not (np.isfinite(flops) and flops > 0):
            raise BudgetError(f"a budget of {flops} FLOPs buys nothing: give a positive, finite number")
        log_flops = float(np.log(flops))
        return float(np.exp(self.log_k + self.a * log_flops)), float(np.exp(self.log_l + self.b * log_flops))


def envelope(runs: Runs, bootstraps: int = 1000, seed: int = 0) -> Allocation:
    """Approach 1: through the best of each compute (±8 %) that lose less than every cheaper run.

    Intervals are those of runs drawn with replacement.

    Raises:
        DataError: fewer than five such runs, or of fewer than three sizes.
    """
    front = runs.pick(_on_front(runs))
    order = np.argsort(front.flops)
    if len(front) < LEAST_FRONT:
        raise DataError(
            f"{runs.source}: approach 1 needs {LEAST_FRONT} runs that lose less than every cheaper one, "
            f"and there are {len(front)}; add sizes to every budget, or use --approach 3"
        )
    if (sizes := len(np.unique(front.num_params))) < LEAST_FRONT_SIZES:
        raise DataError(
            f"{runs.source}: approach 1 needs best runs of at least {LEAST_FRONT_SIZES} sizes (found: {sizes}), or how "
            "the best size grows does not show; add sizes to every budget"
        )
    rng = np.random.default_rng(seed)
    lines = []
    for chosen in rng.integers(0, len(runs), (bootstraps, len(runs))):
        drawn = runs.pick(np.isin(np.arange(len(runs)), chosen))
        kept = drawn.pick(_on_front(drawn))
        if len(kept) > 2:
            lines.append(_lines(*np.log([kept.flops, kept.num_params, kept.tokens])))
    columns = (each[order].tolist() for each in (front.flops, front.num_params, front.tokens, front.loss))
    optima = tuple(map(Optimum, *columns))
    return _allocation(1, runs, optima, (), np.array(lines))


def isoflop(runs: Runs, bootstraps: int = 1000, seed: int = 0) -> Allocation:
    """Approach 2: parabolas through levels of equal compute; intervals from redrawn residuals, pooled over levels.

    Raises:
        DataError: fewer than three levels with a lowest point inside; the message says what each lacks.
    """
    levels = _levels(runs)
    good = [level for level in levels if not level.trouble]
    if len(good) < LEAST_LEVELS:
        fullest = sorted(levels, key=lambda level: -len(level.runs))[:8]
        said = "; ".join(f"{level.optimum.flops:.2e} FLOPs: {level.trouble or 'good'}" for level in fullest)
        raise DataError(
            f"{runs.source}: approach 2 needs {LEAST_LEVELS} levels of equal compute (±8 %), each of {LEAST_SIZES} "
            f"sizes with the best inside, and there are {len(good)} ({said or 'no two runs of one compute'}); "
            "add such runs, or use --approach 3"
        )
    rng = np.random.default_rng(seed)
    pool = np.concatenate([_residuals(level) for level in good])
    moved = [_redrawn(level, pool, bootstraps, rng) for level in good]
    log_flops = np.log([level.optimum.flops for level in good])
    log_params, log_tokens = (np.stack([pair[index] for pair in moved], -1) for index in range(2))
    whole = np.isfinite(log_params).all(-1)
    lines = np.array([_lines(log_flops, n, d) for n, d in zip(log_params[whole], log_tokens[whole], strict=True)])
    return _allocation(2, runs, tuple(level.optimum for level in good), tuple(levels), lines)


def _on_front(runs: Runs) -> NDArray[np.bool_]:
    """Which runs are the best of about their compute and lose less than every cheaper one, (runs,)."""
    order = np.argsort(runs.flops)
    sorted_flops, kept, least, start = runs.flops[order], np.zeros(len(runs), bool), np.inf, 0
    while start < len(runs):
        end = int(np.searchsorted(sorted_flops, LEVEL_WIDTH * sorted_flops[start], side="right"))
        best = order[start:end][runs.loss[order[start:end]].argmin()]
        kept[best] = runs.loss[best] < least
        least, start = min(least, runs.loss[best]), end
    return kept


def _lines(log_flops: Array, log_params: Array, log_tokens: Array) -> Array:
    """(a, log k, b, log l) of the straight lines through the optima's logs."""
    return np.concatenate([np.polyfit(log_flops, each, 1) for each in (log_params, log_tokens)])


def _allocation(
    approach: int, runs: Runs, optima: tuple[Optimum, ...], levels: tuple[Level, ...], draws: Array
) -> Allocation:
    logs = np.log([[each.flops, each.num_params, each.tokens] for each in optima]).T
    a, log_k, b, log_l = _lines(*logs).tolist()
    intervals = {"a": interval(draws[:, 0]), "b": interval(draws[:, 2])}
    return Allocation(approach, runs, a, b, log_k, log_l, optima, levels, intervals)


def _levels(runs: Runs) -> list[Level]:
    """The fullest windows of compute, one after the other, until none holds two runs; cheapest first."""
    log_flops, free, found = np.log(runs.flops), np.ones(len(runs), bool), []
    while free.any():
        ahead = log_flops[None] - log_flops[:, None]
        inside = (ahead >= 0) & (ahead <= np.log(LEVEL_WIDTH)) & free & free[:, None]
        window = inside[int(inside.sum(1).argmax())]
        if window.sum() < 2:
            break
        found.append(_level(runs.pick(window)))
        free &= ~window
    return sorted(found, key=lambda level: level.optimum.flops)


def _level(runs: Runs) -> Level:
    x = np.log(runs.num_params)
    flops = float(np.exp(np.log(runs.flops).mean()))
    if len(np.unique(runs.num_params)) < LEAST_SIZES:
        best = int(runs.loss.argmin())
        optimum = Optimum(flops, *(float(each[best]) for each in (runs.num_params, runs.tokens, runs.loss)))
        return Level(runs, np.zeros(3), optimum, f"{len(np.unique(runs.num_params))} sizes")
    parabola = np.polyfit(x - x.mean(), runs.loss, 2)
    log_params = -parabola[1] / (2 * parabola[0]) if parabola[0] > 0 else np.nan
    log_tokens = np.polyval(np.polyfit(x - x.mean(), np.log(runs.tokens), 1), log_params)
    trouble = _trouble(log_params + x.mean(), parabola, x)
    loss = float(np.polyval(parabola, log_params))
    return Level(
        runs, parabola, Optimum(flops, float(np.exp(log_params + x.mean())), float(np.exp(log_tokens)), loss), trouble
    )


def _trouble(lowest: float, parabola: Array, x: Array) -> str:
    if parabola[0] <= 0:
        return "no lowest point: add smaller and larger models"
    if lowest < x.min():
        return "its best lies below the smallest: add smaller models"
    if lowest > x.max():
        return "its best lies above the largest: add larger models"
    return ""


def _residuals(level: Level) -> Array:
    """Of the parabola, widened by what its three constants took up, (runs,)."""
    x = np.log(level.runs.num_params)
    left = level.runs.loss - np.polyval(level.parabola, x - x.mean())
    return left * np.sqrt(len(x) / max(1, len(x) - 3))


def _redrawn(level: Level, pool: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Log parameters and log tokens, each (count,), at the lowest points of parabolas with noise drawn anew; NaN for
    none."""
    x = np.log(level.runs.num_params)
    centred = x - x.mean()
    losses = np.polyval(level.parabola, centred) + rng.choice(pool, (count, len(x)))
    curvature, slope, _ = np.polyfit(centred, losses.T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = np.where(curvature > 0, -slope / (2 * curvature), np.nan)
    per_size, middle = np.polyfit(centred, np.log(level.runs.tokens), 1)
    return lowest + x.mean(), per_size * lowest + middle
