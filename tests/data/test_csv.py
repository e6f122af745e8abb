"""CSV files as people have them: three delimiters, quotes, line ends in cells; and each kind of bad row named."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.examples import Document, Pair
from chinchilla.data.readers import read_documents, read_pairs
from chinchilla.data.rows import MalformedError, csv_rows


def pairs_of(path, on_invalid=None, **settings) -> list[Pair]:
    arguments = (on_invalid,) if on_invalid else ()
    return list(read_pairs(path, Data(train=path, **settings), *arguments))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8)


@settings(max_examples=40)
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6), st.sampled_from(",;\t"))
def test_whatever_the_library_writes_is_read_back(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["source", "target"], *rows])
    path.write_bytes(text.getvalue().encode())
    assert [row for _, row in csv_rows(path)][1:] == rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_found_and_columns_go_by_name(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    rows = ["target,page,source", 'Ein Haus,3,"A house, or ""home"""', "", '"Zwei\nZeilen",4,Two lines']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).replace(",", delimiter).encode())
    found = pairs_of(path, group="page")
    assert found == [Pair(f'A house{delimiter} or "home"', "Ein Haus", "3"), Pair("Two lines", "Zwei\nZeilen", "4")]


def test_documents_come_from_csv_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\n"One, two"\nThree\n')
    assert list(read_documents(path, Data(train=path))) == [Document("One, two"), Document("Three")]


BAD = {
    b"One,Eins,x": r"row 3: 3 cells where the header has 2; quote a cell",
    b"One": r"row 3: 1 cells where the header has 2",
    b'"One" more,Eins': r"row 3: ',' expected after '\"'; put quotes around",
    b"caf\xe9,Kaffee": r"row 3: not UTF-8 \(byte 4\); convert .*LATIN1",
    b",Eins": r"row 3: column source: empty",
    b"x" * 1_000_001 + b",y": r"row 3: longer than 1 MB",
}


@pytest.mark.parametrize(("row", "message"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_row_is_named_by_its_line_and_can_be_left_out(tmp_path, row, message):
    path = tmp_path / "a.csv"
    path.write_bytes(b"source,target\nOne,Eins\n" + row + b"\nTwo,Zwei\n")
    with pytest.raises(DataError, match=rf"a\.csv, {message}"):
        pairs_of(path)
    errors: list[DataError] = []
    assert pairs_of(path, errors.append) == [Pair("One", "Eins"), Pair("Two", "Zwei")]
    assert len(errors) == 1


@pytest.mark.parametrize("rest", [b"", b"many,rows\n" * 300_000], ids=["end", "1 MB"])
def test_a_quote_that_never_closes_stops_even_where_bad_rows_are_skipped(tmp_path, rest):
    path = tmp_path / "a.csv"
    path.write_bytes(b'source,target\nOne,Eins\n"Two,Zwei\nThree,Drei\n' + rest)
    with pytest.raises(DataError, match=r"a\.csv, row 3: a quote opens there and never closes"):
        pairs_of(path, lambda error: None)


def test_rows_after_a_cell_of_several_lines_keep_their_lines_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('source,target\n"a\nb",c\n\nd\n')
    rows = list(csv_rows(path))
    assert [number for number, _ in rows] == [1, 2, 5]
    assert not any(isinstance(row, MalformedError) for _, row in rows)


def test_headers_without_the_column_with_one_twice_or_of_utf_16_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("src,target\na,b\n")
    with pytest.raises(DataError, match=r"a\.csv: no column 'source', there are: src, target"):
        pairs_of(path)
    path.write_text("source,target,source\na,b,c\n")
    with pytest.raises(DataError, match=r"row 1: two columns are called 'source'"):
        pairs_of(path)
    path.write_bytes("source,target\na,b\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"row 1: not UTF-8 \(byte 1\); .*-f UTF-16"):
        pairs_of(path)
    for content in ("", "source,target\n"):
        path.write_text(content)
        with pytest.raises(DataError, match="no usable example"):
            pairs_of(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_that_end_in_cr_alone_and_utf_16_with_crlf_are_told_apart(tmp_path, encoding):
    path, end = tmp_path / "a.csv", "\r" if encoding == "utf-8" else "\r\n"
    path.write_bytes(f"source,target{end}one,eins{end}".encode(encoding))
    with pytest.raises(DataError, match=r"row 1: .*(tr '\\r' '\\n'|iconv -f UTF-16)") as refused:
        pairs_of(path)
    assert ("iconv" in str(refused.value)) == (encoding == "utf-16")
