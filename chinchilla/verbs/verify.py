"""`chinchilla verify RUN`: read everything a run folder keeps, and do a few of its steps again. Nothing is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chinchilla.config.errors import ChinchillaError, FaultError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.data.tokenizer import Specials, Tokenizer
from chinchilla.models.folder import is_there, read_json
from chinchilla.models.hub import read_model
from chinchilla.store import journal, manifest
from chinchilla.store.guard import undisturbed
from chinchilla.store.run_folder import RunFolder
from chinchilla.store.sums import SUMS, check_sums
from chinchilla.verbs.replay import Replay, replay

REPLAY = "replay"
MEND = "restore the file from a copy or delete that line"
OBJECTS = ("env.json", "results.json", "compression.json")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is as it should be, and what was found."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Verification:
    """Everything that was looked at in a run folder; `replay` is None where no step could be done again."""

    run: Path
    checks: tuple[Check, ...]
    replay: Replay | None

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return all(check.ok for check in self.checks)

    def require_ok(self) -> None:
        """Stop where anything is wrong.

        Raises:
            FaultError: names the first thing, and how many there are.
        """
        wrong = [check for check in self.checks if not check.ok]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise FaultError(f"{self.run}: {wrong[0].name}: {wrong[0].found}{more}")


def verify(path: Path, steps: int = 4, tell: Tell = lambda text: None) -> Verification:
    """Check every file of the run at `path` that has hashes or a form, and replay about `steps` steps (0: none).

    Nothing is written; a run that is being trained is refused.

    Raises:
        UsageError: not a run folder, or another process is at work in it.
    """
    if steps < 0:
        raise UsageError(f"--steps: {steps} is below 0")
    folder = RunFolder.open(path)
    with undisturbed(folder.path):
        tell("reading every file")
        checks = [*_texts(folder), *_journals(folder), *_checkpoints(folder)]
        if folder.model.is_dir():
            checks.append(_check("model", _model, folder.model))
        tell("doing steps again")
        last, found = _replayed(folder, checks, steps)
    return Verification(path, (*checks, last), found)


def _check(name: str, look: Callable[..., str], *given: Any) -> Check:
    try:
        return Check(name, True, look(*given))
    except ChinchillaError as error:
        return Check(name, False, str(error))


def _texts(folder: RunFolder) -> list[Check]:
    def settings() -> str:
        folder.read_run()
        return "reads, and every value is allowed"

    def plan() -> str:
        return f"reads: {folder.read_plan().num_params:,} parameters"

    def tokenizer() -> str:
        # With any ids of special tokens: one that came with a model to start from has none of our names.
        any_ids = Specials(0, 0, 0, 0)
        return f"reads: {Tokenizer.load(folder.path / 'tokenizer.json', any_ids).vocab_size:,} tokens"

    def an_object(name: str) -> str:
        return f"reads: {len(read_json(folder.path, name))} entries"

    checks = [_check("run.toml", settings), _check("plan.json", plan)]
    if is_there(folder.path, "tokenizer.json"):
        checks.append(_check("tokenizer.json", tokenizer))
    return checks + [_check(name, an_object, name) for name in OBJECTS if is_there(folder.path, name)]


def _journals(folder: RunFolder) -> list[Check]:
    looks = ((folder.metrics, _metrics), (folder.events, _events), (folder.ledger, _ledger))
    return [_check(path.name, look, path) for path, look in looks if path.exists()]


def _metrics(path: Path) -> str:
    records, before = journal.read(path), 0
    for number, record in enumerate(records, 1):
        step = record.get("step")
        if not isinstance(step, int) or step < before:
            raise FaultError(f"{path}: line {number}: step {step!r} follows {before}, a line was lost or moved; {MEND}")
        before = step
    return f"{len(records):,} lines, up to step {before}"


def _events(path: Path) -> str:
    records = journal.read(path)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("kind"), str):
            raise FaultError(f"{path}: line {number} has no kind; {MEND}")
    return f"{len(records):,} lines"


def _ledger(path: Path) -> str:
    records = journal.read(path)
    for number, record in enumerate(records, 1):
        try:
            Estimate.model_validate(record.get("predicted"))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise FaultError(f"{path}: line {number} holds no prediction ({what}); {MEND}") from None
    return f"{len(records):,} lines"


def _checkpoints(folder: RunFolder) -> list[Check]:
    return [_check(f"checkpoints/{path.name}", _checkpoint, path) for path in _kept(folder)]


def _kept(folder: RunFolder) -> list[Path]:
    """Every checkpoint, newest first."""
    if not folder.checkpoints.is_dir():
        return []
    matches = [(manifest.FOLDER.fullmatch(path.name), path) for path in folder.checkpoints.iterdir()]
    return [path for _, path in sorted(((int(match[2]), path) for match, path in matches if match), reverse=True)]


def _checkpoint(path: Path) -> str:
    files = manifest.verify(path).files
    return (
        f"{len(files)} files, {sum(stored.size_bytes for stored in files.values()):,} bytes, as in {manifest.MANIFEST}"
    )


def _model(path: Path) -> str:
    names = check_sums(path)
    read_model(path)
    return f"loads, but has no {SUMS}" if names is None else f"loads; {len(names)} files as in {SUMS}"


def _replayed(folder: RunFolder, checks: Sequence[Check], steps: int) -> tuple[Check, Replay | None]:
    if steps == 0:
        return Check(REPLAY, True, "not asked for"), None
    damaged = [check.name for check in checks if not check.ok and not check.name.startswith(("checkpoints/", "model"))]
    if damaged:
        return Check(REPLAY, False, f"not done, since {' and '.join(damaged)} cannot be read"), None
    ok = {check.name: check.ok for check in checks}
    whole = [path for path in _kept(folder) if ok[f"checkpoints/{path.name}"] and path.name.startswith("step-")]
    try:
        found = replay(folder, whole, steps)
    except ChinchillaError as error:
        return Check(REPLAY, False, f"not done: {error}"), None
    if found is None:
        return Check(REPLAY, True, "nothing to do again: no step is left after what is kept"), None
    return Check(REPLAY, found.difference is None, _told(found)), found


def _told(found: Replay) -> str:
    if found.difference is not None:
        return found.difference
    losses = [name for name in found.compared if name.startswith("the loss")]
    rest = [name for name in found.compared if name not in losses]
    named = losses if len(losses) < 3 else [f"{len(losses)} losses"]
    first, last = found.start + 1, found.stop
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    return f"{steps} done again, equal bit for bit: {' and '.join([*named, *rest])}"


def as_json(result: Verification) -> dict[str, Any]:
    """The result as plain JSON values."""
    return {
        "run": str(result.run),
        "ok": result.ok,
        "checks": [vars(check) for check in result.checks],
        "replay": None if result.replay is None else vars(result.replay),
    }
