"""`chinchilla sweep`: a few small runs, a law of one's own from them, and the big run that it advises."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla.config.errors import BudgetError, StoppedError, UsageError
from chinchilla.config.units import TIME_S, parse, show_count, show_time
from chinchilla.planning import design, search
from chinchilla.planning.count import num_params
from chinchilla.planning.design import Big, Design, Small
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.posterior import no_points, width_90
from chinchilla.store.atomic import make_folder, write_text
from chinchilla.verbs.choice import CHECKPOINT_SHARE, EVAL_SHARE
from chinchilla.verbs.choose import big_run
from chinchilla.verbs.small_runs import (
    Done,
    Ground,
    candidates,
    fitted,
    known,
    places,
    small_plan,
    speed,
    unfinished,
)
from chinchilla.verbs.small_runs import finished as finished
from chinchilla.verbs.small_runs import survey as survey
from chinchilla.verbs.train import Progress, begin, resume

SLACK = 0.95
"""Share of the small runs' time that is planned: a busy machine takes the rest."""

FAR_S = 1e6
"""More than any small run takes."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to; `width` is that of the central 90 % of the big run's loss, relative."""

    out: Path
    target_s: float
    runs: tuple[Done, ...]
    law: OwnLaw
    big: Big
    epochs: float
    width: float

    @property
    def law_json(self) -> Path:
        """What `chinchilla plan --law` takes."""
        return self.out / "law.json"


def read_target(text: str | None) -> float | None:
    """Seconds of `--target`.

    Raises:
        UsageError: not a time of more than nothing.
    """
    if text is None:
        return None
    try:
        time_s = float(parse(text, TIME_S, "time"))
    except ValueError as error:
        raise UsageError(f"--target: {error}") from None
    if not (math.isfinite(time_s) and time_s > 0):
        raise UsageError(f"--target: {text!r} is no time to train for: give one like 8h")
    return time_s


def sweep(ground: Ground, progress: Progress, on_design: Callable[[Design], None] = lambda made: None) -> Sweep:
    """Do the small runs one by one, each chosen anew by what is known; fit the law and plan the big run.

    Finished runs in the folder count, an unfinished one is gone on with: a sweep that was stopped is started again in
    the same way. Writes `law.json` and `sweep.json` beside the runs.

    Raises:
        BudgetError: the time is too short for enough runs.
        UsageError: the folder's runs were made in another way.
        FaultError: a run failed.
        StoppedError: SIGINT or SIGTERM came.
    """
    begun, before_s = time.perf_counter(), sum(run.time_s for run in finished(ground))
    on_design(preview(ground))
    make_folder(ground.out)
    for path in unfinished(ground.out):
        _go_on(ground, path, progress)
    while True:
        done = finished(ground)
        found = proposed(ground, done, before_s + time.perf_counter() - begun)
        if not found.runs:
            return conclude(ground, done)
        _announce(found, len(done), ground.prepared.facts.labels, progress)
        _train(ground, found.runs[0], done, progress)


def preview(ground: Ground) -> Design:
    """The small runs that a sweep would do now. Raises as `proposed`."""
    done = finished(ground)
    return proposed(ground, done, sum(run.time_s for run in done))


def proposed(ground: Ground, done: tuple[Done, ...], spent_s: float) -> Design:
    """The small runs still to do, `spent_s` seconds after the first began; none where time or number are used up.

    Raises:
        BudgetError: the time is too short for enough runs, at the speed of those done.
    """
    left_s = SLACK * ground.small_s - spent_s
    _require_time(ground, done, left_s)
    choices = candidates(ground, done, min(left_s, design.MOST_SHARE * ground.small_s))
    most = design.MOST_RUNS - len(done)
    if not choices or most < 1:
        return Design((), math.nan)
    centre = np.log([(run.num_params, run.worth) for run in choices]).mean(0)
    points = places(ground, done) if done else no_points(*centre)
    law = known(ground, done, points)
    ahead = design.likely_best(law, _ahead(ground, speed(ground, done)))
    return design.design(choices, points, law, ahead, left_s, max(0, design.LEAST_RUNS - len(done)), most)


