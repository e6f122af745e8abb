"""A scaling law from a user's own runs: approach 3 of Hoffmann 2022, with intervals and predictions.

Variable projection seeds the fit (for given exponents the rest of the law is linear), `huber.minimise` polishes it, and
a bootstrap over the runs says how sure it is.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.planning.constants import Constant, Span, Spread
from chinchilla.planning.huber import Array, Points, log_loss, minimise
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.runs import Runs

CONSTANTS = ("E", "A", "B", "alpha", "beta")

CONFIDENCE = 0.95
"""What the intervals of constants cover."""

FARTHEST = 10.0
"""A prediction further than this factor beyond the runs' compute is a guess: no roll-out has tested it."""

_GRID = np.geomspace(0.05, 2.0, 24)
_BLOCK = 6


@dataclass(frozen=True)
class Interval:
    """The central interval of a bootstrap, and its standard error: half the width of the central 68 %."""

    low: float
    high: float
    error: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law, and what it rests on.

    `theta` (5,) and `draws` (bootstraps, 5) are the fit and its bootstrap as `planning.huber` has them; `residuals`
    (runs,) are log fitted - log measured loss; `objective` and `gradient` are those of the minimum, times 1e3.
    """

    law: ChinchillaLaw
    runs: Runs
    points: Points
    theta: Array
    draws: Array
    residuals: Array
    objective: float
    gradient: float
    intervals: dict[str, Interval]

    @property
    def allocation(self) -> float:
        """The exponent a of N_opt ∝ C^a: beta/(alpha + beta)."""
        return float(self.theta[4] / (self.theta[3] + self.theta[4]))


def fit(runs: Runs, bootstraps: int = 1000, seed: int = 0, name: str = "fit") -> Fit:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to runs; `identify.require_design` says beforehand whether they allow it.

    The constants' intervals are percentiles of `bootstraps` refits with random weights on the runs.
    """
    points, target = Points.of(runs.num_params, runs.tokens), np.log(runs.loss)[None]
    minimum = minimise(seeds(points, runs.loss), points, target, np.ones_like(target))
    best = int(minimum.objective.argmin())
    theta = minimum.theta[best]
    draws = bootstrap(theta, points, target, bootstraps, seed)
    intervals = _intervals(draws, points)
    return Fit(
        law=_law(theta, points, runs, intervals, _spread(draws, points, runs), name),
        runs=runs,
        points=points,
        theta=theta,
        draws=draws,
        residuals=log_loss(theta[None], points)[0] - target[0],
        objective=float(minimum.objective[best]) * 1e3,
        gradient=float(minimum.gradient[best]) * 1e3,
        intervals=intervals,
    )


def seeds(points: Points, loss: Array) -> Array:
    """Starts for the minimiser, (16, 5): variable projection (Golub & Pereyra 1973) over a grid of exponents.

    At every pair of exponents the linear rest (E and the two terms at the centre) is solved by non-negative least
    squares of the relative error; of each of 16 blocks of the grid the best pair stays.
    """
    alpha, beta = (each.ravel() for each in np.meshgrid(_GRID, _GRID, indexing="ij"))
    by_size, by_tokens = np.exp(-np.outer(alpha, points.log_params)), np.exp(-np.outer(beta, points.log_tokens))
    columns = np.stack([np.ones_like(by_size), by_size, by_tokens], -1) / loss[:, None]
    scales, gain = _non_negative(np.swapaxes(columns, 1, 2) @ columns, columns.sum(1))
    # A term that came out as zero has no logarithm: it starts as a small one.
    logs = np.log(np.maximum(scales, 1e-3 * loss.min()))
    starts = np.column_stack([logs, alpha, beta])
    side = len(_GRID) // _BLOCK
    blocks = np.arange(len(alpha)).reshape(side, _BLOCK, side, _BLOCK).swapaxes(1, 2).reshape(side**2, -1)
    return starts[[block[gain[block].argmax()] for block in blocks]]


