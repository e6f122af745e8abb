"""A law from few runs: a posterior under weak priors, and what it says of a run to come.

Eight to twelve small runs do not determine E, A, B, alpha and beta by themselves (`fit` has no prior, and `identify`
refuses most such sets). Here the law L(N, D) = E + A/N^alpha + B/D^beta is taken with a weak normal prior on phi = (log
of the three terms at the runs' centre, log alpha, log beta), made from what the task's curves were like
(`halving.PRIORS`). Relative noise is normal with an unknown deviation (scaled inverse chi-squared prior), which is
integrated out. Draws come from an affine-invariant ensemble (Goodman & Weare 2010), so that an interval is a
percentile of draws; nothing is linearised.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chinchilla.planning.halving import Prior
from chinchilla.planning.huber import Array, Points, log_loss

TERM_ERROR = 1.0
"""Deviation of the logarithm of each term at the centre: a factor of 7 either way is within two of them."""

EXPONENT_ERROR = 0.5
"""The same of the logarithm of an exponent: a factor of 2.7 either way."""

NOISE, NOISE_WEIGHT = 0.01, 6.0
"""Relative noise of one run's final loss before any is known, and how many runs that opinion is worth."""

WALKERS, STEPS, KEPT = 100, 1200, 1000
"""Of the ensemble; the first half of the steps is dropped, and `KEPT` draws are taken at random from the rest."""

_STRETCH = 2.0
_FIRST = 20_000


class Belief(NamedTuple):
    """The normal prior of phi at a centre: means (5,) and standard deviations (5,)."""

    mean: Array
    error: Array


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the law: theta (draws, 5) as `planning.huber` has it about `centre`, and the noise of each (draws,).

    `best` (5,) is the most probable theta among those visited.
    """

    theta: Array
    noise: Array
    best: Array
    centre: tuple[float, float]

    def losses(self, num_params: float, tokens: float, seed: int = 0) -> Array:
        """What one run may come to, in nats a token, a value a draw (draws,): its own noise is in it."""
        level = self.levels(num_params, tokens)
        noise = np.random.default_rng(seed).standard_normal(len(level))
        return np.exp(level + self.noise * noise)

    def levels(self, num_params: float, tokens: float) -> Array:
        """Log of the law's loss, without the noise of a run, a value a draw (draws,)."""
        logs = np.log([num_params]) - self.centre[0], np.log([tokens]) - self.centre[1]
        return log_loss(self.theta, Points(*logs, self.centre))[:, 0]


def belief(prior: Prior, level: float) -> Belief:
    """What is believed of phi before any run, where the loss at the centre is exp(`level`).

    The floor's share of the loss is split evenly into E and the size's term. The floor falls with the size as
    N^-size_exponent, so the size's term, which is half of it, has twice that exponent.
    """
    shares = np.array([prior.floor / 2, prior.floor / 2, 1 - prior.floor])
    exponents = np.array([2 * prior.size_exponent, prior.exponent])
    return Belief(
        mean=np.concatenate([level + np.log(shares), np.log(exponents)]),
        error=np.array([TERM_ERROR] * 3 + [EXPONENT_ERROR] * 2),
    )


def posterior(points: Points, losses: Array, prior: Prior, seed: int = 0) -> Posterior:
    """Draws of the law given runs at `points` of final `losses` (runs,); with no runs, draws of the prior.

    The same runs, prior and seed give the same draws.
    """
    target = np.log(losses)
    known = belief(prior, float(target.mean()) if len(target) else 0.0)
    rng = np.random.default_rng(seed)
    phi, best = _ensemble(known, points, target, rng)
    theta = natural(phi)
    spread = _scatter(theta, points, target) / rng.chisquare(NOISE_WEIGHT + len(target), len(theta))
    return Posterior(theta, np.sqrt(spread), natural(best[None])[0], points.centre)


def natural(phi: Array) -> Array:
    """Theta of `planning.huber` for phi, (draws, 5): the exponents as they are instead of their logarithms."""
    return np.column_stack([phi[:, :3], np.exp(phi[:, 3:])])


def _ensemble(known: Belief, points: Points, target: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws (KEPT, 5), and the best phi of all. Begins at the best of many draws of the prior."""
    first = known.mean + known.error * rng.standard_normal((_FIRST, 5))
    density = _log_density(first, known, points, target)
    order = np.argsort(-density)[:WALKERS]
    walkers, density = first[order], density[order]
    best, most = walkers[0], density[0]
    visited = []
    for step in range(STEPS):
        for half in (slice(0, None, 2), slice(1, None, 2)):
            others = walkers[1::2] if half.start == 0 else walkers[::2]
            walkers[half], density[half] = _stretch(walkers[half], density[half], others, known, points, target, rng)
        if density.max() > most:
            best, most = walkers[density.argmax()].copy(), density.max()
        if step >= STEPS // 2:
            visited.append(walkers.copy())
    everything = np.concatenate(visited)
    return everything[rng.choice(len(everything), KEPT, replace=False)], best


def _stretch(
    walkers: Array,
    density: Array,
    others: Array,
    known: Belief,
    points: Points,
    target: Array,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """One stretch move of every walker along the line through another one (Goodman & Weare 2010, eq. 10)."""
    count, size = len(walkers), walkers.shape[1]
    scale = ((_STRETCH - 1) * rng.random(count) + 1) ** 2 / _STRETCH
    partner = others[rng.integers(len(others), size=count)]
    moved = partner + scale[:, None] * (walkers - partner)
    proposed = _log_density(moved, known, points, target)
    taken = np.log(rng.random(count)) < (size - 1) * np.log(scale) + proposed - density
    return np.where(taken[:, None], moved, walkers), np.where(taken, proposed, density)


def _log_density(phi: Array, known: Belief, points: Points, target: Array) -> Array:
    """Log posterior density (draws,), up to a constant; the noise is integrated out, which leaves Student's t."""
    away = (((phi - known.mean) / known.error) ** 2).sum(-1)
    # Exponents of hundreds overflow; the prior has long ruled them out.
    scatter = _scatter(natural(np.minimum(phi, 50.0)), points, target)
    return -0.5 * away - 0.5 * (NOISE_WEIGHT + len(target)) * np.log(scatter)


def _scatter(theta: Array, points: Points, target: Array) -> Array:
    """Squared log residuals together with what the noise's prior is worth, (draws,)."""
    prior = NOISE_WEIGHT * NOISE**2
    return prior + ((log_loss(theta, points) - target) ** 2).sum(-1) if len(target) else np.full(len(theta), prior)


def no_points(log_params: float, log_tokens: float) -> Points:
    """A centre without runs."""
    return Points(np.empty(0), np.empty(0), (log_params, log_tokens))


def percentile_80(values: Array) -> tuple[float, float, float]:
    """p10, p50 and p90 of draws."""
    low, middle, high = np.percentile(values, (10, 50, 90)).tolist()
    return low, middle, high


def width_90(values: Array) -> float:
    """Relative width of the central 90 % of draws: (p95 - p5)/p50."""
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    return math.inf if middle <= 0 else (high - low) / middle
