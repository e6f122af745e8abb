"""The time of one answer by a model of the chosen shape itself: a few passes of its decoder, at planning time."""

import time
from collections.abc import Callable
from statistics import median

import torch

from chinchilla.config.shape import Shape
from chinchilla.models.generate import Sampling, complete, translate
from chinchilla.models.transformer import Transformer
from chinchilla.planning.latency import TIMED_SPREAD, AnswerTime, Request

PASSES, ROUNDS = 8, 3
"""Passes of the decoder that are timed together, and how often: the median counts."""


def timed_answer(
    shape: Shape, request: Request, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> AnswerTime | None:
    """Time of an answer like `request` by a model with random weights; None where no decoder answers."""
    if not shape.num_decoder_layers:
        return None
    model = Transformer(shape).to(device).eval()
    prompt = torch.randint(shape.vocab_size, (1, request.prompt_len), device=device)
    if not shape.num_encoder_layers:
        ids = prompt[0].tolist()
        count = max(2, min(PASSES, request.new_tokens))
        first, more = (_completing(model, ids, tokens) for tokens in (1, count))
        prompt_s = _median_s(first, clock)
        return _found(prompt_s, _median_s(more, clock) - prompt_s, count - 1, request.new_tokens - 1)
    prompt_s = _median_s(torch.inference_mode()(lambda: float(model.encode(prompt).sum())), clock)
    seen: list[None] = []
    count = min(PASSES, shape.max_len - 1)
    assert model.decoder is not None
    with model.decoder.register_forward_hook(lambda *_: seen.append(None)):
        answer_s = _median_s(lambda: translate(model, prompt, None, [count], request.beam_size), clock)
    return _found(prompt_s, answer_s - prompt_s, len(seen) // (ROUNDS + 1), request.passes)


def _completing(model: Transformer, ids: list[int], tokens: int) -> Callable[[], object]:
    return lambda: complete(model, ids, Sampling(tokens, temperature=0), frozenset())


def _found(prompt_s: float, rest_s: float, timed: int, passes: int) -> AnswerTime:
    """`rest_s` seconds of `timed` passes; on a machine that stumbled while reading nothing may be left of them."""
    return AnswerTime(prompt_s, max(0.0, rest_s) / timed, passes, TIMED_SPREAD, "measured")


def _median_s(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Median seconds of a call, after one that packs weights and warms caches."""
    call()
    times = []
    for _ in range(ROUNDS):
        begun = clock()
        call()
        times.append(clock() - begun)
    return median(times)
