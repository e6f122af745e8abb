"""Which threshold costs less on new rows: the costs' own, fp / (fp + fn), or the cheapest on validation data?

German credit with its cost matrix (a bad loan granted costs 5, a good one refused 1), two classifiers of scikit-learn
whose chances are taken as they come, 60 random splits of the 1,000 loans into 700 to train on, 100 for validation and
200 to test on. Each row of the table is a classifier: mean cost of a test row by the costs' threshold (Elkan 2001), by
the one that was cheapest on validation data (Sheng & Ling 2006), at one half, and of refusing every loan; and how much
more validation's costs than the costs' own, with the ends of its 95 % interval over the splits.

    python bench/cost_threshold.py

needs `chinchilla data get german-credit`.
"""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from chinchilla.config.costs import Costs
from chinchilla.data.sources import default_cache
from chinchilla.tasks.costs import cost_curve, mean_cost

RESULTS = Path(__file__).parent / "results" / "cost_threshold.csv"
COSTS = Costs(false_negative=5, false_positive=1)
SPLITS, TRAIN, VALID = 60, 700, 100

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def read() -> tuple[Floats, Bools]:
    """The loans as numbers, and which of them went bad."""
    records: list[dict[str, str]] = []
    for part in ("train", "valid", "test"):
        with (default_cache() / "german-credit" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            records += csv.DictReader(file)
    is_bad = np.array([record.pop("class") == "bad" for record in records])
    columns = [np.array([record[name] for record in records])[:, None] for name in records[0]]
    parts = [_numbers(column) for column in columns]
    return np.hstack(parts), is_bad


def _numbers(column: NDArray[np.str_]) -> Floats:
    """A column (loans, 1) as numbers of deviation 1, or as a column for each name."""
    if all(cell.isdigit() for cell in column[:, 0]):
        return StandardScaler().fit_transform(column.astype(float))
    return OneHotEncoder(sparse_output=False).fit_transform(column)


def classifiers(seed: int) -> dict[str, Any]:
    """By name; neither is tuned on validation data."""
    trees = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, max_leaf_nodes=7, random_state=seed)
    return {"logistic": LogisticRegression(C=0.3, max_iter=500), "boosting": trees}


def split(rows: Floats, is_bad: Bools, name: str, seed: int) -> tuple[float, ...]:
    """Costs of a test row: by the costs' threshold, validation's, at one half, and of answering bad to all."""
    order = np.random.default_rng(seed).permutation(len(rows))
    train, valid, test = np.split(order, (TRAIN, TRAIN + VALID))
    model = classifiers(seed)[name].fit(rows[train], is_bad[train])
    seen, new = (model.predict_proba(rows[part])[:, 1] for part in (valid, test))
    cheapest, _ = min(cost_curve(is_bad[valid], seen, COSTS), key=lambda point: point[1])
    return tuple(mean_cost(is_bad[test], new >= each, COSTS) for each in (COSTS.threshold, cheapest, 0.5, 0.0))


def main() -> None:
    """Measure and write the table."""
    rows, is_bad = read()
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("classifier", "by_costs", "by_validation", "at_half", "all_bad", "more", "low", "high"))
        for name in classifiers(0):
            found = np.array([split(rows, is_bad, name, seed) for seed in range(SPLITS)])
            more = found[:, 1] - found[:, 0]
            wide = 1.96 * float(more.std(ddof=1)) / math.sqrt(SPLITS)
            figures = (*found.mean(0), more.mean(), more.mean() - wide, more.mean() + wide)
            writer.writerow((name, *(f"{figure:.4f}" for figure in figures)))
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
