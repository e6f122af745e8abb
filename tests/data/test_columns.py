"""Columns as models take them: numbers by quantiles, categories by code, instants by parts; the same when served."""

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer

from chinchilla.config.errors import DataError, FaultError
from chinchilla.data.cells import column_array, kind_of, numbers, problems, seconds
from chinchilla.data.classes import Classes
from chinchilla.data.column_fit import fit_columns, known_categories, quantile_knots, telling_knots
from chinchilla.data.columns import Columns, NumberColumn, time_part
from chinchilla.data.rows import MalformedError
from chinchilla.data.table_classes import TableClasses
from chinchilla.data.tables import Table


def table(**columns) -> Table:
    arrays = {name: column_array(pyarrow.array(cells)) for name, cells in columns.items()}
    return Table("a.csv", arrays, np.arange(1, len(next(iter(arrays.values()))) + 1))


NO_LABELS = np.zeros(0, dtype=np.int64)
"""Of few rows the classes choose nothing."""


def fitted(values) -> NumberColumn:
    values = np.array(values, dtype=float)
    return NumberColumn(column="x", knots=quantile_knots(values), count=int((~np.isnan(values)).sum()))


@pytest.mark.parametrize("kind", ["continuous", "skewed", "tied", "few"])
def test_numbers_are_normalised_as_scikit_learn_does_it(kind):
    random = np.random.default_rng(0)
    weighed = {
        "continuous": random.normal(3, 20, 2000),
        "skewed": random.lognormal(3, 2, 2000),
        "tied": np.repeat(np.arange(40.0), np.arange(5, 45)),
        "few": random.normal(0, 1, 90),
    }[kind]
    # Scikit-learn is given each number √n times where ours is given it n times.
    different, counts = np.unique(weighed, return_counts=True)
    values = np.repeat(different, counts**2)
    theirs = QuantileTransformer(n_quantiles=min(256, len(weighed)), output_distribution="normal", subsample=None)
    wanted = theirs.fit(weighed[:, None]).transform(values[:, None])[:, 0]
    # At the two ends scikit-learn gives ±5.2, whatever the number of values; ours give the middle of their ranks.
    inner = (values > values.min()) & (values < values.max()) & (np.abs(wanted) < 2.5)
    assert inner.mean() > 0.8
    assert np.allclose(fitted(values).encode(values)[inner], wanted[inner], atol=1e-6)


def test_of_many_rows_knots_are_where_the_class_changes():
    random = np.random.default_rng(0)
    values = np.concatenate([random.lognormal(3, 2, 11_000), np.full(9_000, 7.0)])
    edges = [2.0, 7.0, 50.0, 60.0, 400.0]
    labels = np.searchsorted(edges, values) % 2 ^ (random.random(len(values)) < 0.1)
    knots = np.array(telling_knots(values, labels))
    assert len(knots) == 33
    assert (knots[0], knots[-1]) == (values.min(), values.max())
    # Each edge has a knot with next to no rows between.
    for edge in edges:
        nearest = knots[np.abs(knots - edge).argmin()]
        between = (values > min(edge, nearest)) & (values < max(edge, nearest))
        assert between.sum() <= 40, (edge, nearest)
    plain = np.array(quantile_knots(values))[::8]
    assert min(np.abs(plain - 60)) > min(np.abs(knots - 60))


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_knots_that_classes_choose_are_of_the_values_own_size(scale):
    values = np.arange(20_000) % 1_000 * scale
    labels = (values > 300 * scale).astype(np.int64)
    knots = np.array(telling_knots(values, labels)) / scale
    assert np.all(np.diff(knots) > 0) and np.isclose(knots, 300.5).any()


