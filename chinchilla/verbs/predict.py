"""`chinchilla predict`: answer questions with a trained model."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla.config.errors import DataError
from chinchilla.config.plan import TaskName
from chinchilla.models.generate import Sampling
from chinchilla.serving.forms import CONTINUED, FORMS
from chinchilla.verbs.load import Model, load

CHUNK = 64

log = logging.getLogger("chinchilla")


def predict(
    path: Path, words: Sequence[str], beam_size: int = 4, sampling: Sampling | None = None
) -> Iterator[dict[str, Any]]:
    """One answer a question, in order: JSON by name, as the server's.

    A question is given in words: a text, an image's path, a row of a table or a history as JSON. One of several that
    holds nothing but blanks is passed over, and its answer empty; but for text that is to be continued.

    Raises:
        UsageError: no model there.
        DataError: a question that cannot be answered; names its place.
    """
    model, sampling = load(path), sampling or Sampling(100)
    task = model.card.task
    chunk, passes_over = 1 if task in CONTINUED else CHUNK, len(words) > 1 and task != "generate"
    empty = dict(FORMS[task].blank or {}) if task in FORMS else {}
    for start in range(0, len(words), chunk):
        asked: dict[int, Any] = {}
        for number, text in enumerate(words[start : start + chunk], start + 1):
            if passes_over and not text.strip():
                log.info("question %d: nothing but blanks, passed over", number)
            else:
                asked[number] = read_words(model, text, sampling, f"question {number}")
        found = model.answer(list(asked.values()), **_options(task, beam_size, sampling)) if asked else ()
        contents = {number: dict(answer.content) for number, answer in zip(asked, found, strict=True)}
        for number in range(start + 1, min(start + chunk, len(words)) + 1):
            yield contents.get(number, empty)


def in_words(content: Mapping[str, Any]) -> str:
    """An answer as a line: its text, its class, the items it recommends, or what is in an image; "" of an empty one."""
    if "recommendations" in content:
        return ", ".join(each["item"] for each in content["recommendations"])
    if "boxes" in content:
        return ", ".join(each["label"] for each in content["boxes"]) or "nothing"
    return content.get("text", content.get("label", ""))


def read_words(model: Model, text: str, sampling: Sampling, place: str) -> Any:
    """A question given in words, as `Model.answer` takes it; what was made of it is logged.

    Raises:
        DataError: it cannot be answered; names `place`.
    """
    try:
        asked = model.read(_value(model, text, sampling))
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    for note in asked.notes:
        log.warning("%s: %s", place, note)
    return asked.question


def _value(model: Model, text: str, sampling: Sampling) -> Any:
    """A question given in words, as `Model.read` takes it."""
    match model.card.task:
        case "dialogue":
            room = model.card.max_len - min(sampling.max_new, model.card.max_len // 2)
            return {"messages": [{"role": "user", "content": _whole(text)}], "room": room}
        case "classify_image" | "detect":
            return Path(text)
        case "classify_table":
            return _json(text, dict, 'an object, like {"column": "value"}')
        case "recommend":
            return _json(text, list, 'a list of items, the latest last, like ["one", "another"]')
        case _:
            return _whole(text)


def _whole(text: str) -> str:
    """The same text, which the command line gives also where it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("not UTF-8; give it in that encoding") from None
    return text


def _json(text: str, kind: type, example: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a character
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); write {example}") from None
    if not isinstance(value, kind):
        raise DataError(f"JSON of another kind; write {example}")
    return value


def _options(task: TaskName, beam_size: int, sampling: Sampling) -> dict[str, Any]:
    if task in CONTINUED:
        return {"sampling": sampling}
    return {"beam_size": beam_size} if task in ("translate", "summarise") else {}
