"""The machines to plan for, and the network between them: `cluster.toml`."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, StrictInt, StrictStr, ValidationError, model_validator

from chinchilla.config.errors import UsageError
from chinchilla.config.frozen import Frozen
from chinchilla.config.machine import Precision
from chinchilla.config.units import COUNT, LATENCY_S, SIZE_BYTES, SizeBytes, parse

BYTES_PER_S = SIZE_BYTES | {"kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6, "Tbit": 125e9}


def _number(units: Mapping[str, float], kind: str) -> BeforeValidator:
    """Reads "10T", "1Gbit/s", "20ms"; a truth value is no number, though Python thinks so."""

    def read(value: object) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{str(value).lower()} is not a {kind}")
        return parse(value.strip().removesuffix("/s") if isinstance(value, str) else value, units, kind)

    return BeforeValidator(read)


Rate = Annotated[float, _number(COUNT, "rate"), Field(gt=0)]
Bandwidth = Annotated[float, _number(BYTES_PER_S, "bandwidth"), Field(gt=0)]
Latency = Annotated[float, _number(LATENCY_S, "time"), Field(ge=0)]
Amount = Annotated[float, _number({"": 1.0}, "number"), Field(ge=0)]
Name = Annotated[StrictStr, Field(min_length=1)]
Point = tuple[Annotated[SizeBytes, Field(gt=0)], Annotated[Latency, Field(gt=0)]]


class Node(Frozen):
    """One machine. Rates and memory are those of one of its `devices`, price and power those of the whole node."""

    name: Name
    address: Name | None = Field(None, description="host name or IP address; needed to run, not to plan")
    devices: Annotated[StrictInt, Field(gt=0)] = 1
    flops_per_s: dict[Precision, Rate] = Field(min_length=1, description='by precision, like { fp32 = "1T" }')
    memory_bytes: Annotated[SizeBytes, Field(gt=0)]
    bytes_per_s: Bandwidth = Field(description="memory bandwidth")
    price_per_hour: Amount | None = None
    watts: Amount | None = Field(None, description="power drawn at full load")


class Link(Frozen):
    """A full-duplex link between every two of the nodes in `between`; of a node with itself: between its devices.

    Either a line (`latency_s` + size / `bytes_per_s`) or a `table` of measured (size_bytes, time_s).
    """

    between: tuple[Name, ...] = Field(min_length=2)
    bytes_per_s: Bandwidth | None = None
    latency_s: Latency | None = None
    table: tuple[Point, ...] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        line = (self.bytes_per_s is not None, self.latency_s is not None)
        if any(line) and self.table is not None:
            raise ValueError("give bytes_per_s and latency_s, or a table, not both")
        if self.table is None and not all(line):
            raise ValueError("give bytes_per_s and latency_s, or a table of [size_bytes, time_s]")
        for (size, time_s), (larger, longer_s) in pairwise(self.table or ()):
            if size >= larger or time_s > longer_s:
                raise ValueError(f"table: sizes must grow, times must not fall: {size} B in {time_s:g} s comes before "
                                 f"{larger} B in {longer_s:g} s")  # fmt: skip
        return self

    @property
    def pairs(self) -> list[frozenset[str]]:
        """The pairs of nodes it joins; a set of one name for the devices of one node."""
        return [frozenset(pair) for pair in combinations(self.between, 2)]


class Cluster(Frozen):
    """Machines and links; every two machines reach each other, over others if need be."""

    node: tuple[Node, ...] = Field(min_length=1)
    link: tuple[Link, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_names(self.node)
        _check_links(self)
        _check_reach(self)
        return self

    def find(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.node if node.name == name)


def read_cluster(path: Path) -> Cluster:
    """Read and check a `cluster.toml`.

    Raises:
        UsageError: the file is missing or malformed, or an entry is wrong; names file, entry and mend.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such cluster file: write one (docs/planning-layout.md) or leave out [cluster]"
                         ) from None  # fmt: skip
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as a cluster file: {error}") from None
    try:
        return Cluster.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}: {_explain(item, values)}" for item in error.errors() if not _follows(item, error)]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None


def _check_names(nodes: Sequence[Node]) -> None:
    names = [node.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} nodes are named {name!r}: give each its own name")


