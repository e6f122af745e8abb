"""Whether runs determine a law: before the fit by where they lie, after it by what happens when runs go.

Errors of a planned or done set of runs are those of linearised least squares: the covariance of theta
(`planning.huber`) is (JᵀJ/noise² + P)⁻¹, with J the law's slopes at the runs and P a weak prior, which keeps it finite
where the runs say nothing.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import Label
from chinchilla.config.units import show_count
from chinchilla.planning.fit import Best, Fit, best, fit, predict
from chinchilla.planning.huber import Array, Points, jacobian, minimise
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN
from chinchilla.planning.runs import Runs

LEAST_RUNS = 6
"""One more than there are constants."""

ENOUGH_RUNS = 12
"""From here on a bootstrap's 95 % interval held the truth in over 90 % of simulations (docs/planning-fit.md)."""

MAX_ERROR = 0.1
"""Standard error up to which an exponent counts as determined: 0.35 ± 0.2 is no law yet, 95 % of the time."""

DESIGN_NOISE = 0.01
"""Relative noise of a final loss assumed before there is a fit to measure it on."""

TYPICAL = (math.log(0.5), math.log(0.25), math.log(0.25), 0.35, 0.37)
"""Theta assumed before a fit: Besiroglu's exponents, half of the loss irreducible at the centre of the runs."""

AHEAD = (4.0, 16.0, 64.0)
"""Budgets that a fit is shown at, in multiples of the dearest run's compute."""

_PRIOR_ERROR = np.array([1.0, 1.0, 1.0, 0.3, 0.3])
_STEPS = 2.0 ** np.arange(-6, 3)
_MOST_PROPOSED = 24
_LAPLACE_95 = 1.92
_FOLDS = 100


@dataclass(frozen=True)
class Proposal:
    """A run that would help: parameters, tokens, and its compute by 6·N·D."""

    num_params: float
    tokens: float

    @property
    def flops(self) -> float:
        """Training compute, 6·N·D."""
        return FLOPS_PER_PARAM_TOKEN * self.num_params * self.tokens


@dataclass(frozen=True, eq=False)
class Profile:
    """The least objective (values,), times 1e3, with one exponent held at each of `values` (values,).

    `low` to `high` is the 95 % interval of a likelihood with Laplace errors, which is what Huber's loss is beyond its
    narrow square part; `bounded` says whether it ends within the values tried.
    """

    values: Array
    objective: Array
    low: float
    high: float
    bounded: bool


@dataclass(frozen=True)
class Without:
    """The exponents of a fit without some of the runs; `allocation` is beta/(alpha + beta)."""

    what: str
    alpha: float
    beta: float
    allocation: float


@dataclass(frozen=True)
class Held:
    """A dear run that the cheap ones foretold."""

    place: str
    predicted: Estimate
    measured: float

    @property
    def error(self) -> float:
        """Of the median, relative."""
        return self.predicted.p50 / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies between p10 and p90."""
        return self.predicted.p10 <= self.measured <= self.predicted.p90


@dataclass(frozen=True)
class Identification:
    """How firmly the runs hold the law; `warnings` is empty where nothing speaks against it.

    `condition` is that of the Gauss-Newton Hessian with columns scaled to length one; `errors` are the linearised
    standard errors of the exponents; `influential` is the leave-out that moves the allocation most.
    """

    noise: float
    condition: float
    errors: dict[str, float]
    profiles: dict[str, Profile]
    without_highest: tuple[Without, ...]
    influential: Without
    roll_out: tuple[Held, ...]
    proposals: tuple[Proposal, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A fitted law, how firmly it stands, and what it advises for budgets ahead."""

    fitted: Fit
    identified: Identification
    ahead: tuple[Best, ...]


def study(runs: Runs, bootstraps: int = 1000) -> Study:
    """Fit a law to runs that allow one, test how firmly they hold it, and look at budgets `AHEAD`.

    Raises:
        DataError: the runs do not determine a law, or contradict its form.
    """
    require_design(runs)
    fitted = fit(runs, bootstraps)
    identified = identify(fitted)
    return Study(fitted, identified, tuple(best(fitted, factor * fitted.law.flops.high) for factor in AHEAD))


