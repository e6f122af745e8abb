"""How well and how fast a scaling law is fitted: published points, known laws, coverage of the intervals.

    python bench/fit.py [--points svg_extracted_data.csv]        writes bench/results/fit.csv; about two minutes of CPU

Times are CPU seconds of this process; run it with OMP_NUM_THREADS=1. `--points` is the CSV of epoch-research's
analyzing-chinchilla (columns Model Size, Training FLOP, loss; not part of this project); its rows are left out without.
`coverage` is the share of 200 data sets of a known law with 1 % noise whose 95 % intervals hold the truth: the lowest
and the highest over E, A, B, alpha, beta and a. It is taken for three ways of drawing a refit: `dirichlet` weights (as
`planning.fit` does), runs drawn with `replacement`, and `residuals` of the fit redrawn, widened by √(n/(n - 5)).
"""

import argparse
import csv
import itertools
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chinchilla.planning.fit import CONSTANTS, bootstrap, constants, fit, seeds
from chinchilla.planning.huber import Array, Points, log_loss, minimise
from chinchilla.planning.runs import Runs, make_runs

PUBLISHED = {"E": 1.81724, "A": 477.84, "B": 2143.86, "alpha": 0.34731, "beta": 0.36718}
ENDS = {"E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
TRUTH = np.array([1.7, 400.0, 1500.0, 0.35, 0.37])
DRAWS, REFITS, NOISE = 200, 200, 0.01
COVERAGE = [(3, 3, "dirichlet"), (4, 3, "dirichlet"), (4, 4, "dirichlet"), (5, 5, "dirichlet")]
COVERAGE += [(3, 3, "replacement"), (4, 4, "replacement"), (3, 3, "residuals"), (4, 4, "residuals")]
Row = tuple[str, str, float]


def published(path: Path) -> Iterator[Row]:
    """The 240 traced points: constants, intervals, time."""
    with path.open() as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"])) for r in csv.DictReader(file)]
    n, c, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    runs = make_runs(n, c / 6 / n, loss)
    points, target = Points.of(runs.num_params, runs.tokens), np.log(runs.loss)[None]
    start = time.process_time()
    minimum = minimise(seeds(points, runs.loss), points, target, np.ones_like(target))
    theta = minimum.theta[minimum.objective.argmin()]
    yield "refit", "CPU s", time.process_time() - start
    for name, value in zip(CONSTANTS, constants(theta[None], points)[0], strict=True):
        yield f"refit {name}", "relative error", value / PUBLISHED[name] - 1
    start = time.process_time()
    bootstrap(theta, points, target, 1000, seed=0)
    yield "1,000 bootstraps", "CPU s", time.process_time() - start
    yield from intervals(runs)


def intervals(runs: Runs) -> Iterator[Row]:
    """The ends of 95 % intervals against the published ones."""
    found = fit(runs, bootstraps=1000).intervals
    for name, (low, high) in ENDS.items():
        yield f"95 % of {name}, low", "relative error", found[name].low / low - 1
        yield f"95 % of {name}, high", "relative error", found[name].high / high - 1


def grid(sizes: int, counts: int, tilt: float = 0.0) -> tuple[Array, Array]:
    """Sizes × token counts, each over a factor of 30; `tilt` moves the tokens of larger sizes up."""
    n, d = np.meshgrid(np.geomspace(1e6, 3e7, sizes), np.geomspace(2e7, 6e8, counts), indexing="ij")
    return n.ravel(), (d * (n / 1e6) ** tilt).ravel()


def recovery() -> Row:
    """The worst error of an exponent over noise-free laws, equal and unequal exponents, centred grids and tilted."""
    worst = 0.0
    for alpha, beta, tilt in itertools.product((0.2, 0.35, 0.5, 0.8), (0.2, 0.35, 0.5, 0.8), (-0.4, 0.0, 0.7)):
        n, d = grid(5, 5, tilt)
        points = Points.of(n, d)
        loss = 1.7 + np.exp(-alpha * points.log_params) + np.exp(-beta * points.log_tokens)
        found = minimise(seeds(points, loss), points, np.log(loss)[None], np.ones((1, len(n))))
        theta = found.theta[found.objective.argmin()]
        worst = max(worst, float(np.abs(theta[3:] - (alpha, beta)).max()))
    return "noise-free recovery, 48 laws", "worst exponent error", worst


def coverage(sizes: int, counts: int, kind: str) -> Iterator[Row]:
    """The lowest and highest coverage over the constants, and the middle width of alpha's interval."""
    n, d = grid(sizes, counts)
    points, rng = Points.of(n, d), np.random.default_rng(2)
    truth = np.array([[np.log(1.7), *np.log(TRUTH[1:3]) - TRUTH[3:] * points.centre, *TRUTH[3:]]])
    target = log_loss(truth, points) + NOISE * rng.standard_normal((DRAWS, len(n)))
    fits = minimise(np.tile(truth, (DRAWS, 1)), points, target, np.ones((1, len(n)))).theta
    ends = refitted(fits, points, target, kind, rng)
    low, high = ends
    held = ((low <= measured(truth, points)) & (measured(truth, points) <= high)).mean(0)
    name = f"coverage, {sizes} x {counts} runs, {kind}"
    yield name, "lowest", float(held.min())
    yield name, "highest", float(held.max())
    yield name, "width of alpha", float(np.median((high - low)[:, 3]))


def refitted(fits: Array, points: Points, target: Array, kind: str, rng: np.random.Generator) -> Array:
    """The ends of the 95 % intervals of every data set, (2, data sets, 6); `target` is (data sets, runs)."""
    number, count = target.shape[1], len(target) * REFITS
    targets, weights = np.repeat(target, REFITS, axis=0), np.ones((1, number))
    if kind == "dirichlet":
        weights = number * rng.dirichlet(np.ones(number), count)
    elif kind == "replacement":
        weights = rng.multinomial(number, np.full(number, 1 / number), count).astype(float)
    else:
        line = log_loss(fits, points)
        left = np.repeat((target - line) * np.sqrt(number / (number - 5)), REFITS, axis=0)
        drawn = np.take_along_axis(left, rng.integers(0, number, (count, number)), axis=1)
        targets = np.repeat(line, REFITS, axis=0) + drawn
    found = minimise(np.repeat(fits, REFITS, axis=0), points, targets, weights).theta
    return np.percentile(measured(found, points).reshape(len(target), REFITS, 6), (2.5, 97.5), axis=1)


def measured(theta: Array, points: Points) -> Array:
    """E, A, B, alpha, beta and a of each fit, (fits, 6)."""
    return np.column_stack([constants(theta, points), theta[:, 4] / theta[:, 3:].sum(-1)])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fit.csv")
    options = parser.parse_args()
    rows = itertools.chain(
        published(options.points) if options.points else (),
        iter([recovery()]),
        itertools.chain.from_iterable(itertools.starmap(coverage, COVERAGE)),
    )
    with options.out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["what", "quantity", "value", "processor", "threads"])
        for what, quantity, value in rows:
            print(f"{what}: {quantity} {value:.6g}", flush=True)
            threads = os.environ.get("OMP_NUM_THREADS", "all")
            table.writerow([what, quantity, f"{value:.6g}", platform.machine(), threads])
            file.flush()


if __name__ == "__main__":
    main()
