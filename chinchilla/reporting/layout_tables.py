"""The tables of layouts over a cluster, and the worked case, for a terminal."""

from rich.console import Group
from rich.text import Text

from chinchilla.planning.example import Example
from chinchilla.planning.layout import NOT_BUILT, Layouts
from chinchilla.planning.price import Priced
from chinchilla.reporting.tables import Rows, _table
from chinchilla.reporting.values import NONE, interval, quantity

LAYOUT_HEAD = ("layout", "nodes", "step p50 [p10 – p90]", "compute", "network, open", "hidden", "memory", "source")
SPENT_HEAD = ("money", "energy")

MOST_ROWS = 16


def layout_name(item: Priced) -> str:
    """A layout in words: "pipeline, 8 micro-batches", "local steps, every 50 in int8"."""
    layout = item.layout
    name: str = layout.kind
    if layout.inside != "one device":
        name += f", {layout.inside} parallel inside"
    if layout.kind == "pipeline":
        name += f", {layout.micro_batches} micro-batches"
    if layout.sync_every > 1:
        name += f", every {layout.sync_every} in {layout.codec}"
    return name


def layout_nodes(item: Priced) -> str:
    """Its nodes with their shares of the work: "a 50 %, b 50 %"."""
    layout = item.layout
    if len(layout.nodes) == 1:
        return layout.nodes[0]
    return ", ".join(f"{name} {share:.0%}" for name, share in zip(layout.nodes, layout.shares, strict=True))


def shown_layouts(found: Layouts, most: int) -> list[Priced]:
    """The Pareto front and the fastest of each kind, at most so many, with the recommended one; by time."""
    items = {id(item.layout): item for item in (*found.front, *found.best_of_kind)}
    ordered = sorted(items.values(), key=lambda item: item.step_time_s.p50)[:most]
    return ordered if found.recommended in ordered else [*ordered, found.recommended]


def layout_rows(found: Layouts) -> Rows:
    """The layouts to show; the recommended one is starred."""
    spent = shows_spending(found)
    return [_row(item, item == found.recommended, spent) for item in shown_layouts(found, MOST_ROWS)]


def shows_spending(found: Layouts) -> bool:
    """Whether any node says what it costs or draws."""
    return any(item.cost or item.energy_j for item in (*found.front, *found.best_of_kind))


def _row(item: Priced, recommended: bool, spent: bool) -> tuple[str, ...]:
    times = (quantity(estimate.p50, "s") for estimate in (item.compute_s, item.exposed_s, item.overlapped_s))
    row = (
        ("* " if recommended else "") + layout_name(item) + ("" if item.layout.runnable else " (not built yet)"),
        layout_nodes(item),
        interval(item.step_time_s),
        *times,
        quantity(item.memory_bytes.p50, "bytes"),
        item.step_time_s.source,
    )
    if not spent:
        return row
    cost = NONE if item.cost is None else f"{item.cost.p50:.3g}"
    return (*row, cost, NONE if item.energy_j is None else f"{item.energy_j.p50:.3g} J")


def layout_table(found: Layouts) -> Group:
    """Layouts of one step, the recommended one (*) with the reason, and what runs today."""
    head = (*LAYOUT_HEAD, *(SPENT_HEAD if shows_spending(found) else ()))
    today = NOT_BUILT
    if found.runs_today is not None:
        today += f" ({layout_nodes(found.runs_today)}: {quantity(found.runs_today.step_time_s.p50, 's')} a step)"
    return Group(
        _table(f"Layouts of a step, {found.num_priced} priced", head, layout_rows(found), left=(0, 1)),
        Text(f"recommended (*): {layout_name(found.recommended)}: {found.reason}"),
        Text(today),
    )


def example_table(example: Example) -> Group:
    """The worked case line by line, and the layouts at the batch that a user would take."""
    lines = [Text(f"{index:>2}. {line.text}") for index, line in enumerate(example.lines, 1)]
    return Group(Text("Four nodes, a small step, a slow exchange", style="bold"), *lines, layout_table(example.large))
