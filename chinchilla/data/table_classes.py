"""The codec of classified tables: which columns are read and how, and the classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from chinchilla.config.errors import FaultError
from chinchilla.data.classes import Classes
from chinchilla.data.codec import Asked
from chinchilla.data.columns import Columns
from chinchilla.data.rows import MalformedError
from chinchilla.data.text_classes import BATCH_TOKENS, open_classes


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
        """As a codec (`data.codec`): the columns with their kind, and the known names of categories."""
        names = {category.column: list(category.categories) for category in self.columns.categories}
        columns = [
            {"name": name, "kind": kind} | ({"categories": names[name]} if name in names else {})
            for name, kind in self.columns.kinds.items()
        ]
        return {"classes": list(self.classes.names), "columns": columns}

    def read_question(self, value: Any) -> Asked:
        """As a codec: a row as values by column name; what is left out is missing.

        Raises:
            MalformedError: it is no such row.
            DataError: see `Columns.encode_records`.
        """
        if not isinstance(value, Mapping):
            raise MalformedError(f"{type(value).__name__} where a row is needed; give values by column name")
        self.columns.encode_records([value])
        return Asked(value)

    def batches(self, questions: Sequence[Mapping[str, object]]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of rows that go through the model together, and their `source` (batch, columns).

        Raises:
            DataError: see `Columns.encode_records`.
        """
        source = torch.from_numpy(self.columns.encode_records(questions))
        size = max(1, BATCH_TOKENS // (1 + source.shape[1]))
        for start in range(0, len(source), size):
            yield list(range(start, min(start + size, len(source)))), {"source": source[start : start + size]}
