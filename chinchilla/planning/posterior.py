"""A law from few runs: a posterior under weak priors, and what it says of a run to come.

Eight to twelve small runs do not determine E, A, B, alpha and beta by themselves (`fit` has no prior, and `identify`
refuses most such sets). Here the law L(N, D) = E + A/N^alpha + B/D^beta is taken with a weak normal prior on phi = (log
of the three terms at the runs' centre, log alpha, log beta), made from what the task's curves were like
(`halving.PRIORS`). Relative noise is normal with an unknown deviation (scaled inverse chi-squared prior), which is
integrated out. Draws come by importance sampling about Laplace's approximations, one for each pair of exponents on a
grid (the ridge between floor and exponents is too thin and bent for a chain of moderate length), so that an interval is
a percentile of draws; nothing that is told is linearised.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chinchilla.planning.halving import Prior
from chinchilla.planning.huber import Array, Points, jacobian, log_loss

TERM_ERROR = 1.0
"""Deviation of the logarithm of each term at the centre: a factor of 7 either way is within two of them."""

EXPONENT_ERROR = 0.5
"""The same of the logarithm of an exponent: a factor of 2.7 either way."""

NOISE, NOISE_WEIGHT = 0.004, 3.0
"""Relative noise of one run's final loss before any is known, and how many runs that opinion is worth. Runs that differ
in nothing but their seed ended 0.2 and 0.4 % apart (bench/results/time_to_loss.csv, two recipes of three seeds)."""

PROPOSED, KEPT = 6000, 1000
"""Draws that are proposed, and those that are kept of them."""

CELLS, REACH = 32, 3.5
"""Of the grid of exponents: cells a side, and how many deviations of the prior it reaches to either side."""

TAIL = 5.0
"""Degrees of freedom of Student's t that terms are proposed from: a floor near zero leaves long tails."""

LEAST_SHARE = 0.2
"""Share of the proposals that is spread evenly over the grid, and of the terms that come from the prior."""

_TERMS = np.arange(5) < 3
_STUDENT = math.lgamma((TAIL + 3) / 2) - math.lgamma(TAIL / 2) - 1.5 * math.log(TAIL * math.pi)
_CLIMBS, _GAIN = 200, 1e-6


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
    phi, best = _draws(known, points, target, rng)
    theta = natural(phi)
    spread = _scatter(theta, points, target) / rng.chisquare(NOISE_WEIGHT + len(target), len(theta))
    return Posterior(theta, np.sqrt(spread), natural(best[None])[0], points.centre)


def profile(points: Points, losses: Array, prior: Prior, index: int, values: Array) -> tuple[Array, Array]:
    """Nats of log density lost with an exponent held at each of `values` (values,), all else chosen anew.

    With the runs, and by the prior alone; `index` is 3 for alpha, 4 for beta. The density is that of phi.
    """
    target, logs = np.log(losses), np.log(values)
    known = belief(prior, float(target.mean()))
    phi = np.tile(known.mean, (len(logs), 1))
    phi[:, index] = logs
    _, density = _climbed(phi, np.arange(5) != index, known, points, target)
    return density.max() - density, 0.5 * ((logs - known.mean[index]) / known.error[index]) ** 2


def _climbed(phi: Array, free: NDArray[np.bool_], known: Belief, points: Points, target: Array) -> tuple[Array, Array]:
    """What is reached from each phi (fits, 5) by what is `free` (5,) of it, and its log density (fits,).

    Gauss-Newton steps, each as long as of a few halvings gains most.
    """
    density = _log_density(phi, known, points, target)
    for _ in range(_CLIMBS):
        step = np.where(free, _step(phi, free, known, points, target), 0.0)
        ways = phi - step * 0.5 ** np.arange(8)[:, None, None]
        found = np.stack([_log_density(way, known, points, target) for way in ways])
        chosen, most = found.argmax(0), found.max(0)
        gained = most > density + _GAIN
        phi = np.where(gained[:, None], ways[chosen, np.arange(len(phi))], phi)
        density = np.where(gained, most, density)
        if not gained.any():
            break
    return phi, density


def _step(phi: Array, free: NDArray[np.bool_], known: Belief, points: Points, target: Array) -> Array:
    """The Gauss-Newton step downhill of minus the log density, (fits, 5)."""
    theta = natural(phi)
    off = log_loss(theta, points) - target
    weight = (NOISE_WEIGHT + len(target)) / _scatter(theta, points, target)
    slopes = _slopes(theta, points)
    gradient = (phi - known.mean) / known.error**2 + weight[:, None] * np.einsum("frp,fr->fp", slopes, off)
    curve = _curve(phi, free, known, points, target)
    return np.asarray(np.linalg.solve(curve, np.where(free, gradient, 0.0)[..., None])[..., 0])


