"""Search for answers: greedy and beam search for an encoder-decoder, sampling for a decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla.models.cache import KVCache
from chinchilla.models.transformer import Transformer


@dataclass
class _Sentence:
    """A source being translated: its best finished answer and that one's score."""

    index: int
    max_new: int
    score: float = -math.inf
    answer: list[int] | None = None

    def add(self, score: float, tokens: list[int]) -> None:
        if score > self.score:
            self.score, self.answer = score, tokens

    def is_done(self, best_alive: float, length: int, penalty: float) -> bool:
        """Whether no unfinished answer can still beat the finished one."""
        # Log-probabilities only fall, and dividing by the greatest length is the most favourable.
        beaten = self.answer is not None and self.score >= best_alive / self.max_new**penalty
        return beaten or length >= self.max_new


@torch.inference_mode()
def translate(
    model: Transformer,
    source: Tensor,
    segments: Tensor | None,
    max_new: Sequence[int],
    beam_size: int = 4,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Beam search (Sutskever 2014; greedy at `beam_size` 1), a batch of sources at a time.

    `source` (batch, length) int64 with `segments` (batch, length) bool, True at real tokens; `max_new` (batch,)
    bounds the answers' lengths, at least 1. An answer's score is its log-probability over length^`length_penalty`
    (Wu 2016 has a smoother form). Returns token ids without start or end.
    """
    if beam_size == 1:
        return _greedy(model, source, segments, max_new)
    memory = model.encode(source, segments)
    sentences = [_Sentence(index, limit) for index, limit in enumerate(max_new)]
    answers: list[list[int]] = [[] for _ in sentences]
    cache = KVCache(model.shape.num_decoder_layers)
    logits = _next_logits(model, _column(model.shape.bos_id, len(sentences), source), memory, segments, cache)
    tokens, scores, histories = _open_beams(model, logits, beam_size)
    rows = torch.arange(len(sentences), device=source.device).repeat_interleave(beam_size)
    length = 1
    _collect_ended(model, sentences, histories, scores, length, length_penalty)
    while True:
        alive = [
            place
            for place, sentence in enumerate(sentences)
            if not sentence.is_done(float(scores[place].max()), length, length_penalty)
        ]
        for place in set(range(len(sentences))) - set(alive):
            answers[sentences[place].index] = _best(sentences[place], histories[place], scores[place])
        if not alive:
            return answers
        if len(alive) < len(sentences):
            rows = _rows_of(rows, alive, beam_size)
            sentences = [sentences[place] for place in alive]
            histories = [histories[place] for place in alive]
            tokens, scores = tokens[alive], scores[alive]
        cache.reorder(rows)
        memory = memory.index_select(0, rows)
        segments = None if segments is None else segments.index_select(0, rows)
        logits = _next_logits(model, tokens.reshape(-1, 1), memory, segments, cache)
        length += 1
        tokens, scores, histories, parents = _extend(model, logits, scores, histories, beam_size)
        _collect_ended(model, sentences, histories, scores, length, length_penalty)
        offsets = torch.arange(len(sentences), device=source.device)[:, None] * beam_size
        rows = (parents + offsets).flatten()


def _greedy(model: Transformer, source: Tensor, segments: Tensor | None, max_new: Sequence[int]) -> list[list[int]]:
    """The most probable token each time; finished rows leave the batch."""
    memory = model.encode(source, segments)
    answers: list[list[int]] = [[] for _ in max_new]
    alive = list(range(len(answers)))
    cache = KVCache(model.shape.num_decoder_layers)
    tokens = _column(model.shape.bos_id, len(answers), source)
    while alive:
        chosen = _next_logits(model, tokens, memory, segments, cache).argmax(1)
        keep = []
        for place, token in enumerate(chosen.tolist()):
            answer = answers[alive[place]]
            if token == model.shape.eos_id:
                continue
            answer.append(token)
            if len(answer) < max_new[alive[place]]:
                keep.append(place)
        if len(keep) < len(alive):
            rows = torch.tensor(keep, dtype=torch.int64, device=source.device)
            alive = [alive[place] for place in keep]
            chosen, memory = chosen.index_select(0, rows), memory.index_select(0, rows)
            segments = None if segments is None else segments.index_select(0, rows)
            cache.reorder(rows)
        tokens = chosen[:, None]
    return answers


def _column(token: int, count: int, like: Tensor) -> Tensor:
    return torch.full((count, 1), token, dtype=torch.int64, device=like.device)


def _next_logits(model: Transformer, tokens: Tensor, memory: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
    """(batch, vocab_size) fp32 after `tokens` (batch, 1); padding and start are never answers."""
    logits = model.logits(model.decode(tokens, memory, segments, cache)[:, -1]).float()
    logits[:, [model.shape.pad_id, model.shape.bos_id]] = -torch.inf
    return logits


def _open_beams(model: Transformer, logits: Tensor, beam_size: int) -> tuple[Tensor, Tensor, list[list[list[int]]]]:
    """The `beam_size` best first tokens: tokens and scores (batch, beam_size), and the answers so far."""
    chances, vocab_size = F.log_softmax(logits, dim=1), logits.shape[1]
    # More beams than there are tokens: the rest begin dead, at the score of what is barred.
    scores, tokens = F.pad(chances, (0, max(0, beam_size - vocab_size)), value=-torch.inf).topk(beam_size, dim=1)
    tokens = tokens % vocab_size
    return tokens, scores, [[[token] for token in row] for row in tokens.tolist()]


def _extend(
    model: Transformer, logits: Tensor, scores: Tensor, histories: list[list[list[int]]], beam_size: int
) -> tuple[Tensor, Tensor, list[list[list[int]]], Tensor]:
    """The `beam_size` best continuations of each sentence's beams, and which beam each came from."""
    total = scores[:, :, None] + F.log_softmax(logits, dim=1).view(len(histories), beam_size, -1)
    scores, flat = total.flatten(1).topk(beam_size, dim=1)
    parents, tokens = flat // total.shape[2], flat % total.shape[2]
    grown = [
        [histories[place][parent] + [token] for parent, token in zip(from_, new, strict=True)]
        for place, (from_, new) in enumerate(zip(parents.tolist(), tokens.tolist(), strict=True))
    ]
    return tokens, scores, grown, parents


def _collect_ended(
    model: Transformer,
    sentences: list[_Sentence],
    histories: list[list[list[int]]],
    scores: Tensor,
    length: int,
    penalty: float,
) -> None:
    """Tell each sentence of its beams that ended, and bar them from going on."""
    ended = [
        (place, beam)
        for place, beams in enumerate(histories)
        for beam, tokens in enumerate(beams)
        if tokens[-1] == model.shape.eos_id
    ]
    for place, beam in ended:
        score = float(scores[place, beam])
        if score > -torch.inf:
            sentences[place].add(score / length**penalty, histories[place][beam][:-1])
        scores[place, beam] = -torch.inf


def _best(sentence: _Sentence, beams: list[list[int]], scores: Tensor) -> list[int]:
    """The best finished answer, or the best unfinished one where none was finished in time."""
    return beams[int(scores.argmax())] if sentence.answer is None else sentence.answer


def _rows_of(rows: Tensor, alive: list[int], beam_size: int) -> Tensor:
    return rows.view(-1, beam_size)[alive].flatten()


@dataclass(frozen=True)
class Sampling:
    """How to continue a prompt: greedy at `temperature` 0; `top_k` 0 and `top_p` 1 are off.

    The most probable token is always kept, however small `top_p`.
    """

    max_new: int
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from `logits` (vocab_size,): of the `top_k` best, the fewest that hold `top_p` of the probability.

    Nucleus sampling: Holtzman 2020.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    # Relative to the best, and not by less than fp32 can divide by: any temperature above 0 stays finite.
    cooled = (logits - logits.max()) / max(sampling.temperature, 1e-6)
    count = min(sampling.top_k, logits.shape[0]) if sampling.top_k else logits.shape[0]
    if count == logits.shape[0] and sampling.top_p >= 1:
        return int(torch.multinomial(F.softmax(cooled, dim=0), 1, generator=generator))
    best, ids = cooled.topk(count)
    chances = F.softmax(best, dim=0)
    # In fp32 a smaller top_p would be 0, and leave no token at all.
    top_p = max(sampling.top_p, torch.finfo(torch.float32).tiny)
    chances = chances.where(chances.cumsum(0) - chances < top_p, 0.0)
    return int(ids[torch.multinomial(chances, 1, generator=generator)])


@torch.inference_mode()
def complete(model: Transformer, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int]) -> list[int]:
    """Continue one prompt (at least one token id) by up to `max_new` tokens; a stop token ends it and is left out."""
    generator = torch.Generator().manual_seed(sampling.seed)
    cache = KVCache(model.shape.num_decoder_layers)
    tokens = torch.tensor([list(prompt)], device=model.head.weight.device)
    answer: list[int] = []
    room = model.shape.max_len - len(prompt)
    while len(answer) < min(sampling.max_new, room):
        logits = model.logits(model.decode(tokens, cache=cache)[0, -1]).float().cpu()
        token = draw(logits, sampling, generator)
        if token in stop_ids:
            break
        answer.append(token)
        tokens = torch.tensor([[token]], device=tokens.device)
    return answer
