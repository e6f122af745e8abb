"""What turns examples into tensors and back, and how a run and a model keep it."""

from typing import Any, Protocol


class Codec(Protocol):
    """A tokenizer, or classes and columns: made from training data, and kept with the model."""

    @property
    def tokenizer_json(self) -> str | None:
        """The text of its tokenizer.json, where it has a tokenizer."""

    @property
    def settings(self) -> dict[str, Any]:
        """The rest as JSON: what config.json holds under `codec`."""
