"""Continuous batching of a decoder: rows of unequal length share one cache, and join or leave between steps.

A row that is shorter than the longest has padding at its left. Positions and blocks are counted from a row's own
first token, so that keys in the cache stay valid when it is padded or trimmed. Batching by iteration: Orca (Yu 2022).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.cache import KVCache, LayerCache
from chinchilla.models.generate import Sampling, draw
from chinchilla.serving.answerer import Piece, Prompt
from chinchilla.serving.text import StoppableText, TokenStream

CONTEXT = 8
"""Tokens of a prompt's end that its continuation's text is decoded after."""


class Decoder(Protocol):
    """The decoder half of a model, as `models.transformer.Transformer` has it."""

    shape: Shape

    def decode(
        self,
        target: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`target` (batch, new) int64 → states (batch, new, dim)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` (…, dim) → (…, vocab_size)."""


class _Row:
    """One prompt being continued."""

    def __init__(self, prompt: Prompt, prompt_ids: Sequence[int], stream: TokenStream) -> None:
        self.text = StoppableText(stream, prompt.stop)
        self.sampling = Sampling(prompt.max_tokens, prompt.temperature, prompt.top_k, prompt.top_p, prompt.seed)
        self.generator = torch.Generator().manual_seed(prompt.seed)
        self.num_tokens = 0
        self.last_token = 0
        # What a token looks like may depend on the one before: a space at the start of a text is often dropped.
        for token in prompt_ids[-CONTEXT:]:
            stream.push(token)

    def advance(self, logits: Tensor, end_ids: frozenset[int]) -> Piece:
        """Choose the next token from `logits` (vocab_size,); say what text is certain and whether the row ends."""
        token = draw(logits, self.sampling, self.generator)
        self.last_token = token
        self.num_tokens += 1
        if token in end_ids:
            return Piece(self.text.finish(), "stop")
        text = self.text.push(token)
        if not self.text.stopped and self.num_tokens == self.sampling.max_new:
            text += self.text.finish()
            return Piece(text, "stop" if self.text.stopped else "length")
        return Piece(text, "stop" if self.text.stopped else None)


class TokenDecoding:
    """A running batch on a decoder; satisfies `answerer.Decoding`.

    `encode` makes token ids (at least one) of a prompt's content, `stream` decodes one row's tokens; any of `end_ids`
    ends a row.
    """

    def __init__(
        self,
        model: Decoder,
        encode: Callable[[Any], list[int]],
        stream: Callable[[], TokenStream],
        end_ids: frozenset[int],
    ) -> None:
        self.model, self.encode, self.stream, self.end_ids = model, encode, stream, end_ids
        self._rows: list[_Row] = []
        self._padding: list[int] = []
        self._cache = KVCache(model.shape.num_decoder_layers)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Prompt]) -> list[Piece]:
        """Read the prompts, one by one; return the first token's piece of each."""
        return [self._join(prompt) for prompt in prompts]

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """One more token for every row, in the order of joining."""
        last = torch.tensor([[row.last_token] for row in self._rows])
        logits = self.model.logits(self.model.decode(last, cache=self._cache)[:, -1]).float()
        return [row.advance(own, self.end_ids) for row, own in zip(self._rows, logits, strict=True)]

    @torch.inference_mode()
    def leave(self, rows: Sequence[int]) -> None:
        """Forget the rows at these positions; the cache gives up the positions that only they needed."""
        keep = [index for index in range(len(self._rows)) if index not in set(rows)]
        self._rows = [self._rows[index] for index in keep]
        if not keep:
            self._cache = KVCache(self.model.shape.num_decoder_layers)
        spare = min((self._padding[index] for index in keep), default=0)
        self._padding = [self._padding[index] - spare for index in keep]
        self._cache.reorder(torch.tensor(keep, dtype=torch.int64))
        for layer in self._cache.self_layers:
            _drop_left(layer, spare)
        self._mark_padding()

    def _join(self, prompt: Prompt) -> Piece:
        ids = self.encode(prompt.content)
        cache = KVCache(self.model.shape.num_decoder_layers)
        hidden = self.model.decode(torch.tensor([ids]), cache=cache)
        row = _Row(prompt, ids, self.stream())
        piece = row.advance(self.model.logits(hidden[0, -1]).float(), self.end_ids)
        self._merge(cache)
        self._rows.append(row)
        return piece

    def _merge(self, cache: KVCache) -> None:
        """Add a row's cache to the batch's; the shorter of the two is padded at its left."""
        length = max(self._cache.length, cache.length)
        own, new = length - self._cache.length, length - cache.length
        self._padding = [padding + own for padding in self._padding] + [new]
        if not self._rows:
            self._cache = cache
        else:
            for layer, other in zip(self._cache.self_layers, cache.self_layers, strict=True):
                _append_rows(layer, other, length)
        self._mark_padding()

    def _mark_padding(self) -> None:
        self._cache.left_padding = torch.tensor(self._padding) if any(self._padding) else None


def _append_rows(layer: LayerCache, other: LayerCache, length: int) -> None:
    """Add `other`'s rows to `layer`, both padded at the left to `length` positions."""
    assert layer.keys is not None and layer.values is not None
    assert other.keys is not None and other.values is not None
    layer.keys = torch.cat([_padded(layer.keys, layer.length, length), _padded(other.keys, other.length, length)])
    layer.values = torch.cat([_padded(layer.values, layer.length, length), _padded(other.values, other.length, length)])
    layer.length = length


def _padded(buffer: Tensor, filled: int, length: int) -> Tensor:
    """The filled part of `buffer` (batch, kv_heads, capacity, head_dim) with zeros at its left."""
    return F.pad(buffer[:, :, :filled], (0, 0, length - filled, 0))


def _drop_left(layer: LayerCache, count: int) -> None:
    if count and layer.keys is not None and layer.values is not None:
        layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]
        layer.length -= count
