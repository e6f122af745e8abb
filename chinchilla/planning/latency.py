"""How long one answer takes on a measured machine: reading the prompt, then token by token.

A pass over few tokens reads every weight once and calls many small operators, so that it is bound by the memory's
bandwidth and by the operators' fixed costs, less by arithmetic (Pope 2022, arXiv 2211.05102, §2). Times are of a model
in fp32 that answers one request alone, by the code of `models.generate`.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

from chinchilla.config.errors import UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.shape import Shape
from chinchilla.planning.count import parameters
from chinchilla.planning.machine import matmul_rate

SPREAD = 0.5
"""Relative spread of an answer's time."""

# What follows was fitted to 32 answers of 10 models (0.9 to 124 million parameters), one thread of one CPU
# (bench/latency_model.py tells how well it holds). On another machine these are rules of thumb.

OPS_A_LAYER = 100
"""Calls of a bare operator that one layer's fixed costs amount to, each time it is passed."""

OPS_A_BEAM = 15
"""The same for each beam and token: its history, and its rows put in order."""

WEIGHT_PASSES = 1.5
"""Times that a weight crosses memory, each time it is multiplied with."""

THIN_SHARE = 0.4
"""Share of a tall product's rate that one of so few rows reaches."""

VOCABULARY_PASSES = 35.0
"""Times that a logit crosses memory until a token is chosen."""

CACHE_PASSES = 6.0
"""Times that beams' keys and values cross memory when they are put in order and read."""


@dataclass(frozen=True)
class Request:
    """One answer: a prompt (a source, for an encoder) and the new tokens; `beam_size` 1 is greedy or sampling.

    An encoder alone answers with a class, and no new tokens.
    """

    prompt_len: int
    new_tokens: int
    beam_size: int = 1


@dataclass(frozen=True)
class AnswerTime:
    """Seconds of one answer: until the prompt is read, and of each new token."""

    prompt_s: float
    token_s: float
    new_tokens: int

    @property
    def total_s(self) -> float:
        """The whole answer."""
        return self.prompt_s + self.new_tokens * self.token_s

    def estimate(self) -> Estimate:
        """The total with its spread."""
        return Estimate.around(self.total_s, SPREAD, "s", "guess")


def answer_time(shape: Shape, request: Request, machine: Machine) -> AnswerTime:
    """Time of one answer on `machine`, nothing else asked of it.

    Raises:
        UsageError: a length below 1, or more positions than the model has.
    """
    _check(shape, request)
    if not shape.num_decoder_layers:
        return AnswerTime(_reading(shape, request.prompt_len, machine), 0.0, 0)
    return AnswerTime(
        prompt_s=_reading(shape, request.prompt_len, machine),
        token_s=_token(shape, request, machine),
        new_tokens=request.new_tokens,
    )


def _check(shape: Shape, request: Request) -> None:
    least = 1 if shape.num_decoder_layers else 0
    if min(request.prompt_len, request.beam_size) < 1 or request.new_tokens < least:
        raise UsageError(f"{request}: each at least 1")
    both = shape.num_encoder_layers == 0
    longest = request.prompt_len + request.new_tokens if both else max(request.prompt_len, request.new_tokens)
    if longest > shape.max_len:
        raise UsageError(f"{request}: {longest} positions do not fit max_len {shape.max_len}")


def _reading(shape: Shape, length: int, machine: Machine) -> float:
    """One pass over a prompt. Attention's own products are few at these lengths, and left out."""
    side = "encoder" if shape.num_encoder_layers else "decoder"
    layers = shape.num_encoder_layers or shape.num_decoder_layers
    read = [sizes for name, sizes in _matrices(shape) if name.startswith(side) or ".cross.kv" in name]
    return _passed(length, read, machine) + OPS_A_LAYER * layers * machine.op_overhead_s


def _token(shape: Shape, request: Request, machine: Machine) -> float:
    """One pass of the decoder and its head over one token a beam, and the choice."""
    beams = request.beam_size
    read = [sizes for name, sizes in _matrices(shape) if name.startswith("decoder") and ".cross.kv" not in name]
    products_s = _passed(beams, [*read, (shape.vocab_size, shape.dim)], machine)
    traffic = VOCABULARY_PASSES * 4 * beams * shape.vocab_size
    ops = OPS_A_LAYER * shape.num_decoder_layers
    if beams > 1:
        traffic += CACHE_PASSES * _cache_bytes(shape, request)
        ops += OPS_A_BEAM * beams
    return products_s + traffic / machine.bytes_per_s + ops * machine.op_overhead_s


def _cache_bytes(shape: Shape, request: Request) -> float:
    """Keys and values of all beams, half way through the answer."""
    mean = request.prompt_len + request.new_tokens / 2
    return 2 * 4 * shape.num_decoder_layers * request.beam_size * shape.num_kv_heads * shape.head_dim * mean


def _matrices(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """The layers' weights that are multiplied with."""
    return [(name, sizes) for name, sizes in parameters(shape).items() if len(sizes) == 2 and ".layers." in name]


def _passed(rows: int, weights: list[tuple[int, ...]], machine: Machine) -> float:
    """Seconds of so few rows times each weight: reading it, and the arithmetic."""
    read_s = sum(WEIGHT_PASSES * 4 * prod(sizes) / machine.bytes_per_s for sizes in weights)
    known = Counter(weights)
    rates = {sizes: THIN_SHARE * matmul_rate(machine, rows, sizes[1], sizes[0], "fp32") for sizes in known}
    return read_s + sum(count * 2 * rows * prod(sizes) / rates[sizes] for sizes, count in known.items())
