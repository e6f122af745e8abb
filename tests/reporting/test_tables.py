"""The terminal's tables: what they say, and that what they are given cannot break them."""

import io
import os
import pty
import re

import pytest
from reporting_fakes import MEASURED, PREDICTED, make_compression, make_plan

from chinchilla.config.plan import Decision
from chinchilla.reporting import tables

LEDGER = [
    {"name": name, "predicted": PREDICTED[name].model_dump(), "measured": MEASURED[name], "unit": PREDICTED[name].unit}
    for name in PREDICTED
]


def squeezed(text: str) -> str:
    return re.sub(r"[ \n]+", " ", text)


def test_the_plan_shows_decisions_predictions_and_probes() -> None:
    text = squeezed(tables.plain(tables.plan_table(make_plan())))
    assert "precision bf16 median product 1.9x faster than fp32 on this machine" in text
    assert "step time 198 ms 214 ms 231 ms s measured" in text
    assert "validation loss 2.21 2.38 2.62 nats/token guess" in text
    assert "3+3x192 4.61M bf16 180k 20 s 200 ms 4.310 2.380" in text


def test_a_plan_without_probes_has_no_probe_table() -> None:
    plan = make_plan().model_copy(update={"probes": ()})
    assert "Probe runs" not in tables.plain(tables.plan_table(plan))


def test_the_plan_shows_what_others_on_the_front_gain_and_cost() -> None:
    text = squeezed(tables.plain(tables.plan_table(make_plan())))
    assert "* 3+3x192 18.9 MB 156 ms 1.31 GB 2.380 guess -" in text
    assert "3+3x128 12.7 MB 124 ms 1.14 GB 2.470 guess 1.48x smaller, 1.26x faster; loss +0.090 (+3.8%)" in text
    assert "Of 4 shapes for the same budget" in text
    assert "2 are beaten." in text
    alone = make_plan().model_copy(update={"considered": ()})
    assert "front" not in tables.plain(tables.plan_table(alone))


def test_the_ledger_says_error_and_whether_it_was_inside() -> None:
    rows = {row[0]: row[1:] for row in tables.ledger_rows(LEDGER)}
    assert rows["step time"] == ("214 ms [198 ms – 231 ms]", "221 ms", "-3.2 %", "yes")
    assert rows["peak memory"][1:] == ("1.52 GB", "-13.8 %", "no")


@pytest.mark.parametrize("measured", [None, 0.0])
def test_a_ledger_line_without_a_measure_has_no_error(measured: float | None) -> None:
    row = tables.ledger_rows([LEDGER[0] | {"measured": measured}])[0]
    assert row[3:] == ("–", "no")


def test_the_interval_includes_its_ends() -> None:
    predicted = PREDICTED["loss"]
    for value, inside in ((predicted.p10, True), (predicted.p90, True), (predicted.p90 * 1.001, False)):
        assert tables.inside_interval({"predicted": predicted.model_dump(), "measured": value}) is inside


def test_compression_shows_ratios_and_differences() -> None:
    rows = tables.compression_rows(make_compression("../translate-1"))
    assert rows[0] == ("size on disk", "18.8 MB", "4.86 MB", "3.87× smaller")
    assert rows[1] == ("latency p50", "71.2 ms", "48.8 ms", "1.46× faster")
    assert rows[3] == ("BLEU", "22.84", "22.71", "-0.13")


def test_compression_that_makes_things_worse_says_so() -> None:
    record = make_compression("../translate-1")
    record["before"], record["after"] = record["after"], record["before"]
    assert tables.compression_rows(record)[0][3] == "3.87× larger"
    assert tables.compression_rows(record)[1][3] == "1.46× slower"


def test_compression_without_latency_or_metrics_keeps_the_size() -> None:
    record = {"scheme": "int8", "before": {"size_bytes": 10}, "after": {"size_bytes": 5, "metrics": None}}
    assert [row[0] for row in tables.compression_rows(record)] == ["size on disk"]


def test_markup_and_escape_codes_stay_text() -> None:
    decision = Decision(name="[bold]x", value="[/] [link=x]", reason="\x1b[31mred\x07")
    text = tables.plain(tables.plan_table(make_plan().model_copy(update={"decisions": (decision,)})))
    assert "[bold]x" in text
    assert "[/] [link=x]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_off_a_terminal_it_is_ascii_without_codes() -> None:
    file = io.StringIO()
    tables.show(tables.plan_table(make_plan()), file)
    assert file.getvalue().isascii()
    assert "\x1b" not in file.getvalue()


def test_letters_the_encoding_lacks_do_not_stop_it() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    decision = Decision(name="file", value="übung-中文.tsv", reason="given")
    tables.show(tables.plan_table(make_plan().model_copy(update={"decisions": (decision,)})), file)
    assert b"?bung-??.tsv" in raw.getvalue()


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_codes_unless_no_color(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    screen, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as file:
        tables.show(tables.ledger_table(LEDGER[:1]), file)
        shown = os.read(screen, 65536).decode()
    os.close(screen)
    assert ("\x1b[" in shown) is coloured
    assert "step time" in shown


def test_probes_and_predictions_count_what_the_task_counts() -> None:
    plan = make_plan()
    seen = plan.predicted["tokens"].model_copy(update={"unit": "examples"})
    told = plan.model_copy(update={"task": "classify_image", "predicted": plan.predicted | {"tokens": seen}})
    assert "examples" in tables.probe_head(told) and "tokens" in tables.probe_head(plan)
    assert [row[0] for row in tables.prediction_rows(told)].count("examples") == 1
