"""The time of one answer by a model itself, from a few passes of its decoder: before its training, and after it."""

import time
from collections.abc import Callable
from statistics import median

import torch

from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.planning.latency import TIMED_SPREAD, AnswerTime, Request

PASSES = 8
"""Passes of the decoder that are timed together."""

ROUNDS, LEAST_S = 3, 0.3
"""How often and how long at least they are repeated; the median counts. Of three repeats of tens of milliseconds on two
threads, the medians before and after a training differed by 2.5 times in either direction."""


def timed_answer(
    model: Transformer, request: Request, clock: Callable[[], float] = time.perf_counter
) -> AnswerTime | None:
    """Time of an answer like `request` to random tokens by `model` in evaluation; None where no decoder answers.

    However soon the model would end its answer: the time is of as many passes as `request` has.
    """
    shape = model.shape
    if not shape.num_decoder_layers:
        return None
    device = next(model.parameters()).device
    prompt = torch.randint(shape.vocab_size, (1, request.prompt_len), device=device)
    if not shape.num_encoder_layers:
        ids = prompt[0].tolist()
        count = max(2, min(PASSES, request.new_tokens))
        first, more = (_completing(model, ids, tokens) for tokens in (1, count))
        prompt_s = _median_s(first, clock)
        return _found(prompt_s, _median_s(more, clock) - prompt_s, count - 1, request.new_tokens - 1)
    prompt_s = _median_s(torch.inference_mode()(lambda: float(model.encode(prompt).sum())), clock)
    count = min(PASSES, shape.max_len - 1)

    def answer() -> object:
        return translate(model, prompt, None, [count], request.beam_size)

    return _found(prompt_s, _median_s(answer, clock) - prompt_s, _passes(model, answer), request.passes)


def _passes(model: Transformer, call: Callable[[], object]) -> int:
    """How often a call uses the decoder."""
    seen: list[None] = []
    assert model.decoder is not None
    with model.decoder.register_forward_hook(lambda *_: seen.append(None)):
        call()
    return len(seen)


def _completing(model: Transformer, ids: list[int], tokens: int) -> Callable[[], object]:
    return lambda: complete(model, ids, Sampling(tokens, temperature=0), frozenset())


def _found(prompt_s: float, rest_s: float, timed: int, passes: int) -> AnswerTime:
    """`rest_s` seconds of `timed` passes; on a machine that stumbled while reading nothing may be left of them."""
    return AnswerTime(prompt_s, max(0.0, rest_s) / timed, passes, TIMED_SPREAD, "measured")


def _median_s(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Median seconds of a call, after one that packs weights and warms caches."""
    call()
    times: list[float] = []
    while len(times) < ROUNDS or sum(times) < LEAST_S:
        begun = clock()
        call()
        times.append(clock() - begun)
    return median(times)
