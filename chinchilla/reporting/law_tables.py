"""The tables of `chinchilla laws` for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from chinchilla.config.estimate import Estimate
from chinchilla.planning.catalogue import Entry
from chinchilla.planning.constants import Constant
from chinchilla.reporting.tables import Rows, _table
from chinchilla.reporting.values import NONE, label, quantity

CONSTANT_HEAD = ("law", "constant", "value", "± error", "95 % interval", "tag", "source")
LAW_HEAD = ("law", "what it is for", "formula", "fitted on")
SAYING_HEAD = ("case", "quantity", "p10", "p50", "p90", "unit", "source", "remark")


def law_tables(entries: Sequence[Entry]) -> Group:
    """Every law: what it is for and where it holds, then its constants with their sources."""
    tables = [_table("Laws", LAW_HEAD, law_rows(entries), left=(0, 1, 2, 3))]
    if any(entry.constants for entry in entries):
        tables.append(_table("Constants", CONSTANT_HEAD, constant_rows(entries), left=(0, 1, 5, 6)))
    return Group(*tables)


def saying_tables(sayings: Sequence[tuple[str, dict[str, Estimate], str]], asks: str) -> Group:
    """What one law says: (case, predictions, remark) each; or what it asks for instead."""
    tables: list[RenderableType] = []
    if sayings:
        tables.append(_table("What it says", SAYING_HEAD, saying_rows(sayings), left=(0, 1, 5, 6, 7)))
    if asks:
        tables.append(Text(asks))
    return Group(*tables)


def law_rows(entries: Sequence[Entry]) -> Rows:
    """A row a law; the ranges of its quantities in one cell."""
    return [
        (
            f"{entry.name} (default)" if entry.default else entry.name,
            entry.about,
            entry.formula,
            ", ".join(f"{span.low:.3g} – {span.high:.3g} {name}" for name, span in entry.ranges.items()) or NONE,
        )
        for entry in entries
    ]


def constant_rows(entries: Sequence[Entry]) -> Rows:
    """A row a constant, with its uncertainty and how well it was verified; a source stands where it begins to hold."""
    rows: Rows = []
    for entry in entries:
        told = ""
        for symbol, constant in entry.constants.items():
            rows.append(
                (
                    entry.name,
                    symbol,
                    f"{constant.value:.6g}",
                    NONE if constant.error is None else f"{constant.error:.3g}",
                    _interval(constant),
                    constant.tag,
                    constant.source if constant.source != told else "",
                )
            )
            told = constant.source
    return rows


def saying_rows(sayings: Sequence[tuple[str, dict[str, Estimate], str]]) -> Rows:
    """A row a prediction; case and remark stand at the first of each case."""
    rows: Rows = []
    for case, predictions, remark in sayings:
        for index, (name, estimate) in enumerate(predictions.items()):
            quantiles = (quantity(value, estimate.unit) for value in (estimate.p10, estimate.p50, estimate.p90))
            first = index == 0
            rows.append(
                (
                    case if first else "",
                    label(name),
                    *quantiles,
                    estimate.unit,
                    estimate.source,
                    remark if first else "",
                )
            )
    return rows


def _interval(constant: Constant) -> str:
    if constant.interval is None:
        return NONE
    low, high = ("unbounded" if end is None else f"{end:.4g}" for end in constant.interval)
    return f"{low} – {high}"
