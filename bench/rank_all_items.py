"""Recommendation ranked as RecBole ranks: among all items, those that the user had too.

    python bench/tasks.py --only ml-100k
    python bench/rank_all_items.py runs/bench/ml-100k-chinchilla-*-x1-t2-*

`chinchilla train` ranks a user's last item among those that he has not had, since nothing else is recommended. RecBole
masks no history where the model is sequential (1.2.1, `FullSortEvalDataLoader`). By it, with the same last items left
out, the last 50 read and the loss over all items, SASRec of 190k parameters has a hit rate of 0.120 and an NDCG of
0.059 at 10, the best of five models 0.130 and 0.065; a sixth, WEARec, whose own code masks the history, has 0.193 and
0.102 (github.com/kanishkaRandunu/pswrec2k26, results/ml100k_results.md of commit 0f53911; items that were taken fewer
than five times are left out there, not here; ours of 1.2M parameters read 512 items). This scores models of ours both
ways, into bench/results/rank_all_items.csv; the rows `others` must have the run's own scores.
"""

import argparse
import csv
import math
from pathlib import Path

from chinchilla.config.load import load_run
from chinchilla.tasks.recommend import next_scores, rank_metrics
from chinchilla.verbs.load import load
from chinchilla.verbs.prepare import test_examples

RESULTS = Path(__file__).parent / "results" / "rank_all_items.csv"
METRICS = ("hit_rate_10", "ndcg_10", "mrr")


def ranks(folder: Path) -> dict[str, list[int]]:
    """Of each user's last item, from 1, by both ways; the item itself is ranked also where the user has had it."""
    model, found = load(folder), dict[str, list[int]](others=[], all=[])
    for history, wanted in test_examples(load_run(folder / "run.toml", []).run):
        (row,) = next_scores(model.model, model.codec, [history], seen=True)
        (target,) = model.codec.ids([wanted])
        found["all"].append(int((~(row < row[target])).sum()))
        row[[each for each in model.codec.ids(history) if each != target]] = -math.inf
        found["others"].append(int((~(row < row[target])).sum()))
    return found


def main() -> None:
    """Score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    table: list[tuple[str, ...]] = [("run", "ranked", "users", *METRICS)]
    for folder in parser.parse_args().runs:
        for name, found in ranks(folder).items():
            scores = rank_metrics(found)
            table.append((folder.name, name, str(len(found)), *(f"{scores[metric]:.5f}" for metric in METRICS)))
            print(*table[-1])
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
