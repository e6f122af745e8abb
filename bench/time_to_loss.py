"""Seconds to a loss: the default recipe against well-tuned AdamW with a cosine, and what else was tried.

    chinchilla data get ddtp-en
    python bench/time_to_loss.py race --minutes 15 --seeds 0 1 2      writes bench/results/time_to_loss.csv
    python bench/time_to_loss.py trials --minutes 2 --seeds 0         writes bench/results/time_to_loss_trials.csv

Text generation on Debian's package descriptions, one model, one order of the data for all. All share the trainer, its
kernels and its batches: what differs is what the table names. Rates are tuned for each in shorter runs. Contenders take
turns of a few steps, so that a slow minute of the machine slows all; a run's seconds are its steps times its mean step
while all took turns.

`race`: AdamW trains for the given minutes; the default recipe trains for shares of them, and the time it needs for
AdamW's last validation loss is read between those. `trials`: one change at a time to the default recipe, for as long.
`--threads 1` counts CPU time and leaves the other processor to other work; `--append` keeps the rows that are there;
`--rates 1 2` takes the factors that an earlier race said it had found, so that other seeds can run without tuning.
"""

import argparse
import csv
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chinchilla.config.load import load_run
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Training
from chinchilla.config.shape import Shape
from chinchilla.models.transformer import Transformer
from chinchilla.planning.search import build
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.allocator import keep_freed_memory
from chinchilla.training.monitor import Silent
from chinchilla.training.snapshot import load_weights
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.plan import measured_machine
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared

RECIPE = Path(__file__).parent.parent / "recipes" / "generate.toml"
RESULTS = Path(__file__).parent / "results"

DIM, LAYERS = 256, 4
TURN = 10
"""Steps that a contender takes before it is the next one's turn."""

RATES = (0.5, 1.0, 2.0)
"""Factors on each contender's own usual rate that the tuning tries."""

TUNING = 0.2
"""Length of a tuning run, as a share of the race."""

SHARES = (0.35, 0.5, 0.65)
"""Lengths of the default recipe's runs, as shares of AdamW's."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A recipe: changes to the plan's settings and to the model."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)


ADAMW = Contender(
    "adamw-cosine",
    {
        "optimizer": "adamw",
        "schedule": "cosine",
        "learning_rate": 3e-3,
        "embedding_learning_rate": 3e-3,
        "batch_tokens": 2048,
    },
    {"attention": "full"},
)
DEFAULT = Contender("default")

TRIALS = (
    DEFAULT,
    Contender("adamw", {"optimizer": "adamw", "learning_rate": 3e-3, "embedding_learning_rate": 3e-3}),
    Contender("embeddings at the matrices' rate", {"embedding_learning_rate": 7e-3}),
    Contender("twice the rate", {"learning_rate": 1.4e-2, "embedding_learning_rate": 4e-2}),
    Contender("cosine", {"schedule": "cosine"}),
    Contender("decay over 20 %", {"decay_fraction": 0.2}),
    Contender("decay over 70 %", {"decay_fraction": 0.7}),
    Contender("EMA 0.99", {"ema_decay": 0.99}),
    Contender("half the batch", {"batch_tokens": 2048}),
    Contender("twice the batch", {"batch_tokens": 8192}),
    Contender("QK-norm", shape={"qk_norm": True}),
    Contender("GELU", shape={"activation": "gelu"}),
    Contender("SwiGLU", shape={"activation": "swiglu", "ffn_dim": 704}),
    Contender("untied embeddings", shape={"tied_embeddings": False}),
    Contender("full attention", shape={"attention": "full"}),
    Contender("feature reconstruction 0.1", {"reconstruct_weight": 0.1}, {"reconstruct": True}),
)


@dataclass
class Entry:
    """A run that takes part."""

    contender: Contender
    trainer: Trainer
    rate: float
    seed: int
    times: list[float] = field(default_factory=list)

    def result(self, common: int) -> Row:
        """Its row; a step's time is that of the first `common` steps, which all took in turns."""
        step_s = statistics.fmean(self.times[1:common])
        average = self.trainer.average
        if average is not None:
            load_weights(self.trainer.model, average)
        return {
            "seed": self.seed,
            "contender": self.contender.name,
            "rate": self.rate,
            "steps": len(self.times),
            "tokens": self.trainer.progress.tokens,
            "step_ms": round(1e3 * step_s, 1),
            "seconds": round(step_s * len(self.times), 1),
            "valid_loss": round(self.trainer.valid_loss(), 4),
        }


