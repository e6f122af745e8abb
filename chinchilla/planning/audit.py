"""How right past predictions were: bias and coverage of each kind, and a recalibration learnt from them.

A kind is a quantity and the source of its prediction: what probes foretold says nothing of what a roofline guessed.
Errors are logarithms of measured over predicted, so that twice and half are as far off.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median

from pydantic import NonNegativeInt, ValidationError

from chinchilla.config.correction import Correction
from chinchilla.config.errors import FaultError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Decision, Plan
from chinchilla.store.atomic import failures_named, make_folder, write_text

NOMINAL = 0.8
"""Share of measurements that an honest p10 to p90 holds."""

CONFIDENCE = 0.95
"""Of the Wilson interval of a coverage."""

PRIOR_RUNS = 6
"""Runs that the belief "there is nothing to correct" counts for.

Right where biases are about half as large as a prediction's own standard deviation: the median's variance is
(π/2)·σ²/n, and (π/2)·σ² / (σ/2)² = 2π.
"""

LEAST_HALF_WIDTH = 1e-3
"""Distances are measured in half-widths of the interval, at least this (a logarithm): some intervals have no width."""

MOST = 20.0
"""Factor that an interval widens or narrows by at most: a few runs that all hit the centre are luck."""

FIXED = "fixed_"
"""Begins the name of what the budget fixed (`Plan.fixed`): another kind of prediction than where it is open."""

LEVELS = tuple(n / 10 for n in range(1, 10))

_TENTH = NormalDist().inv_cdf(0.9)

Kind = tuple[str, Source]


@dataclass(frozen=True)
class Outcome:
    """One prediction and what came of it, in the same unit; both more than 0."""

    name: str
    predicted: Estimate
    measured: float

    @property
    def kind(self) -> Kind:
        """The quantity, and what its prediction rested on."""
        return self.name, self.predicted.source

    @property
    def error(self) -> float:
        """log(measured / p50)."""
        return math.log(self.measured / self.predicted.p50)

    @property
    def inside(self) -> bool:
        """Whether p10 to p90 holds it."""
        return self.predicted.p10 <= self.measured <= self.predicted.p90

    def distance(self, centre: float) -> float:
        """How far, with its sign, the error lies from `centre`, in half-widths of the interval on that side."""
        off, told = self.error - centre, self.predicted
        half = math.log(told.p90 / told.p50) if off > 0 else math.log(told.p50 / told.p10)
        return off / max(half, LEAST_HALF_WIDTH)

    @property
    def chance(self) -> float:
        """The probability that was given to a value this low or lower: two half normals meet at log p50."""
        return NormalDist().cdf(_TENTH * self.distance(0.0))


@dataclass(frozen=True)
class Score:
    """How right one kind of prediction was over `num_runs` runs.

    `bias` is the median of log(measured / p50). `coverage` is the share inside p10 to p90, `low` and `high` its Wilson
    interval at 95 %. `curve` has, for each of `LEVELS`, the share of measurements below that quantile of the
    prediction: the level itself where predictions are honest (Gneiting, Balabdaoui & Raftery 2007).
    """

    name: str
    source: Source
    num_runs: int
    bias: float
    coverage: float
    low: float
    high: float
    curve: tuple[float, ...]

    @property
    def honest(self) -> bool:
        """Whether the coverage may well be the nominal one."""
        return self.low <= NOMINAL <= self.high


class Learnt(Correction):
    """The correction of one kind of prediction, and how many runs it rests on."""

    name: str
    source: Source
    num_runs: NonNegativeInt


class Recalibration(Frozen):
    """What one machine's past runs taught: kept as a file, put on that machine's later plans."""

    machine: str
    device: str
    threads: int
    date: str
    num_runs: NonNegativeInt
    corrections: tuple[Learnt, ...]

    def corrects(self, predicted: Mapping[str, Estimate]) -> dict[str, Correction]:
        """The correction of each prediction whose kind is known; what is free stays so."""
        known = {(learnt.name, learnt.source): learnt for learnt in self.corrections}
        found = {name: known.get((name, told.source)) for name, told in predicted.items() if told.p10 > 0}
        return {
            name: Correction(factor=learnt.factor, widening=learnt.widening) for name, learnt in found.items() if learnt
        }


def wilson(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share: `hits` of `trials`, 0 to 1 without trials."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = hits / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def scores(outcomes: Iterable[Outcome]) -> list[Score]:
    """Every kind's score, in the order in which the kinds first come."""
    return [_score(kind, found) for kind, found in by_kind(outcomes).items()]


def by_kind(outcomes: Iterable[Outcome]) -> dict[Kind, list[Outcome]]:
    """The outcomes of each kind."""
    found: defaultdict[Kind, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.kind].append(outcome)
    return dict(found)


