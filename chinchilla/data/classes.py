"""The classes of a classifier: their names in order, and which one scores are for."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from chinchilla.config.costs import Costs
from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.frozen import Frozen
from chinchilla.config.run import Data
from chinchilla.data.rows import MAX_ROW_BYTES, MalformedError, checked_characters, did_you_mean

log = logging.getLogger("chinchilla")

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


class Classes(Frozen):
    """The classes, class i being `names[i]`: by name, or by size where all are numbers.

    `positive` is the class that scores are for, where there are two; `costs` are those of its two errors.
    """

    names: tuple[str, ...]
    positive: str | None = None
    costs: Costs | None = None

    @model_validator(mode="after")
    def _two_to_confuse(self) -> Self:
        if self.costs is not None and (len(self.names) != 2 or self.positive not in self.names):
            raise ValueError("costs are of two classes, one of them positive")
        return self

    def number(self, name: str) -> int:
        """The number of a class; -1 where it is none of them."""
        return self.names.index(name) if name in self.names else -1

    def decide(self, chances: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """The number of the class that each row of chances (examples, classes) is answered with (examples,).

        It is the likeliest; where errors have costs the cheaper one, which is the positive class from the threshold on.
        """
        if self.costs is None:
            return chances.argmax(1)
        positive = self.number(str(self.positive))
        return np.where(chances[:, positive] >= self.costs.threshold, positive, 1 - positive)

    def counts(self, numbers: NDArray[np.integer[Any]]) -> dict[str, int]:
        """How many of these examples, each the number of a class, every class has, in order."""
        return dict(zip(self.names, np.bincount(numbers, minlength=len(self.names)).tolist(), strict=True))


def class_name(value: object, column: str) -> str:
    """The name of a class as it stands in a file: a text without spaces around it, a number, or true or false.

    Raises:
        MalformedError: there is none, or it is of another kind.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise MalformedError(f"column {column}: no class; fill it in, leave the row out, or set data.invalid=skip")
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise MalformedError(f"column {column}: {type(value).__name__} where a class is needed; write its name")
    name = checked_characters(str(value).strip(), column)
    if not name or len(name) > MAX_ROW_BYTES:
        raise MalformedError(f"column {column}: no class; fill it in, leave the row out, or set data.invalid=skip")
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


def make_classes(counts: Mapping[str, int], data: Data) -> Classes:
    """The classes of the training data, given how many examples each has.

    Raises:
        DataError: a single class, or one of a single example.
        UsageError: `data.positive` is no class, or there are more than two.
    """
    names = _ordered(counts)
    if len(names) < 2:
        raise DataError(
            f"data.train, column {data.label}: every example is of the class {names[0]!r}, and a classifier needs two; "
            "name another column in data.label, or add examples of another class"
        )
    few = [name for name in names if counts[name] < 2]
    if few:
        more = f" (and {len(few) - 1} more such classes)" if len(few) > 1 else ""
        raise DataError(
            f"data.train, column {data.label}: the class {few[0]!r} has a single example{more}, too few to learn from "
            "and to test; add some, join it with another class, or leave it out"
        )
    return Classes(names=names, positive=_positive(names, counts, data))


def unknown_class(name: str, names: Iterable[str], part: str, data: Data) -> DataError:
    """The error for a class that valid or test has and train has not."""
    return DataError(
        f"data.{part}, column {data.label}: the class {name!r} is not in data.train, so no answer can be "
        f"right{did_you_mean(name, names)}; leave those rows out, or add some to data.train"
    )


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    found = sorted(names)
    if all(_NUMBER.fullmatch(name) for name in found):
        found.sort(key=float)
    return tuple(found)


def _positive(names: tuple[str, ...], counts: Mapping[str, int], data: Data) -> str | None:
    if len(names) > 2:
        if data.positive is not None:
            raise UsageError(
                f"data.positive: {data.positive!r} is for two classes, and column {data.label} has {len(names)}; leave "
                "it out, or join classes into two"
            )
        return None
    if data.positive is None:
        rarer = min(reversed(names), key=lambda name: counts[name])
        log.info("scores are for the class %r, the rarer one (data.positive)", rarer)
        return rarer
    if data.positive not in names:
        raise UsageError(f"data.positive: no class {data.positive!r}; the classes are {names[0]!r} and {names[1]!r}")
    return data.positive
