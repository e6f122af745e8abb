"""The items that can be recommended: the codec of recommendation."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from chinchilla.config.errors import FaultError
from chinchilla.config.frozen import Frozen
from chinchilla.data.codec import Asked
from chinchilla.data.rows import MalformedError, did_you_mean

HINTED = 10_000
"""Among so many items the nearest to an unknown one is looked for; among 100,000 that takes a second."""

FIRST_ITEM = 4
"""The id of the first item, after those of <pad>, <s>, </s> and <mask>."""


class Items(Frozen):
    """The items that can be recommended, by name; item i has the id 4 + i."""

    names: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """Ids, those of the special tokens counted."""
        return FIRST_ITEM + len(self.names)

    @cached_property
    def _known(self) -> dict[str, int]:
        return {name: FIRST_ITEM + place for place, name in enumerate(self.names)}

    def ids(self, history: Iterable[str]) -> list[int]:
        """The ids of those items of a history that are known, in order."""
        return [self._known[name] for name in history if name in self._known]

    def name(self, number: int) -> str:
        """The item of an id."""
        return self.names[number - FIRST_ITEM]

    @property
    def tokenizer_json(self) -> None:
        """As a codec (`data.codec`): there is no tokenizer."""

    @property
    def settings(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"items": list(self.names)}

    @classmethod
    def open(cls, settings: dict[str, Any], tokenizer_json: str | None, where: str) -> "Items":
        """The items of a model folder.

        Raises:
            FaultError: they are damaged.
        """
        try:
            return cls.model_validate({"names": settings.get("items")})
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise FaultError(f"{where}/config.json: codec.items: {problem}; get the file anew") from None

    @property
    def form(self) -> dict[str, Any]:
        """As a codec (`data.codec`)."""
        return {"items": list(self.names)}

    def read_question(self, value: Any) -> Asked:
        """As a codec: the names of items somebody had, the latest last. Unknown ones are passed over, with a note.

        Raises:
            MalformedError: it is no list of names, or all are unknown.
        """
        if not isinstance(value, list | tuple) or not all(isinstance(name, str | int) for name in value):
            raise MalformedError("give the names of items as a list, the latest last")
        names = [str(name) for name in value]
        known = [name for name in names if name in self._known]
        unknown = [name for name in names if name not in self._known]
        if unknown and not known:
            hint = did_you_mean(unknown[0], self.names) if len(self.names) <= HINTED else ""
            raise MalformedError(f"no item {unknown[0]!r}{hint}; name items that were in the training data")
        notes = (f"passed over {len(unknown)} unknown items, {unknown[0]!r} first",) if unknown else ()
        return Asked(known, 0, notes)
