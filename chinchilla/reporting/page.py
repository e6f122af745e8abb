"""The report: one HTML file that opens from disk and loads nothing."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from chinchilla.config.plan import LABELS, TaskName
from chinchilla.config.units import show_count
from chinchilla.planning.layout import Layouts
from chinchilla.reporting import curves, tables
from chinchilla.reporting.canvas import PALETTE
from chinchilla.reporting.class_plots import calibration_chart, confusion_chart, cost_chart
from chinchilla.reporting.plan_plots import choice_charts, plan_batch, reckoned_charts
from chinchilla.reporting.record import Compression, Record, Sample
from chinchilla.reporting.values import label, metric, quantity, seconds, span

TEMPLATES = Path(__file__).parent / "templates"
TASKS: Mapping[TaskName, str] = {
    "translate": "translation",
    "summarise": "summaries",
    "generate": "text generation",
    "dialogue": "dialogue",
    "classify_text": "text classification",
    "classify_image": "image classification",
    "classify_table": "classification of table rows",
    "detect": "object detection",
    "recommend": "recommendation",
}
ASKED: Mapping[TaskName, tuple[str, str]] = {
    "generate": ("prompt", "reference"),
    "dialogue": ("asked", "reference"),
    "classify_text": ("text", "right class"),
    "classify_image": ("image", "right class"),
    "classify_table": ("row", "right class"),
    "detect": ("image", "what is in it"),
    "recommend": ("history", "next item"),
}
"""What a sample's source and reference are called."""

MOST_SCORES = 8

MARKS = "Circle: inside; diamond: outside. One run's predictions hang together; chinchilla audit counts many runs."
OPEN_SAMPLES = 5
MAX_EVENTS = 200


class Card(NamedTuple):
    """A headline number."""

    name: str
    value: str
    note: str = ""


class Chart(NamedTuple):
    """A chart, its title and what the title cannot say."""

    title: str
    svg: Markup
    caption: str


class Grid(NamedTuple):
    """A table with its title."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(record: Record, found: Layouts | None = None) -> str:
    """The report as HTML, with the layouts of the plan's step where it has a cluster.

    Every text from the run is escaped; only the charts go in as they are.
    """
    parts = _head(record) | _plan(record, found) | _outcome(record) | _compression(record) | _rest(record)
    return fill("report.html", record=record, **parts)


def sheet(title: str, lead: str, drawn: Sequence[tuple[str, str, str]], grids: Sequence[Grid] = ()) -> str:
    """A page of tables and charts alone, each with its title, in the report's style."""
    return fill("sheet.html", title=title, lead=lead, charts=charts(*drawn), grids=grids)


