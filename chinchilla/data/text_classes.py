"""The codec of classified texts: a tokenizer, the classes, and how many tokens of a text are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from chinchilla.config.errors import FaultError
from chinchilla.data.classes import Classes
from chinchilla.data.codec import Asked
from chinchilla.data.rows import MalformedError
from chinchilla.data.tokenizer import Tokenizer

BATCH_TOKENS = 8192
"""Positions that go through a model together when a whole set is classified."""


@dataclass(frozen=True, eq=False)
class TextClasses:
    """Texts to rows of ids that begin with <s>, where the class is read off. Of a longer text the beginning is read."""

    tokenizer: Tokenizer
    classes: Classes
    max_len: int

    @property
    def tokenizer_json(self) -> str:
        """As a codec (`data.codec`)."""
        return self.tokenizer.to_json()

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"classes": self.classes.model_dump(), "max_len": self.max_len, **self.tokenizer.settings}

    @classmethod
    def open(cls, settings: dict[str, Any], tokenizer_json: str | None, where: str) -> "TextClasses":
        """The codec of a model folder.

        Raises:
            UsageError: there is no tokenizer.
            FaultError: the settings are damaged.
        """
        tokenizer = Tokenizer.open(settings, tokenizer_json, where)
        max_len = settings.get("max_len")
        if not isinstance(max_len, int) or max_len < 2:
            raise FaultError(f"{where}/config.json: codec.max_len is {max_len!r}; get the file anew")
        return cls(tokenizer, open_classes(settings, where), max_len)

    @property
    def form(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"classes": list(self.classes.names)}

    def read_question(self, text: str) -> Asked:
        """As a codec: the text, with a note where only its beginning is read.

        Raises:
            MalformedError: there is nothing but blanks.
        """
        if not text.strip():
            raise MalformedError("an empty text has no class; give one that says something")
        count = len(self.tokenizer.encode(text)) + 1
        if count <= self.max_len:
            return Asked(text, count)
        return Asked(text, self.max_len, (f"read the first {self.max_len - 1} of {count - 1} tokens",))

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of texts of like length, and their `source` (batch, length) with `source_segments`, 0 at padding."""
        ids = [[self.tokenizer.bos_id, *row[: self.max_len - 1]] for row in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        while order:
            length = len(ids[order[0]])
            places = order[: max(1, BATCH_TOKENS // length)]
            source = np.full((len(places), length), self.tokenizer.pad_id, np.int64)
            for row, place in enumerate(places):
                source[row, : len(ids[place])] = ids[place]
            real = np.arange(length) < np.array([len(ids[place]) for place in places])[:, None]
            yield places, {"source": torch.from_numpy(source), "source_segments": torch.from_numpy(real)}
            order = order[len(places) :]


def open_classes(settings: dict[str, Any], where: str) -> Classes:
    """The classes that a model folder keeps.

    Raises:
        FaultError: they are damaged.
    """
    try:
        return Classes.model_validate(settings.get("classes"))
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise FaultError(f"{where}/config.json: codec.classes: {why}; get the file anew") from None