def _check_links(cluster: Cluster) -> None:
    seen: dict[frozenset[str], int] = {}
    names = [node.name for node in cluster.node]
    for index, link in enumerate(cluster.link, 1):
        for name in link.between:
            if name not in names:
                raise ValueError(f"link {index}: no node is named {name!r}{_nearest(name, names)}")
        for pair in link.pairs:
            if len(pair) == 1:
                _check_self_link(index, link, cluster)
            if pair in seen:
                both = " and ".join(sorted(pair)) if len(pair) == 2 else f"the devices of {min(pair)}"
                raise ValueError(f"link {index}: {both} are joined by link {seen[pair]} already: leave one of them out")
            seen[pair] = index


def _check_self_link(index: int, link: Link, cluster: Cluster) -> None:
    """A link of a node with itself is the one between its devices, so it has to have several."""
    name = link.between[0]
    if len(link.between) != 2:
        raise ValueError(f"link {index}: names a node twice: {', '.join(link.between)}")
    if cluster.find(name).devices == 1:
        raise ValueError(
            f"link {index}: joins {name!r} with itself, which has one device: name two nodes, or set devices"
        )


def _check_reach(cluster: Cluster) -> None:
    pairs = [pair for link in cluster.link for pair in link.pairs]
    names = [node.name for node in cluster.node]
    reached, fresh = {names[0]}, [names[0]]
    while fresh:
        here = fresh.pop()
        found = {name for pair in pairs if here in pair for name in pair} - reached
        reached |= found
        fresh += found
    for name in names:
        if name not in reached:
            raise ValueError(
                f"no path of links leads from {names[0]!r} to {name!r}: add a [[link]] with "
                f'between = ["{names[0]}", "{name}"]'
            )
    for node in cluster.node:
        if node.devices > 1 and frozenset([node.name]) not in pairs:
            raise ValueError(
                f"{node.name!r} has {node.devices} devices and no link between them: add a [[link]] with "
                f'between = ["{node.name}", "{node.name}"]'
            )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


_ENTRIES: dict[str, type[BaseModel]] = {"node": Node, "link": Link}


def _follows(item: Any, error: ValidationError) -> bool:
    """Whether an error is only that a list is too short once its wrong items are left out."""
    place = item["loc"]
    deeper = any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in error.errors())
    return item["type"] == "too_short" and deeper


def _explain(item: Any, values: Mapping[str, Any]) -> str:
    """One pydantic error as `entry: key: what is wrong (given: …)`."""
    place, kind = list(item["loc"]), item["type"]
    if not place:
        return item["msg"].removeprefix("Value error, ")
    table = str(place.pop(0))
    if kind == "extra_forbidden" and not place:
        return f"unknown key {table}{_nearest(table, list(_ENTRIES))}"
    if not place:
        return f"write at least one [[{table}]]" if kind in ("missing", "too_short") else f"write [[{table}]] tables"
    entry = _entry(table, place.pop(0), values)
    if kind == "extra_forbidden":
        return f"{entry}: unknown key {place[0]}{_nearest(str(place[0]), list(_ENTRIES[table].model_fields))}"
    key = ".".join(str(part) for part in place if part != "[key]")
    if kind == "missing":
        return f"{entry}: {key} is missing: {_about(table, key)}"
    given = "" if not place else f" (given: {item['input']!r})"
    message = item["msg"].removeprefix("Value error, ")
    if kind in ("dict_type", "model_type"):
        message = f"write a table {_about(table, key) if key else 'with [[' + table + ']]'}"
    return f"{entry}: {key + ': ' if key else ''}{message[:1].lower()}{message[1:]}{given}"


def _entry(table: str, index: Any, values: Mapping[str, Any]) -> str:
    """An entry by its place, counted from one, and its name where it has one."""
    if not isinstance(index, int):
        return f"[[{table}]]"
    try:
        named = values[table][index].get("name" if table == "node" else "between")
    except AttributeError:  # not a table
        named = None
    return f"{table} {index + 1}" + (f" ({named!r})" if named else "")


def _about(table: str, key: str) -> str:
    field = _ENTRIES[table].model_fields.get(key)
    return (field.description if field is not None else None) or f"every [[{table}]] needs it"
