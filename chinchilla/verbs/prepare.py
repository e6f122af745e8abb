"""From a `Run` to encoded data: splits, tokenizer, batches, and the facts that the planner asks for."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import UsageError
from chinchilla.config.plan import Training
from chinchilla.config.run import Run
from chinchilla.data.batches import Batches, PairBatches, TextBatches
from chinchilla.data.encode import EncodedDocuments, EncodedPairs, encode_documents, encode_pairs
from chinchilla.data.examples import texts
from chinchilla.data.split import Split, split_documents, split_pairs
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.planning.search import Facts
from chinchilla.tasks.generate import Generate
from chinchilla.tasks.task import Task
from chinchilla.tasks.translate import Translate

log = logging.getLogger("chinchilla")

VOCAB_SIZE, SMALL_VOCAB_SIZE, SMALL_TEXT = 8000, 4000, 10_000_000
"""Tokens of a tokenizer trained on the data; fewer below so many characters, so that each is seen often enough."""

ROW_LENS = (64, 96, 128, 192, 256, 384, 512)
"""Rows of packed pairs: the shortest that holds nearly all pairs, since attention grows with the row."""

FITTING = 0.99
TEXT_LEN = 256

Encoded = EncodedPairs | EncodedDocuments


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run's data, ready to train on and to score with."""

    run: Run
    task: Task
    tokenizer: Tokenizer
    train: Encoded
    valid: Encoded
    test: tuple[tuple[str, ...], ...]
    row_len: int
    facts: Facts

    def batches(self, training: Training) -> Batches:
        """Training micro-batches of `batch_tokens / accumulation` labelled tokens."""
        return _batches(self.train, self.row_len, _micro(training), training.seed)

    def valid_batches(self, training: Training) -> Batches:
        """Validation micro-batches, of the training ones' size so that kernels are made once."""
        like = self.batches(training)
        if isinstance(self.valid, EncodedPairs) and isinstance(like, PairBatches):
            return PairBatches(self.valid, self.row_len, _micro(training), 0, like)
        return _batches(self.valid, self.row_len, _micro(training), 0)


def make_task(run: Run) -> Task:
    """The run's task."""
    if run.task == "translate":
        return Translate(run.evaluate.beam_size)
    return Generate()


def prepare(run: Run, tell: Callable[[str], None] = lambda text: None) -> Prepared:
    """Read, split, train the tokenizer and encode.

    Raises:
        DataError: data that cannot be used; file, row and mend are named.
        UsageError: a tokenizer file that cannot be used.
    """
    if run.model.attention == "block" and run.task == "translate":
        raise UsageError("model.attention: block takes one text a row, and pairs are packed; use full or gated")
    tell("reading data")
    split = split_examples(run)
    tell(f"{len(split.train):,} training, {len(split.valid):,} validation and {len(split.test):,} test examples")
    tokenizer = _tokenizer(run, split)
    tell(f"tokenizer of {tokenizer.vocab_size:,} tokens; encoding")
    encode: Callable[..., Encoded] = encode_pairs if run.task == "translate" else encode_documents
    train, valid = encode(split.train, tokenizer), encode(split.valid, tokenizer)
    row_len = run.model.max_len or _row_len(train)
    return Prepared(
        run=run,
        task=make_task(run),
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        test=test_examples(run, split),
        row_len=row_len,
        facts=_facts(run, tokenizer, train, row_len, split),
    )


def split_examples(run: Run) -> Split[Any]:
    """The run's examples in three parts."""
    return (split_pairs if run.task == "translate" else split_documents)(run.data, run.seed)


def test_examples(run: Run, split: Split[Any] | None = None) -> tuple[tuple[str, ...], ...]:
    """The test texts that the run is scored on."""
    split = split or split_examples(run)
    return tuple(texts(example) for example in split.test)[: run.evaluate.max_examples]


def _tokenizer(run: Run, split: Split[Any]) -> Tokenizer:
    if run.tokenizer.file is not None:
        return _own_ids(Tokenizer.load(run.tokenizer.file), run.tokenizer.file)
    words: Iterable[str] = (text for example in split.train for text in texts(example))
    return Tokenizer.train(words, run.tokenizer.kind, run.tokenizer.vocab_size or _vocab_size(split))


def _own_ids(tokenizer: Tokenizer, file: Path) -> Tokenizer:
    """The tokenizer, if its special tokens have the ids that shapes and objectives take for granted."""
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
    if ids != (0, 1, 2, 3):
        raise UsageError(f"{file}: <pad>, <s>, </s>, <mask> have the ids {ids}; give a tokenizer where they are 0 to 3")
    return tokenizer


def _vocab_size(split: Split[Any]) -> int:
    characters = sum(len(text) for example in split.train for text in texts(example))
    return SMALL_VOCAB_SIZE if characters < SMALL_TEXT else VOCAB_SIZE


def _lengths(encoded: Encoded) -> NDArray[np.int64]:
    """The longer side of each example, in tokens, end included."""
    if isinstance(encoded, EncodedDocuments):
        return encoded.text.lengths + 1
    return np.maximum(encoded.source.lengths, encoded.target.lengths) + 1


def _row_len(train: Encoded) -> int:
    if isinstance(train, EncodedDocuments):
        return TEXT_LEN
    needed = np.quantile(_lengths(train), FITTING) if len(train.source) else 0
    return next((length for length in ROW_LENS if length >= needed), ROW_LENS[-1])


def _micro(training: Training) -> int:
    """Labelled tokens of a micro-batch."""
    return training.batch_tokens // training.accumulation


def _batches(encoded: Encoded, row_len: int, batch_tokens: int, seed: int) -> Batches:
    if isinstance(encoded, EncodedDocuments):
        return TextBatches(encoded, row_len, batch_tokens, seed)
    return PairBatches(encoded, row_len, batch_tokens, seed)


def _facts(run: Run, tokenizer: Tokenizer, train: Encoded, row_len: int, split: Split[Any]) -> Facts:
    batches = _batches(train, row_len, 4096, 0)
    sample = [texts(example)[-1] for _, example in zip(range(2000), split.train, strict=False)]
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(sample))
    if isinstance(batches, PairBatches):
        if batches.left_out:
            log.warning("left out %d training pairs longer than %d tokens", batches.left_out, row_len)
        source_len, target_len = batches.row_lens
    else:
        source_len, target_len = 0, row_len
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
        bytes_per_token=sum(len(text.encode()) for text in sample) / max(1, tokens),
    )