def _score(kind: Kind, outcomes: Sequence[Outcome]) -> Score:
    hits, trials = sum(outcome.inside for outcome in outcomes), len(outcomes)
    low, high = wilson(hits, trials)
    chances = [outcome.chance for outcome in outcomes]
    return Score(
        name=kind[0],
        source=kind[1],
        num_runs=trials,
        bias=median(outcome.error for outcome in outcomes),
        coverage=hits / trials,
        low=low,
        high=high,
        curve=tuple(sum(chance <= level for chance in chances) / trials for level in LEVELS),
    )


def correction(outcomes: Sequence[Outcome]) -> Correction:
    """What would have made these predictions (at least one, of one kind) right, shrunk where they are few.

    With n runs and K = `PRIOR_RUNS` the logarithm of the factor is n/(n+K) times the median error: the posterior mean
    of a normal mean after K runs without error (Gelman et al., Bayesian Data Analysis, §2.5). Around it the interval
    has to hold `NOMINAL` of the errors: it grows to their ⌈0.8·(n+1)⌉th smallest distance in half-widths (conformal
    prediction with scaled residuals, Lei et al. 2018), whose logarithm is shrunk by the same n/(n+K). Fewer than four
    runs hold no such distance, so that their largest one only widens.
    """
    runs = len(outcomes)
    weight = runs / (runs + PRIOR_RUNS)
    centre = weight * median(outcome.error for outcome in outcomes)
    distances = sorted(abs(outcome.distance(centre)) for outcome in outcomes)
    rank = math.ceil(NOMINAL * (runs + 1))
    needed = distances[rank - 1] if rank <= runs else max(1.0, distances[-1])
    return Correction(factor=math.exp(centre), widening=min(max(needed, 1 / MOST), MOST) ** weight)


def recalibration(outcomes: Sequence[Outcome], machine: Machine, num_runs: int, date: str) -> Recalibration:
    """The corrections of all kinds for `machine`; the outcomes are of predictions before any correction.

    What a budget fixed teaches nothing of what is open.
    """
    told = [outcome for outcome in outcomes if not outcome.name.startswith(FIXED)]
    corrections = {kind: (len(found), correction(found)) for kind, found in by_kind(told).items()}
    return Recalibration(
        machine=machine.name,
        device=machine.device,
        threads=machine.threads,
        date=date,
        num_runs=num_runs,
        corrections=tuple(
            Learnt(name=name, source=source, num_runs=runs, factor=found.factor, widening=found.widening)
            for (name, source), (runs, found) in corrections.items()
        ),
    )


def path_for(cache: Path, device: str, machine: str, threads: int) -> Path:
    """The file of a machine's recalibration in the cache folder; it outlives a new torch, unlike a measurement."""
    key = hashlib.sha256(f"{device}\n{machine}\n{threads}".encode()).hexdigest()[:12]
    return cache / f"recalibration-{key}.json"


def save(cache: Path, found: Recalibration) -> Path:
    """Keep a recalibration in place of the one before.

    Raises:
        FaultError: the cache folder cannot be written.
    """
    path = path_for(cache, found.device, found.machine, found.threads)
    with failures_named(cache):
        make_folder(cache)
    write_text(path, found.model_dump_json(indent=1) + "\n")
    return path


def load(cache: Path, machine: Machine) -> Recalibration | None:
    """The recalibration kept for `machine`; None where there is none.

    Raises:
        FaultError: the file is damaged.
    """
    path = path_for(cache, machine.device, machine.name, machine.threads)
    if not path.exists():
        return None
    with failures_named(path):
        data = path.read_bytes()
    try:
        return Recalibration.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise FaultError(
            f"{path}: damaged at {place}: {first['msg']}; remove it to plan without, or make it anew: "
            "`chinchilla audit RUN... --save`"
        ) from None


def recalibrated(plan: Plan, found: Recalibration | None) -> Plan:
    """The plan with its predictions corrected, and a decision line that says so; as it is where nothing is known.

    What its budget fixes is left as it is.
    """
    uncertain = {name: told for name, told in plan.predicted.items() if name not in plan.fixed}
    corrections = found.corrects(uncertain) if found else {}
    if found is None or not corrections:
        return plan
    corrected = {name: corrections[name].apply(plan.predicted[name]) for name in corrections}
    words = ", ".join(f"{name} ×{known.factor:.3g}" for name, known in corrections.items())
    line = Decision(
        name="recalibration",
        value=f"from {found.num_runs} runs",
        reason=f"predictions corrected by what this machine's past runs measured ({found.date[:10]}): {words}",
    )
    changes = {"predicted": plan.predicted | corrected, "corrections": corrections}
    return plan.model_copy(update=changes | {"decisions": (*plan.decisions, line)})
