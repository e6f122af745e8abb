"""`chinchilla compress RUN`: a smaller, faster model in a run folder of its own."""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla.compression.compare import Comparison, Exam, Subject, compare
from chinchilla.compression.quantize import Record, quantize_
from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.units import show_bytes, show_time
from chinchilla.models.folder import CARD, CONFIG, WEIGHTS
from chinchilla.models.hub import Loaded, read_model, write_model
from chinchilla.models.quantized import describe
from chinchilla.store.atomic import failures_named, sync_folder, write_text
from chinchilla.store.run_folder import RunFolder
from chinchilla.store.sums import write_sums

log = logging.getLogger("chinchilla")


@dataclass(frozen=True)
class CompressResult:
    """The new run folder and what compression changed."""

    run: Path
    comparison: Comparison


def preview(run: Path) -> Record:
    """What `compress` would do: layers and sizes. Nothing is written or measured.

    Raises:
        UsageError: `run` is not a run folder, has no finished model, or holds a compressed one.
        FaultError: the model is damaged.
    """
    return quantize_(_read(RunFolder.open(run)).model)


def compress(run: Path, exam: Exam, out: Path | None = None) -> CompressResult:
    """Make an int8 model of the run's model, and measure both.

    The new run folder is `out`, or `<run>-int8-<n>` beside `run`. It holds model/, run.toml, plan.json,
    compression.json and a ledger line, and appears whole at the end.

    Raises:
        UsageError: `run` is not a run folder, has no finished model, or holds a compressed one; `out` exists.
        DataError: the run's test data cannot be used.
        FaultError: the model is damaged, or the disk fails.
    """
    parent = RunFolder.open(run.resolve())
    if out is not None and out.exists():
        raise UsageError(f"{out}: exists already; name a folder that does not, or leave it out")
    before = _read(parent)
    runs = parent.path.parent if out is None else out.resolve().parent
    with _building(runs) as building:
        record = _quantize(parent, building.model)
        comparison = compare(
            Path(os.path.relpath(parent.path, runs / "run")),
            record.scheme,
            Subject(before.model, _size_bytes(parent)),
            Subject(read_model(building.model).model, _size_bytes(building)),
            exam,
        )
        _tell(building, parent, record, comparison)
        finished = _move(building, parent, out)
    log.info("%s: %.2f× smaller, %.2f× faster", finished.path, comparison.ratios.size, comparison.ratios.latency_p50)
    return CompressResult(finished.path, comparison)


def _read(run: RunFolder) -> Loaded:
    if not run.model.is_dir():
        raise UsageError(f"{run.path}: has no finished model (model/ is missing); `chinchilla train --resume` makes it")
    loaded = read_model(run.model)
    if "quantization" in loaded.config:
        raise UsageError(f"{run.path}: is compressed already; compress the run that it was made from")
    return loaded


@contextmanager
def _building(runs: Path) -> Iterator[RunFolder]:
    """A hidden folder in `runs` to build in; it goes if it was not moved away."""
    path = runs / f".compress.{secrets.token_hex(4)}.tmp"
    with failures_named(path):
        path.mkdir(parents=True)
    try:
        yield RunFolder(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _quantize(parent: RunFolder, folder: Path) -> Record:
    loaded = _read(parent)
    record = quantize_(loaded.model)
    log.info(
        "int8: %d matrices, %s → %s",
        len(record.layers_int8),
        show_bytes(record.size_before_bytes),
        show_bytes(record.size_after_bytes),
    )
    kept = {key: value for key, value in loaded.config.items() if key not in ("model_type", "architectures", "shape")}
    extra = kept | {"quantization": describe(loaded.model)}
    write_model(folder, loaded.model, loaded.tokenizer_json, extra=extra)
    return record


def _size_bytes(run: RunFolder) -> int:
    return (run.model / WEIGHTS).stat().st_size


def _tell(building: RunFolder, parent: RunFolder, record: Record, comparison: Comparison) -> None:
    """Everything of the run folder that is known once the model is measured."""
    config = json.loads((building.model / CONFIG).read_text(encoding="utf-8"))
    write_text(building.model / CONFIG, json.dumps(config | {"metrics": comparison.after.metrics}, indent=2) + "\n")
    write_text(building.model / CARD, _card(parent, comparison))
    write_sums(building.model)
    for source, target in ((parent.run_toml, building.run_toml), (parent.plan_json, building.plan_json)):
        write_text(target, source.read_text(encoding="utf-8"))
    write_text(building.path / "compression.json", comparison.model_dump_json(indent=2) + "\n")
    predicted = Estimate.around(record.size_after_bytes, 0.01, "bytes", "measured")
    building.log_prediction("int8_size_bytes", predicted, comparison.after.size_bytes, "bytes")
    building.write_env(building.read_run().run.seed, torch.get_num_threads())


def _card(parent: RunFolder, comparison: Comparison) -> str:
    """The parent's model card, and what compression changed."""
    path = parent.model / CARD
    card = path.read_text(encoding="utf-8").rstrip() if path.is_file() else f"# {parent.path.name}"
    before, after = comparison.before, comparison.after
    rows = [
        ("size", show_bytes(before.size_bytes), show_bytes(after.size_bytes)),
        ("one answer, median", show_time(before.latency_p50_s), show_time(after.latency_p50_s)),
        *((name, f"{before.metrics[name]:.4g}", f"{value:.4g}") for name, value in after.metrics.items()),
    ]
    table = "\n".join(f"| {name} | {old} | {new} |" for name, old, new in rows)
    return f"""{card}

## Compression

Weights are int8 with one scale a row, activations int8 at run time. All above is about the model before.

| | before | after |
|---|---|---|
{table}
"""


def _move(building: RunFolder, parent: RunFolder, out: Path | None) -> RunFolder:
    """Give the folder its name; over an empty folder a rename is one step."""
    if out is None:
        target = RunFolder.create(parent.path.parent, f"{parent.path.name}-int8")
    else:
        target = RunFolder(out.resolve())
    with failures_named(target.path):
        building.path.rename(target.path)
        sync_folder(target.path.parent)
    return target
