"""The tables that people read in a terminal, and the rows that the HTML page shares with them."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from chinchilla.config.considered import Considered
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import LABELS, Plan, Probe
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.reporting.values import NONE, clean, interval, label, metric, quantity, seconds, typewriter

Rows = list[tuple[str, ...]]

PLAN_HEAD = ("decision", "value", "why")
PREDICTION_HEAD = ("prediction", "p10", "p50", "p90", "unit", "source")
FRONT_HEAD = ("shape", "size", "one answer", "peak memory", "loss", "source", "against the chosen (*)")
LEDGER_HEAD = ("quantity", "predicted p50 [p10 – p90]", "measured", "error", "inside?")
COMPRESSION_HEAD = ("", "before", "after", "change")
VERIFICATION_HEAD = ("what", "is it well?", "found")

SIZE = ("smaller", "larger")
SPEED = ("faster", "slower")

PIPE_WIDTH = 110
_RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def shape_name(shape: Shape) -> str:
    """A shape in a few characters: "3+3×192" is three encoder and three decoder layers of width 192."""
    layers = [n for n in (shape.num_encoder_layers, shape.num_decoder_layers) if n]
    return f"{'+'.join(map(str, layers))}×{shape.dim}"


def decision_rows(plan: Plan) -> Rows:
    """What was decided, and why."""
    return [(label(d.name), d.value, d.reason) for d in plan.decisions]


def prediction_rows(plan: Plan) -> Rows:
    """The plan's predictions, one a row."""
    return [
        (_named(name, e), *(quantity(q, e.unit) for q in (e.p10, e.p50, e.p90)), e.unit, e.source)
        for name, e in plan.predicted.items()
    ]


def probe_head(plan: Plan) -> tuple[str, ...]:
    """What `probe_rows` shows."""
    return "shape", "parameters", "precision", LABELS[plan.task].many, "time", "step", "loss", "predicted loss"


def probe_rows(probes: Sequence[Probe]) -> Rows:
    """The probe runs, in the order they ran."""
    return [
        (
            shape_name(p.shape),
            show_count(p.num_params),
            p.precision + (" compiled" if p.compile else ""),
            show_count(p.tokens),
            seconds(p.time_s),
            seconds(p.step_time_s),
            f"{p.loss:.3f}",
            NONE if p.predicted_loss is None else f"{p.predicted_loss:.3f}",
        )
        for p in probes
    ]


def front_rows(plan: Plan) -> Rows:
    """The plans on the front, largest first, the chosen one starred: what another gains, and what it costs in loss."""
    ours = next((each for each in plan.considered if each.shape == plan.shape), None)
    if ours is None:
        return []
    return [
        (
            ("* " if each is ours else "") + shape_name(each.shape),
            quantity(each.size_bytes, "bytes"),
            quantity(each.latency_s.p50, "s"),
            quantity(each.memory_bytes.p50, "bytes"),
            f"{each.loss.p50:.3f}",
            each.loss.source,
            NONE if each is ours else _against(each, ours),
        )
        for each in reversed(plan.considered)
        if each.on_front
    ]


def _against(each: Considered, ours: Considered) -> str:
    size = times(ours.size_bytes, each.size_bytes, *SIZE)
    answer = times(ours.latency_s.p50, each.latency_s.p50, *SPEED)
    ratio = each.loss.p50 / ours.loss.p50 - 1
    return f"{size}, {answer}; loss {each.loss.p50 - ours.loss.p50:+.3f} ({ratio:+.1%})"


def front_note(plan: Plan) -> str:
    """What the front is of, and how many were weighed that are not on it."""
    beaten = sum(not each.on_front for each in plan.considered)
    what = (
        f"Of {len(plan.considered)} shapes for the same budget, those that none beats in loss, size, answer and memory"
    )
    return f"{what}; {beaten} {'is' if beaten == 1 else 'are'} beaten." if beaten else f"{what}: all of them."


def ledger_rows(records: Sequence[Mapping[str, Any]]) -> Rows:
    """Predicted against measured; the error is that of the median, relative to what was measured."""
    rows: Rows = []
    for record in records:
        predicted, measured = Estimate.model_validate(record["predicted"]), record["measured"]
        error = f"{(predicted.p50 / measured - 1) * 100:+.1f} %" if measured else NONE
        inside = "yes" if inside_interval(record) else "no"
        rows.append(
            (_named(record["name"], predicted), interval(predicted), quantity(measured, predicted.unit), error, inside)
        )
    return rows


