"""A user's own finished runs: parameters, tokens and final loss of each, read from a file or a folder and checked."""

import csv
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.plan import LABELS, TOKEN, Label, Plan
from chinchilla.config.units import show_count
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, FRESH_EPOCHS
from chinchilla.store.run_folder import RunFolder

log = logging.getLogger("chinchilla")

Array = NDArray[np.float64]

NEEDED = ("params", "tokens", "loss")
COUNTED = "flops"

RISE = 0.03
"""How much more a run may lose than a shorter one of the same size before it counts as failed; seeds differ by less."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Finished runs in the order they were read. Every array is (runs,).

    `num_params` counts embeddings, `tokens` are those seen, `loss` is the final validation loss in nats a token and
    `flops` the training compute under `convention`: "paper6nd" (6·N·D) or "given" (the user's own count). `plans` are
    those of run folders; a file has none.
    """

    num_params: Array
    tokens: Array
    loss: Array
    flops: Array
    places: tuple[str, ...]
    source: str
    convention: str
    plans: tuple[Plan, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def counted(self) -> Label:
        """What `tokens` are: what the task of run folders counts; a file's are taken for tokens."""
        return LABELS[self.plans[0].task] if self.plans else TOKEN

    @property
    def six_nd(self) -> Array:
        """Compute by 6·N·D, (runs,), whatever `flops` counts: what a law of N and D takes for a budget."""
        return FLOPS_PER_PARAM_TOKEN * self.num_params * self.tokens

    @property
    def repeats(self) -> int:
        """How many runs have the size and the tokens of one before; each counts, like other seeds."""
        return len(self) - len(set(zip(self.num_params.tolist(), self.tokens.tolist(), strict=True)))

    def pick(self, keep: NDArray[np.bool_]) -> Self:
        """The runs where `keep` (runs,) is true, without their plans."""
        places = tuple(place for place, kept in zip(self.places, keep, strict=True) if kept)
        arrays = (self.num_params[keep], self.tokens[keep], self.loss[keep], self.flops[keep])
        return type(self)(*arrays, places, self.source, self.convention)


@dataclass(frozen=True)
class _Row:
    """One run as read, and where it stands."""

    place: str
    values: dict[str, float]
    plan: Plan | None = None


def make_runs(num_params: Array, tokens: Array, loss: Array, source: str = "arrays") -> Runs:
    """Runs out of three arrays (runs,), with compute by 6·N·D; checked as `read_runs` does."""
    columns = zip(num_params, tokens, loss, strict=True)
    rows = [
        _row(f"{source}, row {number}", dict(zip(NEEDED, row, strict=True)), NEEDED)
        for number, row in enumerate(columns, 1)
    ]
    return _checked(rows, source)


def read_runs(path: Path) -> Runs:
    """Read runs: a CSV with columns params, tokens, loss (flops optional), JSONL with such keys, or a folder of runs.

    Of a folder every finished run in it counts, with its best validation loss; unfinished and compressed ones are
    left out with a note. Tokens are those seen: of runs that saw their data often a note tells.

    Raises:
        DataError: missing, empty or malformed; a value that is not positive and finite; one run twice; a loss that
            rises with tokens at the same size. The message names file and row.
        UsageError: neither a folder nor a file ending in .csv or .jsonl.
    """
    if path.is_dir():
        rows = list(_folder_rows(path))
        _tell_of_repeated_data(path, rows)
        return _checked(rows, str(path))
    return _checked(list(_file_rows(path, NEEDED, "a .csv, a .jsonl or a folder of run folders")), str(path))


def read_columns(path: Path, needed: Sequence[str]) -> list[dict[str, float]]:
    """Read the runs of a CSV or JSONL that has other columns than a law of size and tokens needs.

    Raises:
        DataError: missing, empty or malformed; a value that is not positive and finite; one run twice.
        UsageError: no file ending in .csv or .jsonl.
    """
    if path.is_dir():
        raise UsageError(f"{path}: run folders do not say {', '.join(needed)}: write them to a .csv or .jsonl")
    rows = list(_file_rows(path, needed, "a .csv or a .jsonl"))
    if not rows:
        raise DataError(f"{path}: no runs; write one a row, with {', '.join(needed)}")
    _refuse_repeats(rows, needed)
    return [row.values for row in rows]


def _file_rows(path: Path, needed: Sequence[str], wanted: str) -> Iterator[_Row]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        nothing = "" if path.exists() else "there is no such file or folder; "
        raise UsageError(f"{path}: {nothing}give {wanted}")
    return readers[path.suffix.lower()](path, needed)


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[_Row]:
    reader = csv.DictReader(_text(path).splitlines(), skipinitialspace=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        _require_columns(path, header, needed)
        reader.fieldnames = header
        for record in reader:
            yield _row(f"{path}, row {reader.line_num}", record, needed)
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: not readable as CSV ({error}); write it anew") from None


def _jsonl_rows(path: Path, needed: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}, row {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({error}); write one object a line") from None
        if not isinstance(record, dict):
            wanted = ", ".join(f'"{name}": …' for name in needed)
            raise DataError(f"{place}: not an object; write {{{wanted}}}")
        _require_columns(place, record, needed)
        yield _row(place, record, needed)


def _folder_rows(path: Path) -> Iterator[_Row]:
    if (path / "plan.json").exists():
        raise UsageError(f"{path}: this is one run; give the folder that holds several")
    kinds: dict[tuple[object, ...], Path] = {}
    for folder in (RunFolder(child) for child in sorted(path.iterdir()) if (child / "plan.json").is_file()):
        results = folder.path / "results.json"
        if (folder.path / "compression.json").exists() or not results.exists():
            log.warning("%s: left out, %s", folder.path, "compressed" if results.exists() else "not finished")
            continue
        plan = folder.read_plan()
        kinds.setdefault(_kind(plan), folder.path)
        if len(kinds) > 1:
            first, other = list(kinds.values())
            raise DataError(
                f"{first} and {other} have other tasks, vocabularies or texts, so that their losses do not compare; "
                "put the runs of each into a folder of their own"
            )
        yield replace(_row(str(results), {"params": plan.num_params, **_outcome(results)}, NEEDED), plan=plan)


def _tell_of_repeated_data(path: Path, rows: list[_Row]) -> None:
    epochs = [row.values["tokens"] / row.plan.unique_tokens for row in rows if row.plan is not None]
    often = sum(each > FRESH_EPOCHS for each in epochs)
    if often:
        log.warning(
            "%s: %d of %d runs saw their data more than %g times (up to %.3g), and the fit takes repeats for fresh "
            "tokens: they count for more than they are worth",
            path,
            often,
            len(rows),
            FRESH_EPOCHS,
            max(epochs),
        )


def _kind(plan: Plan) -> tuple[object, ...]:
    """What runs must have in common for their losses to compare."""
    return plan.task, plan.shape.vocab_size, round(plan.bytes_per_token, 2)


def _outcome(results: Path) -> dict[str, Any]:
    try:
        record = json.loads(_text(results))
        return {"tokens": record["tokens"], "loss": record["valid_loss"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{results}: damaged ({error!r}); remove that run or restore the file from a copy") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name a readable file in UTF-8") from None


def _require_columns(place: object, there: Iterable[str], needed: Sequence[str]) -> None:
    names = list(there)
    missing = [name for name in needed if name not in names]
    if missing:
        hint = f" and, where counted, {COUNTED}" if tuple(needed) == NEEDED else ""
        hint += "; tokens are flops / (6 · params)" if missing == ["tokens"] and COUNTED in names else ""
        raise DataError(
            f"{place}: no column {', '.join(missing)}, there are: {', '.join(names) or 'none'}; "
            f"the columns are {', '.join(needed)}{hint}"
        )


def _row(place: str, record: Mapping[str, Any], needed: Sequence[str]) -> _Row:
    counted = tuple(needed) == NEEDED and record.get(COUNTED) not in (None, "")
    names = (*needed, COUNTED) if counted else needed
    return _Row(place, {name: _number(place, name, record[name]) for name in names})


def _number(place: str, name: str, written: Any) -> float:
    """A positive, finite number."""
    try:
        value = math.nan if isinstance(written, bool) else float(written)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{place}: {name} is {written!r}; write a positive, finite number or remove the run")
    return value


def _checked(rows: list[_Row], source: str) -> Runs:
    if not rows:
        raise DataError(f"{source}: no finished runs; a fit needs at least six, of three sizes")
    counted = [row for row in rows if "flops" in row.values]
    if counted and len(counted) < len(rows):
        bare = next(row for row in rows if "flops" not in row.values)
        raise DataError(f"{bare.place}: no flops, while {counted[0].place} has them; give them for all runs or none")
    _refuse_repeats(rows, NEEDED)
    _refuse_rises(rows)
    num_params, tokens, loss = (np.array([row.values[name] for row in rows]) for name in NEEDED)
    flops = np.array([row.values["flops"] for row in rows]) if counted else FLOPS_PER_PARAM_TOKEN * num_params * tokens
    places = tuple(row.place for row in rows)
    plans = tuple(row.plan for row in rows if row.plan is not None)
    return Runs(num_params, tokens, loss, flops, places, source, "given" if counted else "paper6nd", plans)


def _refuse_repeats(rows: list[_Row], needed: Sequence[str]) -> None:
    seen: dict[tuple[float, ...], str] = {}
    for row in rows:
        key = tuple(row.values[name] for name in needed)
        if key in seen:
            raise DataError(
                f"{row.place}: the same run as {seen[key]}; keep one (runs of other seeds differ in their loss)"
            )
        seen[key] = row.place


def _refuse_rises(rows: list[_Row]) -> None:
    """More tokens for the same model must not end at a higher loss: the law's form has no room for it."""
    best: dict[float, _Row] = {}
    for row in sorted(rows, key=lambda row: (row.values["tokens"], row.values["loss"])):
        least = best.setdefault(row.values["params"], row)
        if row.values["loss"] > (1 + RISE) * least.values["loss"] and row.values["tokens"] > least.values["tokens"]:
            raise DataError(
                f"{row.place}: loss {row.values['loss']:.4g} after {show_count(row.values['tokens'])} tokens, where "
                f"{least.place} of the same size came to {least.values['loss']:.4g} after "
                f"{show_count(least.values['tokens'])}: a run that diverged or overfits repeated data, or columns in "
                "the wrong order; repeat it or leave it out"
            )
        if row.values["loss"] < least.values["loss"]:
            best[row.values["params"]] = row
