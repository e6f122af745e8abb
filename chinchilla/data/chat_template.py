"""How a chat becomes one sequence of tokens: the same for training, serving, and (as Jinja) for other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chinchilla.data.examples import Message
from chinchilla.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


class Part(NamedTuple):
    """Some tokens of a chat; `role` is set on the mark that opens a message, `answer` where loss falls."""

    ids: list[int]
    role: str = ""
    answer: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """`start`, then for each message `opening` with its role in it, what it says without spaces around, and `ending`.

    The marks are read as special tokens where the tokenizer has them, what is said never is: nobody can speak for
    another. (A tokenizer that was loaded with ids of its own reads special tokens wherever they stand.)
    """

    start: str = "<s>"
    opening: str = "<|{role}|>\n"
    ending: str = "</s>"
    after: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The openings, for `Tokenizer.train` to make a token of each."""
        return tuple(self.opening.format(role=role) for role in ROLES)

    def render(self, messages: Sequence[Message], answer: bool = False) -> str:
        """The text of a chat; with `answer`, up to where the assistant is to speak."""
        said = [
            self.opening.format(role=message.role) + message.content.strip() + self.ending + self.after
            for message in messages
        ]
        return self.start + "".join(said) + (self.opening.format(role="assistant") if answer else "")

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, answer: bool = False) -> list[int]:
        """The token ids of a chat; with `answer`, up to where the assistant is to speak."""
        ids = [token for part in self.parts(messages, tokenizer) for token in part.ids]
        return ids + (tokenizer.encode_marks(self.opening.format(role="assistant")) if answer else [])

    def parts(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
        """The token ids of a chat, mark by mark and message by message."""
        ending, after = tokenizer.encode_marks(self.ending), tokenizer.encode_marks(self.after)
        said = tokenizer.encode_batch([message.content.strip() for message in messages])
        parts = [Part(tokenizer.encode_marks(self.start))]
        for message, ids in zip(messages, said, strict=True):
            answer = message.role == "assistant"
            opening = tokenizer.encode_marks(self.opening.format(role=message.role))
            parts += [Part(opening, message.role), Part(ids + ending, answer=answer), Part(after)]
        return parts

    def stop_id(self, tokenizer: Tokenizer) -> int:
        """The token that ends an answer."""
        return tokenizer.encode_marks(self.ending)[0]

    def jinja(self) -> str:
        """The template as Hugging Face's `chat_template`, which renders the same text."""
        before, behind = self.opening.split("{role}")
        end = self.ending + self.after
        assistant = self.opening.format(role="assistant")
        return (
            f"{{{{ {_quoted(self.start)} }}}}"
            "{% for message in messages %}"
            f"{{{{ {_quoted(before)} + message['role'] + {_quoted(behind)}"
            f" + message['content'] | trim + {_quoted(end)} }}}}"
            "{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {_quoted(assistant)} }}}}{{% endif %}}"
        )


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


CHAT = ChatTemplate()
CHATML = ChatTemplate(start="", opening="<|im_start|>{role}\n", ending="<|im_end|>", after="\n")
"""The form that SmolLM2, Qwen and others were trained in."""
