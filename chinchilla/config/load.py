"""Read a `Run` from TOML: `extends`, `key=value` overrides, the origin of every value, errors that name the mend."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from chinchilla.config.errors import UsageError
from chinchilla.config.run import Budget, Run

COMMAND_LINE = "command line"
INFERRED = "inferred"
DEFAULT = "default"


# A default that is a path is taken from the working folder, as if it were on the command line.
_DEFAULT_PATHS = {"runs": str(Run.model_fields["runs"].default)}


@dataclass(frozen=True)
class Written:
    """A value as somebody wrote it, who did, and the folder its relative paths are taken from."""

    value: Any
    origin: str
    folder: Path


Layer = dict[str, Written]


@dataclass(frozen=True)
class Loaded:
    """A `Run` and, for every dotted key, where its value came from (a file, the command line, or a default)."""

    run: Run
    origins: dict[str, str]


def load_run(recipe: Path | None, overrides: Sequence[str] = (), inferred: Mapping[str, str] | None = None) -> Loaded:
    """Resolve a recipe file and `key=value` overrides into a `Run`; what was `inferred` gives way to both.

    Relative paths in a file are taken from that file's folder, on the command line from the working folder.
    What bounds the budget in a base file gives way as a whole to a `[budget]` in a file or override after it.

    Raises:
        UsageError: a missing or malformed file, an unknown key (with the nearest name) or a wrong value.
    """
    written = {key: Written(value, DEFAULT, Path.cwd()) for key, value in _DEFAULT_PATHS.items()}
    written |= {key: Written(value, INFERRED, Path.cwd()) for key, value in (inferred or {}).items()}
    for layer in [*(_files(recipe) if recipe else ()), _parse_overrides(overrides)]:
        if any(key.startswith("budget.") for key in layer):
            written = {key: value for key, value in written.items() if not key.startswith("budget.")}
        written |= layer
    origins = dict.fromkeys(keys(), DEFAULT) | {key: value.origin for key, value in written.items()}
    return Loaded(_validate(written), origins)


def _files(recipe: Path) -> Iterator[Layer]:
    """The chain of recipe files, the most basic first."""
    chain: list[Layer] = []
    seen: list[Path] = []
    following: Path | None = recipe
    while following is not None:
        path = _resolve(following, "recipe")
        if path in seen:
            raise UsageError(f"{path}: extends itself, by way of {', '.join(map(str, seen))}")
        values = _read(path, seen)
        seen.append(path)
        base = values.pop("extends", None)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"{path}: extends must be the name of a file, not {base!r}")
        following = None if base is None else path.parent / base
        chain.append(_layer(values, str(path), path.parent))
    yield from reversed(chain)


def _resolve(path: Path, origin: str) -> Path:
    try:
        return path.expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{origin}: {str(path)!r} cannot be a file's name: {error}") from None


def _read(path: Path, extended_by: Sequence[Path]) -> dict[str, Any]:
    by = f" (extended by {extended_by[-1]})" if extended_by else ""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe file{by}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as a recipe{by}: {error}") from None


def _layer(values: dict[str, Any], origin: str, folder: Path) -> Layer:
    layer: Layer = {}
    for key, value in _leaves(values):
        _check_key(key, value, origin)
        if value != {}:
            layer[key] = Written(value, origin, folder)
    return layer


def _parse_overrides(overrides: Sequence[str]) -> Layer:
    layer: Layer = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UsageError(f"{text!r}: write an override as key=value, like budget.time=10m")
        layer |= _layer({key: _parse_value(value, keys().get(key))}, COMMAND_LINE, Path.cwd())
    return layer


def _parse_value(text: str, annotation: Any) -> Any:
    """A TOML value where it is one (3, 0.1, true, ["a", "b"]), else the text itself; a name may look like a number."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = parsed["value"]
    is_text = isinstance(value, str | list | dict)
    if len(parsed) > 1 or (not is_text and _accepts(annotation, Path, str)):
        return text
    return value


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and not _accepts_table(keys().get(prefix + key)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds, or may hold."""
    if get_origin(annotation) in (Union, types.UnionType):
        inside = [_model_in(argument) for argument in get_args(annotation)]
        return next((model for model in inside if model), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _accepts(annotation: Any, *kinds: type) -> bool:
    """Whether one of `kinds` is among what the annotation allows, itself or in a tuple."""
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return any(_accepts(argument, *kinds) for argument in get_args(annotation))
    return annotation in kinds


def _accepts_list(annotation: Any) -> bool:
    return any(get_origin(argument) is tuple for argument in (annotation, *get_args(annotation)))


def _accepts_table(annotation: Any) -> bool:
    """Whether a value may be a table of names that the user chooses."""
    return get_origin(annotation) is dict or any(_accepts_table(argument) for argument in get_args(annotation))


def keys(model: type[BaseModel] = Run, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the tree with its annotation."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        found |= keys(inner, f"{prefix}{name}.") if inner else {prefix + name: field.annotation}
    return found


def _check_key(key: str, value: Any, origin: str) -> None:
    known = keys()
    if key in known:
        if isinstance(value, bool) and not _accepts(known[key], bool):  # pydantic would take true for 1
            raise UsageError(f"{origin}: {key}: {str(value).lower()} is not a value for it")
        return
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside and value == {}:
        return
    if inside:
        raise UsageError(f"{origin}: {key} is a table; set one of {', '.join(inside)}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = same_leaf[0] if same_leaf else near[0] if near else None
    hint = f"; did you mean {nearest}?" if nearest else f"; known keys: {', '.join(known)}"
    raise UsageError(f"{origin}: unknown key {key}{hint}")


def _resolve_paths(key: str, value: Any, written: Written) -> Any:
    if not _accepts(keys()[key], Path):
        return value
    if isinstance(value, list):
        return tuple(_resolve_paths(key, item, written) for item in value)
    if not isinstance(value, str):
        return value
    try:
        value.encode()
        path = Path(value).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:
        raise UsageError(f"{written.origin}: {key}: {value!r} cannot be a file's name: {error}") from None
    if not value or "\0" in value:
        raise UsageError(f"{written.origin}: {key}: {value!r} cannot be a file's name")
    return written.folder / path


def _validate(written: Layer) -> Run:
    tree: dict[str, Any] = {}
    for key, item in written.items():
        _put(tree, key, _resolve_paths(key, item.value, item))
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item, written) for item in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None


def _explain(item: Any, written: Layer) -> str:
    """One pydantic error as `origin: key: what is wrong`."""
    parts = [str(part) for part in item["loc"]]
    key = ".".join(parts)
    if item["type"] == "missing":
        return f"{key} is missing: set {_settable(key)} in the recipe or on the command line as KEY=VALUE"
    while parts and ".".join(parts) not in written:
        parts.pop()
    if not key:  # the whole tree: the message begins with the setting
        message = _lower(item["msg"])
        named = written.get(message.partition(":")[0])
        return f"{named.origin}: {message}" if named else message
    if not parts:  # a whole table
        origins = {value.origin: None for name, value in written.items() if name.startswith(f"{key}.")}
        return f"{', '.join(origins)}: {key}: {_lower(item['msg'])}"
    key = ".".join(parts)
    annotation = keys()[key]
    message = _lower(item["msg"])
    if _accepts(annotation, Path):  # one line, whatever the number of kinds it was tried as
        message = "write a file's name" + (" or a list of names" if _accepts_list(annotation) else "")
    return f"{written[key].origin}: {key}: {message} (given: {written[key].value!r})"


def _settable(key: str) -> str:
    """The key, or the keys in it that make a missing table complete."""
    inside = {"data": ["data.train"], "budget": [f"budget.{name}" for name in Budget.model_fields]}
    return " or ".join(inside.get(key, [key]))


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def to_toml(loaded: Loaded) -> str:
    """The resolved run as TOML, paths absolute, each value with its origin as a comment; it loads to an equal `Run`."""
    return "\n".join(_table(loaded.run.model_dump(exclude_none=True), "", loaded)) + "\n"


def _table(values: dict[str, Any], name: str, loaded: Loaded) -> Iterator[str]:
    """A table's own values, then the tables inside it."""
    prefix = f"{name}." if name else ""
    known = keys()
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) or prefix + key in known}
    if name and plain:
        yield from ("", f"[{name}]")
    yield from (_line(key, prefix + key, value, loaded) for key, value in plain.items())
    for key, value in values.items():
        if key not in plain:
            yield from _table(value, prefix + key, loaded)


def _line(name: str, key: str, value: Any, loaded: Loaded) -> str:
    origin = loaded.origins.get(key, DEFAULT)
    return f"{name} = {_toml(value)}  # {origin if origin.isprintable() else ascii(origin)}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(name)} = {_toml(inside)}" for name, inside in value.items()) + " }"
    # JSON's strings, numbers, booleans and flat lists are also TOML's, but for the one character it leaves bare.
    return json.dumps(value, ensure_ascii=False, default=_absolute).replace("\x7f", "\\u007F")


def _absolute(path: Path) -> str:
    return str(path.absolute())