def _named(name: str, estimate: Estimate) -> str:
    """A quantity in words; tokens are what the task counts, which is their unit."""
    return estimate.unit if name == "tokens" else label(name)


def inside_interval(record: Mapping[str, Any]) -> bool:
    """Whether a ledger line's measured value lies between its p10 and p90."""
    predicted, measured = record["predicted"], record["measured"]
    return measured is not None and bool(predicted["p10"] <= measured <= predicted["p90"])


def compression_rows(record: Mapping[str, Any]) -> Rows:
    """Size, latency and metrics before and after compression."""
    before, after = record["before"], record["after"]
    rows: Rows = []
    for name in ("size_bytes", "latency_p50_s", "latency_p90_s"):
        if before.get(name) and after.get(name):
            change = times(before[name], after[name], *SIZE if name == "size_bytes" else SPEED)
            rows.append((label(name), metric(name, before[name]), metric(name, after[name]), change))
    old, new = before.get("metrics") or {}, after.get("metrics") or {}
    for name in (name for name in new if name in old):
        numbers = all(isinstance(side[name], int | float) for side in (old, new))
        change = f"{new[name] - old[name]:+.3g}" if numbers else NONE
        rows.append((label(name), metric(name, old[name]), metric(name, new[name]), change))
    return rows


def times(before: float, after: float, less: str, more: str) -> str:
    """A change as a factor of at least one: "3.87× smaller"; `less` and `more` say which way it went."""
    return f"{before / after:.2f}× {less}" if after <= before else f"{after / before:.2f}× {more}"


def plan_table(plan: Plan) -> Group:
    """The plan for a terminal: decisions with reasons, predictions, probe runs."""
    tables: list[RenderableType] = [_table("Plan", PLAN_HEAD, decision_rows(plan), left=(0, 1, 2))]
    if plan.predicted:
        tables.append(_table("Predictions", PREDICTION_HEAD, prediction_rows(plan), left=(0, 4, 5)))
    if rows := front_rows(plan):
        tables.append(_table("Plans on the front", FRONT_HEAD, rows, left=(0, 5, 6)))
        tables.append(Text(front_note(plan) + "\n"))
    if plan.probes:
        tables.append(_table("Probe runs", probe_head(plan), probe_rows(plan.probes), left=(0, 2)))
    return Group(*tables)


def ledger_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Predicted against measured, for a terminal; `records` are lines of `ledger.jsonl`."""
    return _table("Predicted against measured", LEDGER_HEAD, ledger_rows(records), left=(0,))


def compression_table(record: Mapping[str, Any]) -> Table:
    """Before and after, for a terminal; `record` is what `compression.json` holds."""
    return _table(f"Compression: {record['scheme']}", COMPRESSION_HEAD, compression_rows(record), left=(0,))


def verification_table(checks: Sequence[tuple[str, bool, str]]) -> Table:
    """What was looked at in a run folder: its name, whether it is well, and what was found."""
    rows: Rows = [(name, "ok" if ok else "WRONG", found) for name, ok, found in checks]
    return _table("Verification", VERIFICATION_HEAD, rows, left=(0, 1, 2))


def _table(title: str, head: Sequence[str], rows: Rows, left: Sequence[int]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=_RULED)
    for index, name in enumerate(head):
        table.add_column(Text(name), justify="left" if index in left else "right", overflow="fold")
    for row in rows:
        # Text, not str: rich would read markup in square brackets out of a plain string.
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


def is_terminal(file: TextIO) -> bool:
    """Whether `file` is a terminal that understands cursor movement."""
    return not file.closed and file.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def show(renderable: RenderableType, file: TextIO) -> None:
    """Write a table: with bold and the terminal's width on a terminal; without codes, in ASCII signs, elsewhere.

    `NO_COLOR` counts as elsewhere. Letters that the file's encoding lacks are written as "?".
    """
    encoding = file.encoding or "utf-8"
    if is_terminal(file) and not os.environ.get("NO_COLOR") and encoding.lower().startswith("utf"):
        Console(file=file, force_terminal=True, highlight=False, markup=False, emoji=False).print(renderable)
        return
    width = Console(file=file).width if is_terminal(file) else PIPE_WIDTH
    file.write(plain(renderable, width).encode(encoding, "replace").decode(encoding))
    file.flush()


def plain(renderable: RenderableType, width: int = PIPE_WIDTH) -> str:
    """A renderable as text of at most `width` columns, without codes, typographic signs spelt in ASCII."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    text = "".join(segment.text for segment in console.render(renderable) if not segment.control)
    return typewriter("\n".join(line.rstrip() for line in text.split("\n")))
