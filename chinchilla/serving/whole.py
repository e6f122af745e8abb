"""The endpoints of tasks whose answers come whole: questions in, answers out, in the order asked."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chinchilla.serving.answerer import Answer, Question
from chinchilla.serving.engine import Engine
from chinchilla.serving.forms import FORMS
from chinchilla.serving.reading import Reading
from chinchilla.serving.requests import Ask, RefusedError
from chinchilla.serving.ticket import Ticket


class WholeAnswers:
    """Answers what the served task's form asks for."""

    def __init__(self, engine: Engine, reading: Reading) -> None:
        self.engine, self.reading = engine, reading

    async def answer(self, request: Request) -> Response:
        """`POST` to the form's path."""
        started_s = time.perf_counter()
        self.reading.check_task(request)
        form = FORMS[self.reading.card.task]
        body = await self.reading.body(request, form.body)
        self._check_beam(body)
        values = getattr(body, form.asked)
        asked = await self.reading.questions(values, form.asked)
        blank = [form.blank is not None and not value.strip() for value in values]
        options = body.options(form.asked)
        rows = [Question(one.question, options) for one, no_need in zip(asked, blank, strict=True) if not no_need]
        found = iter(await self._answers(request, rows))
        answers = [Answer(form.blank or {}) if no_need else next(found) for no_need in blank]
        written = sum(answer.num_tokens for answer in answers)
        self.reading.metrics.tokens.add(written, "out")
        told: dict[str, Any] = {
            form.answered: [
                dict(answer.content) | ({"notes": one.notes} if one.notes else {})
                for answer, one in zip(answers, asked, strict=True)
            ],
            "model": self.reading.card.name,
        }
        if form.usage:
            told["usage"] = dict(zip(form.usage, (sum(one.num_tokens for one in asked), written), strict=False))
        return JSONResponse(told | {"time_s": time.perf_counter() - started_s})

    async def _answers(self, request: Request, rows: Sequence[Question]) -> list[Answer]:
        """The answer to each row, in order."""
        answers: dict[int, Answer] = {}
        if not rows:
            return []
        with contextlib.closing(Ticket(self.engine, rows, request)) as ticket:
            while len(answers) < len(rows):
                index, event = await ticket.next()
                assert isinstance(event, Answer)
                answers[index] = event
        return [answers[index] for index in range(len(rows))]

    def _check_beam(self, body: Ask) -> None:
        most = self.reading.limits.beam_size
        if getattr(body, "beam_size", 0) > most:
            raise RefusedError(422, "invalid_value", f"beam_size: at most {most}", "beam_size")