def test_classes_choose_knots_from_10000_known_numbers_on():
    values = np.append(np.arange(9_999.0), np.nan)
    (few,) = fit_columns(table(x=values), {"x": "number"}, (), np.arange(10_000) % 2).numbers
    assert few.knots == quantile_knots(values)
    (many,) = fit_columns(table(x=np.arange(10_000.0)), {"x": "number"}, (), np.arange(10_000) // 4_000).numbers
    assert len(many.knots) == 33 and 3_999.5 in many.knots and 7_999.5 in many.knots
    two = telling_knots(np.arange(20_000) % 2.0, np.arange(20_000) % 2)
    assert (two[0], two[-1]) == (0.0, 1.0) and 0.5 in two


def test_missing_numbers_shift_no_labels():
    values, labels = np.arange(20_000.0), (np.arange(20_000) >= 12_000).astype(np.int64)
    values[:5_000] = np.nan
    knots = telling_knots(values, labels)
    assert 11_999.5 in knots and (knots[0], knots[-1]) == (5_000, 19_999)


def test_many_equal_numbers_are_between_those_below_and_above():
    values = np.append(np.full(10_000, 3.0), np.nan)
    (column,) = fit_columns(table(x=values), {"x": "number"}, (), np.arange(10_001) % 2).numbers
    below, same, above = column.encode(np.array([2.0, 3.0, 4.0]))
    assert below < same < above and abs(same) < 1e-6


def test_two_values_have_the_middles_of_their_ranks():
    values = np.array([0.0] * 70 + [1.0] * 30)
    low, high = fitted(values).encode(np.array([0.0, 1.0]))
    # √70 places, of which the first is 0, then √30 to the last.
    last = 70**0.5 + 30**0.5 - 1
    assert low == pytest.approx(norm.ppf((70**0.5 - 1) / last / 2), abs=0.02)
    assert high == pytest.approx(norm.ppf((1 + 70**0.5 / last) / 2), abs=0.02)


def test_what_is_rare_has_room_beside_what_is_common():
    values = np.array([0.0] * 9000 + [*range(1, 101)] * 9)
    ranks = norm.cdf(fitted(values).encode(np.array([0.0, 1.0, 100.0])))
    assert ranks[2] - ranks[1] > 0.7  # a hundred numbers that are a tenth of the rows


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e12, 1e12) | st.just(float("nan")), max_size=60),
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20),
)
def test_normalised_numbers_are_finite_ordered_and_bounded(known, asked):
    column = fitted(known)
    found = column.encode(np.sort(np.array(asked)))
    if column.count == 0:
        assert np.isnan(found).all()
        return
    assert np.isfinite(found).all()
    assert (np.diff(found) >= -1e-9).all()
    bound = fitted(np.arange(column.count)).encode(np.array([-1.0, column.count]))
    assert (found >= bound[0] - 1e-9).all() and (found <= bound[1] + 1e-9).all()
    assert np.isnan(column.encode(np.array([np.nan]))).all()


PLAIN = st.floats(allow_nan=False, allow_infinity=False, width=64).map(repr)
WRITTEN = (
    PLAIN | st.integers(-(10**20), 10**20).map(str) | st.sampled_from(["+3", "5.", ".5", "-0", "1E5", "00012", "1e+3"])
)


@settings(max_examples=40)
@given(st.lists(WRITTEN, min_size=1, max_size=10))
def test_numbers_are_read_as_python_reads_them(texts):
    array = column_array(pyarrow.array([f" {text} " for text in texts]))
    assert kind_of(array) == "number"
    assert not list(problems(array, "number"))
    assert numbers(array).tolist() == [float(text) for text in texts]


INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31))


@settings(max_examples=30)
@given(st.lists(INSTANTS, min_size=1, max_size=8))
def test_instants_and_their_parts_are_the_calendars(instants):
    array = column_array(pyarrow.array([instant.isoformat(" ") for instant in instants]))
    assert kind_of(array) == "time"
    found = seconds(array)
    assert np.allclose(found, [instant.replace(tzinfo=UTC).timestamp() for instant in instants], atol=1e-6, rtol=0)
    assert np.allclose(seconds(pyarrow.array(instants)), found, atol=1e-6, rtol=0)
    for part, of in {
        "month": lambda instant: instant.month,
        "weekday": lambda instant: instant.weekday(),
        "hour": lambda instant: (
            instant.hour + instant.minute / 60 + (instant.second + instant.microsecond / 1e6) / 3600
        ),
    }.items():
        assert np.allclose(time_part(found, part), [of(instant) for instant in instants], atol=3e-4)
    year = time_part(found, "year")
    assert ((year >= 0) & (year < 1)).all()
    assert np.allclose(year, [(instant.timetuple().tm_yday - 1) / 365 for instant in instants], atol=0.006)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-29T12:30Z", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("2024-02-29 12:30:05.5+02:00", datetime(2024, 2, 29, 10, 30, 5, 500_000, tzinfo=UTC)),
    ],
)
def test_dates_are_written_as_in_iso_8601(text, instant):
    array = pyarrow.array([text, None])
    assert kind_of(array) == "time"
    assert seconds(array)[0] == instant.timestamp()
    assert np.isnan(seconds(array)[1])


def test_parts_of_instants_that_do_not_vary_are_left_out():
    days = table(d=[f"2024-03-{day:02}" for day in range(1, 29)])
    assert fit_columns(days, {"d": "time"}, (), NO_LABELS).names == ("d", "d: year", "d: weekday")
    hours = table(d=[f"2024-03-01 {hour:02}:00" for hour in range(24)])
    assert fit_columns(hours, {"d": "time"}, (), NO_LABELS).names == ("d", "d: year", "d: hour")


