"""The data of dialogue: packed chats with labels at the assistant's answers."""

import logging
from itertools import islice
from typing import Any

from chinchilla.config.run import Run
from chinchilla.data.chat import chat_rows, encode_chats, split_chats
from chinchilla.data.chat_template import CHAT
from chinchilla.data.examples import Chat
from chinchilla.data.packed_batches import Aligned, PackedBatches
from chinchilla.data.split import Split
from chinchilla.planning.search import Facts
from chinchilla.tasks.dialogue import ChatCodec, Dialogue, template_for
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepared import Kind, Prepared, Tell
from chinchilla.verbs.texts import SAMPLE, bytes_per_token, fitting_row, make_tokenizer

log = logging.getLogger("chinchilla")


def _examples(run: Run, split: Split[Chat]) -> tuple[Chat, ...]:
    return tuple(split.test)


def _prepare(run: Run, split: Split[Chat], task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    characters = sum(len(text) for chat in split.train for text in _texts(chat))
    words = (text for chat in split.train for text in _texts(chat))
    tokenizer = make_tokenizer(run, words, characters, CHAT.marks)
    tell(f"tokenizer of {tokenizer.vocab_size:,} tokens; encoding")
    codec = ChatCodec(tokenizer, template_for(tokenizer))
    encoded = [encode_chats(part, tokenizer, codec.template) for part in (split.train, split.valid)]
    row_len = run.model.max_len or fitting_row(encoded[0].ids.lengths)
    train, valid = (chat_rows(part, row_len) for part in encoded)

    def make(rows: Aligned, labels: int, seed: int, like: PackedBatches | None = None) -> PackedBatches:
        return PackedBatches(rows, row_len, labels, seed, "target", tokenizer.pad_id, like)

    batches = make(train, 4096, 0)
    positions = batches.num_batches(0) * batches.num_rows * row_len
    answers = [message.content for chat in islice(split.train, SAMPLE) for message in chat.messages]
    facts = Facts(
        task=run.task,
        vocab_size=tokenizer.vocab_size,
        unique_tokens=batches.unique_tokens,
        num_examples=len(split.train),
        mean_source_len=0,
        mean_target_len=row_len,
        max_len=row_len,
        # What carries no label costs as padding does: questions, and the ends of rows.
        padding=1 - batches.unique_tokens / positions,
        beam_size=1,
        bytes_per_token=bytes_per_token(answers, tokenizer),
    )
    return Prepared(run, task, codec, train, valid, test, row_len, facts, make)


def _texts(chat: Chat) -> list[str]:
    return [message.content for message in chat.messages]


DIALOGUE = Kind(
    split=lambda run: split_chats(run.data, run.seed),
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Dialogue(),
    open_codec=ChatCodec.open,
)
