"""Read examples from files by format: TSV, two parallel text files, JSONL, Parquet, plain text.

Everything streams. A malformed row becomes a `DataError` that names file, row (counted from 1), column and mend, and
goes to `on_invalid`: `refuse` raises it.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data, Files
from chinchilla.data.examples import Document, Example, Pair
from chinchilla.data.rows import (
    MAX_ROW_BYTES,
    MalformedError,
    OnInvalid,
    Record,
    decode,
    json_record,
    lines,
    no_column,
    parquet_record,
    parquet_rows,
    parsed,
)

Format = Literal["tsv", "jsonl", "parquet", "text"]
FORMATS: tuple[str, ...] = get_args(Format)
ENDINGS: Mapping[str, Format] = {
    ".tsv": "tsv",
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
        return _some(_parallel(files, on_invalid), files[0])
    match _format(files, data):
        case "tsv":
            pairs = parsed(lines(files, blank=False), _tsv_pair, files, on_invalid)
        case "jsonl":
            rows = lines(files, blank=False)
            pairs = parsed(rows, lambda line: _pair(json_record(line), data), files, on_invalid)
        case "parquet":
            records = parquet_rows(files, (data.source, data.target), data.group)
            pairs = parsed(records, lambda row: _pair(parquet_record(row), data), files, on_invalid)
        case "text":
            raise UsageError(f"{files}: one text file holds no translations; give two: data.train=[source, target]")
    return _some(pairs, files)


def read_documents(files: Files, data: Data, on_invalid: OnInvalid = refuse) -> Iterator[Document]:
    """Read texts from one file; in a plain text file a blank line ends a document.

    Raises:
        DataError: a file that is missing, empty or not of its format, or (by `on_invalid`) a malformed row.
        UsageError: a format that holds no texts, or several files.
    """
    if isinstance(files, tuple):
        raise UsageError(f"{files[0]}: the task generate reads one file; two parallel files are for translate")
    match _format(files, data):
        case "tsv":
            raise UsageError(f"{files}: a TSV file holds pairs; for the task generate give text, JSONL or Parquet")
        case "jsonl":
            rows = lines(files, blank=False)
            documents = parsed(rows, lambda line: _document(json_record(line), data), files, on_invalid)
        case "parquet":
            records = parquet_rows(files, (data.text,), data.group)
            documents = parsed(records, lambda row: _document(parquet_record(row), data), files, on_invalid)
        case "text":
            documents = _paragraphs(parsed(lines(files, blank=True), decode, files, on_invalid))
    return _some(documents, files)


def is_plain_text(files: Files, data: Data) -> bool:
    """Whether an example is made of several rows: of the lines of a text file, up to a blank one."""
    return not isinstance(files, tuple) and _format(files, data) == "text"


def _format(path: Path, data: Data) -> Format:
    kind = data.format or ENDINGS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(ENDINGS)
        raise UsageError(
            f"{path}: no format goes by the ending {path.suffix!r}; use one of {known}, or set data.format"
        )
    if kind not in FORMATS:
        raise UsageError(f"{path}: texts are not read from the format {kind}; give {', '.join(FORMATS)}")
    return cast(Format, kind)


def _some(examples: Iterator[Example], path: Path) -> Iterator[Example]:
    """The same examples, and an error when there is none."""
    first = next(examples, None)
    if first is None:
        raise DataError(f"{path}: no usable example in it; check that it is the right file, and whole")
    return itertools.chain([first], examples)


def _text(text: object, column: str) -> str:
    if not isinstance(text, str):
        raise MalformedError(f"column {column}: {type(text).__name__} where text is needed; write it as text")
    if not text.strip():
        raise MalformedError(f"column {column}: empty; leave the row out, or set data.invalid=skip")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise MalformedError(f"column {column}: half a surrogate pair is no character; write it whole") from None
    if size_bytes > MAX_ROW_BYTES:
        raise MalformedError(f"column {column}: longer than 1 MB; break it into shorter rows")
    return text


def _tsv_pair(line: bytes) -> Pair:
    match decode(line).split("\t"):
        case [source, target, *group] if len(group) <= 1:
            return Pair(_text(source, "source"), _text(target, "target"), *group)
        case cells:
            what = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
    raise MalformedError(f"{what}; write source, target and if you like group, with a tab between and none inside")


def _pair(record: Record, data: Data) -> Pair:
    return Pair(_cell(record, data.source), _cell(record, data.target), _group(record, data))


def _document(record: Record, data: Data) -> Document:
    return Document(_cell(record, data.text), _group(record, data))


def _cell(record: Record, column: str) -> str:
    if column not in record:
        raise MalformedError(no_column(column, record))
    return _text(record[column], column)


def _group(record: Record, data: Data) -> str:
    value = record.get(data.group)
    return "" if value is None else str(value)


def _parallel(files: tuple[Path, ...], on_invalid: OnInvalid) -> Iterator[Pair]:
    if len(files) != 2:
        raise UsageError(f"{files[0]}: parallel text takes two files, source and target, not {len(files)}")
    rows = enumerate(_together(files[0], files[1]), 1)
    return parsed(rows, _line_pair, f"{files[0]} and {files[1]}", on_invalid)


def _line_pair(row: tuple[bytes, bytes]) -> Pair:
    source, target = row
    return Pair(_text(decode(source), "source"), _text(decode(target), "target"))


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
