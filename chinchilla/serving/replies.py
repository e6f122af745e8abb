"""Completions and chats in OpenAI's forms: one answer in the making, whole or in chunks."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from chinchilla.serving.answerer import Piece

Choice = dict[str, Any]


class Wording(NamedTuple):
    """What OpenAI calls the parts of one kind of answer: `whole` makes a choice of text and end, `part` of a piece."""

    id_start: str
    whole_object: str
    part_object: str
    whole: Callable[[str], Choice]
    part: Callable[[str, bool], Choice]


def _message(text: str) -> Choice:
    return {"message": {"role": "assistant", "content": text}}


def _delta(text: str, is_first: bool) -> Choice:
    role = {"role": "assistant"} if is_first else {}
    return {"delta": role | ({"content": text} if text or is_first else {})}


TEXT = Wording(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text, is_first: {"text": text}
)
CHAT = Wording("chatcmpl", "chat.completion", "chat.completion.chunk", _message, _delta)


class Reply:
    """One answer to a request, of one choice a prompt."""

    def __init__(
        self, wording: Wording, model: str, num_rows: int, prompt_tokens: int, notes: Sequence[str] = ()
    ) -> None:
        self.wording = wording
        self.prompt_tokens, self.num_tokens = prompt_tokens, 0
        self.texts = [""] * num_rows
        self.finish: list[str | None] = [None] * num_rows
        self._head = {"id": f"{wording.id_start}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._notes = {"notes": list(notes)} if notes else {}
        self._begun: set[int] = set()

    def add(self, index: int, piece: Piece) -> None:
        """Take a piece, of one token, of a row's text."""
        self.num_tokens += 1
        self.texts[index] += piece.text
        self.finish[index] = piece.finish

    def whole(self) -> dict[str, Any]:
        """The answer."""
        ends = zip(self.texts, self.finish, strict=True)
        choices = [_choice(index, self.wording.whole(text), finish) for index, (text, finish) in enumerate(ends)]
        return self._told(self.wording.whole_object, choices) | {"usage": self._usage()} | self._notes

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of the answer, as a stream's event."""
        part = self.wording.part(piece.text, index not in self._begun)
        self._begun.add(index)
        return self._told(self.wording.part_object, [_choice(index, part, piece.finish)])

    def last_chunk(self) -> dict[str, Any]:
        """What a stream tells when all is said."""
        return self._told(self.wording.part_object, []) | {"usage": self._usage()} | self._notes

    def _told(self, name: str, choices: list[Choice]) -> dict[str, Any]:
        return {"object": name, **self._head, "choices": choices}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.prompt_tokens + self.num_tokens,
        }


def _choice(index: int, said: Choice, finish: str | None) -> Choice:
    return {"index": index, **said, "finish_reason": finish, "logprobs": None}
