"""What every endpoint does with a request first: check it, and read its questions as the model is asked them."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from starlette.requests import Request

from chinchilla.config.errors import DataError
from chinchilla.data.codec import Asked
from chinchilla.data.raster import read_header
from chinchilla.data.rows import MalformedError
from chinchilla.serving.engine import Engine
from chinchilla.serving.forms import DOES, FORMS, PATHS
from chinchilla.serving.requests import Ask, ImageBody, RefusedError, SamplingBody, read_body

RECEIVED = 8
"""Bodies of images that are received at a time: each may be large."""

B = TypeVar("B", bound=Ask | SamplingBody)


class Reading:
    """Reads requests for one model, within the limits."""

    def __init__(self, engine: Engine) -> None:
        self.answerer, self.limits, self.metrics = engine.answerer, engine.limits, engine.metrics
        self.card = engine.answerer.card
        form = FORMS.get(self.card.task)
        self._images = form is not None and issubclass(form.body, ImageBody)
        self._receiving = asyncio.Semaphore(RECEIVED) if self._images else nullcontext()
        # A small file may hold a huge image, so one at a time is decoded.
        self._decoding = asyncio.Semaphore(1) if self._images else nullcontext()

    def check_task(self, request: Request) -> None:
        """Whether the request is for the task that is served.

        Raises:
            RefusedError: 404, it is not.
        """
        own = PATHS[self.card.task]
        if request.scope["path"] != own:
            raise RefusedError(404, "wrong_task", f"the model served here {DOES[self.card.task]}: POST to {own}")

    async def body(self, request: Request, kind: type[B]) -> B:
        """The request's body, once it is known to be for the model that is served.

        Raises:
            RefusedError: 404 another model; else see `read_body`.
        """
        async with self._receiving:
            body = await read_body(request, kind, self.limits)
        if body.model not in (None, self.card.name):
            message = f"no such model here; the one served is {self.card.name!r} (model may be left out)"
            raise RefusedError(404, "model_not_found", message, "model")
        return body

    async def questions(self, values: Sequence[Any], param: str, extra: int = 0) -> list[Asked]:
        """The questions as the model is asked them, each known to fit it with `extra` tokens more.

        Raises:
            RefusedError: 413 images of too many pixels together; 422 too many, too long, or one that cannot be
                answered, named by its place.
        """
        if len(values) > self.limits.texts:
            message = f"{param}: at most {self.limits.texts} a request"
            raise RefusedError(422, f"too_many_{param}s", message, param)
        # Off the event loop: cutting a body full of text into tokens takes long, and so does decoding an image.
        async with self._decoding:
            asked = await asyncio.to_thread(self._read, values, param)
        for index, one in enumerate(asked):
            if one.num_tokens + extra > self.card.max_len:
                more = f" and max_tokens {extra}" if extra else ""
                mend = "shorten it" if param != "messages" else "leave out the oldest, or set truncation to auto"
                message = f"{one.num_tokens} tokens{more} exceed the model's {self.card.max_len}; {mend}"
                raise RefusedError(422, "context_length_exceeded", f"{_place(values, param, index)}: {message}", param)
        self.metrics.tokens.add(sum(one.num_tokens for one in asked), "in")
        return asked

    def _read(self, values: Sequence[Any], param: str) -> list[Asked]:
        if self._images:
            self._check_pixels(values, param)
        asked = []
        for index, value in enumerate(values):
            try:
                asked.append(self.answerer.read(value))
            except DataError as error:
                message = f"{_place(values, param, index)}: {error}"
                raise RefusedError(422, "invalid_value", message, param) from None
        return asked

    def _check_pixels(self, images: Sequence[bytes], param: str) -> None:
        """Refuse, before any is decoded, images that together have too many pixels."""
        total, most = sum(map(_num_pixels, images)), self.limits.image_pixels
        if total > most:
            message = (
                f"{param}: {total:,} pixels together, and the images of a request may have {most:,}; send fewer at a "
                "time, or scale them down before"
            )
            raise RefusedError(413, "too_many_pixels", message, param)


def _num_pixels(image: bytes) -> int:
    """By what the file says of itself; 0 of one that is refused by its place when it is read."""
    try:
        height, width, _ = read_header(image).size
    except MalformedError:
        return 0
    return height * width


def _place(values: Sequence[Any], param: str, index: int) -> str:
    return f"{param} {index}" if len(values) > 1 else param
