"""Texts with a class: read, split by class and group, encoded with the class as the first token's label."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.batches import IGNORED
from chinchilla.data.classes import Classes, class_name, make_classes, unknown_class
from chinchilla.data.encode import Ragged, encode_texts
from chinchilla.data.examples import LabelledText
from chinchilla.data.packed_batches import Aligned
from chinchilla.data.readers import built, cell, checked_text, file_format, group_cell, refuse, some, text_cell
from chinchilla.data.rows import MalformedError, OnInvalid, Record, decode, lines, parsed
from chinchilla.data.split import Split, index_parts, parts
from chinchilla.data.tokenizer import Tokenizer

log = logging.getLogger("chinchilla")


@dataclass(frozen=True, eq=False)
class LabelledSplit(Split[LabelledText]):
    """Three parts, and the classes of the training data."""

    classes: Classes


@dataclass(frozen=True, eq=False)
class EncodedLabelled:
    """Texts as token ids, and the number of each one's class (num_texts,)."""

    text: Ragged
    classes: NDArray[np.int64]
    bos_id: int


def read_labelled(files: Files, data: Data, on_invalid: OnInvalid = refuse) -> Iterator[LabelledText]:
    """Read texts and their classes from one file: CSV, JSONL or Parquet, or TSV (text, class and perhaps group).

    Raises:
        DataError: a file that is missing, empty or not of its format, or (by `on_invalid`) a malformed row.
        UsageError: a format that holds no classes, or several files.
    """
    if isinstance(files, tuple):
        raise UsageError(f"{files[0]}: texts and their classes stand in one file; give one of {len(files)}")
    match file_format(files, data):
        case "tsv":
            examples = parsed(lines(files, blank=False), _tsv_row, files, on_invalid)
        case "text":
            raise UsageError(f"{files}: a text file holds no classes; give CSV, TSV, JSONL or Parquet")
        case kind:
            needed = (data.text, data.label)
            examples = built(files, kind, needed, data.group_name, lambda record: _labelled(record, data), on_invalid)
    return some(examples, files)


def _tsv_row(line: bytes) -> LabelledText:
    match decode(line).split("\t"):
        case [text, label, *group] if len(group) <= 1:
            return LabelledText(checked_text(text, "text"), class_name(label, "label"), *group)
        case cells:
            what = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
    raise MalformedError(f"{what}; write text, class and if you like group, with a tab between and none inside")


def _labelled(record: Record, data: Data) -> LabelledText:
    label = class_name(cell(record, data.label), data.label)
    return LabelledText(text_cell(record, data.text), label, group_cell(record, data))


def split_labelled(data: Data, seed: int) -> LabelledSplit:
    """Split texts with classes: in each class's proportion, by group, and no text on both sides.

    Raises:
        DataError: bad data (see `read_labelled` and `make_classes`); a class that train lacks; or too few groups.
        UsageError: a format that holds no classes, or `data.positive` is no class.
    """
    counts: dict[str, Counter[str]] = {"train": Counter()}
    numbers: dict[str, int] = {}

    def class_of(part: str, example: LabelledText) -> int:
        counts.setdefault(part, Counter())[example.label] += 1
        return numbers.setdefault(example.label, len(numbers))

    read = partial(read_labelled, data=data)
    indexes = index_parts(read, data, seed, class_of)
    classes = make_classes(counts["train"], data)
    for part, found in counts.items():
        unknown = sorted(found.keys() - counts["train"].keys())
        if unknown:
            raise unknown_class(unknown[0], classes.names, part, data)
    split = parts(read, data, indexes)
    lost = [
        name for name in classes.names if not (split.train.rows & (indexes["train"].classes == numbers[name])).any()
    ]
    if lost:
        raise DataError(f"data.train: every example of the class {lost[0]!r} is also in valid or test; add others")
    return LabelledSplit(split.train, split.valid, split.test, split.dropped, classes)


def encode_labelled(examples: Iterable[LabelledText], tokenizer: Tokenizer, classes: Classes) -> EncodedLabelled:
    """Encode texts with classes, a thousand at a time."""
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for example in examples:
            numbers.append(classes.number(example.label))
            yield example.text

    text = encode_texts(texts(), tokenizer)
    return EncodedLabelled(text, np.array(numbers, np.int64), tokenizer.bos_id)


def labelled_rows(encoded: EncodedLabelled, max_len: int) -> Aligned:
    """Rows to pack: <s>, labelled with the class, and the text's first `max_len` - 1 tokens, with no label.

    How many texts were cut is logged.
    """
    lengths = np.minimum(encoded.text.lengths + 1, max_len)
    cut = int((encoded.text.lengths + 1 > max_len).sum())
    if cut:
        log.info("read the first %d tokens of %d of %d texts, which are longer", max_len - 1, cut, len(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    index = np.repeat(encoded.text.offsets[:-1], lengths) + inner - 1
    ids = np.full(offsets[-1], encoded.bos_id, np.int32)
    ids[inner > 0] = encoded.text.flat[index[inner > 0]]
    labels = np.full(offsets[-1], IGNORED, np.int32)
    labels[offsets[:-1]] = encoded.classes
    return Aligned(Ragged(ids, offsets), labels)
