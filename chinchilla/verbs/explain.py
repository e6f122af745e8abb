"""`chinchilla explain RUN INPUT`: one page on why a classifier answers as it does."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chinchilla.models.generate import Sampling
from chinchilla.reporting.explanation import explanation_page
from chinchilla.store.atomic import require_place, write_text
from chinchilla.tasks import explain as task
from chinchilla.tasks.explain import Explanation
from chinchilla.verbs.load import load
from chinchilla.verbs.predict import read_words

PAGE = "explain.html"


class Explained(NamedTuple):
    """What was found, and the page it was written to."""

    found: Explanation
    page: Path


def explain(path: Path, words: str, label: str | None = None, out: Path | None = None) -> Explained:
    """Explain what a classifier makes of a text, an image (its path) or a row (JSON), and write the page.

    `label` is the class to explain, the one that is answered if None; `out` the page, beside the model if None.

    Raises:
        UsageError: no classifier, an int8 model, an unknown class, or no folder to write to.
        DataError: the input cannot be read.
        FaultError: the page cannot be written.
    """
    page = out or path / PAGE
    require_place("explain" if out is None else "--out", page, ".html")
    model = load(path)
    task.check(model.model, model.codec, label)
    question = read_words(model, words, Sampling(1), "input")
    found = task.explain(model.model, model.codec, question, label)
    pixels = question if isinstance(question, np.ndarray) else None
    write_text(page, explanation_page(model.card.name, model.card.task, found, pixels))
    return Explained(found, page)


def as_json(explained: Explained) -> dict[str, Any]:
    """What `--json` prints."""
    found = explained.found
    parts = zip(found.parts, found.attribution.tolist(), found.attention.tolist(), strict=True)
    return {
        "page": str(explained.page),
        "class": found.label,
        "probabilities": found.probabilities,
        "log_odds": found.odds,
        "baseline": {"what": found.baseline, "log_odds": found.baseline_odds},
        "gap": found.gap,
        "steps": found.steps,
        "parts": [part._asdict() | {"attribution": value, "attention": share} for part, value, share in parts],
        "deletion": {
            "areas": dict(found.areas),
            "removed": found.removed.tolist(),
            "probabilities": {name: curve.tolist() for name, curve in found.deletion.items()},
        },
    }


def in_words(explained: Explained) -> str:
    """A few lines for the terminal."""
    found = explained.found
    areas = ", ".join(f"{name} {area:.3f}" for name, area in found.areas.items())
    return (
        f"{found.label} {found.probabilities[found.label]:.4f}, log-odds {found.odds:+.3f}; "
        f"{found.baseline_odds:+.3f} with {found.baseline}\n"
        f"left unexplained: {found.gap:+.2g}, with {found.steps} points\n"
        f"deletion areas: {areas}\n"
        f"{explained.page}"
    )
