"""Stop texts in a stream: the answer ends before one, and no part of one is ever shown."""

from collections.abc import Sequence
from typing import Protocol


class TokenStream(Protocol):
    """Tokens to text as they come, as `data.tokenizer.TextStream` does it."""

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain."""

    def finish(self) -> str:
        """The rest, when no token follows."""


class StoppableText:
    """The text of one row's tokens, up to the first stop text."""

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self.stream, self.stop = stream, tuple(stop)
        self.stopped = False
        self._held = ""

    def push(self, token: int) -> str:
        """Take one token; return the text that is now certain. Sets `stopped` when a stop text is complete."""
        return self._release(self.stream.push(token))

    def finish(self) -> str:
        """The text still held back, once no more tokens come; it may yet complete a stop text."""
        text = self._release(self.stream.finish())
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        """Cut at the earliest stop text, else hold back an end that may turn out to begin one."""
        self._held += text
        found = [at for at in map(self._held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        certain = len(self._held) - self._unsure()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _unsure(self) -> int:
        """The length of the longest end of the held text that begins a stop text."""
        longest = max(map(len, self.stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self.stop):
                return length
        return 0
