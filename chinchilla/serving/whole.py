"""The endpoints of tasks whose answers come whole: questions in, answers out, in the order asked."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chinchilla.data.codec import Asked
from chinchilla.serving.answerer import Answer, Question
from chinchilla.serving.engine import Engine
from chinchilla.serving.forms import FORMS, Form
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
        given = getattr(body, form.asked)
        values = given if form.answered else [given]
        asked = await self.reading.questions(values, form.asked)
        options = body.options(form.asked)
        rows = {
            place: Question(one.question, options)
            for place, one in enumerate(asked)
            if form.blank is None or values[place].strip()
        }
        answers = await self._answers(request, rows)
        return JSONResponse(self._told(form, asked, answers) | {"time_s": time.perf_counter() - started_s})

    async def _answers(self, request: Request, rows: Mapping[int, Question]) -> dict[int, Answer]:
        """The answer to each question, by its place."""
        places, answers = list(rows), dict[int, Answer]()
        if not places:
            return answers
        with contextlib.closing(Ticket(self.engine, list(rows.values()), request)) as ticket:
            while len(answers) < len(places):
                index, event = await ticket.next()
                assert isinstance(event, Answer)
                answers[places[index]] = event
        return answers

    def _told(self, form: Form, asked: Sequence[Asked], answers: Mapping[int, Answer]) -> dict[str, Any]:
        read = sum(one.num_tokens for one in asked)
        written = sum(answer.num_tokens for answer in answers.values())
        self.reading.metrics.tokens.add(written, "out")
        blank = Answer(form.blank or {})
        contents = [
            dict(answers.get(place, blank).content) | ({"notes": one.notes} if one.notes else {})
            for place, one in enumerate(asked)
        ]
        told = {form.answered: contents} if form.answered else contents[0]
        usage = {"usage": dict(zip(form.usage, (read, written), strict=False))} if form.usage else {}
        return {**told, "model": self.reading.card.name, **usage}

    def _check_beam(self, body: Ask) -> None:
        most = self.reading.limits.beam_size
        if getattr(body, "beam_size", 0) > most:
            raise RefusedError(422, "invalid_value", f"beam_size: at most {most}", "beam_size")
