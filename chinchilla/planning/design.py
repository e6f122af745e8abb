"""Which small runs narrow the prediction of a big one most for the time they cost.

Bayesian V-optimal design (Chaloner & Verdinelli 1995): of all sets of runs that fit the time, the one of least expected
variance of log L at the big run, averaged over draws of what is known of the law and over sizes about the likely best
one, since the size is still to be chosen. For one draw the variance is g·(P + Σ JᵀJ/σ²)⁻¹·g with J the law's slopes at
the runs, g those at the big run and P the prior's precision. Runs are chosen greedily by gain for the time, then
exchanged one by one while that helps (Fedorov 1972).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla.config.estimate import Estimate
from chinchilla.config.run import Model
from chinchilla.config.shape import Shape
from chinchilla.planning.count import num_params
from chinchilla.planning.huber import Array, Points, jacobian
from chinchilla.planning.own_law import MISFIT, OwnLaw
from chinchilla.planning.posterior import EXPONENT_ERROR, NOISE, TERM_ERROR, Posterior, percentile_80
from chinchilla.planning.search import Facts, build, depth

SWEEP_DIMS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768)
CHANNELS_A_LAYER = 80
"""Small runs are all of about one aspect, or the shape's form would add to the noise."""

LEAST_STEPS = 200
LEAST_TOKENS_A_PARAMETER = 0.1
"""A shorter run is mostly warm-up, one of fewer tokens mostly forgets its random start: no power law tells of them."""

LEAST_RUNS, MOST_RUNS = 6, 12
LEAST_SIZES = 3
"""Fewer sizes never tell a power law from a line."""

MOST_SHARE = 0.35
"""Of the time, for one run: one that fails must not take everything with it."""

_DRAWS = 24
_AROUND = (0.5, 1.0, 2.0)
_PASSES = 8


@dataclass(frozen=True)
class Small:
    """A run that could be done: `tokens` seen in `steps`, thought to take `time_s`; `worth` are effective tokens."""

    shape: Shape
    num_params: int
    steps: int
    tokens: float
    worth: float
    time_s: float


@dataclass(frozen=True)
class Design:
    """The runs chosen, cheapest first, and the relative width (90 %) that the big run's loss would be known to."""

    runs: tuple[Small, ...]
    width: float

    @property
    def time_s(self) -> float:
        """What the runs are thought to take together."""
        return sum(run.time_s for run in self.runs)


@dataclass(frozen=True)
class Big:
    """The run that a law advises for a time: the shape, what it sees and comes to, and how sure its size is."""

    shape: Shape
    tokens: float
    loss: Estimate
    num_params: Estimate


def ladder(facts: Facts, fixed: Model) -> tuple[Shape, ...]:
    """One shape for each width, all of about one aspect, smallest first; what the recipe fixes stays."""
    shapes = []
    for dim in (fixed.dim,) if fixed.dim else SWEEP_DIMS:
        layers = max(2, round(dim / CHANNELS_A_LAYER))
        shapes.append(build(facts, fixed, dim, *depth(facts.family, fixed, layers)))
    return tuple(sorted(shapes, key=num_params))


def lengths(step_time_s: float, most_s: float) -> list[int]:
    """Numbers of steps to consider: `LEAST_STEPS`, twice as many and so on, up to what takes `most_s`."""
    longest = math.floor(most_s / step_time_s)
    if longest < LEAST_STEPS:
        return []
    found = [LEAST_STEPS * 2**power for power in range(int(math.log2(longest / LEAST_STEPS)) + 1)]
    # The longest that fits is what reaches nearest to the big run.
    return [*found, longest] if longest > 1.25 * found[-1] else found


def design(
    candidates: Sequence[Small],
    done: Points,
    known: Posterior,
    target: tuple[float, float],
    time_s: float,
    least: int = LEAST_RUNS,
    most: int = MOST_RUNS,
) -> Design:
    """Between `least` and `most` of `candidates` within `time_s`, given what the runs `done` have shown already.

    `target` is the big run: parameters, and effective tokens. `known` holds the draws of the law. Fewer than `least`
    only where no more fit.
    """
    plane = _Plane.of(candidates, done, known, target)
    times = np.array([run.time_s for run in candidates])
    chosen = _exchanged(_greedy(plane, times, time_s, least, most), plane, times, time_s, most)
    runs = sorted((candidates[index] for index in chosen), key=lambda run: run.time_s)
    variance = float(plane.variance(plane.information(chosen)[None])[0])
    return Design(tuple(runs), 2 * 1.645 * math.sqrt(variance + NOISE**2 + MISFIT**2))


