"""How each task is asked and answers over HTTP: its path, its body, and what both sides are called."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from chinchilla.config.plan import TaskName
from chinchilla.serving.requests import Ask, HistoryBody, ImageBody, RowBody, SearchBody, TextBody


class Form(NamedTuple):
    """A task whose answers come whole.

    `asked` is the body's key of the questions, `answered` the answer's of the answers; where that is None, a body has
    one question, and its answer's own keys are told. `usage` names the counts of
    tokens read and written, as far as they are told; `blank` answers a text of blanks, which no model is asked.
    """

    path: str
    body: type[Ask]
    asked: str
    answered: str | None
    usage: tuple[str, ...] = ()
    blank: Mapping[str, Any] | None = None


FORMS: Mapping[TaskName, Form] = {
    "translate": Form(
        "/v1/translate", SearchBody, "text", "translations", ("source_tokens", "target_tokens"), {"text": ""}
    ),
    "summarise": Form(
        "/v1/summarise", SearchBody, "text", "summaries", ("source_tokens", "target_tokens"), {"text": ""}
    ),
    "classify_text": Form("/v1/classify", TextBody, "text", "classifications", ("source_tokens",)),
    "classify_image": Form("/v1/classify", ImageBody, "image", "classifications"),
    "classify_table": Form("/v1/classify", RowBody, "row", "classifications"),
    "detect": Form("/v1/detect", ImageBody, "image", "detections"),
    "recommend": Form("/v1/recommend", HistoryBody, "items", None),
}

CONTINUED: Mapping[TaskName, str] = {"generate": "/v1/completions", "dialogue": "/v1/chat/completions"}
"""The paths of tasks that continue a prompt token by token."""

PATHS: Mapping[TaskName, str] = {**{task: form.path for task, form in FORMS.items()}, **CONTINUED}
"""Every task that is served."""

DOES: Mapping[TaskName, str] = {
    "translate": "translates",
    "summarise": "summarises",
    "generate": "continues text",
    "dialogue": "answers in a chat",
    "classify_text": "puts texts in classes",
    "classify_image": "puts images in classes",
    "classify_table": "puts rows of a table in classes",
    "detect": "finds things in images",
    "recommend": "recommends items",
}
