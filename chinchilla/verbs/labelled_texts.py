"""The data of text classification: packed texts, each with its class at its first position."""

from dataclasses import replace
from itertools import islice
from typing import Any

from chinchilla.config.run import Run
from chinchilla.data.labelled import LabelledSplit, encode_labelled, labelled_rows, split_labelled
from chinchilla.data.packed_batches import Aligned, PackedBatches
from chinchilla.data.text_classes import TextClasses
from chinchilla.data.text_noise import text_noise
from chinchilla.planning.search import Facts
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepared import Kind, Prepared, Tell
from chinchilla.verbs.texts import SAMPLE, fitting_row, make_tokenizer


def _split(run: Run) -> LabelledSplit:
    return split_labelled(run.data, run.seed)


def _examples(run: Run, split: LabelledSplit) -> tuple[tuple[str, str], ...]:
    return tuple((example.text, example.label) for example in split.test)


def _prepare(run: Run, split: LabelledSplit, task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    characters = sum(len(example.text) for example in split.train)
    tokenizer = make_tokenizer(run, (example.text for example in split.train), characters)
    tell(f"tokenizer of {tokenizer.vocab_size:,} tokens; {len(split.classes.names)} classes; encoding")
    noise = text_noise(run.noise, tokenizer)
    encoded = [encode_labelled(part, tokenizer, split.classes) for part in (split.train, split.valid)]
    row_len = run.model.max_len or fitting_row(encoded[0].text.lengths + 1)
    train, valid = (labelled_rows(part, row_len) for part in encoded)

    def make(rows: Aligned, labels: int, seed: int, like: PackedBatches | None = None) -> PackedBatches:
        return PackedBatches(rows, row_len, labels, seed, "source", tokenizer.pad_id, like)

    train = replace(train, noise=noise)
    batches = make(train, 32, 0)
    labels = batches.unique_tokens / (batches.num_batches(0) * batches.num_rows)
    facts = Facts(
        task=run.task,
        vocab_size=tokenizer.vocab_size,
        unique_tokens=batches.unique_tokens,
        num_examples=len(split.train),
        mean_source_len=row_len,
        mean_target_len=0,
        max_len=row_len,
        padding=batches.padding,
        beam_size=1,
        bytes_per_token=_mean_bytes(split),
        labels_per_row=labels,
        num_classes=len(split.classes.names),
    )
    codec = TextClasses(tokenizer, split.classes, row_len)
    counts = split.classes.counts(encoded[0].classes)
    return Prepared(run, task, codec, train, valid, test, row_len, facts, make, class_counts=counts)


def _mean_bytes(split: LabelledSplit) -> float:
    sizes = [len(example.text.encode()) for example in islice(split.train, SAMPLE)]
    return sum(sizes) / max(1, len(sizes))


CLASSIFY_TEXT = Kind(
    split=_split,
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Classify("classify_text"),
    open_codec=TextClasses.open,
)