def likely_best(known: Posterior, options: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of (parameters, effective tokens) the pair of least expected log loss: what the design aims at."""
    return min(options, key=lambda option: float(known.levels(*option).mean()))


def best_shape(law: OwnLaw, options: Sequence[tuple[Shape, float]]) -> Big:
    """Of (shape, tokens it would see) the one of least median loss.

    How sure its size is: p10 to p90 of the best sizes of the single draws.
    """
    counts = np.array([num_params(shape) for shape, _ in options])
    losses = np.stack([law.losses(count, seen, noise=False) for count, (_, seen) in zip(counts, options, strict=True)])
    shape, tokens = options[int(np.median(losses, 1).argmin())]
    low, _, high = percentile_80(counts[losses.argmin(0)].astype(float))
    size = num_params(shape)
    loss = law.predict(size, tokens)
    spread = Estimate(p10=min(low, size), p50=size, p90=max(high, size), unit="parameters", source=loss.source)
    return Big(shape, tokens, loss, spread)


@dataclass(frozen=True, eq=False)
class _Plane:
    """Information of every candidate (candidates, draws, 5, 5), of what is known, and the slopes at the target.

    `targets` is (draws, targets, 5).
    """

    each: Array
    before: Array
    targets: Array

    @classmethod
    def of(cls, candidates: Sequence[Small], done: Points, known: Posterior, target: tuple[float, float]) -> "_Plane":
        theta = known.theta[:: max(1, len(known.theta) // _DRAWS)][:_DRAWS]
        places = np.array([(run.num_params, run.worth) for run in candidates]).reshape(-1, 2)
        # The same budget for half and for twice the size.
        ahead = np.array([(target[0] * factor, target[1] / factor) for factor in _AROUND])
        slopes = _slopes(theta, places, known.centre) / NOISE
        seen = _jacobian(theta, done) / NOISE
        prior = np.diag(np.array([TERM_ERROR] * 3 + [EXPONENT_ERROR] * 2) ** -2.0)
        return cls(
            each=np.einsum("kcp,kcq->ckpq", slopes, slopes),
            before=prior + np.einsum("kcp,kcq->kpq", seen, seen),
            targets=_slopes(theta, ahead, known.centre),
        )

    def information(self, chosen: Sequence[int]) -> Array:
        """Precision of phi with these candidates done, (draws, 5, 5)."""
        return np.asarray(self.before + self.each[list(chosen)].sum(0))

    def variance(self, information: Array) -> Array:
        """Variance of log L at the big run, mean over draws and targets, of each precision (sets, draws, 5, 5)."""
        covariance = np.linalg.inv(information)
        return np.asarray(np.einsum("ktp,skpq,ktq->skt", self.targets, covariance, self.targets).mean((1, 2)))


def _slopes(theta: Array, places: Array, centre: tuple[float, float]) -> Array:
    """Derivatives of log L by phi at places (places, 2) of parameters and tokens, (draws, places, 5)."""
    logs = np.log(places) - centre
    return _jacobian(theta, Points(logs[:, 0], logs[:, 1], centre))


def _jacobian(theta: Array, points: Points) -> Array:
    found = jacobian(theta, points)
    # By the logarithms of the exponents.
    found[..., 3:] *= theta[:, None, 3:]
    return found


def _greedy(plane: _Plane, times: Array, time_s: float, least: int, most: int) -> list[int]:
    """One by one the candidate that lowers the log variance most for its time, with time left for `least` in all."""
    chosen: list[int] = []
    while len(chosen) < most:
        rest = np.sort(np.delete(times, chosen))[: max(0, least - len(chosen) - 1)].sum()
        free = _within(times, chosen, time_s - rest) or _within(times, chosen, time_s)
        if not free:
            break
        now = plane.information(chosen)
        gain = np.log(plane.variance(now[None])[0]) - np.log(plane.variance(now + plane.each[free]))
        chosen.append(free[int((gain / times[free]).argmax())])
    return chosen


def _exchanged(chosen: list[int], plane: _Plane, times: Array, time_s: float, most: int) -> list[int]:
    """Each run in turn gives way to the one that lowers the variance most, within the time, until none does."""
    for _ in range(_PASSES):
        before = list(chosen)
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            chosen[place] = _best(plane, rest, _within(times, rest, time_s))
        more = _within(times, chosen, time_s) if len(chosen) < most else []
        if more:
            chosen.append(_best(plane, chosen, more))
        if chosen == before:
            break
    return chosen


def _within(times: Array, chosen: list[int], time_s: float) -> list[int]:
    """Candidates not chosen for which there is time."""
    left = time_s - times[chosen].sum() + 1e-9
    return [index for index in range(len(times)) if index not in chosen and times[index] <= left]


def _best(plane: _Plane, chosen: list[int], free: list[int]) -> int:
    found = plane.variance(plane.information(chosen) + plane.each[free])
    return free[int(found.argmin())]
