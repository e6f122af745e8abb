"""The tables of `chinchilla audit` and `chinchilla whatif` for a terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table

from chinchilla.config.estimate import Estimate
from chinchilla.planning.audit import LEVELS, NOMINAL, Learnt, Recalibration, Score
from chinchilla.reporting.tables import Rows, _table
from chinchilla.reporting.values import NONE, interval, label

SCORE_HEAD = ("quantity", "source", "runs", "bias", "coverage", "95 % interval", f"{NOMINAL:.0%} inside it?")
LEARNT_HEAD = ("quantity", "source", "runs", "factor on p50", "interval")


@dataclass(frozen=True)
class Column:
    """One case of a comparison: what is decided in words, what is predicted, and what that rests on."""

    name: str
    facts: Mapping[str, str]
    predicted: Mapping[str, Estimate]
    basis: str


def whatif_table(columns: Sequence[Column]) -> Table:
    """Cases side by side: a column each, p50 with p10 to p90 and its source in every cell."""
    facts = dict.fromkeys(name for column in columns for name in column.facts)
    names = dict.fromkeys(name for column in columns for name in column.predicted)
    rows: Rows = [(name, *(column.facts.get(name, NONE) for column in columns)) for name in facts]
    rows += [(label(name), *(_cell(column.predicted.get(name)) for column in columns)) for name in names]
    rows.append(("rests on", *(column.basis for column in columns)))
    head = ("", *(column.name for column in columns))
    return _table("What if", head, rows, left=range(len(head)))


def _cell(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{interval(estimate)} {estimate.source}"


def audit_tables(scores: Sequence[Score], recalibrations: Sequence[Recalibration]) -> Group:
    """Bias and coverage of each kind of prediction, its calibration curve, and what later plans would learn."""
    found = [
        _table("Past predictions", SCORE_HEAD, score_rows(scores), left=(0, 1)),
        _table("Measurements below each quantile", _curve_head(), curve_rows(scores), left=(0, 1)),
    ]
    for recalibration in recalibrations:
        title = f"Recalibration for {recalibration.machine}, {recalibration.threads} threads"
        found.append(_table(title, LEARNT_HEAD, learnt_rows(recalibration.corrections), left=(0, 1)))
    return Group(*found)


def score_rows(scores: Sequence[Score]) -> Rows:
    """A row a kind; the bias is the median of measured over predicted, in per cent."""
    return [
        (
            label(score.name),
            score.source,
            str(score.num_runs),
            f"{math.expm1(score.bias):+.1%}",
            f"{score.coverage:.0%}",
            f"{score.low:.0%} – {score.high:.0%}",
            "yes" if score.honest else "no",
        )
        for score in scores
    ]


def curve_rows(scores: Sequence[Score]) -> Rows:
    """A row a kind: the share of measurements below p10, p20 … p90."""
    return [(label(score.name), score.source, *(f"{share:.0%}" for share in score.curve)) for score in scores]


def learnt_rows(corrections: Sequence[Learnt]) -> Rows:
    """A row a kind: its correction."""
    return [
        (
            label(found.name),
            found.source,
            str(found.num_runs),
            f"×{found.factor:.3f}",
            f"{found.widening:.2f} times as wide",
        )
        for found in corrections
    ]


def _curve_head() -> tuple[str, ...]:
    return ("quantity", "source", *(f"p{level * 100:.0f}" for level in LEVELS))
