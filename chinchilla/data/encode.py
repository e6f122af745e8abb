"""Examples as token ids: held flat, four bytes a token, without special tokens."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from chinchilla.data.examples import Document, Pair
from chinchilla.data.ragged import Ragged as Ragged
from chinchilla.data.text_noise import TextNoise
from chinchilla.data.tokenizer import Tokenizer

_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Sources and targets as token ids, with the ids that batches put around them."""

    source: Ragged
    target: Ragged
    pad_id: int
    bos_id: int
    eos_id: int
    noise: TextNoise | None = None
    """On the sources, each time anew."""


@dataclass(frozen=True, eq=False)
class EncodedDocuments:
    """Texts as token ids, with the ids that batches put around them."""

    text: Ragged
    bos_id: int
    eos_id: int


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer) -> EncodedPairs:
    """Encode translation pairs, a thousand at a time."""
    source, target = RaggedBuilder(), RaggedBuilder()
    rows = iter(pairs)
    while chunk := list(islice(rows, _CHUNK)):
        source.extend(tokenizer.encode_batch([pair.source for pair in chunk]))
        target.extend(tokenizer.encode_batch([pair.target for pair in chunk]))
    return EncodedPairs(source.build(), target.build(), tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> EncodedDocuments:
    """Encode texts, a thousand at a time."""
    text = encode_texts((document.text for document in documents), tokenizer)
    return EncodedDocuments(text, tokenizer.bos_id, tokenizer.eos_id)


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Ragged:
    """The token ids of texts, encoded a thousand at a time."""
    ids = RaggedBuilder()
    rows = iter(texts)
    while chunk := list(islice(rows, _CHUNK)):
        ids.extend(tokenizer.encode_batch(chunk))
    return ids.build()


class RaggedBuilder:
    """Gathers rows into one flat array."""

    def __init__(self) -> None:
        self._flat = array("i")
        self._offsets = array("q", [0])

    def extend(self, rows: list[list[int]]) -> None:
        self._flat.extend(chain.from_iterable(rows))
        for row in rows:
            self._offsets.append(self._offsets[-1] + len(row))

    def build(self) -> Ragged:
        return Ragged(np.array(self._flat, dtype=np.int32), np.array(self._offsets, dtype=np.int64))