def bootstrap(theta: Array, points: Points, target: Array, count: int, seed: int) -> Array:
    """Refits, (count, 5), with Dirichlet weights on the runs: the Bayesian bootstrap (Rubin 1981).

    It is the usual bootstrap with weights that are never zero. Runs drawn with replacement leave out a third of a small
    design, and what is left often determines nothing. Each refit starts from the fit to all runs, `theta` (5,).
    """
    number = len(points.log_params)
    weights = number * np.random.default_rng(seed).dirichlet(np.ones(number), size=count)
    return minimise(np.tile(theta, (count, 1)), points, target, weights).theta


def constants(theta: Array, points: Points) -> Array:
    """E, A, B, alpha, beta of each fit, (fits, 5)."""
    e, a, b, alpha, beta = theta.T
    logs = np.stack([e, a + alpha * points.centre[0], b + beta * points.centre[1]], -1)
    return np.column_stack([np.exp(np.clip(logs, -700, 700)), alpha, beta])


def predict_draws(fitted: Fit, num_params: float, tokens: float, seed: int = 0) -> Array:
    """What a planned run may come to in nats a token, one value a bootstrap: (bootstraps,).

    Each is a refit's loss, times the noise of one run drawn from the residuals; these are widened by √(n/(n - 5)),
    since a fit of five constants has already shortened them.
    """
    residuals = fitted.residuals * math.sqrt(len(fitted.runs) / max(1, len(fitted.runs) - len(CONSTANTS)))
    noise = np.random.default_rng(seed).choice(residuals, len(fitted.draws))
    level = log_loss(fitted.draws, fitted.points.at(num_params, tokens))[:, 0]
    return np.exp(level - noise)


def predict(fitted: Fit, num_params: float, tokens: float) -> Estimate:
    """The loss of a planned run with both its uncertainties: the constants' and the run's own noise.

    Raises:
        BudgetError: a number that is not positive and finite.
    """
    if not all(math.isfinite(value) and value > 0 for value in (num_params, tokens)):
        raise BudgetError(f"{num_params} parameters and {tokens} tokens make no run: give positive, finite numbers")
    low, median, high = np.percentile(predict_draws(fitted, num_params, tokens), (10, 50, 90)).tolist()
    return Estimate(p10=low, p50=median, p90=high, unit="nats/token", source=_source(fitted, num_params, tokens))


@dataclass(frozen=True)
class Best:
    """What a law advises for a budget of `flops` (6·N·D), and the loss that it would come to."""

    flops: float
    num_params: Estimate
    tokens: Estimate
    loss: Estimate


def best(fitted: Fit, flops: float) -> Best:
    """The optimum at a budget, each number with the spread of the bootstrap's own optima.

    The loss is that of a run of the law's own optimum. Refits whose exponents are not both positive have no optimum
    and are left out.

    Raises:
        BudgetError: `flops` is not a positive, finite number.
    """
    num_params, tokens = fitted.law.optimum(flops)
    loss = predict(fitted, num_params, tokens)
    log_budget = math.log(num_params) + math.log(tokens)
    log_params = _log_optima(fitted.draws, fitted.points, log_budget)
    sizes, counts = np.percentile(log_params, (10, 50, 90)), np.percentile(log_budget - log_params, (10, 50, 90))
    return Best(flops, _estimate(sizes, "parameters", loss.source), _estimate(counts, "tokens", loss.source), loss)


def _log_optima(draws: Array, points: Points, log_budget: float) -> Array:
    """log N_opt under N·D = exp(`log_budget`) of each refit that has one.

    Where both terms gain as much: alpha·exp(a - alpha·n) = beta·exp(b - beta·d), with n + d given.
    """
    _, a, b, alpha, beta = draws[(draws[:, 3:] > 0).all(-1)].T
    centred = log_budget - sum(points.centre)
    return (np.log(alpha / beta) + a - b + beta * centred) / (alpha + beta) + points.centre[0]


