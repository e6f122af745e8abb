"""A poisoned row is named with its file and number, and obeys `data.invalid`; none is ever held whole."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.readers import read_documents
from chinchilla.data.split import NAMED_SKIPS, split_documents, split_pairs

POISON_TSV = {
    "bad bytes": (b"caf\xe9\tKaffee", "not UTF-8"),
    "UTF-16": ("eins\tzwei".encode("utf-16"), "not UTF-8"),
    "one column": (b"alone", "1 column"),
    "empty source": (b"\ttarget", "column source: empty"),
    "empty target": (b"source\t", "column target: empty"),
    "a long line": (b"x" * 1_000_001, "longer than 1 MB"),
    "a long line of zeros": (bytes(1_500_000), "longer than 1 MB"),
}

POISON_JSONL = {
    "NaN": (b'{"text": NaN}', "column text: float where text is needed"),
    "infinite": (b'{"text": -Infinity}', "column text: float where text is needed"),
    "null": (b'{"text": null}', "column text: NoneType where text is needed"),
    "a number": (b'{"text": 3}', "column text: int where text is needed"),
    "a list": (b'{"text": ["a"]}', "column text: list where text is needed"),
    "no text": (b'{"txt": "a"}', "no column 'text'"),
    "empty": (b'{"text": " "}', "column text: empty"),
    "half an object": (b'{"text": "a', "not valid JSON"),
    "deep": (b'{"text": ' * 50_000, "not valid JSON"),
    "a number of many digits": (b'{"text": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "bad bytes": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "half a character": (rb'{"text": "\ud800"}', "half a surrogate pair"),
    "a long line": (b'{"text": "' + b"x" * 1_000_000 + b'"}', "longer than 1 MB"),
}


def good(number: int) -> bytes:
    return f"source {number}\ttarget {number}\n".encode()


def good_json(number: int) -> bytes:
    return json.dumps({"text": f"text {number}"}).encode() + b"\n"


@pytest.mark.parametrize("kind", POISON_TSV)
def test_a_poisoned_row_of_a_tsv(tmp_path, caplog, kind):
    row, message = POISON_TSV[kind]
    path = tmp_path / "a.tsv"
    path.write_bytes(b"".join(map(good, range(30))) + row + b"\n" + b"".join(map(good, range(30, 60))))
    with pytest.raises(DataError, match=rf"a\.tsv, row 31: .*{message}"):
        split_pairs(Data(train=path), seed=0)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split = split_pairs(Data(train=path, invalid="skip"), seed=0)
    assert sum(len(list(part)) for part in (split.train, split.valid, split.test)) == 60
    assert "a.tsv, row 31: " in caplog.text and message in caplog.text
    assert "left out 1 malformed rows and kept 60" in caplog.text


@pytest.mark.parametrize("kind", POISON_JSONL)
def test_a_poisoned_row_of_a_jsonl(tmp_path, caplog, kind):
    row, message = POISON_JSONL[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(map(good_json, range(30))) + row + b"\n" + b"".join(map(good_json, range(30, 60))))
    with pytest.raises(DataError, match=rf"a\.jsonl, row 31: .*{message}"):
        split_documents(Data(train=path), seed=0)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split = split_documents(Data(train=path, invalid="skip"), seed=0)
    assert sum(len(list(part)) for part in (split.train, split.valid, split.test)) == 60
    assert "left out 1 malformed rows and kept 60" in caplog.text


def test_poisoned_rows_of_a_parquet_file(tmp_path, caplog):
    path = tmp_path / "a.parquet"
    texts = [f"text {number}" for number in range(60)]
    texts[30], texts[40] = None, "x" * 1_000_001
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 31: column text: NoneType"):
        split_documents(Data(train=path), seed=0)
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split_documents(Data(train=path, invalid="skip"), seed=0)
    assert "row 41: column text: longer than 1 MB" in caplog.text
    assert "left out 2 malformed rows and kept 58" in caplog.text
    pyarrow.parquet.write_table(pyarrow.table({"text": [float("nan")]}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: column text: float where text is needed"):
        split_documents(Data(train=path), seed=0)


def test_the_first_few_are_named_and_all_are_counted(tmp_path, caplog):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"".join(good(n) + (b"bad\n" if n % 20 == 7 else b"") for n in range(200)))
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split_pairs(Data(train=path, invalid="skip"), seed=0)
    assert caplog.text.count("leaving out a malformed row: ") == NAMED_SKIPS
    assert "row 9: " in caplog.text and "row 30: " in caplog.text
    assert "a.tsv: left out 10 malformed rows and kept 200" in caplog.text


def test_more_than_a_tenth_is_refused_even_if_they_may_be_skipped(tmp_path):
    path = tmp_path / "a.tsv"
    for bad, refused in ((10, False), (11, True)):
        path.write_bytes(b"bad\n" * bad + b"".join(map(good, range(90))))
        if not refused:
            split_pairs(Data(train=path, invalid="skip"), seed=0)
            continue
        told = r"a\.tsv: 11 of 101 rows are malformed.*set data\.format .*or mend it; the first: .*row 1: 1 column"
        with pytest.raises(DataError, match=told):
            split_pairs(Data(train=path, invalid="skip"), seed=0)


def test_the_rows_of_a_text_file_are_its_lines(tmp_path, caplog):
    path = tmp_path / "a.txt"
    document = "\n".join(f"line {n}" for n in range(30))
    lines = b"\n\n".join(f"{number}\n{document}".encode() for number in range(8))
    path.write_bytes(lines + b"\ncaf\xe9\n")
    with caplog.at_level(logging.WARNING, "chinchilla"):
        split_documents(Data(train=path, invalid="skip"), seed=0)
    assert "left out 1 malformed rows and kept 248" in caplog.text


def test_two_parallel_files_are_both_named(tmp_path):
    files = (tmp_path / "a.en", tmp_path / "a.de")
    for file in files:
        file.write_bytes(b"line\n" * 5 + b"\n" * 5)
    with pytest.raises(DataError, match=r"a\.en and \S*a\.de: 5 of 10 rows are malformed"):
        split_pairs(Data(train=files, invalid="skip"), seed=0)


READ = """
import logging, resource, sys
from chinchilla.config.errors import DataError
from chinchilla.config.run import Data
from chinchilla.data.split import split_documents, split_pairs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Data(train=sys.argv[1], invalid=sys.argv[2])
try:
    split = (split_pairs if sys.argv[1].endswith("tsv") else split_documents)(data, 0)
    print(len(split.train) + len(split.valid) + len(split.test))
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def read_apart(path: Path, invalid: str) -> tuple[str, int]:
    """What reading says, and by how many kB it raised the peak of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), invalid], capture_output=True, text=True, check=True, timeout=120
    )
    said, grown = done.stdout.splitlines()
    return said, int(grown)


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.txt"])
def test_a_line_of_a_gigabyte_is_named_without_being_held(tmp_path, name):
    """The line is a hole in the file: it takes no room on the disk, and reads as 2^30 zeros."""
    path = tmp_path / name
    rows = [good(n) if name == "a.tsv" else good_json(n) + (b"\n" if name == "a.txt" else b"") for n in range(60)]
    with path.open("wb") as file:
        file.write(b"".join(rows[:30]))
        file.seek(1 << 30, 1)
        file.write(b"\n" + b"".join(rows[30:]))
    number = 61 if name == "a.txt" else 31
    said, grown = read_apart(path, "refuse")
    assert f"{name}, row {number}: longer than 1 MB; break it" in said
    assert grown < 30_000
    said, grown = read_apart(path, "skip")
    assert said == "60"
    assert grown < 30_000


def test_a_gigabyte_without_any_line_end_is_one_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    said, grown = read_apart(path, "skip")
    assert "no usable example" in said
    assert grown < 30_000


def test_text_may_hold_a_nul(tmp_path):
    """NUL is a character like any other: bytes are what the tokenizer learns."""
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    (document,) = read_documents(tmp_path / "a.txt", Data(train=tmp_path / "a.txt"))
    assert document.text == "a\0b"
