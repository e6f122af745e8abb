"""What clients may send: the request bodies, how they are read, and how they are refused."""

import asyncio
import base64
import binascii
import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json
from starlette.requests import Request

from chinchilla.serving.answerer import Options
from chinchilla.serving.limits import Limits

SEED_MAX = 2**63 - 1
MAX_STOPS = 8
MAX_ITEMS = 1000


class RefusedError(Exception):
    """A request that is not answered; carries the HTTP status and the body's fields, as OpenAI's API has them."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _one_or_many(kind: type, one: str, many: str) -> BeforeValidator:
    """A value as a list of it, a list as it is."""

    def listed(value: object) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(item, kind) for item in values):
            return values
        raise ValueError(f"must be {one} or a list of {many}, not empty")

    return BeforeValidator(listed)


def _as_bytes(value: str) -> bytes:
    """The file in a data URL or in bare base64."""
    start, comma, rest = value.partition(",")
    if comma and not (start.startswith("data:") and start.endswith(";base64")):
        raise ValueError("must be the file in base64, bare or behind data:image/png;base64,")
    try:
        return base64.b64decode("".join((rest if comma else start).split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64; send the whole file, in base64") from None


def _joined(content: object) -> object:
    """What a message says, given as one text or as OpenAI's list of parts."""
    if not isinstance(content, list):
        return content
    if all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError("may hold parts of the type text only: nothing else is read here")


def _as_stops(value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if isinstance(stops, list) and len(stops) <= MAX_STOPS and all(isinstance(stop, str) and stop for stop in stops):
        return stops
    raise ValueError(f"must be a text or a list of at most {MAX_STOPS} texts, none of them empty")


Texts = Annotated[list[str], _one_or_many(str, "a text", "texts")]
File = Annotated[bytes, BeforeValidator(_as_bytes)]
Files = Annotated[list[File], _one_or_many(str, "a file in base64", "such")]
Rows = Annotated[list[dict[str, Any]], _one_or_many(dict, 'an object, like {"column": value},', "such")]
Stops = Annotated[list[str], BeforeValidator(_as_stops)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """A JSON object with known keys; null means the same as leaving the key out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class Ask(Body):
    """A question or several; what a body has besides them and `model` are the options they are answered with."""

    model: str | None = None

    def options(self, asked: str) -> Options:
        """The options by name, the questions being called `asked`."""
        return tuple(self.model_dump(exclude={asked, "model"}).items())


class TextBody(Ask):
    """Texts to put in classes."""

    text: Texts


class SearchBody(Ask):
    """Texts to translate or summarise. The default beam is what the model card's scores were measured with."""

    text: Texts
    beam_size: int = Field(4, ge=1)


class ImageBody(Ask):
    """Image files."""

    image: Files


class RowBody(Ask):
    """Rows of a table: values by column."""

    row: Rows


class StreamOptions(Body):
    """What a stream tells besides text."""

    include_usage: bool = False


class HistoryBody(Ask):
    """What somebody had, the latest last, to recommend `k` items after it."""

    items: list[str | int]
    k: int = Field(10, ge=1, le=MAX_ITEMS)
    exclude_seen: bool = True


class SamplingBody(Body):
    """OpenAI's keys, and `top_k`. Keys with one allowed value are there for their clients."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-SEED_MAX, le=SEED_MAX)
    stop: Stops = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None
    model: str | None = None
    user: str | None = None
    n: Literal[1] = 1
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: Texts
    max_tokens: int = Field(16, ge=1)
    best_of: Literal[1] = 1
    echo: Literal[False] = False


class ChatMessage(BaseModel):
    """What one side said; clients send more with it than is read."""

    model_config = ConfigDict(frozen=True, strict=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`. `truncation` is called as in OpenAI's Responses."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    truncation: Literal["auto", "disabled"] = "disabled"


B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B], limits: Limits) -> B:
    """Read, parse and check a request's JSON body, which may be larger where it holds images.

    Raises:
        RefusedError: 400 not JSON, 408 too slow, 413 too large, 415 not declared as JSON, 422 wrong keys or values.
        ClientDisconnect: the client left while sending.
    """
    _check_type(request)
    try:
        async with asyncio.timeout(limits.receive_s):
            large = issubclass(kind, ImageBody)
            data = await _receive(request, limits.image_body_bytes if large else limits.body_bytes)
    except TimeoutError:
        raise RefusedError(408, "body_too_slow", f"the body did not arrive within {limits.receive_s:g} s") from None
    return _check(_parse(data), kind)


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RefusedError(415, "not_json", "send the body as JSON, with the header Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "encoded_body", "send the body without Content-Encoding")


async def _receive(request: Request, limit: int) -> bytes:
    """The body, refused as soon as its declared or real size passes `limit` bytes."""
    message = f"the body may have at most {limit} bytes; send less at a time"
    too_large = RefusedError(413, "body_too_large", message)
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, "invalid_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(422, "not_an_object", 'the body must be a JSON object, like {"text": "…"}')
    return value


def _check(value: dict[str, Any], kind: type[B]) -> B:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        items = error.errors(include_url=False)
        # A misspelt key also makes the right one missing: the former says more.
        unknown = [item for item in items if item["type"] == "extra_forbidden"]
        raise _explain((unknown or items)[0], kind) from None


def _explain(item: Mapping[str, Any], kind: type[Body]) -> RefusedError:
    """One of pydantic's complaints as a refusal that names the key and the mend."""
    param = _short(".".join(str(part) for part in item["loc"]))
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), kind.model_fields, n=1)
        known = sorted(kind.model_fields, key=lambda name: not kind.model_fields[name].is_required())
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return RefusedError(422, "unknown_key", f"unknown key {param}; {hint}", param)
    if item["type"] == "missing":
        return RefusedError(422, "missing_key", f"{param} is missing", param)
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = item["input"][:60] if isinstance(item["input"], str) else item["input"]
    given = _short(json.dumps(given, ensure_ascii=False))
    return RefusedError(422, "invalid_value", f"{param}: {message} (given: {given})", param)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
