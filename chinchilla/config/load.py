"""Read a `Run` from TOML: `extends`, `key=value` overrides, the origin of every value, errors that name the mend."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from chinchilla.config.errors import UsageError
from chinchilla.config.run import Run

COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Loaded:
    """A `Run` and, for every dotted key, where its value came from (a file, the command line, or a default)."""

    run: Run
    origins: dict[str, str]


def load_run(recipe: Path | None, overrides: Sequence[str] = ()) -> Loaded:
    """Resolve a recipe file and `key=value` overrides into a `Run`.

    Relative paths in a file are taken from that file's folder, on the command line from the working folder.

    Raises:
        UsageError: a missing or malformed file, an unknown key (with the nearest name) or a wrong value.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = list(_files(recipe)) if recipe else []
    layers.append((COMMAND_LINE, Path.cwd(), _parse_overrides(overrides)))
    for origin, folder, values in layers:
        for key, value in _leaves(values):
            _check_key(key, origin)
            _put(tree, key, _resolve_paths(key, value, folder))
            origins[key] = origin
    return Loaded(_validate(tree, origins), origins | _defaults(origins))


def _files(path: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The chain of recipe files, the most basic first."""
    chain: list[tuple[str, Path, dict[str, Any]]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        path, following = following.resolve(), None
        if path in seen:
            raise UsageError(f"{path}: extends itself, by way of {', '.join(map(str, seen))}")
        seen.append(path)
        values = _read(path)
        base = values.pop("extends", None)
        if base is not None:
            if not isinstance(base, str):
                raise UsageError(f"{path}: extends must be the name of a file, not {base!r}")
            following = path.parent / base
        chain.append((str(path), path.parent, values))
    yield from reversed(chain)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a recipe: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"{text!r}: write an override as key=value, like budget.time=10m")
        _put(tree, key.strip(), _parse_value(value))
    return tree


def _parse_value(text: str) -> Any:
    """A TOML value where it is one (3, 0.1, true, ["a", "b"]), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(f"{key}: {parent} is a value, not a table")
    tree[last] = value


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _accepts_path(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return any(_accepts_path(argument) for argument in get_args(annotation))
    return annotation is Path


def keys(model: type[BaseModel] = Run, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the tree with its annotation."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        found |= keys(inner, f"{prefix}{name}.") if inner else {prefix + name: field.annotation}
    return found


def _check_key(key: str, origin: str) -> None:
    known = keys()
    if key in known:
        return
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise UsageError(f"{origin}: {key} is a table; set one of {', '.join(inside)}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = same_leaf[0] if same_leaf else near[0] if near else None
    hint = f"; did you mean {nearest}?" if nearest else f"; known keys: {', '.join(known)}"
    raise UsageError(f"{origin}: unknown key {key}{hint}")


def _resolve_paths(key: str, value: Any, folder: Path) -> Any:
    if not _accepts_path(keys()[key]):
        return value
    if isinstance(value, str):
        return folder / Path(value).expanduser()
    if isinstance(value, list):
        return tuple(_resolve_paths(key, item, folder) for item in value)
    return value


def _validate(tree: dict[str, Any], origins: dict[str, str]) -> Run:
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(item, origins) for item in error.errors())) from None


def _explain(item: Any, origins: dict[str, str]) -> str:
    """One pydantic error as `origin: key: what is wrong`."""
    parts = [str(part) for part in item["loc"]]
    key = ".".join(parts)
    while parts and ".".join(parts) not in keys():
        parts.pop()
    key = ".".join(parts) or key
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{key} is missing: set it in the recipe or as {key}=…"
    given = item.get("input")
    shown = "" if isinstance(given, dict) else f" (given: {given!r})"
    origin = origins.get(key, COMMAND_LINE if not origins else next(iter(origins.values())))
    return f"{origin}: {key}: {message[:1].lower()}{message[1:]}{shown}"


def _defaults(origins: dict[str, str]) -> dict[str, str]:
    return {key: DEFAULT for key in keys() if key not in origins}


def to_toml(loaded: Loaded) -> str:
    """The resolved run as TOML, each value with its origin as a comment; it loads back to an equal `Run`."""
    dumped = loaded.run.model_dump(mode="json", exclude_none=True)
    plain = {key: value for key, value in dumped.items() if not isinstance(value, dict)}
    lines = [_line(key, key, value, loaded) for key, value in plain.items()]
    for table, values in dumped.items():
        if isinstance(values, dict) and values:
            lines += ["", f"[{table}]"]
            lines += [_line(name, f"{table}.{name}", value, loaded) for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, key: str, value: Any, loaded: Loaded) -> str:
    # JSON's strings, numbers, booleans and flat lists are also TOML's.
    text = json.dumps(value, ensure_ascii=False)
    return f"{name} = {text}  # {loaded.origins.get(key, DEFAULT)}"
