import json
import logging
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import FaultError
from chinchilla.store import journal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(st.text(), VALUES, max_size=4)


@settings(max_examples=60)
@given(records=st.lists(RECORDS, min_size=1, max_size=5))
def test_what_is_appended_is_read(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    for record in records:
        journal.append(path, record)
    assert journal.read(path) == records
    assert path.read_bytes().count(b"\n") == len(records)


@settings(max_examples=150)
@given(records=st.lists(RECORDS, min_size=1, max_size=4), added=RECORDS, data=st.data())
def test_a_torn_last_line_costs_that_line_only(tmp_path_factory, records, added, data):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    for record in records:
        journal.append(path, record)
    written = path.read_bytes()
    length = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:length])
    ends = [index + 1 for index, byte in enumerate(written) if byte == 10]
    whole = sum(length >= end - 1 for end in ends)  # complete even without its newline
    assert journal.read(path) == records[:whole]
    journal.append(path, added)
    assert journal.read(path) == [*records[:whole], added]


@pytest.mark.parametrize(
    "tail", [b'{"a": 1', b"\0\0\0\0", b'\0\0"a": 1}\n', b"3", b"\n", b"\xff\xfe\n", b"[" * 100_000]
)
def test_any_damage_of_the_last_line_is_mended_by_the_next_append(tmp_path, caplog, tail):
    path = tmp_path / "events.jsonl"
    journal.append(path, {"kind": "save"})
    with path.open("ab") as file:
        file.write(tail)
    with caplog.at_level(logging.WARNING, logger="chinchilla"):
        assert journal.read(path) == [{"kind": "save"}]
        journal.append(path, {"kind": "resume"})
    assert journal.read(path) == [{"kind": "save"}, {"kind": "resume"}]
    assert "torn" in caplog.text


def test_a_torn_line_longer_than_one_read_of_the_tail_is_mended(tmp_path):
    path = tmp_path / "events.jsonl"
    journal.append(path, {"text": "x" * 10_000})
    journal.append(path, {"text": "y" * 100_000})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 20)
    journal.append(path, {"kind": "resume"})
    assert journal.read(path) == [{"text": "x" * 10_000}, {"kind": "resume"}]


@pytest.mark.parametrize("damage", [b'{"a": ', b"", b"[1]", b"nonsense", b"\xff"])
def test_a_damaged_middle_line_is_named_and_not_dropped(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.raises(FaultError, match=r"metrics\.jsonl: line 2 is damaged"):
        journal.read(path)
    with pytest.raises(FaultError, match="line 2"):
        journal.cut(path, lambda record: False)
    assert path.read_bytes().endswith(b'{"step": 3}\n')


def test_every_line_is_strict_json_even_with_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal.append(path, {"loss": float("nan"), "norms": (1.0, float("inf")), "inner": {"x": float("-inf")}})
    text = path.read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert journal.read(path) == [{"loss": None, "norms": [1.0, None], "inner": {"x": None}}]


def test_a_lone_surrogate_does_not_stop_a_run(tmp_path):
    journal.append(tmp_path / "events.jsonl", {"path": "bad\udcff"})
    assert journal.read(tmp_path / "events.jsonl") == [{"path": "bad\udcff"}]


def test_a_missing_or_empty_journal_has_no_records(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert journal.read(tmp_path / "absent.jsonl") == journal.read(tmp_path / "empty.jsonl") == []


def test_cut_keeps_what_is_asked_and_leaves_an_untouched_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        journal.append(path, {"step": step})
    before = path.stat()
    assert journal.cut(path, lambda record: True) == 0
    assert path.stat().st_ino == before.st_ino
    assert journal.cut(path, lambda record: record["step"] < 2) == 3
    assert journal.read(path) == [{"step": 0}, {"step": 1}]
    assert journal.cut(tmp_path / "absent.jsonl", lambda record: False) == 0


def _append_many(path: Path, writer: int) -> None:
    for number in range(30):
        journal.append(path, {"writer": writer, "number": number, "text": "z" * 5000})


def test_processes_that_append_at_once_never_share_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    records = journal.read(path)
    for writer in range(3):
        assert [record["number"] for record in records if record["writer"] == writer] == list(range(30))
