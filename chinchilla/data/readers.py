"""Read examples from files by format: TSV, CSV, two parallel text files, JSONL, Parquet, plain text.

Everything streams. A malformed row becomes a `DataError` that names file, row (counted from 1), column and mend, and
goes to `on_invalid`: `refuse` raises it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.examples import Document, Example, Pair
from chinchilla.data.rows import (
    MAX_ROW_BYTES,
    MalformedError,
    OnInvalid,
    Read,
    Record,
    checked_characters,
    csv_record,
    csv_records,
    decode,
    json_record,
    lines,
    no_column,
    parquet_record,
    parquet_rows,
    parsed,
)

Format = Literal["tsv", "csv", "jsonl", "parquet", "text"]
Columns = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
ENDINGS: Mapping[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


def refuse(error: DataError) -> NoReturn:
    """Stop at the first malformed row."""
    raise error


def read_pairs(files: Files, data: Data, on_invalid: OnInvalid = refuse) -> Iterator[Pair]:
    """Read translation pairs from one file, or from two parallel text files (source, target).

    Raises:
        DataError: a file that is missing, empty or not of its format, or (by `on_invalid`) a malformed row.
        UsageError: a format that holds no pairs.
    """
    if isinstance(files, tuple):
        return some(_parallel(files, on_invalid), files[0])
    match file_format(files, data):
        case "tsv":
            pairs = parsed(lines(files, blank=False), _tsv_pair, files, on_invalid)
        case "text":
            raise UsageError(f"{files}: one text file holds no translations; give two: data.train=[source, target]")
        case kind:
            needed = (data.source, data.target)
            pairs = built(files, kind, needed, data.group_name, lambda record: _pair(record, data), on_invalid)
    return some(pairs, files)


def read_documents(files: Files, data: Data, on_invalid: OnInvalid = refuse) -> Iterator[Document]:
    """Read texts from one file; in a plain text file a blank line ends a document.

    Raises:
        DataError: a file that is missing, empty or not of its format, or (by `on_invalid`) a malformed row.
        UsageError: a format that holds no texts, or several files.
    """
    if isinstance(files, tuple):
        raise UsageError(f"{files[0]}: the task generate reads one file; two parallel files are for translate")
    match file_format(files, data):
        case "tsv":
            raise UsageError(f"{files}: a TSV file holds pairs; for the task generate give text, CSV, JSONL or Parquet")
        case "text":
            documents = _paragraphs(parsed(lines(files, blank=True), decode, files, on_invalid))
        case kind:
            documents = built(files, kind, (data.text,), data.group_name, lambda row: _document(row, data), on_invalid)
    return some(documents, files)


def built(
    path: Path,
    kind: Columns,
    needed: Iterable[str],
    group: str,
    build: Callable[[Record], Read],
    on_invalid: OnInvalid,
) -> Iterator[Read]:
    """What `build` makes of each row of a file with named columns: those `needed`, and `group` where it is there.

    Raises:
        DataError: a file that is missing, not of its format or without a column; or (by `on_invalid`) a malformed row.
    """
    match kind:
        case "csv":
            return parsed(csv_records(path, needed), lambda row: build(csv_record(row)), path, on_invalid)
        case "jsonl":
            return parsed(lines(path, blank=False), lambda line: build(json_record(line)), path, on_invalid)
        case "parquet":
            rows = parquet_rows(path, needed, group)
            return parsed(rows, lambda row: build(parquet_record(row)), path, on_invalid)


def is_plain_text(files: Files, data: Data) -> bool:
    """Whether an example is made of several rows: of the lines of a text file, up to a blank one."""
    return not isinstance(files, tuple) and file_format(files, data) == "text"


def file_format(path: Path, data: Data) -> Format:
    """The format of a file: as `data.format` says, or by its ending.

    Raises:
        UsageError: an unknown ending, or a format that is not for texts.
    """
    kind = data.format or ENDINGS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(ENDINGS)
        raise UsageError(
            f"{path}: no format goes by the ending {path.suffix!r}; use one of {known}, or set data.format"
        )
    if kind not in FORMATS:
        raise UsageError(f"{path}: texts are not read from the format {kind}; give {', '.join(FORMATS)}")
    return cast(Format, kind)


def some(examples: Iterator[Example], path: Path) -> Iterator[Example]:
    """The same examples, and an error when there is none."""
    first = next(examples, None)
    if first is None:
        raise DataError(f"{path}: no usable example in it; check that it is the right file, and whole")
    return itertools.chain([first], examples)


def checked_text(text: object, column: str) -> str:
    """A cell as text.

    Raises:
        MalformedError: it is none, is empty, holds half a character, or is longer than 1 MB.
    """
    if not isinstance(text, str):
        raise MalformedError(f"column {column}: {type(text).__name__} where text is needed; write it as text")
    if not text.strip():
        raise MalformedError(f"column {column}: empty; leave the row out, or set data.invalid=skip")
    if len(checked_characters(text, column).encode()) > MAX_ROW_BYTES:
        raise MalformedError(f"column {column}: longer than 1 MB; break it into shorter rows")
    return text


def _tsv_pair(line: bytes) -> Pair:
    match decode(line).split("\t"):
        case [source, target, *group] if len(group) <= 1:
            return Pair(checked_text(source, "source"), checked_text(target, "target"), *group)
        case cells:
            what = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
    raise MalformedError(f"{what}; write source, target and if you like group, with a tab between and none inside")


def _pair(record: Record, data: Data) -> Pair:
    return Pair(text_cell(record, data.source), text_cell(record, data.target), group_cell(record, data))


def _document(record: Record, data: Data) -> Document:
    return Document(text_cell(record, data.text), group_cell(record, data))


def text_cell(record: Record, column: str) -> str:
    """The text of a column (see `checked_text`).

    Raises:
        MalformedError: there is no such column, or no text in it.
    """
    return checked_text(cell(record, column), column)


def cell(record: Record, column: str) -> object:
    """What stands in a column.

    Raises:
        MalformedError: there is no such column.
    """
    if column not in record:
        raise MalformedError(no_column(column, record))
    return record[column]


def group_cell(record: Record, data: Data) -> str:
    """The name of a row's group, "" where there is none."""
    value = record.get(data.group_name)
    return "" if value is None else str(value)


