"""Tables out of packages: columns by their own names, missing values empty, the share of each class kept."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from chinchilla.config.errors import FaultError
from chinchilla.data.table_sources import arff_table, parquet_table, recbole_table, tumours
from chinchilla.verbs.data import get

ARFF = """% 1. Title: loans
@relation loans
@attribute 'checking status' { '<0', 'no checking', ? }
@ATTRIBUTE duration real
@attribute class {good, bad}

@data
% a remark
'<0', 6, good
'no checking',48,bad
?,12,good
"""


def test_arff(tmp_path):
    path = tmp_path / "a.arff"
    path.write_text(ARFF)
    columns, rows = arff_table(path)
    assert columns == ["checking status", "duration", "class"]
    assert list(rows) == [["<0", "6", "good"], ["no checking", "48", "bad"], ["", "12", "good"]]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet.brotli"
    table = pyarrow.table({"age": [25, None], "native-country": ["?", "Peru"], "rate": [0.5, 2.0]})
    pyarrow.parquet.write_table(table, path, compression="brotli")
    columns, rows = parquet_table(path)
    assert columns == ["age", "native-country", "rate"]
    assert list(rows) == [("25", "", "0.5"), ("", "Peru", "2.0")]


def test_tumours(tmp_path):
    path = tmp_path / "a.csv"
    numbers = ",".join(map(str, range(30)))
    path.write_text(f"2,30,malignant,benign\n{numbers},0\n{numbers},1\n")
    columns, rows = tumours(path)
    assert len(columns) == 31 and columns[:2] == ["mean radius", "mean texture"] and columns[10] == "radius error"
    assert columns[-2:] == ["worst fractal dimension", "target"]
    assert [row[-2:] for row in rows] == [["29", "malignant"], ["29", "benign"]]


def test_recbole(tmp_path):
    path = tmp_path / "a.item"
    path.write_text('item_id:token\ttitle:token_seq\n1\t"Quoted" Title\n2\tIl Postino\n', encoding="utf-8")
    assert list(recbole_table(path)) == [["1", '"Quoted" Title'], ["2", "Il Postino"]]


def fetched(name: str) -> tuple[Path, dict]:
    try:
        folder = get(name)
    except FaultError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")
    return folder, json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.mark.parametrize(
    ("name", "label", "classes", "columns", "missing"),
    [
        ("german-credit", "class", {"good": 700, "bad": 300}, 21, 0),
        ("credit-data", "Status", {"good": 3200, "bad": 1254}, 14, 455),
        pytest.param("adult", "income", {"<=50K": 37155, ">50K": 11687}, 15, 6465, marks=pytest.mark.slow),
        pytest.param("lending-club", "Class", {"good": 9340, "bad": 517}, 23, 0, marks=pytest.mark.slow),
        pytest.param("breast-cancer", "target", {"malignant": 212, "benign": 357}, 31, 0, marks=pytest.mark.slow),
    ],
)
def test_a_real_table_has_its_published_counts_and_leaks_nothing(name, label, classes, columns, missing):
    folder, meta = fetched(name)
    parts = {part: rows_of(folder / f"{part}.csv") for part in ("train", "valid", "test")}
    rows = [row for part in parts.values() for row in part]
    assert meta["label"] == label
    assert {part: len(found) for part, found in parts.items()} == meta["examples"]
    assert Counter(row[label] for row in rows) == classes
    assert {len(row) for row in rows} == {columns}
    assert sum(value == "" for row in rows for value in row.values()) == missing
    features = {part: {tuple(v for k, v in row.items() if k != label) for row in parts[part]} for part in parts}
    assert not features["train"] & features["test"] | features["train"] & features["valid"]
    for part, found in parts.items():
        wanted = {"train": 0.7, "valid": 0.1, "test": 0.2}[part]
        for kind, count in classes.items():
            assert sum(row[label] == kind for row in found) == pytest.approx(wanted * count, abs=3)


def test_real_ratings():
    folder, meta = fetched("ml-100k")
    ratings, items = rows_of(folder / "train.csv"), rows_of(folder / "items.csv")
    assert len(ratings) == meta["examples"]["train"] == 100_000
    assert len({row["user"] for row in ratings}) == 943 and len(items) == 1682
    assert {row["item"] for row in ratings} == {row["item"] for row in items}
    assert Counter(row["rating"] for row in ratings) == {"1": 6110, "2": 11370, "3": 27145, "4": 34174, "5": 21201}
    assert all(row["time"].isdigit() for row in ratings)
    assert items[0] == {"item": "1", "title": "Toy Story", "year": "1995", "genres": "Animation Children's Comedy"}