def require_design(runs: Runs) -> None:
    """Refuse runs that cannot determine a law wherever their losses lie.

    Raises:
        DataError: too few, or placed so that an exponent would stay open; the message says which runs would settle it.
    """
    proposals = settling_runs(runs, np.array(TYPICAL), DESIGN_NOISE)
    if not proposals:
        return
    alpha, beta = exponent_errors(Points.of(runs.num_params, runs.tokens), np.array(TYPICAL), DESIGN_NOISE)
    number, counts = f"{len(runs)} run{'s' if len(runs) > 1 else ''}", f"{runs.counted.one} count"
    raise DataError(
        f"{runs.source}: {number} of {_distinct(runs.num_params)} and {_distinct(runs.tokens, counts)} do "
        f"not determine a law: with {DESIGN_NOISE:.0%} noise alpha would be known to ±{2 * alpha:.2f} and beta to "
        f"±{2 * beta:.2f} (95 %). These runs would settle it: {show_proposals(proposals, runs.counted)}"
    )


def settling_runs(runs: Runs, theta: Array, noise: float) -> tuple[Proposal, ...]:
    """Runs that bring both exponents' errors down to `MAX_ERROR` at `noise`; none where these do already.

    Greedy: each time the run that lowers the sum of both variances most, among sizes and token counts in steps of two
    around the largest that were run, no dearer than the dearest; dearer ones (fourfold each time) only where all of
    those do not do.
    """
    points = Points.of(runs.num_params, runs.tokens)
    precision = _precision(points, theta, noise)
    if len(runs) >= LEAST_RUNS and _settled(np.linalg.inv(precision)):
        return ()
    dearest = float((runs.num_params * runs.tokens).max())
    there = set(zip(runs.num_params.tolist(), runs.tokens.tolist(), strict=True))
    for limit in (1.0, 4.0, 16.0):
        most = 1.001 * limit * dearest
        candidates = [pair for pair in _grid(runs) if math.prod(pair) <= most and pair not in there]
        chosen, settled = _greedy(candidates, points, theta, noise, precision, LEAST_RUNS - len(runs))
        if settled:
            break
    return tuple(Proposal(*pair) for pair in sorted(chosen, key=math.prod))


def _grid(runs: Runs) -> list[tuple[float, float]]:
    """Parameters and tokens to propose from, in steps of two around the largest of each.

    Where those two together lie far beyond every run, around the dearest run's: else nothing would be affordable.
    """
    spent = runs.num_params * runs.tokens
    size, tokens = float(runs.num_params.max()), float(runs.tokens.max())
    if size * tokens * _STEPS[2] ** 2 > spent.max():
        size, tokens = float(runs.num_params[spent.argmax()]), float(runs.tokens[spent.argmax()])
    return list(itertools.product((size * _STEPS).tolist(), (tokens * _STEPS).tolist()))


def exponent_errors(points: Points, theta: Array, noise: float) -> tuple[float, float]:
    """Linearised standard errors of alpha and beta at runs of relative noise `noise`."""
    variances = np.diag(np.linalg.inv(_precision(points, theta, noise)))
    return math.sqrt(variances[3]), math.sqrt(variances[4])


def show_proposals(proposals: tuple[Proposal, ...], counted: Label) -> str:
    """Runs in words, cheapest first."""
    return "; ".join(
        f"{show_count(p.num_params)} parameters × {show_count(p.tokens)} {counted.many} ({p.flops:.1e} FLOPs)"
        for p in proposals
    )


