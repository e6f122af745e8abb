"""The `Run` that words on a command line ask for: a recipe or data, settings over it, and sugar for some settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from chinchilla.config.errors import UsageError
from chinchilla.config.load import COMMAND_LINE, Loaded, load_run
from chinchilla.config.plan import TARGETS, TaskName

DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt", ".text", ".md", ".npz")
"""Of words that are data; any other word but a folder is a recipe."""


def load_words(
    words: Sequence[str], budget: str | None, target: str | None, tell: Callable[[str], None] = lambda text: None
) -> Loaded:
    """The run of a recipe or of data, `KEY=VALUE` settings over it, and a budget of time and a target column.

    Where there is data and nobody says the task, it is inferred, and `tell` says why (`verbs.infer`).

    Raises:
        UsageError: several recipes or data, a wrong setting (see `load_run`), a target where the task has none, or
            data that may be for several tasks.
        DataError: data that cannot be read, or without the target.
    """
    source, settings = split_words(words)
    if budget is not None:
        settings.append(f"budget.time={budget}")
    if source is not None and _is_data(source):
        return _of_data(source, settings, target, tell)
    loaded = load_run(source, settings)
    return loaded if target is None else load_run(source, [*settings, _target(loaded.run.task, target)])


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """At most one recipe or file of data, and settings.

    Raises:
        UsageError: several of the first.
    """
    sources = [word for word in words if "=" not in word]
    if len(sources) > 1:
        raise UsageError(f"give one recipe or one file of data, not {len(sources)}: {', '.join(sources)}")
    return (Path(sources[0]) if sources else None), [word for word in words if "=" in word]


def _is_data(path: Path) -> bool:
    try:
        return path.suffix.lower() in DATA_ENDINGS or path.expanduser().is_dir()
    except (OSError, RuntimeError):  # no name of a file, or not to be looked at: told of where it is read
        return False


def _of_data(path: Path, settings: list[str], target: str | None, tell: Callable[[str], None]) -> Loaded:
    given = [f"data.train={path}", *settings]
    if any(word.partition("=")[0].strip() == "task" for word in settings):
        loaded = load_run(None, given)
        return loaded if target is None else load_run(None, [*given, _target(loaded.run.task, target)])
    from chinchilla.verbs.infer import infer

    # What is said of the data, whatever the task: any that has columns does to read it.
    said = load_run(None, ["task=classify_table", "budget.time=1", *(word for word in given if _is_of_data(word))])
    named = (name for name in ("data.label", "data.target") if said.origins[name] == COMMAND_LINE)
    told = target or next((getattr(said.run.data, name.removeprefix("data.")) for name in named), None)
    found = infer(path.expanduser(), told, (*said.run.data.ignore, said.run.data.group_name))
    tell(f"task: {found.task}, since {found.reason}; say task=… for another")
    if target is not None:
        given.append(_target(found.task, target))
    return load_run(None, given, {"task": found.task, **found.columns})


def _is_of_data(word: str) -> bool:
    return word.strip().startswith("data.")


def _target(task: TaskName, column: str) -> str:
    if task not in TARGETS:
        raise UsageError(f"--target: {task} has no column that is to be told; leave it out")
    return f"{TARGETS[task]}={column}"
