"""Coverage of 80 % intervals over many real, small runs: the Wilson interval must hold 80 % for every quantity below.

    chinchilla data get ddtp-en; chinchilla data get libreoffice-help
    python bench/ledger_coverage.py --runs FOLDER             72 runs of 20 to 30 s: half an hour of budgets alone
    python bench/ledger_coverage.py --runs FOLDER --most 2    no more than 2 further runs
    python bench/ledger_coverage.py --runs FOLDER --most 0    only audits what is there

Every run is trained by the command line as anybody would, English text (DDTP) or English to German (LibreOffice's
help), with its own budget, vocabulary and width, on its own sample of documents. The samples are small and the
tokenizers trained beforehand, so that reading them leaves most of a budget: on a machine that does little else. What is
there already is not run again; a run whose plan was refused for lack of time is tried again the next time. Writes
bench/results/ledger_coverage.csv and ends with 1 where a coverage misses, a run failed, or there are fewer than 60.
"""

import argparse
import csv
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla.data.sources import default_cache
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.planning.audit import NOMINAL, wilson

RESULTS = Path(__file__).parent / "results" / "ledger_coverage.csv"

BUDGETS_S, VOCABULARIES, DIMS, TASKS = (
    (20, 25, 30),
    (1000, 2000, 4000),
    (None, 128, 192, 256),
    ("generate", "translate"),
)
SOURCES = {"generate": ("ddtp-en", "jsonl"), "translate": ("libreoffice-help", "tsv")}
CHARACTERS = 800_000
"""Of training data a run and a tokenizer."""

JUDGED = ("step_time_s", "tokens", "memory_bytes", "loss")
LEAST_RUNS = 60
LIMIT_S = 900
"""A run that takes longer than this has failed."""


@dataclass(frozen=True)
class Case:
    """One run to be made."""

    task: str
    budget_s: int
    vocab_size: int
    dim: int | None
    seed: int

    @property
    def name(self) -> str:
        """The run folder's, without its number."""
        return f"{self.task}-{self.budget_s}s-v{self.vocab_size}-d{self.dim or 'free'}"

    def done(self, runs: Path) -> bool:
        """Whether it was trained to its end."""
        return any(runs.glob(f"{self.name}-[0-9]*/ledger.jsonl"))


def cases() -> list[Case]:
    """All runs, in an order in which any first part of them is mixed."""
    every = itertools.product(TASKS, BUDGETS_S, VOCABULARIES, DIMS)
    made = [Case(*settings, seed) for seed, settings in enumerate(every)]
    random.Random(0).shuffle(made)
    return made


def main() -> int:
    """Train what is missing, audit, judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders and their data")
    parser.add_argument("--most", type=int, default=10**6, help="runs to train at most")
    options = parser.parse_args()
    missing = [case for case in cases() if not case.done(options.runs)]
    print(f"{len(cases()) - len(missing)} of {len(cases())} runs are there", flush=True)
    failed = [case.name for case in missing[: options.most] if not train(case, options.runs)]
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}")
    scores = audit(options.runs)
    write(scores)
    return 0 if judge(scores) and not failed else 1


def train(case: Case, runs: Path) -> bool:
    """Train one run through the command line; whether it came to its end."""
    words = [f"task={case.task}", f"name={case.name}", f"runs={runs}", f"seed={case.seed}", *data(case, runs)]
    words += [f"budget.time={case.budget_s}", f"tokenizer.file={tokenizer(case, runs)}"]
    words += ["evaluate.max_examples=8", "evaluate.beam_size=1"] + ([f"model.dim={case.dim}"] if case.dim else [])
    print(case.name, end=" ", flush=True)
    command = [sys.executable, "-c", "import sys; from chinchilla.cli import main; sys.exit(main())", "train", "--json"]
    try:
        ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"took more than {LIMIT_S} s")
        return False
    print("done" if ended.returncode == 0 else f"exit code {ended.returncode}: {ended.stderr[-300:]}", flush=True)
    return ended.returncode == 0


def tokenizer(case: Case, runs: Path) -> Path:
    """The file of a tokenizer of this task and size, made at its first use."""
    path = runs / "data" / f"{case.task}-{case.vocab_size}.json"
    if not path.exists():
        source, ending = SOURCES[case.task]
        lines = list(head((default_cache() / source / f"train.{ending}").read_text("utf-8").splitlines(), CHARACTERS))
        texts = (json.loads(line)["text"] if ending == "jsonl" else line for line in lines)
        path.write_text(Tokenizer.train(texts, "bpe", case.vocab_size).to_json(), "utf-8")
    return path


def data(case: Case, runs: Path) -> Iterator[str]:
    """Settings that name this case's sample of the training data, and the head of validation and test data."""
    source, ending = SOURCES[case.task]
    folder = runs / "data" / case.name
    folder.mkdir(parents=True, exist_ok=True)
    for part, characters in (("train", CHARACTERS), ("valid", CHARACTERS // 20), ("test", CHARACTERS // 20)):
        lines = (default_cache() / source / f"{part}.{ending}").read_text("utf-8").splitlines(keepends=True)
        begin = random.Random(case.seed).randrange(len(lines)) if part == "train" else 0
        (folder / f"{part}.{ending}").write_text("".join(head(lines[begin:] + lines[:begin], characters)), "utf-8")
        yield f"data.{part}={folder / f'{part}.{ending}'}"


def head(lines: list[str], characters: int) -> Iterator[str]:
    """The first lines, until so many characters have come."""
    ends = itertools.accumulate(map(len, lines))
    return (line for line, end in zip(lines, ends, strict=True) if end <= characters)


def audit(runs: Path) -> list[dict[str, Any]]:
    """What `chinchilla audit --json` says of all runs, printed as a table on the way."""
    command = [sys.executable, "-c", "import sys; from chinchilla.cli import main; sys.exit(main())", "audit", "--json"]
    ended = subprocess.run([*command, str(runs)], stdout=subprocess.PIPE, text=True, check=True)
    scores: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])["scores"]
    return scores


def write(scores: list[dict[str, Any]]) -> None:
    """The table of results."""
    columns = ("name", "source", "num_runs", "bias", "coverage", "low", "high", "honest")
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for score in scores:
            writer.writerow(
                {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in score.items()}
            )


def judge(scores: list[dict[str, Any]]) -> bool:
    """Whether every judged quantity, its sources taken together, has runs enough and an interval that holds 80 %."""
    well = True
    for name in JUDGED:
        found = [score for score in scores if score["name"] == name]
        runs = sum(score["num_runs"] for score in found)
        hits = round(sum(score["num_runs"] * score["coverage"] for score in found))
        low, high = wilson(hits, runs)
        good = runs >= LEAST_RUNS and low <= NOMINAL <= high
        why = "" if runs >= LEAST_RUNS else f", fewer than {LEAST_RUNS} runs"
        print(f"{name}: {'ok' if good else 'MISSES'}, {hits} of {runs} inside, {low:.1%} to {high:.1%}{why}")
        well &= good
    return well


if __name__ == "__main__":
    sys.exit(main())
