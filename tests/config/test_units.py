import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from chinchilla.config import units
from chinchilla.config.units import (
    COUNT,
    SIZE_BYTES,
    TIME_S,
    Count,
    EnergyJ,
    Flops,
    LatencyS,
    Number,
    SizeBytes,
    TimeS,
    show_energy,
)

KINDS = {"time": (TimeS, TIME_S), "size": (SizeBytes, SIZE_BYTES), "flops": (Flops, COUNT), "count": (Count, COUNT)}
NUMBERS = st.decimals(min_value=0, max_value=10**9, places=3, allow_nan=False).map(str)


def parse(kind: str, value: object) -> float | int:
    return TypeAdapter(KINDS[kind][0]).validate_python(value)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("time", "10m", 600),
        ("time", "1.5 h", 5400),
        ("time", "2d", 172800),
        ("time", " 90 ", 90),
        ("time", "1min", 60),
        ("count", "10m", 10_000_000),
        ("count", "2B", 2_000_000_000),
        ("count", "1e5", 100_000),
        ("size", "20MB", 20_000_000),
        ("size", "1KiB", 1024),
        ("size", "16.1kB", 16_100),
        ("size", "4.35GB", 4_350_000_000),
        ("size", "1.3KiB", 1331),
        ("flops", "200T", 2e14),
        ("flops", "1E", 1e18),
        ("flops", "3e14", 3e14),
        ("flops", 5, 5.0),
    ],
)
def test_examples(kind, text, value):
    found = parse(kind, text)
    assert found == value
    assert type(found) is (int if kind in ("size", "count") else float)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (EnergyJ, "2kWh", 7.2e6),
        (EnergyJ, "1.5 MJ", 1.5e6),
        (EnergyJ, "10 Wh", 36_000),
        (EnergyJ, 90, 90),
        (LatencyS, "50ms", 0.05),
        (LatencyS, "20us", 2e-5),
        (LatencyS, "1m", 60),
        (Number, "2.5", 2.5),
    ],
)
def test_energies_latencies_and_bare_numbers(kind, text, value):
    assert TypeAdapter(kind).validate_python(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("joules", "text"), [(90, "90 J"), (42_000, "42 kJ"), (3.6e5, "100 Wh"), (9e6, "2.5 kWh"), (7.2e9, "2 MWh")]
)
def test_show_energy(joules, text):
    assert show_energy(joules) == text


@given(kind=st.sampled_from(sorted(KINDS)), number=NUMBERS, data=st.data())
def test_a_suffix_multiplies_exactly(kind, number, data):
    unit = data.draw(st.sampled_from(sorted(KINDS[kind][1])))
    exact = Fraction(number) * Fraction(KINDS[kind][1][unit])
    whole = exact.denominator == 1 or (kind == "size" and exact >= 1) or float(exact).is_integer()
    if kind in ("size", "count") and not whole:
        with pytest.raises(ValidationError, match="fractional part"):
            parse(kind, number + unit)
    else:
        assert parse(kind, number + unit) == (float(exact) if kind in ("time", "flops") else int(float(exact)))


@given(kind=st.sampled_from(sorted(KINDS)), text=st.text(max_size=12) | st.from_regex(r"[0-9.eE+-]{1,12}[a-zA-Z]{0,3}"))
def test_any_text_is_a_number_or_a_refusal_that_says_what_is_allowed(kind, text):
    try:
        value = parse(kind, text)
    except ValidationError as error:
        message = str(error)
        assert f"is not a {'count' if kind == 'flops' else kind}" in message or "Input should be" in message
    else:
        assert math.isfinite(value) or kind in ("time", "flops")


@pytest.mark.parametrize("text", ["1e999999999", "1e9999999h", "9" * 400])
def test_a_number_beyond_all_bounds_is_refused_quickly(text):
    adapter = TypeAdapter(SizeBytes)
    with pytest.raises(ValidationError):
        adapter.validate_python(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00025, "250µs"),
        (0.5, "0.5s"),
        (2.34, "2.3s"),
        (45.4, "45s"),
        (485, "8m05s"),
        (3720, "1h02m"),
        (3599.7, "1h00m"),
    ],
)
def test_show_time(seconds, text):
    assert units.show_time(seconds) == text


@pytest.mark.parametrize(
    ("value", "count", "size"),
    [
        (0, "0", "0 B"),
        (999.4, "999", "999 B"),
        (999.9, "1k", "1 kB"),
        (4_720_000, "4.72M", "4.72 MB"),
        (999_999, "1M", "1 MB"),
        (-18_249_000, "-18.2M", "-18.2 MB"),
        (5e12, "5T", "5 TB"),
        (3.1e15, "3.1e+15", "3.1e+03 TB"),
    ],
)
def test_show_count_and_bytes(value, count, size):
    assert units.show_count(value) == count
    assert units.show_bytes(value) == size


@given(st.floats(1, 9.9e14))
def test_what_is_shown_is_right_to_three_figures(value):
    text = units.show_count(value)
    back = float(text.rstrip("kMGT")) * COUNT[text.lstrip("0123456789.e+-")]
    assert back == pytest.approx(value, rel=0.005)
