"""How long one answer takes on a measured machine: reading the prompt, then token by token.

A pass over few tokens reads every weight once and calls many small operators, so that it is bound by the memory's
bandwidth and by the operators' fixed costs, less by arithmetic (Pope 2022, arXiv 2211.05102, §2). Times are of a model
in fp32 that answers one request alone, by the code of `models.generate`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.machine import Machine
from chinchilla.config.shape import Shape
from chinchilla.planning.calls import CACHE_BEGUN, CLASSES, encoder_calls, token_calls
from chinchilla.planning.count import Batch, Product, has_cross, products
from chinchilla.planning.machine import matmul_rate

SPREAD, TIMED_SPREAD = 0.8, 0.5
"""Relative spread of an answer's time from this model, and where a model like it was timed: texts differ still in how
long the search goes on, and the machine's speed from hour to hour."""

SEARCH = 1.5
"""Passes of the decoder for each token of an answer that is looked for with beams: they go on until nothing unfinished
can win. Four models of one task, 48 texts each, 4 beams: 1.36 to 1.61; single texts from 1 to 2.3."""

# What follows was fitted to 12 answers of 8 models (2 to 281 million parameters), one thread of one CPU, with the
# operators as counted (docs/planning-budgets.md). On another machine these are rules of thumb.

OPERATOR = 4.1
"""Bare additions of one number that an operator called by the model amounts to, with the Python around it."""

WEIGHT_PASSES = 0.84
"""Times that a weight crosses memory, each time it is multiplied with: reading alone is faster than copying."""

THIN_SHARE = 0.2
"""Share of a tall product's rate that one of so few rows reaches."""

# Counted, and too little to be fitted.

LOGIT_PASSES = 6
"""Times that a logit crosses memory until a token is chosen."""

CACHE_PASSES = 3
"""Times that beams' keys and values do: read and written to be put in order, and read to attend."""


@dataclass(frozen=True)
class Request:
    """One answer: a prompt (a source, for an encoder) and the new tokens; `beam_size` 1 is greedy or sampling.

    `limit` is the longest answer that is looked for. An encoder alone answers with a class, and no new tokens.
    """

    prompt_len: int
    new_tokens: int
    beam_size: int = 1
    limit: int | None = None

    @property
    def passes(self) -> int:
        """Passes of the decoder over the new tokens of all beams, those that come to nothing with them."""
        if self.beam_size == 1:
            return self.new_tokens
        searched = round(SEARCH * self.new_tokens)
        return searched if self.limit is None else min(searched, self.limit)


@dataclass(frozen=True)
class AnswerTime:
    """Seconds of one answer: until the prompt is read, and of each pass of the decoder after that."""

    prompt_s: float
    token_s: float
    passes: int
    spread: float = SPREAD
    source: Source = "guess"

    @property
    def total_s(self) -> float:
        """The whole answer."""
        return self.prompt_s + self.passes * self.token_s

    def estimate(self) -> Estimate:
        """The total with its spread."""
        return Estimate.around(self.total_s, self.spread, "s", self.source)


@dataclass(frozen=True)
class Work:
    """What an answer is made of: operators called, and seconds that a machine would take for the rest at full speed.

    `weights_s` is for reading each weight as often as it is used, `products_s` at the rates of tall products, and
    `traffic_s` for what the choice and the beams move.
    """

    calls: int
    weights_s: float
    products_s: float
    traffic_s: float = 0.0

    def time_s(self, machine: Machine) -> float:
        """Seconds of it all."""
        called_s = OPERATOR * self.calls * machine.op_overhead_s
        return called_s + WEIGHT_PASSES * self.weights_s + self.products_s / THIN_SHARE + self.traffic_s


def answer_time(shape: Shape, request: Request, machine: Machine) -> AnswerTime:
    """Time of one answer on `machine`, nothing else asked of it.

    Raises:
        UsageError: a length below 1, or more positions than the model has.
    """
    _check(shape, request)
    prompt_s = reading(shape, request.prompt_len, machine).time_s(machine)
    if not shape.num_decoder_layers:
        return AnswerTime(prompt_s, 0.0, 0)
    # What a decoder alone says first it knows when its prompt is read.
    passes = request.passes if has_cross(shape) else request.new_tokens - 1
    return AnswerTime(prompt_s, new_token(shape, request, machine).time_s(machine), passes)


def _check(shape: Shape, request: Request) -> None:
    least = 1 if shape.num_decoder_layers else 0
    if min(request.prompt_len, request.beam_size) < 1 or request.new_tokens < least:
        raise UsageError(f"{request}: each at least 1")
    both = shape.num_encoder_layers == 0
    longest = request.prompt_len + request.new_tokens if both else max(request.prompt_len, request.new_tokens)
    if longest > shape.max_len:
        raise UsageError(f"{request}: {longest} positions do not fit max_len {shape.max_len}")


def reading(shape: Shape, length: int, machine: Machine) -> Work:
    """A pass over a prompt: a source with the decoder's keys and values of it, or up to a first token or a class."""
    head = [Product("head", 1, shape.dim, shape.num_outputs)]
    if not shape.num_encoder_layers:
        work = _passed([*_plain(shape, Batch(1, 0, length)), *head], machine)
        return Work(token_calls(shape, 1), *work, _chosen_s(shape, 1, machine))
    if not has_cross(shape):
        return Work(encoder_calls(shape) + CLASSES, *_passed([*_plain(shape, Batch(1, length)), *head], machine))
    calls = encoder_calls(shape) + CACHE_BEGUN * shape.num_decoder_layers
    return Work(calls, *_passed(_plain(shape, Batch(1, length)), machine))


def new_token(shape: Shape, request: Request, machine: Machine) -> Work:
    """A pass of the decoder and its head over one token a beam, and the choice."""
    beams = request.beam_size
    head = Product("head", beams, shape.dim, shape.num_outputs)
    work = _passed([*_plain(shape, Batch(beams, 0, 1)), head], machine)
    moved = CACHE_PASSES * _cache_bytes(shape, request) if beams > 1 else _cache_bytes(shape, request)
    return Work(token_calls(shape, beams), *work, _chosen_s(shape, beams, machine) + moved / machine.bytes_per_s)


def _chosen_s(shape: Shape, rows: int, machine: Machine) -> float:
    return LOGIT_PASSES * 4 * rows * shape.num_outputs / machine.bytes_per_s


def _cache_bytes(shape: Shape, request: Request) -> float:
    """Keys and values of all beams, half way through the answer."""
    mean = request.prompt_len + request.passes / 2
    return 2 * 4 * shape.num_decoder_layers * request.beam_size * shape.num_kv_heads * shape.head_dim * mean


def _plain(shape: Shape, batch: Batch) -> list[Product]:
    """A pass's products with weights, without the head. Attention's own are few at these lengths, and left out."""
    without = ("scores", "values", "head")
    return [product for product in products(shape, batch) if product.flops and not product.name.endswith(without)]


def _passed(work: Iterable[Product], machine: Machine) -> tuple[float, float]:
    """Seconds of reading each weight once, and of the arithmetic at the rates of products measured nearest."""
    known = Counter((p.m, p.k, p.n) for p in work)
    rates = {(m, k, n): matmul_rate(machine, m, k, n, "fp32") for m, k, n in known}
    read_s = sum(count * 4 * k * n for (_, k, n), count in known.items()) / machine.bytes_per_s
    return read_s, sum(count * 2 * m * k * n / rates[m, k, n] for (m, k, n), count in known.items())
