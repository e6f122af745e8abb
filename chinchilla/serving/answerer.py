"""What serving asks of a model: two small protocols, so that no concrete model is ever named here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from chinchilla.config.plan import TaskName
from chinchilla.data.codec import Asked

Finish = Literal["stop", "length"]

ANSWER_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What a model or tokenizer raises on an input it cannot take; anything else is a mistake in the program."""


Options = tuple[tuple[str, Any], ...]
"""Arguments of `Answerer.answer` by name, so that they can be compared."""


@dataclass(frozen=True)
class Card:
    """The facts shown of a served model.

    `max_len` is the most tokens one text may have, or a prompt and its completion together. `created` is in seconds
    since 1970; `metrics` are scores by name, such as `bleu`; `form` is what a codec tells of questions and answers.
    """

    name: str
    task: TaskName
    num_params: int
    size_bytes: int
    precision: str
    max_len: int
    created: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What `Answerer.read` made of one question, to be answered whole.

    Questions with the same options may share a batch.
    """

    content: Any
    options: Options = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer as JSON by name, and how many tokens were written for it."""

    content: Mapping[str, Any]
    num_tokens: int = 0


@dataclass(frozen=True)
class Prompt:
    """What `Answerer.read` made of a prompt, to be continued by at most `max_tokens` tokens.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off. `stop` texts end the answer and are left out of it.
    """

    content: Any
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one row gained in one step: text that is now certain (may be empty), and why the row ended, if it did."""

    text: str
    finish: Finish | None = None


class Decoding(Protocol):
    """A running batch of prompts. Rows join and leave between steps; a row's answer does not depend on the others."""

    def join(self, prompts: Sequence[Prompt]) -> list[Piece]:
        """Append rows; return the first token's piece of each new row."""

    def step(self) -> list[Piece]:
        """One more token for every row, in the rows' order."""

    def leave(self, rows: Sequence[int]) -> None:
        """Remove the rows at these positions; the others close up and keep their order."""


class Answerer(Protocol):
    """A loaded model. All but `card` and `read` is called from one thread at a time."""

    @property
    def card(self) -> Card:
        """Facts to show and limits to keep."""

    def read(self, value: Any) -> Asked:
        """A question as a request gives it, made ready to be answered; pure, and called from any thread.

        Raises:
            DataError: it cannot be answered; says why, and the mend.
        """

    def answer(self, questions: Sequence[Any], **options: Any) -> list[Answer]:
        """Answer what `read` gave, as one batch."""

    def decoding(self) -> Decoding:
        """A new, empty batch of completions."""