def _spread(draws: Array, points: Points, runs: Runs) -> Spread | None:
    """The bootstrap of log N_opt as a line in log C, about the compute (within the runs') where it is narrowest.

    None where most refits have no optimum.
    """
    if (draws[:, 3:] > 0).all(-1).mean() < 0.5:
        return None
    six_nd, log_flops = runs.six_nd, np.log(FLOPS_PER_PARAM_TOKEN) + sum(points.centre)
    middle = _log_optima(draws, points, sum(points.centre))
    slope = _log_optima(draws, points, sum(points.centre) + 1) - middle
    away = -np.cov(middle, slope)[0, 1] / max(float(slope.var()), 1e-30)
    low, high = np.log(six_nd.min()) - log_flops, np.log(six_nd.max()) - log_flops
    pivot = float(np.clip(away, low, high))
    level = float((middle + pivot * slope).std())
    return Spread(pivot_flops=math.exp(log_flops + pivot), level=level, exponent=float(slope.std()))


def _estimate(logs: Array, unit: str, source: Source) -> Estimate:
    low, median, high = np.exp(logs).tolist()
    return Estimate(p10=low, p50=median, p90=high, unit=unit, source=source)


def _source(fitted: Fit, num_params: float, tokens: float) -> Source:
    dearest = float((fitted.runs.num_params * fitted.runs.tokens).max())
    return "law" if num_params * tokens <= FARTHEST * dearest else "guess"


def _non_negative(gram: Array, moment: Array) -> tuple[Array, Array]:
    """Non-negative least squares in three unknowns for many problems: (problems, 3, 3), (problems, 3).

    Gives the unknowns and how much each fit explains. The positive unknowns are one of seven sets: all are tried.
    """
    best, most = np.zeros_like(moment), np.zeros(len(moment))
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    for support in itertools.product((0.0, 1.0), repeat=3):
        kept = np.array(support)
        system = (gram + ridge) * np.outer(kept, kept) + np.diag(1 - kept)
        found = np.linalg.solve(system, (moment * kept)[..., None])[..., 0]
        gain = np.where((found >= 0).all(-1), (found * moment).sum(-1), 0.0)
        best = np.where((gain > most)[:, None], found, best)
        most = np.maximum(gain, most)
    return best, most


def _intervals(draws: Array, points: Points) -> dict[str, Interval]:
    values = constants(draws, points)
    allocation = draws[:, 4] / (draws[:, 3] + draws[:, 4])
    return {name: interval(column) for name, column in zip((*CONSTANTS, "a"), (*values.T, allocation), strict=True)}


def interval(draws: Array) -> Interval:
    """The central `CONFIDENCE` of bootstrap draws (bootstraps,)."""
    tail = 50 * (1 - CONFIDENCE)
    low, high, lower, upper = np.percentile(draws, (tail, 100 - tail, 16, 84)).tolist()
    return Interval(low, high, (upper - lower) / 2)


def _law(
    theta: Array, points: Points, runs: Runs, intervals: dict[str, Interval], spread: Spread | None, name: str
) -> ChinchillaLaw:
    source = f"approach 3, {len(runs)} runs of {runs.source}"
    found = dict(zip(CONSTANTS, constants(theta[None], points)[0].tolist(), strict=True))
    made = {
        key: Constant(
            value=value, error=intervals[key].error, interval=(intervals[key].low, intervals[key].high), source=source
        )
        for key, value in found.items()
    }
    return ChinchillaLaw(
        name=name,
        irreducible=made["E"],
        param_scale=made["A"],
        token_scale=made["B"],
        param_exponent=made["alpha"],
        token_exponent=made["beta"],
        params=_span(runs.num_params),
        tokens=_span(runs.tokens),
        flops=_span(runs.six_nd),
        spread=spread,
    )


def _span(values: Array) -> Span:
    return Span(low=float(values.min()), high=float(values.max()))
