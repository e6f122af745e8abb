"""The codec of classified tables: which columns are read and how, and the classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from chinchilla.config.errors import DataError, FaultError
from chinchilla.data.classes import Classes
from chinchilla.data.codec import Asked
from chinchilla.data.columns import UNKNOWN, Columns
from chinchilla.data.rows import MalformedError
from chinchilla.data.text_classes import BATCH_TOKENS, open_classes

MISSING = 0
"""The code of a category that is not there."""


@dataclass(frozen=True, eq=False)
class TableClasses:
    """Rows, as values by column name, to what a model takes."""

    columns: Columns
    classes: Classes

    @property
    def tokenizer_json(self) -> None:
        """As a codec (`data.codec`): there is no tokenizer."""

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"columns": self.columns.model_dump(mode="json"), "classes": self.classes.model_dump(mode="json")}

    @classmethod
    def open(cls, settings: dict[str, Any], tokenizer_json: str | None, where: str) -> "TableClasses":
        """The codec of a model folder.

        Raises:
            FaultError: the settings are damaged.
        """
        try:
            columns = Columns.model_validate(settings.get("columns"))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ("codec.columns", *first["loc"])))
            raise FaultError(f"{where}/config.json: {place}: {first['msg']}; get the file anew") from None
        return cls(columns, open_classes(settings, where))

    @property
    def form(self) -> dict[str, Any]:
        """As a codec (`data.codec`): the columns with their kind, and the known names of categories.

        Where errors have costs, also from which chance on which class is answered.
        """
        names = {category.column: list(category.categories) for category in self.columns.categories}
        columns = [
            {"name": name, "kind": kind} | ({"categories": names[name]} if name in names else {})
            for name, kind in self.columns.kinds.items()
        ]
        told = {"classes": list(self.classes.names), "columns": columns}
        if self.classes.costs is not None:
            told |= {"positive": self.classes.positive, "threshold": self.classes.costs.threshold}
        return told

    def read_question(self, value: Any) -> Asked:
        """As a codec: a row as values by column name; notes say which are missing, and which no category known.

        Raises:
            MalformedError: it is no such row; see `Columns.encode_records`.
        """
        if not isinstance(value, Mapping):
            raise MalformedError(f"{type(value).__name__} where a row is needed; give values by column name")
        for name, cell in value.items():
            if isinstance(cell, list | Mapping):
                raise MalformedError(f"column {name}: {type(cell).__name__} where a value is needed; give one")
        try:
            codes = self.columns.encode_records([value])[0]
        except DataError as error:
            # A single row needs no place.
            raise MalformedError(str(error).removeprefix("input, row 1: ")) from None
        return Asked(value, 0, tuple(self._notes(codes)))

    def _notes(self, codes: NDArray[np.float32]) -> Iterator[str]:
        numbers, categories = self.columns.numbers, self.columns.categories
        names = [number.column for number in numbers] + [category.column for category in categories]
        read = [bool(number.knots) for number in numbers] + [True] * len(categories)
        empty = [*np.isnan(codes[: len(numbers)]), *(codes[len(numbers) :] == MISSING)]
        missing = [name for name, is_read, is_empty in zip(names, read, empty, strict=True) if is_read and is_empty]
        if missing:
            yield f"no value for {', '.join(dict.fromkeys(missing))}: taken as missing"
        strange = np.flatnonzero(codes[len(numbers) :] == UNKNOWN)
        if len(strange):
            yield f"{', '.join(categories[place].column for place in strange)}: no known category, or a rare one"

    def batches(self, questions: Sequence[Mapping[str, object]]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of rows that go through the model together, and their `source` (batch, columns).

        Raises:
            DataError: see `Columns.encode_records`.
        """
        source = torch.from_numpy(self.columns.encode_records(questions))
        size = max(1, BATCH_TOKENS // (1 + source.shape[1]))
        for start in range(0, len(source), size):
            yield list(range(start, min(start + size, len(source)))), {"source": source[start : start + size]}
