"""The two kinds of example."""

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


Example = TypeVar("Example", Pair, Document)


def key(example: Pair | Document) -> str:
    """What makes two examples the same to a model: the text it is given, without regard to case and spacing."""
    return " ".join(example[0].casefold().split())


def texts(example: Pair | Document) -> tuple[str, ...]:
    """The texts of an example: source and target, or the one text."""
    return example[:-1]