def identify(fitted: Fit) -> Identification:
    """Everything known about how firmly a fit stands.

    Raises:
        DataError: the losses do not fall with size or with tokens.
    """
    _require_falling(fitted)
    spare = len(fitted.runs) / max(1, len(fitted.runs) - 5)
    noise = max(1e-6, float(np.abs(fitted.residuals).mean()) * spare * math.sqrt(math.pi / 2))
    slopes = jacobian(fitted.theta[None], fitted.points)[0]
    scaled = slopes / np.linalg.norm(slopes, axis=0)
    errors = dict(zip(("alpha", "beta"), exponent_errors(fitted.points, fitted.theta, noise), strict=True))
    profiles = {name: _profile(fitted, name, index) for name, index in (("alpha", 3), ("beta", 4))}
    highest, influential, held = _without_highest(fitted), _influential(fitted), roll_out(fitted.runs)
    return Identification(
        noise=noise,
        condition=float(np.linalg.cond(scaled)) ** 2,
        errors=errors,
        profiles=profiles,
        without_highest=highest,
        influential=influential,
        roll_out=held,
        proposals=settling_runs(fitted.runs, fitted.theta, noise),
        warnings=tuple(_warnings(fitted, errors, profiles, highest, held)),
    )


def roll_out(runs: Runs) -> tuple[Held, ...]:
    """Fit the runs of at most a quarter of the largest compute, and predict the others; none if those are too few."""
    dear = runs.flops > 0.25 * runs.flops.max()
    cheap = runs.pick(~dear)
    if len(cheap) < LEAST_RUNS or settling_runs(cheap, np.array(TYPICAL), DESIGN_NOISE):
        return ()
    fitted, kept = fit(cheap, bootstraps=200), runs.pick(dear)
    rows = zip(kept.places, kept.num_params.tolist(), kept.tokens.tolist(), kept.loss.tolist(), strict=True)
    return tuple(Held(place, predict(fitted, n, d), loss) for place, n, d, loss in rows)


def _precision(points: Points, theta: Array, noise: float) -> Array:
    slopes = jacobian(theta[None], points)[0]
    return slopes.T @ slopes / noise**2 + np.diag(_PRIOR_ERROR**-2)


def _settled(covariance: NDArray[np.floating[Any]]) -> bool:
    return bool(max(covariance[3, 3], covariance[4, 4]) <= MAX_ERROR**2)


def _greedy(
    candidates: list[tuple[float, float]], points: Points, theta: Array, noise: float, precision: Array, least: int
) -> tuple[list[tuple[float, float]], bool]:
    """At least `least` candidates, until both exponents are settled; whether they are."""
    logs = np.log(np.array(candidates)) - points.centre
    slopes = jacobian(theta[None], Points(logs[:, 0], logs[:, 1], points.centre))[0]
    covariance = np.linalg.inv(precision)
    chosen: list[int] = []
    while (len(chosen) < least or not _settled(covariance)) and len(chosen) < min(_MOST_PROPOSED, len(candidates)):
        # One more run changes the covariance by a rank-one term (Sherman & Morrison 1950).
        reach = slopes @ covariance
        gain = (reach[:, 3:] ** 2).sum(-1) / (noise**2 + (reach * slopes).sum(-1))
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        covariance -= np.outer(reach[best], reach[best]) / (noise**2 + reach[best] @ slopes[best])
    return [candidates[index] for index in chosen], _settled(covariance)


def _distinct(values: Array, what: str = "size") -> str:
    number = len(np.unique(values))
    return f"{number} {what}{'s' if number > 1 else ''}"


def _require_falling(fitted: Fit) -> None:
    for name, index, cause in (("alpha", 3, "size"), ("beta", 4, fitted.runs.counted.many)):
        if fitted.theta[index] <= 0:
            raise DataError(
                f"{fitted.runs.source}: the losses do not fall with {cause} ({name} comes out as "
                f"{fitted.theta[index]:.3f}): check the columns, and that learning rate and warm-up fit every run"
            )