def test_rare_categories_are_unknown_and_missing_ones_have_a_code(tmp_path):
    cells = ["b"] * 60 + ["a"] * 30 + [None] * 5 + ["odd", "odder"]
    columns = fit_columns(table(c=cells), {"c": "category"}, (), NO_LABELS)
    assert columns.categories[0].categories == ("a", "b")
    assert columns.cardinalities == (4,)
    found = columns.encode(table(c=["a", "b", "odd", "never seen", None]))
    assert found[:, 0].tolist() == [2, 3, 1, 1, 0]
    many = pyarrow.array([f"{n:04}" for n in range(1100) for _ in range(10 + n // 100)])
    assert len(known_categories(many)) == 1000
    assert known_categories(many)[0] == "0100"


COLUMNS = fit_columns(
    table(
        age=[20, 30, 40, None, 60],
        city=["Bonn", "Graz", "Bonn", "Graz", None],
        ok=[True, False, True, False, None],
        day=[date(2020, 1, day) for day in range(1, 6)],
    ),
    {"age": "number", "city": "category", "ok": "category", "day": "time"},
    ("label", "id"),
    NO_LABELS,
)
CODEC = TableClasses(COLUMNS, Classes(names=("no", "yes"), positive="yes"))


def test_a_record_is_encoded_as_the_tables_row_is():
    rows = table(age=[35.5, None], city=["Graz", "Rome"], ok=[True, None], day=[date(2020, 1, 4), None])
    wanted = COLUMNS.encode(rows)
    asked = [{"age": 35.5, "city": "Graz", "ok": True, "day": "2020-01-04"}, {"city": "Rome", "label": "?", "id": 7}]
    assert np.array_equal(COLUMNS.encode_records(asked), wanted, equal_nan=True)
    asked[0] |= {"age": "35.5", "ok": "True", "day": date(2020, 1, 4)}
    asked[1] |= {"age": float("nan"), "ok": "NA", "day": ""}
    assert np.array_equal(COLUMNS.encode_records(asked), wanted, equal_nan=True)


STORED = {
    "half": (pyarrow.float16(), lambda n: np.float16(n / 10)),
    "single": (pyarrow.float32(), lambda n: n / 10),
    "double": (pyarrow.float64(), lambda n: n / 10),
    "decimal": (pyarrow.decimal128(28, 9), lambda n: Decimal(n * 1_234_567).scaleb(-9)),
    "whole": (pyarrow.int64(), lambda n: 10**16 + n),
    "micro": (pyarrow.timestamp("us", "Europe/Berlin"), lambda n: n * 10**12 + 1),
    "nano": (pyarrow.timestamp("ns"), lambda n: n * 10**15 + 1),
    "date": (pyarrow.date32(), lambda n: n * 50),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_parquet_files_row_and_its_cells_as_texts_are_encoded_alike(kind):
    # The test data is scored as texts: a last digit's difference would move a number off the ranks of its equals.
    stored, value = STORED[kind]
    cells = pyarrow.array([value(number % 7) for number in range(60)], stored)
    rows = Table("a.parquet", {"x": column_array(cells)}, np.arange(60))
    columns = fit_columns(rows, {"x": kind_of(rows.columns["x"])}, (), NO_LABELS)
    assert np.array_equal(columns.encode_records(list(rows.records())), columns.encode(rows))


BAD = [
    ({"age": 3, "town": "Bonn"}, "row 2: no column 'town', there are: age"),
    ({"aeg": 3}, r"row 2: no column 'aeg' \(did you mean 'age'\?\)"),
    ({"age": "old"}, "row 2: column age: 'old' in a column of numbers"),
    ({"age": float("inf")}, "row 2: column age: an infinite number"),
    ({"age": [3]}, r"row 2: column age: '\[3\]' in a column of numbers"),
    ({"age": True}, "row 2: column age: 'true' in a column of numbers"),
    ({"day": "1.2.2020"}, "row 2: column day: '1.2.2020' in a column of dates"),
    ({}, "row 2: no value of any column"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_named(record, message):
    with pytest.raises(DataError, match=message):
        COLUMNS.encode_records([{"age": 30}, record])


def test_the_codec_comes_back_from_its_settings():
    again = TableClasses.open(CODEC.settings, None, "runs/a")
    assert (again.columns, again.classes) == (COLUMNS, CODEC.classes)
    assert again.tokenizer_json is None
    damaged = {**CODEC.settings, "columns": {"numbers": [{"column": "x", "knots": ["a"]}], "categories": []}}
    with pytest.raises(FaultError, match=r"runs/a/config\.json: codec\.columns\.numbers\.0\.knots\.0: .*the file anew"):
        TableClasses.open(damaged, None, "runs/a")


def test_the_codec_gives_batches_and_says_what_a_row_is_made_of():
    questions = [{"age": age} for age in range(3000)]
    found = list(CODEC.batches(questions))
    assert len(found) > 1
    assert [place for places, _ in found for place in places] == list(range(3000))
    assert found[0][1]["source"].shape[1] == len(COLUMNS.names)
    assert CODEC.form["columns"][1] == {"name": "day", "kind": "time"}
    assert {"name": "city", "kind": "category", "categories": ["Bonn", "Graz"]} in CODEC.form["columns"]
    assert CODEC.read_question({"age": 3}).question == {"age": 3}
    with pytest.raises(MalformedError, match="str where a row is needed"):
        CODEC.read_question("age")
    assert Columns.model_validate_json(COLUMNS.model_dump_json()) == COLUMNS
