"""Learning-rate and batch advice against 1,911 published runs: what following it would have cost, cell by cell.

    python bench/step_law.py DATA        writes bench/results/step_law.csv; takes seconds

DATA holds dense_lr_bs_loss.csv and 1004_fitted_lr_bs_scaling_model_parameters.csv of the Step Law (arXiv 2503.04715).
Regret is the loss of the run nearest to the advice (in log rate and log batch) over the best of its (N, D) cell.

`refit` is the law's form fitted to all 17 cells. `cell_left_out` is fitted to the other 16 and asked about the one left
out, `size_left_out` to the cells of the other sizes. A cell's optimum is the centre of its runs within `NEAR` of the
best, weighted by how near they come to it; least squares of the centres' logs fits the law. `NEAR` was chosen before
looking; the two other widths show how much hangs on it.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chinchilla.planning.hparams import deepseek, power_lines, step_law

SEQUENCE = 2048
NEAR = 0.005
OTHER_WIDTHS = (0.0025, 0.01)
RESULT = Path(__file__).parent / "results" / "step_law.csv"
Cell = tuple[float, float]
Point = tuple[float, float]


def read_cells(path: Path) -> dict[Cell, np.ndarray]:
    """Runs by (N, D): rows of log rate, log batch in tokens, loss."""
    cells = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            run = (math.log(float(row["lr"])), math.log(float(row["bs"]) * SEQUENCE), float(row["smooth loss"]))
            cells[float(round(float(row["N"]))), float(row["D"])].append(run)
    return {cell: np.array(runs) for cell, runs in sorted(cells.items())}


def regret(runs: np.ndarray, advice: Point) -> float:
    """How much worse than the cell's best the run nearest to (log rate, log batch) is."""
    nearest = np.argmin(((runs[:, :2] - np.array(advice)) ** 2).sum(1))
    return float(runs[nearest, 2] / runs[:, 2].min() - 1)


def centre(runs: np.ndarray, near: float) -> np.ndarray:
    """Log rate and log batch (2,) of a cell's near-best runs."""
    above = runs[:, 2] / runs[:, 2].min() - 1
    weights = np.maximum(0, 1 - above / near)
    return weights @ runs[:, :2] / weights.sum()


def fit(cells: Mapping[Cell, np.ndarray], near: float = NEAR) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of log rate in (1, log N, log D) and of log batch in (1, log D)."""
    sizes, durations = (np.log([cell[axis] for cell in cells]) for axis in (0, 1))
    centres = np.stack([centre(runs, near) for runs in cells.values()])
    ones = np.ones_like(sizes)
    rate = np.linalg.lstsq(np.stack([ones, sizes, durations], 1), centres[:, 0], rcond=None)[0]
    batch = np.linalg.lstsq(np.stack([ones, durations], 1), centres[:, 1], rcond=None)[0]
    return rate, batch


def advise(laws: tuple[np.ndarray, np.ndarray], cell: Cell) -> Point:
    """Log rate and log batch of a fitted law."""
    size, duration = math.log(cell[0]), math.log(cell[1])
    return float(laws[0] @ (1, size, duration)), float(laws[1] @ (1, duration))


def compare(cells: Mapping[Cell, np.ndarray]) -> list[dict[str, float]]:
    """A row a cell: the regret of each advice in per cent."""
    whole = fit(cells)
    rows = []
    for cell, runs in cells.items():
        advised = {
            name: (math.log(advice.learning_rate), math.log(advice.batch_tokens))
            for name, rule in (("step_law", step_law), ("power_lines", power_lines), ("deepseek", deepseek))
            for advice in [rule(round(cell[0]), cell[1])]
        }
        advised["fixed"] = (math.log(3e-4), math.log(0.5e6))
        advised["refit"] = advise(whole, cell)
        others = {key: value for key, value in cells.items() if key != cell}
        advised["cell_left_out"] = advise(fit(others), cell)
        for near in OTHER_WIDTHS:
            advised[f"cell_left_out_{near:.2%}"] = advise(fit(others, near), cell)
        advised["size_left_out"] = advise(fit({key: value for key, value in cells.items() if key[0] != cell[0]}), cell)
        regrets = {name: round(100 * regret(runs, point), 4) for name, point in advised.items()}
        rows.append({"num_params": cell[0], "tokens": cell[1], "runs": len(runs), **regrets})
    return rows


def spread(path: Path, cells: Sequence[Cell]) -> float:
    """The largest relative difference between our p10 and p90 and those of the published bootstraps, over the cells."""
    with path.open() as file:
        laws = np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])
    worst = 0.0
    for num_params, tokens in cells:
        size, duration, ours = math.log(num_params), math.log(tokens), step_law(round(num_params), tokens)
        logs = (laws[:, :3] @ (1, size, duration), laws[:, 3:] @ (1, duration))
        for estimate, log in zip((ours.rate, ours.batch), logs, strict=True):
            low, high = np.exp(np.percentile(log, (10, 90)))
            worst = max(worst, abs(estimate.p10 / low - 1), abs(estimate.p90 / high - 1))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the Step Law's published tables")
    folder = parser.parse_args().data
    cells = read_cells(folder / "dense_lr_bs_loss.csv")
    rows = compare(cells)
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in list(rows[0])[3:]:
        values = [row[name] for row in rows]
        print(f"{name:20} mean {np.mean(values):.3f} %  most {max(values):.3f} %")
    worst = spread(folder / "1004_fitted_lr_bs_scaling_model_parameters.csv", list(cells))
    print(f"p10 and p90 of rate and batch against the 1,000 bootstrap laws: at most {worst:.1%} off")


if __name__ == "__main__":
    main()