def _parallel(files: tuple[Path, ...], on_invalid: OnInvalid) -> Iterator[Pair]:
    if len(files) != 2:
        raise UsageError(f"{files[0]}: parallel text takes two files, source and target, not {len(files)}")
    rows = enumerate(_together(files[0], files[1]), 1)
    return parsed(rows, _line_pair, f"{files[0]} and {files[1]}", on_invalid)


def _line_pair(row: tuple[bytes, bytes]) -> Pair:
    source, target = row
    return Pair(checked_text(decode(source), "source"), checked_text(decode(target), "target"))


def _together(first: Path, second: Path) -> Iterator[tuple[bytes, bytes]]:
    """The lines of two files side by side, and an error with both counts when one ends early."""
    sources, targets = lines(first, blank=True), lines(second, blank=True)
    for number, (source, target) in enumerate(itertools.zip_longest(sources, targets), 1):
        if source is None or target is None:
            total = number + sum(1 for _ in itertools.chain(sources, targets))
            counts = (number - 1, total) if source is None else (total, number - 1)
            raise DataError(
                f"{first} has {counts[0]} lines and {second} has {counts[1]}; parallel files go together line by line: "
                "look for the line too many or missing"
            )
        yield source[1], target[1]


def _paragraphs(rows: Iterator[str]) -> Iterator[Document]:
    """Documents separated by blank lines; one that reaches 1 MB is ended there, and goes on as the next."""
    held: list[str] = []
    size_bytes = 0
    for line in rows:
        blank, line_bytes = not line.strip(), len(line.encode()) + 1
        if held and (blank or size_bytes + line_bytes > MAX_ROW_BYTES):
            yield Document("\n".join(held))
            held, size_bytes = [], 0
        if not blank:
            held.append(line)
            size_bytes += line_bytes
    if held:
        yield Document("\n".join(held))