def conclude(ground: Ground, done: tuple[Done, ...]) -> Sweep:
    """Fit the law to finished runs, plan the big run by it, and write both.

    Raises:
        BudgetError: no shape fits the limits.
    """
    law, run, facts = fitted(ground, done), ground.loaded.run, ground.prepared.facts
    time_s = ground.target_s * (1 - EVAL_SHARE - CHECKPOINT_SHARE)
    shapes = search.candidates(facts, ground.machine, run.limits, run.model, time_s, ground.room)
    big = big_run(law, shapes, ground.prepared, ground.machine, ground.draft, time_s, speed(ground, done))
    width = width_90(law.losses(num_params(big.shape), big.tokens))
    found = Sweep(ground.out, ground.target_s, done, law, big, big.tokens / facts.unique_tokens, width)
    write_text(found.law_json, law.model_dump_json(indent=1) + "\n")
    write_text(ground.out / "sweep.json", json.dumps(as_json(found), indent=1) + "\n")
    return found


def as_json(found: Sweep) -> dict[str, Any]:
    """What `--json` prints and `sweep.json` holds."""
    constants, big = found.law.constants, found.big
    return {
        "sweep": str(found.out),
        "law": str(found.law_json),
        **{name: constant.value for name, constant in constants.items()},
        "intervals": {name: constant.interval for name, constant in constants.items()},
        "runs": [
            {
                "run": str(run.run),
                "params": run.num_params,
                "tokens": run.tokens,
                "steps": run.steps,
                "loss": run.loss,
                "time_s": run.time_s,
            }
            for run in found.runs
        ],
        "target_s": found.target_s,
        "big": {
            "shape": big.shape.model_dump(mode="json"),
            "params": big.num_params.model_dump(),
            "tokens": big.tokens,
            "epochs": found.epochs,
            "loss": big.loss.model_dump(),
            "width_90": found.width,
        },
    }


def design_json(made: Design) -> dict[str, Any]:
    """What `--dry-run --json` prints; `width_90` is None where nothing is left to do."""
    rows = [{"params": r.num_params, "tokens": r.tokens, "steps": r.steps, "time_s": r.time_s} for r in made.runs]
    return {"runs": rows, "time_s": made.time_s, "width_90": made.width if made.runs else None}


def _ahead(ground: Ground, pace: float) -> list[tuple[float, float]]:
    """What each size would see in the big run's time: parameters, effective tokens."""
    return [
        (num_params(shape), ground.worth(ground.target_s / (pace * ground.step_s(shape)) * ground.step_tokens))
        for shape in ground.shapes
    ]


def _require_time(ground: Ground, done: tuple[Done, ...], left_s: float) -> None:
    """Refuse a time in which the runs that a law needs cannot be done, or not at the speed that has turned out."""
    missing = design.LEAST_RUNS - len(done)
    if missing < 1:
        return
    times = sorted(run.time_s for run in candidates(ground, done, FAR_S))[:missing]
    needs_s = max(sum(times), times[-1] / design.MOST_SHARE)
    if left_s >= needs_s:
        return
    short_s = (needs_s - left_s) * (ground.loaded.run.budget.time or ground.small_s) / ground.small_s / SLACK
    whole_s = (ground.loaded.run.budget.time or ground.small_s) + 1.1 * short_s
    again = f"; what is done in {ground.out} counts" if done else ""
    raise BudgetError(
        f"budget: {show_time(max(0.0, left_s))} are left for small runs, and {missing} more of at least "
        f"{design.LEAST_STEPS} steps take about {show_time(needs_s)} here: give --budget {math.ceil(whole_s / 60)}m "
        f"or more{again}"
    )


def _announce(found: Design, num_done: int, counted: str, progress: Progress) -> None:
    small = found.runs[0]
    progress.stage(
        f"small run {num_done + 1} of {num_done + len(found.runs)}: {show_count(small.num_params)} parameters, "
        f"{show_count(small.tokens)} {counted}, about {show_time(small.time_s)} of the {show_time(found.time_s)} left"
    )


def _train(ground: Ground, small: Small, done: tuple[Done, ...], progress: Progress) -> None:
    loaded, made = small_plan(ground, small, done)
    try:
        begin(loaded, made, replace(ground.prepared, run=loaded.run), progress)
    except StoppedError as stopped:
        raise _stopped(ground, stopped) from stopped


def _go_on(ground: Ground, path: Path, progress: Progress) -> None:
    progress.stage(f"going on with {path}")
    try:
        resume(path, progress)
    except StoppedError as stopped:
        raise _stopped(ground, stopped) from stopped


def _stopped(ground: Ground, stopped: StoppedError) -> StoppedError:
    """The error with how to go on with the whole sweep."""
    told = StoppedError(f"{ground.out}: stopped; the same `chinchilla sweep` goes on from here")
    told.exit_code = stopped.exit_code
    return told
