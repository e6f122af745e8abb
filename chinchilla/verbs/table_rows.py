"""The data of table classification: rows of numbers and categories, each with a class."""

from dataclasses import replace
from typing import Any

from chinchilla.config.run import Run
from chinchilla.config.shape import TableStem
from chinchilla.data.column_fit import MOST_PIECES, ROWS_A_PIECE
from chinchilla.data.table_batches import TableBatches
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.table_noise import table_noise
from chinchilla.data.table_split import TableRows, TableSplit, split_table
from chinchilla.planning.search import Facts
from chinchilla.tasks.classify import Classify
from chinchilla.tasks.task import Task
from chinchilla.verbs.prepared import Kind, Prepared, Tell

NO_TOKENS = 4
"""The vocabulary of a model that reads no text: the special tokens' ids alone."""


def _examples(run: Run, split: TableSplit) -> tuple[tuple[dict[str, str | None], str, str], ...]:
    return tuple((record, label, _shown(record)) for record, label in split.test_records)


def _shown(record: dict[str, str | None]) -> str:
    return ", ".join(f"{name}={value}" for name, value in record.items() if value is not None)


def pieces(num_rows: int) -> int:
    """How many a number's line has where there are so many training rows: few would bend it around each of them."""
    return max(1, min(MOST_PIECES, num_rows // ROWS_A_PIECE))


def _prepare(run: Run, split: TableSplit, task: Task, test: tuple[Any, ...], tell: Tell) -> Prepared:
    columns, classes = split.columns, split.classes.model_copy(update={"costs": run.costs})
    bent = pieces(len(split.train))
    stem = TableStem(num_numeric=len(columns.numbers), cardinalities=columns.cardinalities, pieces=bent)
    tell(f"{len(columns.numbers)} numbers and {len(columns.categories)} categories a row, {len(classes.names)} classes")

    def make(rows: TableRows, labels: int, seed: int, like: TableBatches | None = None) -> TableBatches:
        return TableBatches(rows, labels, seed, like)

    facts = Facts(
        task=run.task,
        vocab_size=NO_TOKENS,
        unique_tokens=len(split.train),
        num_examples=len(split.train),
        mean_source_len=stem.num_positions,
        mean_target_len=0,
        max_len=stem.num_positions,
        beam_size=1,
        bytes_per_token=4.0 * split.train.source.shape[1],
        labels_per_row=1,
        num_classes=len(classes.names),
        stem=stem,
    )
    codec = TableClasses(columns, classes)
    noise = table_noise(run.noise, split.train.source, len(columns.numbers))
    train = replace(split.train, noise=noise)
    counts, positions = classes.counts(train.labels), stem.num_positions
    return Prepared(run, task, codec, train, split.valid, test, positions, facts, make, class_counts=counts)


CLASSIFY_TABLE = Kind(
    split=lambda run: split_table(run.data, run.seed),
    prepare=_prepare,
    examples=_examples,
    make_task=lambda run: Classify("classify_table"),
    open_codec=TableClasses.open,
)