def _curve(phi: Array, free: NDArray[np.bool_], known: Belief, points: Points, target: Array) -> Array:
    """Gauss-Newton's curvature of minus the log density, (fits, 5, 5); what is not free has ones of its own."""
    theta = natural(phi)
    weight = (NOISE_WEIGHT + len(target)) / _scatter(theta, points, target)
    slopes = _slopes(theta, points)
    curve = np.diag(known.error**-2) + weight[:, None, None] * np.einsum("frp,frq->fpq", slopes, slopes)
    return np.where(np.outer(free, free), curve, np.eye(5))


def _slopes(theta: Array, points: Points) -> Array:
    """Derivatives of the log loss by phi, (fits, runs, 5)."""
    return jacobian(theta, points) * np.where(np.arange(5) < 3, 1.0, theta)[:, None]


def natural(phi: Array) -> Array:
    """Theta of `planning.huber` for phi, (draws, 5): the exponents as they are instead of their logarithms."""
    return np.column_stack([phi[:, :3], np.exp(phi[:, 3:])])


def _draws(known: Belief, points: Points, target: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws (KEPT, 5), and the best phi of all, by importance sampling: proposed, weighted, drawn again.

    Exponents are proposed from a grid of cells, each as likely as Laplace's approximation holds its centre; the terms
    given these from Student's t about what is most probable with them.
    """
    cells, chance = _cells(known, points, target)
    chosen = rng.choice(len(chance), PROPOSED, p=chance)
    side = 2 * REACH / CELLS * known.error[3:]
    centre = cells[chosen]
    centre[:, 3:] += side * (rng.random((PROPOSED, 2)) - 0.5)
    centre, density = _climbed(centre, _TERMS, known, points, target)
    terms, level = _terms(centre, known, points, target, rng)
    drawn = np.column_stack([terms, centre[:, 3:]])
    worth = _log_density(drawn, known, points, target) - np.log(chance[chosen]) - level
    weight = np.exp(worth - worth.max())
    return drawn[rng.choice(PROPOSED, KEPT, p=weight / weight.sum())], centre[density.argmax()]


def _terms(
    centre: Array, known: Belief, points: Points, target: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Proposed logs of the terms (fits, 3) about each `centre` (fits, 5), and their log density up to a constant.

    A mixture with the prior (Hesterberg 1995), or what one term takes over from another would never be proposed.
    """
    count = len(centre)
    root = np.linalg.cholesky(_curve(centre, _TERMS, known, points, target)[:, :3, :3])
    heavy = rng.standard_normal((count, 3)) / np.sqrt(rng.chisquare(TAIL, count) / TAIL)[:, None]
    near = centre[:, :3] + np.linalg.solve(np.swapaxes(root, 1, 2), heavy[..., None])[..., 0]
    anywhere = known.mean[:3] + known.error[:3] * rng.standard_normal((count, 3))
    terms = np.where(rng.random((count, 1)) < LEAST_SHARE, anywhere, near)
    away = np.einsum("fpq,fp->fq", root, terms - centre[:, :3])
    student = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1) + _STUDENT
    student -= 0.5 * (TAIL + 3) * np.log1p((away**2).sum(1) / TAIL)
    normal = -0.5 * (((terms - known.mean[:3]) / known.error[:3]) ** 2 + np.log(2 * np.pi * known.error[:3] ** 2)).sum(
        1
    )
    return terms, np.logaddexp(math.log(1 - LEAST_SHARE) + student, math.log(LEAST_SHARE) + normal)


def _cells(known: Belief, points: Points, target: Array) -> tuple[Array, Array]:
    """The most probable phi at each centre of a grid over the exponents (cells, 5), and a cell's share of it all."""
    middles = REACH * ((np.arange(CELLS) + 0.5) * 2 / CELLS - 1)
    grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)
    phi = np.tile(known.mean, (len(grid), 1))
    phi[:, 3:] += known.error[3:] * grid
    phi, density = _climbed(phi, _TERMS, known, points, target)
    level = density - 0.5 * np.linalg.slogdet(_curve(phi, _TERMS, known, points, target)[:, :3, :3])[1]
    chance = np.exp(level - level.max())
    # A cell whose centre is a poor one may hold more than it says.
    chance = chance / chance.sum() + LEAST_SHARE / len(chance)
    return phi, chance / chance.sum()


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
