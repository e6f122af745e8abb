"""How numbers and names are written for people."""

import math
from collections.abc import Mapping
from typing import Any

from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import LABELS
from chinchilla.config.units import show_bytes, show_count, show_energy, show_time

NONE = "–"

NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bits_per_byte": "bits per byte",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "ks": "KS",
    "brier": "Brier score",
    "cost": "cost of an example",
    "trivial_cost": "cost of one answer to all",
    "loss": "validation loss",
    "valid_loss": "validation loss",
    "num_params": "parameters",
    "size_bytes": "size on disk",
    "memory_bytes": "peak memory",
    "latency_p50_s": "latency p50",
    "latency_p90_s": "latency p90",
    "flops": "training FLOPs",
    "latency_s": "one answer",
    "energy_j": "energy",
    "co2_g": "CO2",
}

PER_CENT = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")

_COUNTS = {"token", "tokens", "step", "steps", "param", "params", "parameters", "flop", "flops"}
_COUNTS |= {label.many for label in LABELS.values()}
_TYPEWRITER = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "×": "x", "µ": "u", "≥": ">=", "≤": "<=", "±": "+-", "…": "...", "→": "->"}
    | {"‘": "'", "’": "'", "“": '"', "”": '"', "·": "-", "≈": "~", "√": "sqrt "}
)


def label(name: str) -> str:
    """A field's name as words: `step_time_s` is "step time"."""
    if name in NAMES:
        return NAMES[name]
    for unit in ("_bytes", "_flops", "_s"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def seconds(value: float) -> str:
    """A duration with three figures, in minutes and hours from 90 seconds: "87.2 ms", "2.31 s", "8m05s"."""
    if 0 < abs(value) < 1e-3:
        return f"{value * 1e6:.3g} µs"
    if 0 < abs(value) < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if abs(value) < 90 else show_time(value)


def quantity(value: float | None, unit: str = "") -> str:
    """A number in its unit, scaled where that helps: (1.8e7, "bytes") is "18 MB"; absent or NaN is a dash."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    kind = unit.strip().lower()
    if kind in ("s", "seconds"):
        return seconds(value)
    if kind in ("b", "bytes"):
        return show_bytes(value)
    if kind == "j":
        return show_energy(value)
    if kind in _COUNTS or abs(value) >= 1e4:
        return show_count(value)
    return f"{value:.4g}"


def span(estimate: Estimate) -> str:
    """A prediction's interval: "2.1 – 2.6"."""
    return f"{quantity(estimate.p10, estimate.unit)} – {quantity(estimate.p90, estimate.unit)}"


def interval(estimate: Estimate) -> str:
    """A prediction on one line: "2.31 [2.1 – 2.6]"."""
    return f"{quantity(estimate.p50, estimate.unit)} [{span(estimate)}]"


def metric(name: str, value: Any) -> str:
    """A metric's value, in the unit its name ends in."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else str(value)
    for suffix, unit in (("_bytes", "bytes"), ("_s", "s")):
        if name.endswith(suffix) and not name.endswith("_per_s"):
            return quantity(value, unit)
    if isinstance(value, int):
        return show_count(value) if value >= 10_000 else str(value)
    return f"{value:.2f}" if name in PER_CENT else quantity(value)


def metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    """One line a metric, for a terminal: "BLEU  23.10"."""
    width = max((len(label(name)) for name in metrics), default=0)
    return [f"{label(name):<{width}}  {metric(name, value)}" for name, value in metrics.items()]


def clean(text: str) -> str:
    """Without control characters (a terminal would obey them), line breaks and tabs kept."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def typewriter(text: str) -> str:
    """With typographic signs spelt in ASCII; letters of any script stay."""
    return text.translate(_TYPEWRITER)
