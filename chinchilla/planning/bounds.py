"""The limits of a recipe as bounds on shapes: which shapes hold them, and what to say where none does."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.machine import Machine
from chinchilla.config.run import Limits
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_bytes, show_time
from chinchilla.planning.count import num_params
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.latency import Request, answer_time
from chinchilla.planning.room import Room
from chinchilla.planning.serve_memory import serve_memory


@dataclass(frozen=True)
class Bound:
    """A limit on shapes: whether one holds it, how much it needs of what is limited, and the error if none holds.

    `show` puts an amount of it in words.
    """

    key: str
    most: float
    holds: Callable[[Shape], bool]
    needs: Callable[[Shape], float]
    error: Callable[[Shape, str], BudgetError]
    show: Callable[[float], str] = show_bytes


def bounds(
    request: Request,
    machine: Machine | None,
    limits: Limits,
    room: Room | None = None,
    deadline: Deadline | None = None,
) -> list[Bound]:
    """The limits that are set, the memory where `room` says how much there is, and the time of fixed steps.

    Raises:
        UsageError: a limit on latency without a measured machine.
    """
    found = []
    if (size := limits.size) is not None:
        found.append(_most("limits.size", size, lambda shape: 4 * num_params(shape), partial(_too_large, size)))
    if (latency := limits.latency) is not None:
        if machine is None:
            raise UsageError("limits.latency: no measured machine to answer on: run `chinchilla measure`")
        wait = partial(answer_s, request=request, machine=machine)
        slow = partial(_too_slow, latency, request, machine)
        found.append(_most("limits.latency", latency, wait, slow, show_time))
    if (memory := limits.serve_memory) is not None:
        hold = partial(serving_bytes, request=request)
        found.append(_most("limits.serve_memory", memory, hold, partial(_too_fat, memory, request)))
    if room is not None:
        found.append(
            Bound(
                "limits.memory" if limits.memory is not None else "this machine's memory",
                room.size_bytes,
                lambda shape: room.way(shape) is not None,
                lambda shape: room.peak(shape, room.recompute is not False),
                lambda shape, _among: too_little(shape, limits, room),
            )
        )
    if deadline is not None:
        found.append(_most(deadline.key, deadline.time_s, deadline.needs, deadline.error, show_time))
    return found


def _most(
    key: str,
    most: float,
    needs: Callable[[Shape], float],
    error: Callable[[Shape, str], BudgetError],
    show: Callable[[float], str] = show_bytes,
) -> Bound:
    return Bound(key, most, lambda shape: needs(shape) <= most, needs, error, show)


def answer_s(shape: Shape, request: Request, machine: Machine) -> float:
    """Seconds that one answer is expected to take (p50)."""
    return answer_time(shape, request, machine).total_s


def serving_bytes(shape: Shape, request: Request) -> int:
    """The most bytes of tensors while one answer is made."""
    return serve_memory(shape, 1, request.prompt_len, request.passes, beam_size=request.beam_size).peak


def unfit(shapes: Sequence[Shape], bounds: Sequence[Bound]) -> BudgetError:
    """The error where no shape holds every bound: the bound to loosen, and how little of it would do.

    It is one that no shape holds; where each is held by some, the last that leaves a shape if it alone is loosened.
    """
    for bound in bounds:
        if not any(bound.holds(shape) for shape in shapes):
            return bound.error(min(shapes, key=bound.needs), "that may be built")
    for bound in reversed(bounds):
        others = [other for other in bounds if other is not bound]
        left = [shape for shape in shapes if all(other.holds(shape) for other in others)]
        if left:
            return bound.error(min(left, key=bound.needs), f"within {' and '.join(other.key for other in others)}")
    first = bounds[0]
    return first.error(min(shapes, key=first.needs), "that may be built")


def _too_large(size: int, shape: Shape, among: str) -> BudgetError:
    return BudgetError(
        f"limits.size is {show_bytes(size)}, and the smallest model {among} ({_name(shape)}) takes "
        f"{show_bytes(_up(4 * num_params(shape), 3))}: raise it, or lower tokenizer.vocab_size"
    )


def _too_slow(latency: float, request: Request, machine: Machine, shape: Shape, among: str) -> BudgetError:
    answer = answer_time(shape, request, machine)
    beams = request.beam_size > 1
    greedy_s = answer_time(shape, replace(request, beam_size=1), machine).total_s
    token_s = (answer.total_s - answer.prompt_s) / max(1, request.new_tokens)
    each = f", {show_time(token_s)} a token" if request.new_tokens else ""
    fewer = f", set evaluate.beam_size=1 (then {_nearest(greedy_s)})" if beams else ""
    return BudgetError(
        f"limits.latency is {latency:.3g} s, and the fastest model {among} ({_name(shape)}) takes about "
        f"{_nearest(answer.total_s)} for {told_request(request)}{each}: raise it to that{fewer} or lower "
        "tokenizer.vocab_size"
    )


def _too_fat(memory: int, request: Request, shape: Shape, among: str) -> BudgetError:
    return BudgetError(
        f"limits.serve_memory is {show_bytes(memory)}, and the leanest model {among} ({_name(shape)}) takes "
        f"{show_bytes(_up(serving_bytes(shape, request), 3))} for {told_request(request)}: raise it, or lower "
        "tokenizer.vocab_size"
    )


def _nearest(seconds: float) -> str:
    """A time as a recipe takes it, never below the real one."""
    return f"{_up(seconds, 3):g} s"


def _up(value: float, figures: int) -> float:
    """The next number above (or at) a positive one that has so many figures."""
    digits = figures - 1 - math.floor(math.log10(value))
    return round(math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits, max(digits, 0))


def told_request(request: Request) -> str:
    """A request in words."""
    if not request.new_tokens:
        return f"one example of {request.prompt_len} positions"
    beams = f" with {request.beam_size} beams" if request.beam_size > 1 else ""
    return f"an answer of {request.new_tokens} tokens to {request.prompt_len}{beams}"


def _name(shape: Shape) -> str:
    layers = "+".join(str(number) for number in (shape.num_encoder_layers, shape.num_decoder_layers) if number)
    return f"{layers} layers of {shape.dim}, vocabulary {shape.vocab_size}"


def too_little(shape: Shape, limits: Limits, room: Room) -> BudgetError:
    """The error of a shape that does not fit the memory."""
    layers = f"{shape.num_encoder_layers}+{shape.num_decoder_layers} layers of {shape.dim}"
    bound = f"limits.memory, {show_bytes(limits.memory)}: raise it" if limits.memory else "this machine: fix less"
    return BudgetError(
        f"training {layers} takes {show_bytes(room.peak(shape, room.recompute is not False))} of memory beside the "
        f"process, and {show_bytes(max(0, room.size_bytes))} are left of {bound}, or lower train.batch_tokens"
    )
