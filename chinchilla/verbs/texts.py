"""The data of tasks that answer text with text: pairs and documents, with a tokenizer trained on them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import UsageError
from chinchilla.config.run import Run
from chinchilla.data.batches import Batches, PairBatches, TextBatches
from chinchilla.data.encode import EncodedDocuments, EncodedPairs, encode_documents, encode_pairs
from chinchilla.data.examples import texts
from chinchilla.data.split import Split, split_documents, split_pairs
from chinchilla.data.text_noise import text_noise
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.planning.search import Facts
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.summarise import Summarise
from chinchilla.tasks.task import Task
from chinchilla.tasks.translate import Translate
from chinchilla.verbs.prepared import Kind, Prepared, Tell
from chinchilla.verbs.transfer import read_start

log = logging.getLogger("chinchilla")

VOCAB_SIZE, SMALL_VOCAB_SIZE, SMALL_TEXT = 8000, 4000, 10_000_000
"""Tokens of a tokenizer trained on the data; fewer below so many characters, so that each is seen often enough."""

ROW_LENS = (64, 96, 128, 192, 256, 384, 512)
"""Rows of packed examples: the shortest that holds nearly all of them, since attention grows with the row."""

FITTING = 0.99
TEXT_LEN = 256
SAMPLE = 2000
"""Examples that bytes a token are reckoned from."""

Encoded = EncodedPairs | EncodedDocuments


def make_tokenizer(run: Run, words: Iterable[str], num_characters: int, marks: Sequence[str] = ()) -> Tokenizer:
    """That of the model to start from, the recipe's own, or one trained on `words` where each of `marks` is a token."""
    if run.model.start is not None:
        return read_start(run.model.start).tokenizer()
    if run.tokenizer.file is not None:
        return _own_ids(Tokenizer.load(run.tokenizer.file), run.tokenizer.file)
    vocab_size = run.tokenizer.vocab_size or (SMALL_VOCAB_SIZE if num_characters < SMALL_TEXT else VOCAB_SIZE)
    return Tokenizer.train(words, run.tokenizer.kind, vocab_size, marks)


def _own_ids(tokenizer: Tokenizer, file: Path) -> Tokenizer:
    """The tokenizer, if its special tokens have the ids that shapes and objectives take for granted."""
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
    if ids != (0, 1, 2, 3):
        raise UsageError(f"{file}: <pad>, <s>, </s>, <mask> have the ids {ids}; give a tokenizer where they are 0 to 3")
    return tokenizer


def fitting_row(lengths: NDArray[np.int64]) -> int:
    """The shortest of `ROW_LENS` that holds nearly all examples."""
    needed = np.quantile(lengths, FITTING) if len(lengths) else 0
    return next((length for length in ROW_LENS if length >= needed), ROW_LENS[-1])


def bytes_per_token(sample: list[str], tokenizer: Tokenizer) -> float:
    """Bytes of UTF-8 for each token, the end of a text counted as one."""
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(sample))
    return sum(len(text.encode()) for text in sample) / max(1, tokens)


def _split(run: Run, pairs: bool) -> Split[Any]:
    return (split_pairs if pairs else split_documents)(run.data, run.seed)


def _examples(run: Run, split: Split[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(texts(example) for example in split.test)


def _prepare_pairs(run: Run, split: Split[Any], task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    tokenizer = _trained(run, split, tell)
    noise = text_noise(run.noise, tokenizer)
    train, valid = (encode_pairs(part, tokenizer) for part in (split.train, split.valid))
    row_len = run.model.max_len or fitting_row(np.maximum(train.source.lengths, train.target.lengths) + 1)

    def make(encoded: EncodedPairs, labels: int, seed: int, like: PairBatches | None = None) -> PairBatches:
        return PairBatches(encoded, row_len, labels, seed, like)

    train = replace(train, noise=noise)
    batches = make(train, 4096, 0)
    if batches.left_out:
        log.warning("left out %d training pairs longer than %d tokens", batches.left_out, row_len)
    facts = _facts(run, tokenizer, split, batches, *batches.row_lens)
    return Prepared(run, task, tokenizer, train, valid, test, row_len, facts, make)


def _prepare_documents(run: Run, split: Split[Any], task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    tokenizer = _trained(run, split, tell)
    train, valid = (encode_documents(part, tokenizer) for part in (split.train, split.valid))
    row_len = run.model.max_len or TEXT_LEN

    def make(encoded: EncodedDocuments, labels: int, seed: int, like: Any = None) -> TextBatches:
        return TextBatches(encoded, row_len, labels, seed)

    facts = _facts(run, tokenizer, split, make(train, 4096, 0), 0, row_len)
    return Prepared(run, task, tokenizer, train, valid, test, row_len, facts, make)


def _trained(run: Run, split: Split[Any], tell: Tell) -> Tokenizer:
    characters = sum(len(text) for example in split.train for text in texts(example))
    words = (text for example in split.train for text in texts(example))
    tokenizer = make_tokenizer(run, words, characters)
    tell(f"tokenizer of {tokenizer.vocab_size:,} tokens; encoding")
    return tokenizer


def _facts(
    run: Run, tokenizer: Tokenizer, split: Split[Any], batches: Batches, source_len: int, target_len: int
) -> Facts:
    sample = [texts(example)[-1] for example in islice(split.train, SAMPLE)]
    return Facts(
        task=run.task,
        vocab_size=tokenizer.vocab_size,
        unique_tokens=batches.unique_tokens,
        num_examples=len(split.train),
        mean_source_len=source_len,
        mean_target_len=target_len,
        max_len=max(source_len, target_len),
        padding=batches.padding,
        beam_size=run.evaluate.beam_size,
        bytes_per_token=bytes_per_token(sample, tokenizer),
    )


def _beams(run: Run | None) -> int:
    return 4 if run is None else run.evaluate.beam_size


TRANSLATE = Kind(
    split=partial(_split, pairs=True),
    prepare=_prepare_pairs,
    examples=_examples,
    make_task=lambda run: Translate(_beams(run)),
    open_codec=Tokenizer.open,
)
SUMMARISE = Kind(
    split=partial(_split, pairs=True),
    prepare=_prepare_pairs,
    examples=_examples,
    make_task=lambda run: Summarise(_beams(run)),
    open_codec=Tokenizer.open,
)
GENERATE = Kind(
    split=partial(_split, pairs=False),
    prepare=_prepare_documents,
    examples=_examples,
    make_task=lambda run: Generate(),
    open_codec=Tokenizer.open,
)
