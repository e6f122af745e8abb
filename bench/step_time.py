"""Predicted against measured step times: fitted to the calibration's small models, held against models 4 times larger.

    python bench/step_time.py               writes bench/results/step_time.csv; about two minutes of CPU time
    python bench/step_time.py --refit       predicts anew from the times in that table

The calibration is `chinchilla measure`'s own (`parallel/calibrate.py`): ten models of 0.9 to 5.2 million parameters.
The held-out ones have up to 4.4 times as many as its largest. All take turns of two steps of the trainer, the first not
counted, one thread, CPU time; each counts with the median of its rounds. `error` is predicted / measured - 1 of the
whole step, `noise` the longest step over the shortest, less 1. Calibration rows show the fit itself, held-out rows what
it foretells.
"""

import argparse
import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from chinchilla.config.machine import Calibration, Machine, MatmulRate
from chinchilla.parallel.calibrate import MODELS, Case, Taken, Timed, cases, fitted, time_steps
from chinchilla.parallel.measure import device_name
from chinchilla.planning.count import num_params
from chinchilla.planning.machine import StepTime, step_time
from chinchilla.training.allocator import keep_freed_memory
from chinchilla.verbs.measure import make_step

HELD = (
    (384, (0, 4), 4096, (4, 128)),
    (512, (0, 4), 8192, (2, 256)),
    (256, (0, 8), 8192, (8, 128)),
    (512, (0, 6), 8192, (4, 128)),
    (256, (4, 3), 8192, (16, 64)),
    (384, (3, 3), 8192, (8, 64)),
    (512, (3, 2), 4096, (4, 128)),
    (384, (2, 2), 16384, (8, 64)),
)
"""As `MODELS`: 8 to 23 million parameters."""

Row = dict[str, Any]


def every() -> list[Case]:
    """The calibration's cases, then the held-out ones."""
    return cases(MODELS) + cases(HELD)


def read(path: Path) -> list[Timed]:
    """The times of a table that was written before; a median stands for all rounds."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Timed(case, (Taken(float(row["gradients_s"]), float(row["update_s"])),), 1.0)
        for case, row in zip(every(), rows, strict=True)
    ]


def predicted(case: Case, known: Sequence[Calibration]) -> StepTime:
    """As the planner predicts it by the calibration alone, which goes before every other rate; nothing waits there."""
    idle = tuple(each.model_copy(update={"waiting": 1.0}) for each in known)
    machine = Machine(
        name="", device="cpu", threads=1, memory_bytes=1, torch_version="", measured_at="", noise=0,
        matmul=(MatmulRate(precision=case.precision, m=1, k=1, n=1, flops_per_s=1),),
        bytes_per_s=1, op_overhead_s=1, has_compiler=False, calibration=idle,
    )  # fmt: skip
    return step_time(case.shape, case.batch, machine, case.precision, case.optimizer)


def rows(timed: Sequence[Timed], known: Sequence[Calibration], noises: Sequence[float]) -> Iterator[Row]:
    """A row a case."""
    for index, (each, noise) in enumerate(zip(timed, noises, strict=True)):
        case, found = each.case, predicted(each.case, known)
        shape, update_s = case.shape, found.optimizer_s
        yield {
            "set": "calibration" if index < len(cases()) else "held-out",
            "task": "encoder-decoder" if shape.num_encoder_layers else "decoder",
            "layers": f"{shape.num_encoder_layers}+{shape.num_decoder_layers}",
            "dim": shape.dim,
            "vocab_size": shape.vocab_size,
            "params": num_params(shape),
            "tokens": case.batch.target_rows,
            "precision": case.precision,
            "optimizer": case.optimizer,
            "gradients_s": f"{each.gradients_s:.5f}",
            "update_s": f"{each.update_s:.5f}",
            "noise": f"{noise:.3f}",
            "gradients_error": f"{(found.total_s - update_s) / each.gradients_s - 1:+.4f}",
            "update_error": f"{update_s / each.update_s - 1:+.4f}",
            "error": f"{found.total_s / (each.gradients_s + each.update_s) - 1:+.4f}",
            "machine": device_name("cpu"),
            "torch": torch.__version__,
        }


def summary(table: Sequence[Row]) -> Iterator[str]:
    """Median and largest error of the held-out rows, together and by what they are."""
    held = [row for row in table if row["set"] == "held-out"]
    groups = [("all", held)]
    for column in ("task", "precision", "optimizer"):
        groups += [(value, [r for r in held if r[column] == value]) for value in sorted({r[column] for r in held})]
    for name, members in groups:
        errors = [abs(float(row["error"])) for row in members]
        yield f"{name:16} median {statistics.median(errors):6.1%}  max {max(errors):6.1%}  of {len(errors)}"


def main() -> None:
    """Measure, or read, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_time.csv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--refit", action="store_true", help="keep the times, fit and predict anew")
    arguments = parser.parse_args()
    if arguments.refit:
        timed = read(arguments.out)
        with arguments.out.open(encoding="utf-8", newline="") as file:
            noises = [float(row["noise"]) for row in csv.DictReader(file)]
    else:
        torch.set_num_threads(1)
        keep_freed_memory()
        timed = time_steps(every(), make_step, 1, "cpu", print, arguments.rounds, budget_s=float("inf"))
        noises = [each.noise for each in timed]
    known = fitted(timed[: len(cases())], 1, "cpu")
    table = list(rows(timed, known, noises))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    for each in known:
        print(each.model_dump_json(indent=1))
    print(*summary(table), sep="\n")


if __name__ == "__main__":
    main()
