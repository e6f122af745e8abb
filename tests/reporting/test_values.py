"""Numbers and names as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.estimate import Estimate
from chinchilla.reporting.values import clean, interval, label, metric, metric_lines, quantity, typewriter


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0, "s", "0 s"),
        (4.2e-5, "s", "42 µs"),
        (0.0872, "s", "87.2 ms"),
        (2.314, "s", "2.31 s"),
        (452, "s", "7m32s"),
        (18_810_000, "bytes", "18.8 MB"),
        (8_600_000, "tokens", "8.6M"),
        (2.4e14, "FLOP", "240T"),
        (2.3456, "nats/token", "2.346"),
        (None, "s", "–"),
        (float("nan"), "s", "–"),
        (float("inf"), "", "∞"),
    ],
)
def test_a_quantity_is_scaled_to_its_unit(value: float | None, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


def test_an_interval_shows_all_three_quantiles() -> None:
    estimate = Estimate(p10=0.198, p50=0.214, p90=0.231, unit="s", source="measured")
    assert interval(estimate) == "214 ms [198 ms – 231 ms]"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step_time_s", "step time"),
        ("int8_size_bytes", "int8 size"),
        ("bleu", "BLEU"),
        ("bits_per_byte", "bits per byte"),
        ("tokens", "tokens"),
    ],
)
def test_a_label_has_no_unit_suffix(name: str, words: str) -> None:
    assert label(name) == words


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("bleu", 22.8431, "22.84"),
        ("bits_per_byte", 1.23456, "1.235"),
        ("latency_p50_s", 0.0712, "71.2 ms"),
        ("tokens_per_s", 18_900.0, "18.9k"),
        ("examples", 412, "412"),
        ("signature", "nrefs:1|case:mixed", "nrefs:1|case:mixed"),
        ("chrf", None, "–"),
    ],
)
def test_a_metric_is_shown_in_the_unit_of_its_name(name: str, value: object, shown: str) -> None:
    assert metric(name, value) == shown


def test_metric_lines_align() -> None:
    assert metric_lines({"bleu": 22.84, "bits_per_byte": 1.2}) == ["BLEU           22.84", "bits per byte  1.2"]
    assert metric_lines({}) == []


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    assert all(c in "\n\t" or c.isprintable() for c in clean(text))


def test_clean_text_keeps_scripts_and_drops_escape_codes() -> None:
    assert clean("中文 é\n\t") == "中文 é\n\t"
    assert "\x1b" not in clean("\x1b[31mred")


def test_typewriter_spells_signs_and_keeps_letters() -> None:
    assert typewriter("3+3×192 – ≥ µs …") == "3+3x192 - >= us ..."
    assert typewriter("für 中文") == "für 中文"
