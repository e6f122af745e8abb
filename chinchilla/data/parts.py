"""Write the examples of a fetched data set as train, valid and test files, without leaks."""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla.config.errors import DataError
from chinchilla.data.examples import Example, Pair, key

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Shares:
    """The share of the groups that go to valid and to test."""

    valid: float
    test: float

    def part(self, group: str) -> str:
        """The part of a group: by a hash of its name, so that it is the same on every machine and in every version."""
        place = _place(group)
        if place < self.test:
            return "test"
        return "valid" if place < self.test + self.valid else "train"


def write_parts(folder: Path, examples: Iterable[Example], shares: Shares) -> dict[str, int]:
    """Write train, valid and test (.tsv of pairs, .jsonl of documents) and give the count of each.

    Duplicates are dropped, and from valid and test whatever the parts before them hold (compared without regard to
    case and spacing). Valid and test are in a scattered order, so that their first rows are a fair sample.

    Raises:
        DataError: a part would be empty.
    """
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    for example in examples:
        parts[shares.part(example.group)].append(example)
    parts["train"] = _distinct(parts["train"], lambda example: example[:-1])
    seen = {key(example) for example in parts["train"]}
    for name in ("test", "valid"):
        unseen = _distinct((example for example in parts[name] if key(example) not in seen), key)
        parts[name] = sorted(unseen, key=lambda example: _place(key(example)))
        seen.update(map(key, parts[name]))
    if not all(parts.values()):
        raise DataError(f"{folder.name}: the packages hold too few examples: { {n: len(p) for n, p in parts.items()} }")
    for name, part in parts.items():
        _write(folder / name, part)
    return {name: len(part) for name, part in parts.items()}


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
    pairs = isinstance(examples[0], Pair)
    with stem.with_suffix(".tsv" if pairs else ".jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = "\t".join(example) if pairs else json.dumps(example._asdict(), ensure_ascii=False)
            file.write(row + "\n")
