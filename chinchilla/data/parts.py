"""Write the examples of a fetched data set as train, valid and test files, without leaks."""

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla.config.errors import DataError
from chinchilla.data.examples import Chat, Document, Example, LabelledText, Pair, key

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Shares:
    """The share of the groups that go to valid and to test."""

    valid: float
    test: float

    def part(self, group: str) -> str:
        """The part of a group: by a hash of its name, so that it is the same on every machine and in every version."""
        return self.at(_place(group))

    def at(self, place: float) -> str:
        """The part that a place in [0, 1) belongs to."""
        if place < self.test:
            return "test"
        return "valid" if place < self.test + self.valid else "train"


def write_parts(folder: Path, examples: Iterable[Example], shares: Shares, largest: float = math.inf) -> dict[str, int]:
    """Write train, valid and test (.tsv of pairs, .jsonl of other texts) and give the count of each.

    A group of more than `largest` examples stays in train: valid and test would be about little else.

    Duplicates are dropped, and from valid and test whatever the parts before them hold (compared without regard to
    case and spacing). Valid and test are in a scattered order, so that their first rows are a fair sample.

    Raises:
        DataError: a part would be empty.
    """
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    examples = list(examples)
    sizes = Counter(example.group for example in examples)
    for example in examples:
        small = sizes[example.group] <= largest
        parts[shares.part(example.group) if small else "train"].append(example)
    parts["train"] = _distinct(parts["train"], lambda example: example[:-1])
    seen = {key(example) for example in parts["train"]}
    for name in ("test", "valid"):
        unseen = _distinct((example for example in parts[name] if key(example) not in seen), key)
        parts[name] = sorted(unseen, key=lambda example: _place(key(example)))
        seen.update(map(key, parts[name]))
    counts = _counts(folder, parts)
    for name, part in parts.items():
        _write(folder / name, part)
    return counts


def write_table(
    folder: Path, columns: Sequence[str], rows: Iterable[Sequence[str]], label: str, shares: Shares
) -> dict[str, int]:
    """Write train.csv, valid.csv and test.csv and give the count of each.

    Every part has the same share of each class, as near as can be. Rows that agree in everything but the label stay in
    one part; they are not dropped, since two people may well be alike. The order is a scattered one.

    Raises:
        DataError: a part would be empty.
    """
    at = list(columns).index(label)
    alike: dict[str, list[Sequence[str]]] = {}
    for row in rows:
        alike.setdefault("\n".join((*row[:at], *row[at + 1 :])), []).append(row)
    scattered = sorted(alike, key=_place)
    totals, passed = Counter[str](), Counter[str]()
    for group in alike.values():
        totals[group[0][at]] += len(group)
    parts: dict[str, list[Sequence[str]]] = {name: [] for name in PARTS}
    for features in scattered:
        group = alike[features]
        kind = group[0][at]
        parts[shares.at((passed[kind] + 0.5) / totals[kind])] += group
        passed[kind] += len(group)
    counts = _counts(folder, parts)
    for name, part in parts.items():
        write_csv(folder / f"{name}.csv", columns, part)
    return counts


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Write a table with its header and give the number of its rows."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _counts(folder: Path, parts: Mapping[str, Sequence[object]]) -> dict[str, int]:
    counts = {name: len(part) for name, part in parts.items()}
    if not all(counts.values()):
        raise DataError(f"{folder.name}: the packages hold too few examples: {counts}")
    return counts


def _place(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _distinct(examples: Iterable[Example], identity: Callable[[Example], Hashable]) -> list[Example]:
    """The first example of each identity, in order."""
    first: dict[Hashable, Example] = {}
    for example in examples:
        first.setdefault(identity(example), example)
    return list(first.values())


def _write(stem: Path, examples: Sequence[Example]) -> None:
    ending = ".tsv" if isinstance(examples[0], Pair) else ".jsonl"
    with stem.with_suffix(ending).open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(_row(example) + "\n")


def _row(example: Pair | Document | LabelledText | Chat) -> str:
    if isinstance(example, Pair):
        return "\t".join(example)
    fields = example._asdict()
    if isinstance(example, Chat):
        fields["messages"] = [message._asdict() for message in example.messages]
    return json.dumps(fields, ensure_ascii=False)