def _profile(fitted: Fit, name: str, index: int) -> Profile:
    interval, centre = fitted.intervals[name], float(fitted.theta[index])
    reach = max(interval.high - interval.low, 1e-3 * centre)
    values = np.linspace(max(centre - reach, 0.05 * centre), centre + reach, 61)
    start = np.tile(fitted.theta, (len(values), 1))
    start[:, index] = values
    target = np.log(fitted.runs.loss)[None]
    free = tuple(place != index for place in range(5))
    objective = 1e3 * minimise(start, fitted.points, target, np.ones_like(target), free).objective
    # Laplace errors of unknown scale: twice the log likelihood ratio is 2·n·log of the ratio of objectives.
    inside = objective <= fitted.objective * math.exp(_LAPLACE_95 / len(fitted.runs)) + 1e-12
    inside[np.abs(values - centre).argmin()] = True
    low, high = values[inside].min(), values[inside].max()
    return Profile(values, objective, float(low), float(high), not (inside[0] or inside[-1]))


def _refit(fitted: Fit, weights: Array) -> Array:
    """Exponents of fits with other weights (fits, runs): alpha, beta and the allocation, (fits, 3)."""
    start = np.tile(fitted.theta, (len(weights), 1))
    theta = minimise(start, fitted.points, np.log(fitted.runs.loss)[None], weights).theta
    return np.column_stack([theta[:, 3:], theta[:, 4] / theta[:, 3:].sum(-1)])


def _without_highest(fitted: Fit) -> tuple[Without, ...]:
    """The fit without the 2, 5 and 10 % of highest losses: runs that were cut short most often lie there."""
    order = np.argsort(-fitted.runs.loss)
    counts = sorted({max(1, round(share * len(order))) for share in (0.02, 0.05, 0.1)})
    weights = np.ones((len(counts), len(order)))
    for row, count in zip(weights, counts, strict=True):
        row[order[:count]] = 0.0
    found = _refit(fitted, weights).tolist()
    return tuple(Without(f"the {count} highest", *row) for count, row in zip(counts, found, strict=True))


def _influential(fitted: Fit) -> Without:
    """The run whose going moves the allocation most; of many runs, the hundredth of them nearest in compute."""
    folds = np.array_split(np.argsort(fitted.runs.flops), min(len(fitted.runs), _FOLDS))
    weights = np.ones((len(folds), len(fitted.runs)))
    for row, fold in zip(weights, folds, strict=True):
        row[fold] = 0.0
    found = _refit(fitted, weights)
    worst = int(np.abs(found[:, 2] - fitted.allocation).argmax())
    more = f" and {len(folds[worst]) - 1} more" if len(folds[worst]) > 1 else ""
    return Without(fitted.runs.places[folds[worst][0]] + more, *found[worst].tolist())


def _warnings(
    fitted: Fit,
    errors: dict[str, float],
    profiles: dict[str, Profile],
    highest: tuple[Without, ...],
    held: tuple[Held, ...],
) -> list[str]:
    found = []
    if len(fitted.runs) < ENOUGH_RUNS:
        found.append(f"with fewer than {ENOUGH_RUNS} runs the intervals are too narrow: 95 % means about 87 %")
    for name, error in errors.items():
        wide = fitted.intervals[name].high - fitted.intervals[name].low
        if error > MAX_ERROR or wide > 4 * MAX_ERROR:
            found.append(f"{name} is known only to a width of {wide:.2f} (95 %): more runs are needed")
        if not profiles[name].bounded:
            found.append(f"{name} fits nearly as well a whole interval's width away: the runs do not hold it")
    allocation = fitted.intervals["a"]
    for without in highest:
        if not allocation.low <= without.allocation <= allocation.high:
            found.append(f"without {without.what} losses a is {without.allocation:.3f}, outside its interval")
    if fitted.law.irreducible.value < 0.01 * float(fitted.runs.loss.min()):
        found.append("the irreducible loss E comes out as nothing: the runs do not reach far enough to show it")
    inside = sum(each.inside for each in held)
    if 2 * inside < len(held):
        found.append(f"only {inside} of the {len(held)} dearest runs came out where the cheap ones foretold them")
    return found
