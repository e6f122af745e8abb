"""`chinchilla predict`: answer texts with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from chinchilla.models.generate import Sampling
from chinchilla.verbs.load import load

CHUNK = 64


def predict(path: Path, texts: Sequence[str], beam_size: int = 4, sampling: Sampling | None = None) -> Iterator[str]:
    """One answer a text, in order: its translation, summary, class or continuation.

    Raises:
        UsageError: no model there.
    """
    model = load(path)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        if model.card.task in ("translate", "summarise"):
            yield from model.translate(chunk, beam_size)
        elif model.card.task == "generate":
            yield from (model.complete(text, sampling or Sampling(100)) for text in chunk)
        else:
            yield from map(model.reply, chunk)