@dataclass(frozen=True)
class Ground:
    """What all share."""

    prepared: Prepared
    training: Training
    shape: Shape

    def entry(self, contender: Contender, steps: int, rate: float, seed: int) -> Entry:
        """A fresh run of `steps` steps with `rate` times the contender's usual rate."""
        settings = self.training.model_dump() | {"seed": seed} | contender.training
        settings |= {"steps": steps, "warmup_steps": min(settings["warmup_steps"], max(1, steps // 10))}
        for name in ("learning_rate", "embedding_learning_rate"):
            settings[name] *= rate
        training = Training(**settings)
        torch.manual_seed(seed)
        shape = Shape(**self.shape.model_dump() | contender.shape)
        trainer = Trainer(
            model=Transformer(shape, training.dropout),
            task=self.prepared.task,
            training=training,
            batches=self.prepared.batches(training),
            valid=self.prepared.valid_batches(training),
            folder=RunFolder(Path("bench")),  # never made: nothing is written
            monitor=Silent(),
            flops_per_token=1.0,
            peak_flops_per_s=1.0,
        )
        return Entry(contender, trainer, rate, seed)


def make_ground(minutes: float) -> Ground:
    """The recipe's data, the plan's settings, and one shape for all."""
    run = load_run(RECIPE, (f"train.threads={torch.get_num_threads()}",)).run
    keep_freed_memory()
    prepared = prepare(run, say)
    machine: Machine = measured_machine(run, say)
    training = draft_training(run, machine, prepared, minutes * 60)
    return Ground(prepared, training, build(prepared.facts, run.model, DIM, 0, LAYERS))


def compete(entries: Sequence[Entry]) -> list[Row]:
    """Train all to their ends, in turns; give their rows."""
    running = {id(entry): entry.trainer.steps() for entry in entries}
    begun = time.perf_counter()
    while running:
        for entry in entries:
            steps = running.get(id(entry))
            if steps is not None and not _turn(entry, steps):
                del running[id(entry)]
        done = sum(len(entry.times) for entry in entries) / sum(entry.trainer.training.steps for entry in entries)
        say(f"{done:.0%}, {(time.perf_counter() - begun) * (1 / done - 1):.0f} s left")
    # A shorter run ends before the machine's last hour: only while all take turns do they see the same machine.
    common = min(len(entry.times) for entry in entries)
    rows = [entry.result(common) for entry in entries]
    for entry, row in zip(entries, rows, strict=True):
        entry.trainer.workers.close()
        say(str(row))
    return rows


def _turn(entry: Entry, steps: Iterator[Any]) -> bool:
    """A few steps; whether there are more."""
    for _ in range(TURN):
        begun = clock()
        if next(steps, None) is None:
            return False
        entry.times.append(clock() - begun)
    return True


def clock() -> float:
    """CPU seconds where there is one thread, which other programs do not lengthen; wall seconds else."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def step_times(ground: Ground, contenders: Sequence[Contender]) -> dict[str, float]:
    """Seconds of a step of each, measured in turns."""
    entries = [ground.entry(contender, 4 * TURN, 1.0, 0) for contender in contenders]
    rows = compete(entries)
    return {row["contender"]: row["step_ms"] / 1e3 for row in rows}


def tuned(ground: Ground, contenders: Sequence[Contender], steps: dict[str, int]) -> dict[str, float]:
    """The best factor on each one's rate."""
    pairs = itertools.product(contenders, RATES)
    rows = compete([ground.entry(contender, steps[contender.name], rate, 0) for contender, rate in pairs])
    best = {}
    for contender in contenders:
        own = [row for row in rows if row["contender"] == contender.name]
        best[contender.name] = min(own, key=lambda row: row["valid_loss"])["rate"]
    return best


def race(minutes: float, seeds: Sequence[int], factors: Sequence[float] | None = None) -> Iterator[Row]:
    """AdamW for `minutes`, the default recipe for shares of them, for each seed; rates tuned unless given."""
    ground = make_ground(minutes)
    contenders = (ADAMW, DEFAULT)
    step_s = step_times(ground, contenders)
    steps = {name: round(60 * minutes / time_s) for name, time_s in step_s.items()}
    if factors is not None:
        rates = dict(zip(steps, factors, strict=True))
    else:
        rates = tuned(ground, contenders, {name: max(50, round(TUNING * count)) for name, count in steps.items()})
    say(f"steps {steps}, tuned factors {rates}")
    for seed in seeds:
        entries = [ground.entry(ADAMW, steps[ADAMW.name], rates[ADAMW.name], seed)]
        lengths = [round(share * steps[DEFAULT.name]) for share in SHARES]
        entries += [ground.entry(DEFAULT, length, rates[DEFAULT.name], seed) for length in lengths]
        baseline, *ours = compete(entries)
        ratio = seconds_to(baseline["valid_loss"], ours) / baseline["seconds"]
        say(f"seed {seed}: {ratio:.2f} of AdamW's seconds")
        yield from ({**row, "ratio": round(ratio, 3)} for row in (baseline, *ours))


def seconds_to(target: float, rows: Sequence[Row]) -> float:
    """Where the line through (log seconds, loss) of the runs meets the target; infinite where none reaches it."""
    times, losses = (np.array([row[name] for row in rows]) for name in ("seconds", "valid_loss"))
    if losses.min() > target:
        return math.inf
    # Losses fall with length but for noise: the first run that reaches the target counts.
    first = int(np.argmax(losses <= target))
    if first == 0:
        return float(times[0])
    share = (losses[first - 1] - target) / (losses[first - 1] - losses[first])
    return float(times[first - 1] * (times[first] / times[first - 1]) ** share)


def trials(minutes: float, seeds: Sequence[int]) -> Iterator[Row]:
    """Each change for the same seconds as the default recipe."""
    ground = make_ground(minutes)
    step_s = step_times(ground, TRIALS)
    for seed in seeds:
        rows = compete([ground.entry(each, round(60 * minutes / step_s[each.name]), 1.0, seed) for each in TRIALS])
        default = rows[0]["valid_loss"]
        yield from ({**row, "against_default": round(row["valid_loss"] - default, 4)} for row in rows)


def say(text: str) -> None:
    """Progress."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "trials"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rates", type=float, nargs=2, metavar=("ADAMW", "DEFAULT"))
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "race":
        rows, out = race(arguments.minutes, arguments.seeds, arguments.rates), RESULTS / "time_to_loss.csv"
    else:
        rows, out = trials(arguments.minutes, arguments.seeds), RESULTS / "time_to_loss_trials.csv"
    if not arguments.append:
        out.unlink(missing_ok=True)
    for row in rows:
        write(out, {"torch": torch.__version__, "threads": arguments.threads} | row)


def write(out: Path, row: Row) -> None:
    """One more row of a CSV, under its head where the file is new: a race that is cut off keeps its finished seeds."""
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
