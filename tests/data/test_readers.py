"""Every format gives its examples, and every kind of bad row is named with file, row, column and mend."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.errors import DataError, UsageError
from chinchilla.config.run import Data
from chinchilla.data.examples import Document, Pair
from chinchilla.data.readers import read_documents, read_pairs
from chinchilla.data.rows import MAX_ROW_BYTES, lines

PAIRS = [Pair("One house", "Ein Haus", "a"), Pair("Two “houses”", "Zwei „Häuser“", "a"), Pair("屋", "Haus 🏠", "b")]
DOCUMENTS = [Document("One.", "a"), Document("Two\nlines.", "a"), Document("三", "b")]


def write_tsv(path: Path, rows) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row._asdict() for row in rows]), path)
    return path


def data_of(path, **settings) -> Data:
    return Data(train=path, **settings)


def pairs_of(path, **settings):
    return list(read_pairs(path, data_of(path, **settings)))


def documents_of(path, **settings):
    return list(read_documents(path, data_of(path, **settings)))


def test_pairs_come_back_from_every_format(tmp_path):
    assert pairs_of(write_tsv(tmp_path / "a.tsv", PAIRS)) == PAIRS
    assert pairs_of(write_jsonl(tmp_path / "a.jsonl", PAIRS)) == PAIRS
    assert pairs_of(write_parquet(tmp_path / "a.parquet", PAIRS)) == PAIRS


def test_documents_come_back_from_every_format(tmp_path):
    assert documents_of(write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)) == DOCUMENTS
    assert documents_of(write_parquet(tmp_path / "a.parquet", DOCUMENTS)) == DOCUMENTS


def test_parallel_text_files_go_together_line_by_line(tmp_path):
    files = (tmp_path / "a.en", tmp_path / "a.de")
    files[0].write_text("One\nTwo\u2028still two\n", encoding="utf-8")
    files[1].write_text("Eins\r\nZwei", encoding="utf-8")
    assert pairs_of(files) == [Pair("One", "Eins"), Pair("Two\u2028still two", "Zwei")]


def test_blank_lines_end_the_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\nFirst\nstill first\n\n \t\r\n\nSecond\r\n")
    assert documents_of(path) == [Document("First\nstill first"), Document("Second")]


def test_a_document_that_reaches_the_limit_goes_on_as_the_next(tmp_path):
    path = tmp_path / "a.txt"
    line = "x" * 999
    path.write_text((line + "\n") * 2500)
    found = documents_of(path)
    assert [len(document.text.split("\n")) for document in found] == [1000, 1000, 500]
    assert {text for document in found for text in document.text.split("\n")} == {line}


def test_columns_are_named_by_the_settings(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"en": "One", "de": "Eins", "page": 3}\n\n{"en": "Two", "de": "Zwei", "page": null}\n')
    found = pairs_of(path, source="en", target="de", group="page")
    assert found == [Pair("One", "Eins", "3"), Pair("Two", "Zwei", "")]


def test_the_format_setting_beats_the_ending(tmp_path):
    path = write_tsv(tmp_path / "a.dat", PAIRS)
    assert pairs_of(path, format="tsv") == PAIRS
    with pytest.raises(UsageError, match=r"'\.dat'.*\.tsv.*data\.format"):
        pairs_of(path)


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\t\n", codec="utf-8"), min_size=1)] * 2)))
def test_any_text_without_tabs_and_newlines_survives_a_tsv(tmp_path_factory, rows):
    rows = [row for row in rows if all(cell.strip() and not cell.endswith("\r") for cell in row)]
    rows = [row for row in rows if not row[0].startswith("\ufeff")]
    if rows:
        path = write_tsv(tmp_path_factory.mktemp("tsv") / "a.tsv", rows)
        assert pairs_of(path) == [Pair(*row) for row in rows]


def test_reading_streams(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [PAIRS[0], ("only one column",)])
    assert next(iter(read_pairs(path, data_of(path)))) == PAIRS[0]


BAD_TSV = {
    b"one column only": r"1 column; write source, target",
    b"a\tb\tc\td": r"4 columns; .*none inside",
    b"source\t ": r"column target: empty; .*data\.invalid=skip",
    b"\ttarget": r"column source: empty",
    b"caf\xe9\tKaffee": r"not UTF-8 \(byte 4\); convert",
    b"x" * (MAX_ROW_BYTES + 1): r"longer than 1 MB; break it",
}


@pytest.mark.parametrize(("row", "message"), BAD_TSV.items(), ids=range(len(BAD_TSV)))
def test_a_bad_row_of_a_tsv_is_named(tmp_path, row, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"One\tEins\n" + row + b"\nTwo\tZwei\n")
    with pytest.raises(DataError, match=rf"a\.tsv, row 2: {message}"):
        pairs_of(path)


@pytest.mark.parametrize(("row", "message"), BAD_TSV.items(), ids=range(len(BAD_TSV)))
def test_a_bad_row_can_be_left_out(tmp_path, row, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"One\tEins\n" + row + b"\nTwo\tZwei\n")
    errors: list[DataError] = []
    assert list(read_pairs(path, data_of(path), errors.append)) == [Pair("One", "Eins"), Pair("Two", "Zwei")]
    assert len(errors) == 1


BAD_JSON = {
    '{"source": "a"': r"not valid JSON \(.*one object a line",
    '["a", "b"]': r"a JSON list, not an object",
    '{"src": "a", "tgt": "b"}': r"no column 'source', there are: src, tgt; rename",
    '{"source": 3, "target": "b"}': r"column source: int where text is needed",
    '{"source": "a", "target": null}': r"column target: NoneType where text",
    r'{"source": "a \ud800", "target": "b"}': r"column source: half a surrogate pair",
    "[" * 100_000: r"not valid JSON",
}


@pytest.mark.parametrize(("row", "message"), BAD_JSON.items(), ids=range(len(BAD_JSON)))
def test_a_bad_row_of_a_jsonl_is_named(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"source": "One", "target": "Eins"}\n' + row + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, row 2: {message}"):
        pairs_of(path)


def test_a_parquet_file_without_the_column_says_which_it_has(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", DOCUMENTS)
    with pytest.raises(DataError, match=r"a\.parquet: no column 'source', there are: text, group"):
        pairs_of(path)


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8"):
        documents_of(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", None]}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 3: column text: NoneType"):
        documents_of(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: column text: int"):
        documents_of(path)


def test_a_parquet_file_that_is_none_is_refused(tmp_path):
    path = write_tsv(tmp_path / "a.parquet", PAIRS)
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        pairs_of(path)


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    with pytest.raises(DataError, match=rf"a\.{ending}: no such file"):
        pairs_of(path)
    path.mkdir()
    with pytest.raises(DataError, match=rf"a\.{ending}: cannot be read \(Is a directory\)"):
        pairs_of(path)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    for name, read in (("a.tsv", pairs_of), ("a.jsonl", documents_of), ("a.txt", documents_of)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="no usable example"):
            read(tmp_path / name)


@pytest.mark.parametrize(("left", "right"), [(3, 5), (5, 3), (0, 2)])
def test_parallel_files_of_different_length_are_refused_with_both_counts(tmp_path, left, right):
    files = (tmp_path / "a.en", tmp_path / "a.de")
    for path, count in zip(files, (left, right), strict=True):
        path.write_text("line\n" * count)
    with pytest.raises(DataError, match=rf"a\.en has {left} lines and .*a\.de has {right}"):
        pairs_of(files)


def test_an_empty_line_of_a_parallel_file_is_named(tmp_path):
    files = (tmp_path / "a.en", tmp_path / "a.de")
    files[0].write_text("One\nTwo\n")
    files[1].write_text("Eins\n\n")
    with pytest.raises(DataError, match=r"a\.en and .*a\.de, row 2: column target: empty"):
        pairs_of(files)


def test_a_task_refuses_a_format_that_cannot_hold_its_examples(tmp_path):
    text, tsv = tmp_path / "a.txt", write_tsv(tmp_path / "a.tsv", PAIRS)
    text.write_text("words")
    with pytest.raises(UsageError, match="two"):
        pairs_of(text)
    with pytest.raises(UsageError, match="holds pairs"):
        documents_of(tsv)
    with pytest.raises(UsageError, match="one file"):
        documents_of((text, text))
    with pytest.raises(UsageError, match="two files, source and target, not 3"):
        pairs_of((text, text, text))


def test_of_an_endless_line_only_the_start_is_held(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (5 * MAX_ROW_BYTES) + b"\nnext\n" + b"y" * MAX_ROW_BYTES)
    assert [len(line) for _, line in lines(path, blank=False)] == [MAX_ROW_BYTES + 1, 4, MAX_ROW_BYTES]
