"""What turns examples into tensors and back, and how a run and a model keep it."""

from typing import Any, NamedTuple, Protocol


class Asked(NamedTuple):
    """A question as a model is asked it, how many tokens it is (0 where it is no text), and what was made of it."""

    question: Any
    num_tokens: int = 0
    notes: tuple[str, ...] = ()


class Codec(Protocol):
    """A tokenizer, or classes and columns: made from training data, and kept with the model."""

    @property
    def tokenizer_json(self) -> str | None:
        """The text of its tokenizer.json, where it has a tokenizer."""

    @property
    def settings(self) -> dict[str, Any]:
        """The rest as JSON: what config.json holds under `codec`."""

    @property
    def form(self) -> dict[str, Any]:
        """What questions are made of and answers chosen from, as JSON by name: `classes`, say, or `columns`."""

    def read_question(self, value: Any, /) -> Asked:
        """A question as somebody wrote it: a text, an image file's bytes or path, a row by column.

        Raises:
            MalformedError: it cannot be answered; says why, and the mend.
            DataError: the same, of a value that has parts of its own; names the part.
        """