def fill(template: str, **parts: Any) -> str:
    """A template as a page; what is put in is escaped, unless it is markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(palette=PALETTE, **parts)
    # JSON can spell half a surrogate pair, which UTF-8 cannot hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def _head(record: Record) -> dict[str, Any]:
    quoted = shlex.quote(str(record.path))
    task = TASKS[record.plan.task]
    title = f"{record.name}: {task}"
    return {"title": title, "task": task, "lead": _lead(record), "cards": list(_cards(record)), "quoted": quoted}


def _plan(record: Record, found: Layouts | None) -> dict[str, Any]:
    plan = record.plan
    return {
        "decision_head": tables.PLAN_HEAD,
        "decisions": tables.decision_rows(plan),
        "predictions": tables.prediction_rows(plan),
        "prediction_head": tables.PREDICTION_HEAD,
        "front": tables.front_rows(plan),
        "front_head": tables.FRONT_HEAD,
        "front_note": tables.front_note(plan),
        "choice": charts(*choice_charts(plan)),
        "probes": tables.probe_rows(plan.probes),
        "probe_head": tables.probe_head(plan),
        "probe_charts": charts(
            ("Probe runs", curves.probe_chart(plan.probes, plan.shape, LABELS[plan.task]), "Blue: the chosen shape.")
        ),
        "reckoning": charts(*reckoned_charts(plan, plan_batch(plan), found)),
    }


def _outcome(record: Record) -> dict[str, Any]:
    label, seen = LABELS[record.plan.task], record.metrics
    loss = curves.loss_curve(seen, record.plan.predicted.get("loss"), label)
    return {
        "charts": charts(
            ("Loss", loss, "A steep start is cut off."),
            ("Learning rate", curves.learning_rate_curve(seen, label), ""),
            (f"{label.many.capitalize()} a second", curves.speed_curve(seen, label), "Dotted: the median."),
            ("Share of the machine's measured peak", curves.peak_curve(seen, label), "Dotted: the median."),
        ),
        "ledger": tables.ledger_rows(record.ledger),
        "ledger_head": tables.LEDGER_HEAD,
        "ledger_charts": charts(("Measured over predicted", curves.ledger_chart(record.ledger), MARKS)),
    }


def _compression(record: Record) -> dict[str, Any]:
    told = record.compression.model_dump() if record.compression else None
    return {
        "compression": tables.compression_rows(told) if told else [],
        "compression_head": tables.COMPRESSION_HEAD,
        "compression_charts": charts(("Before and after", curves.compression_chart(told), "")) if told else [],
    }


def _rest(record: Record) -> dict[str, Any]:
    details = record.results.details if record.results else {}
    return {
        "answer_charts": charts(
            (
                "What was taken for what",
                confusion_chart(details),
                "Test data; a row's squares are shares of its class.",
            ),
            ("How sure, how right", calibration_chart(details), "Test data; dotted: as right as sure."),
            (
                "Cost over threshold",
                cost_chart(details),
                "Test data; dot: where it answers, chosen by the costs alone; dotted: one answer to all.",
            ),
        ),
        "samples": [_sample(sample, record) for sample in _samples(record)],
        "open_samples": OPEN_SAMPLES,
        "event_counts": Counter(str(event.get("kind", "")) for event in record.events).most_common(),
        "events": [_event(event) for event in record.events[-MAX_EVENTS:]],
        "environment": list(_flat(record.environment)),
    }


def charts(*drawn: tuple[str, str, str]) -> list[Chart]:
    """Charts of titles, drawings and captions, without those that are empty."""
    return [Chart(title, Markup(svg), caption) for title, svg, caption in drawn if svg]


def _lead(record: Record) -> str:
    """One sentence: what was trained, on how much, for how long."""
    plan, results = record.plan, record.results
    kind = "encoder-decoder" if plan.shape.num_encoder_layers and plan.shape.num_decoder_layers else "transformer"
    words = [f"{show_count(plan.num_params)}-parameter {kind} ({tables.shape_name(plan.shape)})"]
    if results and results.tokens:
        words.append(f"trained on {show_count(results.tokens)} {LABELS[plan.task].many}")
    if results and results.train_time_s:
        words.append(f"in {seconds(results.train_time_s)}")
    if record.compression:
        words[-1] += ","
        words.append(f"then compressed ({record.compression.scheme})")
    return " ".join(words)


def _cards(record: Record) -> Iterator[Card]:
    yield from _metric_cards(record)
    if record.results and record.results.train_time_s:
        yield Card("training time", seconds(record.results.train_time_s), _predicted(record, "train_time_s"))
    if record.compression:
        yield from _compression_cards(record.compression)
    elif record.size_bytes:
        yield Card("size on disk", quantity(record.size_bytes, "bytes"), _predicted(record, "size_bytes"))
    if record.ledger:
        inside = sum(map(tables.inside_interval, record.ledger))
        yield Card("predictions kept", f"{inside} of {len(record.ledger)}", "measured inside p10 to p90")


def _metric_cards(record: Record) -> Iterator[Card]:
    results = record.results
    if results is None:
        return
    after = (record.compression.after.metrics or {}) if record.compression else {}
    scores = {name: value for name, value in results.metrics.items() if isinstance(value, int | float)}
    for name, value in list(scores.items())[:MOST_SCORES]:
        yield Card(label(name), metric(name, value), f"{metric(name, after[name])} compressed" if name in after else "")
    if results.valid_loss is not None:
        yield Card("validation loss", f"{results.valid_loss:.3f}", _predicted(record, "loss"))


def _compression_cards(compression: Compression) -> Iterator[Card]:
    before, after = compression.before, compression.after
    ratio = tables.times(before.size_bytes, after.size_bytes, *tables.SIZE)
    yield Card("size on disk", quantity(after.size_bytes, "bytes"), ratio)
    if before.latency_p50_s and after.latency_p50_s:
        ratio = tables.times(before.latency_p50_s, after.latency_p50_s, *tables.SPEED)
        yield Card("latency p50", seconds(after.latency_p50_s), ratio)


def _predicted(record: Record, name: str) -> str:
    estimate = record.plan.predicted.get(name)
    return f"predicted {span(estimate)}" if estimate else ""


def _samples(record: Record) -> tuple[Sample, ...]:
    if record.compression and record.compression.samples:
        return record.compression.samples
    return record.results.samples if record.results else ()


def _sample(sample: Sample, record: Record) -> list[tuple[str, str]]:
    """The labelled texts of one sample; a compressed output equal to the one before is said, not repeated."""
    asked, right = ASKED.get(record.plan.task, ("source", "reference"))
    lines = [(asked, sample.source), (right, sample.reference)]
    after = sample.after
    if after is None:
        lines.append(("output", sample.output))
    elif after == sample.before:
        lines.append(("before and after", after))
    else:
        lines += [("before", sample.before), ("after", after)]
    return [(name, text) for name, text in lines if text]


def _event(event: Mapping[str, Any]) -> tuple[str, str, str]:
    rest = [f"{key}: {_plain(value)}" for key, value in event.items() if key not in ("time", "kind")]
    return _when(event.get("time", "")), str(event.get("kind", "")), "; ".join(rest)


def _when(time: Any) -> str:
    """The journal's time stamp (ISO 8601, UTC) without its clutter."""
    return str(time).removesuffix("+00:00").replace("T", " ")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
