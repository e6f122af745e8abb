"""The kinds of example that are texts."""

from typing import NamedTuple, TypeVar


class Pair(NamedTuple):
    """A text and its translation; `group` names the document it comes from ("" when unknown)."""

    source: str
    target: str
    group: str = ""


class Document(NamedTuple):
    """A text to learn to continue; `group` names what it belongs to ("" when unknown)."""

    text: str
    group: str = ""


class LabelledText(NamedTuple):
    """A text and its class; `group` names what it belongs to ("" when unknown)."""

    text: str
    label: str
    group: str = ""


class Message(NamedTuple):
    """What one side of a conversation says; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class Chat(NamedTuple):
    """A conversation to learn to answer in; `group` names what it belongs to ("" when unknown)."""

    messages: tuple[Message, ...]
    group: str = ""


Example = TypeVar("Example", Pair, Document, LabelledText, Chat)


def key(example: Pair | Document | LabelledText | Chat) -> str:
    """What makes two examples the same to a model: the text it is given, without regard to case and spacing.

    Of a chat that is all that the user says.
    """
    if isinstance(example, Chat):
        given = "\n".join(message.content for message in example.messages if message.role == "user")
    else:
        given = example[0]
    return " ".join(given.casefold().split())


def texts(example: Pair | Document | LabelledText | Chat) -> tuple[str, ...]:
    """The texts of an example: source and target, the one text, or what each message says."""
    if isinstance(example, Chat):
        return tuple(message.content for message in example.messages)
    return (example.text,) if isinstance(example, LabelledText) else example[:-1]
