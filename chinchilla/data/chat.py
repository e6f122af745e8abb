"""Chats: read, split, encoded by a template so that only the answers carry loss, cut to a row by whole exchanges."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.batches import IGNORED
from chinchilla.data.chat_template import ChatTemplate, Part
from chinchilla.data.encode import Ragged, RaggedBuilder
from chinchilla.data.examples import Chat, Message
from chinchilla.data.packed_batches import Aligned
from chinchilla.data.readers import built, cell, checked_text, file_format, group_cell, refuse, some
from chinchilla.data.rows import MalformedError, OnInvalid, Record
from chinchilla.data.split import Split, split
from chinchilla.data.tokenizer import Tokenizer

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class EncodedChats:
    """Chats as token ids, each from its start to the end of its last answer.

    `answers` says of each of `ids.flat` whether it belongs to an answer or ends one; `exchanges` are the places in a
    chat's ids where the user begins to speak.
    """

    ids: Ragged
    answers: NDArray[np.bool_]
    exchanges: Ragged


def read_chats(files: Files, data: Data, on_invalid: OnInvalid = refuse) -> Iterator[Chat]:
    """Read conversations from a JSONL or Parquet file.

    The column `data.messages` holds a list of {"role", "content"}, or of {"from", "value"} as ShareGPT has them. A chat
    is perhaps a system message, then user and assistant in turn, with one answer at least.

    Raises:
        DataError: a file that is missing, empty or not of its format, or (by `on_invalid`) a malformed row.
        UsageError: a format that holds no chats, or several files.
    """
    if isinstance(files, tuple):
        raise UsageError(f"{files[0]}: chats stand in one file; give one of {len(files)}")
    kind = file_format(files, data)
    if kind not in ("jsonl", "parquet"):
        raise UsageError(f"{files}: {kind} holds no chats; give JSONL or Parquet with a column {data.messages!r}")
    return some(built(files, kind, (data.messages,), data.group_name, partial(_chat, data=data), on_invalid), files)


def split_chats(data: Data, seed: int) -> Split[Chat]:
    """Split chats: two in which the user says the same never stand on both sides.

    Raises:
        DataError: bad data (see `read_chats`), or too few groups to cut valid and test from.
        UsageError: a format that holds no chats.
    """
    return split(partial(read_chats, data=data), data, seed)


def _chat(record: Record, data: Data) -> Chat:
    said = cell(record, data.messages)
    if not isinstance(said, list) or not said:
        raise MalformedError(
            f'column {data.messages}: write a list of messages like {{"role": "user", "content": "Hello"}}'
        )
    return Chat(
        checked_turns([message_of(one, data.messages) for one in said], data.messages), group_cell(record, data)
    )


def message_of(message: object, column: str) -> Message:
    """A message out of {"role", "content"} or {"from", "value"}.

    Raises:
        MalformedError: it is neither, its role is unknown, or it says nothing.
    """
    if not isinstance(message, Mapping):
        raise MalformedError(
            f"column {column}: {type(message).__name__} where a message with role and content is needed"
        )
    who, what = ("from", "value") if "from" in message else ("role", "content")
    role = message.get(who)
    if not isinstance(role, str) or role not in ROLES:
        raise MalformedError(f"column {column}: the {who} {role!r} is none of {', '.join(ROLES)}")
    return Message(ROLES[role], checked_text(message.get(what), f"{column}, {role}'s {what}"))


def checked_turns(messages: list[Message], column: str) -> tuple[Message, ...]:
    """The same messages, if they are in turn, with an answer among them.

    Raises:
        MalformedError: they are not.
    """
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    for index, role in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if role != wanted:
            place = index + 1 + len(roles) - len(turns)
            raise MalformedError(
                f"column {column}: message {place} is of {role} where {wanted} is due; write perhaps a system message "
                "first, then user and assistant in turn"
            )
    if "assistant" not in roles:
        raise MalformedError(f"column {column}: no answer in it; add one of assistant, or leave the row out")
    return tuple(messages)


def encode_chats(chats: Iterable[Chat], tokenizer: Tokenizer, template: ChatTemplate) -> EncodedChats:
    """Encode chats; what follows the last answer is left out, since nothing is learned from it."""
    ids, exchanges = RaggedBuilder(), RaggedBuilder()
    answers = [np.empty(0, dtype=bool)]
    for chat in chats:
        messages = chat.messages if chat.messages[-1].role == "assistant" else chat.messages[:-1]
        parts = template.parts(messages, tokenizer)
        ids.extend([_tokens(parts)])
        answers.append(np.repeat([part.answer for part in parts], [len(part.ids) for part in parts]))
        exchanges.extend([_exchanges(parts)])
    return EncodedChats(ids.build(), np.concatenate(answers), exchanges.build())


def prompt_ids(
    messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate, room: int
) -> list[int] | None:
    """A chat's ids up to where the assistant is to speak, without its oldest exchanges if it is longer than `room`.

    None where even its last question is too long.
    """
    parts = template.parts(messages, tokenizer)
    ids = np.array(_tokens(parts) + template.encode((), tokenizer, answer=True)[len(parts[0].ids) :])
    kept = kept_tokens(np.array(_exchanges(parts)), len(ids), room)
    return ids[kept].tolist() if len(kept) else None


def _tokens(parts: Iterable[Part]) -> list[int]:
    return [token for part in parts for token in part.ids]


def _exchanges(parts: Sequence[Part]) -> list[int]:
    """Where the user begins to speak."""
    starts = itertools.accumulate((len(part.ids) for part in parts), initial=0)
    return [start for start, part in zip(starts, parts, strict=False) if part.role == "user"]


def chat_rows(chats: EncodedChats, max_len: int) -> Aligned:
    """Chats to pack: each token predicted from those before it, with labels at the answers only.

    A chat longer than `max_len` loses its oldest exchanges, keeping what the system says, until it fits; one whose last
    exchange is too long is left out. How many is logged.
    """
    ids, labels = RaggedBuilder(), RaggedBuilder()
    cut = left_out = 0
    for chat, exchanges in zip(_rows(chats.ids), _rows(chats.exchanges), strict=True):
        tokens = chats.ids.flat[chat]
        places = chats.exchanges.flat[exchanges]
        kept = kept_tokens(places, len(tokens), max_len + 1)
        cut += 0 < len(kept) < len(tokens)
        left_out += len(kept) == 0
        wanted = np.where(chats.answers[chat], tokens, IGNORED)
        ids.extend([tokens[kept][:-1].tolist()])
        labels.extend([wanted[kept][1:].tolist()])
    if cut or left_out:
        log.info(
            "of %d chats %d are longer than %d tokens: %d lost their oldest exchanges, %d were left out",
            len(chats.ids),
            cut + left_out,
            max_len,
            cut,
            left_out,
        )
    return Aligned(ids.build(), labels.build().flat)


def kept_tokens(exchanges: NDArray[np.integer[Any]], length: int, room: int) -> NDArray[np.int64]:
    """Which of a chat's `length` tokens to keep so that they fit in `room`: the head, and the latest whole exchanges.

    None where the head and the last exchange don't fit.
    """
    head = int(exchanges[0])
    starts = [int(start) for start in exchanges if head + length - int(start) <= room]
    if not starts:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.arange(head), np.arange(starts[0], length)])


def _rows(ragged: Ragged) -> Iterator[slice]:
    for start, end in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True):
        yield slice(start, end)
