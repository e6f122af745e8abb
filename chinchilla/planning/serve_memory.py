"""Memory of serving, counted without running it: weights by precision, KV cache, workspace, and the peak over phases.

The phases are those of the code that answers: `serving.decoding` for a decoder (prompts read one by one into one batch,
then steps), `models.generate.translate` for an encoder-decoder, one forward pass for an encoder.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from chinchilla.config.errors import UsageError
from chinchilla.config.shape import Shape
from chinchilla.planning.count import block_pieces, has_cross, parameters, up_width
from chinchilla.planning.operators import FP32, LONGEST_PLAIN
from chinchilla.planning.stems import OUT

WeightKind = Literal["fp32", "bf16", "int8"]

FIRST_CAPACITY = 16
"""Positions that a cache has room for at least: `models.cache`."""

PACKED_COLUMNS = 512
"""Columns that the int8 kernel fills a matrix up to multiples of (found by the bytes that packing takes)."""


@dataclass(frozen=True)
class ServeMemory:
    """Bytes while `rows` answers grow at one time. `cache` is what all KV buffers hold in the end.

    `phases` are the most bytes alive in each phase, weights included; `peak` is the largest of them, in `phase`.
    """

    weights: int
    cache: int
    peak: int
    phase: str
    phases: dict[str, int]

    @property
    def workspace(self) -> int:
        """What the peak takes beside weights and cache, at least 0."""
        return max(0, self.peak - self.weights - self.cache)


def serve_memory(
    shape: Shape,
    rows: int,
    prompt_len: int,
    new_tokens: int,
    *,
    beam_size: int = 1,
    weights: WeightKind = "fp32",
) -> ServeMemory:
    """Memory of answering `rows` prompts (sources, for an encoder) of `prompt_len` tokens with `new_tokens` each.

    Raises:
        UsageError: a number below 1, or more positions than the model has.
    """
    _check(shape, rows, prompt_len, new_tokens, beam_size)
    held = weight_bytes(shape, weights)
    work = _Work(shape, 2 if weights == "bf16" else FP32)
    if has_cross(shape):
        cache, phases = work.translating(rows, prompt_len, new_tokens, beam_size)
    elif shape.num_decoder_layers:
        cache, phases = work.completing(rows, prompt_len, new_tokens)
    else:
        cache, phases = 0, {"encode": work.forward(rows, prompt_len, shape.num_encoder_layers, causal=False)}
    phases = {name: held + size for name, size in phases.items()}
    phase = max(phases, key=lambda name: phases[name])
    return ServeMemory(held, cache, phases[phase], phase, phases)


def weight_bytes(shape: Shape, kind: WeightKind, packed: bool = True) -> int:
    """Bytes of all weights and tables of the running model.

    In int8 a matrix is one byte a number and an fp32 scale a row; the rest, vectors of positions and columns too,
    stays fp32. At its first use a layer is `packed`: its columns filled up to a multiple of `PACKED_COLUMNS`, with
    three more numbers a row; a tied head packs a matrix of its own. Before that, and on the disk, it's not.
    """
    tables = shape.max_len * shape.dim if shape.position == "sinusoidal" else 0
    if kind != "int8":
        return (2 if kind == "bf16" else FP32) * (sum(map(prod, parameters(shape).values())) + tables)
    total = FP32 * tables
    for name, sizes in parameters(shape).items():
        if len(sizes) != 2 or _is_table(name):
            total += FP32 * prod(sizes)
        elif packed and name != "embed.tokens.weight":
            total += _packed(*sizes)
        else:
            total += prod(sizes) + FP32 * sizes[0]
    return total + (_packed(shape.vocab_size, shape.dim) if packed and shape.tied_head else 0)


def _is_table(name: str) -> bool:
    """Whether a matrix is one of vectors that are added, which stay in fp32."""
    return name.startswith("embed.") and name not in ("embed.tokens.weight", f"{OUT}.weight")


def _packed(rows: int, columns: int) -> int:
    """A matrix as FBGEMM packs it on CPUs with AVX-512, with scale, zero point and sum of each row, and our scale."""
    return rows * (-(-columns // PACKED_COLUMNS) * PACKED_COLUMNS + 4 * FP32)


def kv_capacity(capacity: int, total: int) -> int:
    """Positions that a cache has room for once `total` are held, from `capacity` on: its buffers double when full."""
    while capacity < total:
        capacity = max(2 * capacity, FIRST_CAPACITY)
    return capacity


def kv_bytes(shape: Shape, rows: int, capacity: int, number_bytes: int = FP32) -> int:
    """Bytes of one layer's keys (as many again are its values)."""
    return number_bytes * rows * shape.num_kv_heads * capacity * shape.head_dim


def _check(shape: Shape, rows: int, prompt_len: int, new_tokens: int, beam_size: int) -> None:
    for name, value in (
        ("rows", rows),
        ("prompt_len", prompt_len),
        ("new_tokens", new_tokens),
        ("beam_size", beam_size),
    ):
        if value < (0 if name == "new_tokens" and not shape.num_decoder_layers else 1):
            raise UsageError(f"serve_memory: {name} is {value}; at least 1")
    longest = max(prompt_len, new_tokens) if shape.num_encoder_layers else prompt_len + new_tokens
    if longest > shape.max_len:
        raise UsageError(f"serve_memory: {longest} positions do not fit max_len {shape.max_len}: ask for fewer tokens")


@dataclass(frozen=True)
class _Work:
    """What inference needs beside the weights, for numbers of `size` bytes."""

    shape: Shape
    size: int

    def completing(self, rows: int, prompt_len: int, new_tokens: int) -> tuple[int, dict[str, int]]:
        """The cache in the end, and the phases of a decoder's running batch."""
        shape, layers = self.shape, self.shape.num_decoder_layers
        first = max(prompt_len, FIRST_CAPACITY)
        own = 2 * layers * kv_bytes(shape, 1, first, self.size)
        # A batch of one keeps its own cache, also while the second is read; joining copies both without spare room.
        others = 0 if rows == 1 else max(own, (rows - 1) * (own // first) * prompt_len)
        read = others + self.forward(1, prompt_len, layers, causal=True, cached=True) + own + self.logits(1)
        phases = {"read a prompt": read}
        capacity = first
        if rows > 1:
            capacity = prompt_len
            one = kv_bytes(shape, rows, prompt_len, self.size)
            # Both sides are copied to one length, and joined, buffer by buffer.
            phases["join the batch"] = others + own + 2 * one + (one - kv_bytes(shape, 1, first, self.size))
        last = prompt_len + new_tokens - 1
        grown = kv_capacity(capacity, last)
        cache = 2 * layers * kv_bytes(shape, rows, grown, self.size)
        phases["step"] = cache + max(self.step(rows, last), self.logits(rows))
        phases["grow"] = cache + self.growth(rows, capacity, grown)
        return cache, phases

    def translating(self, rows: int, source_len: int, new_tokens: int, beams: int) -> tuple[int, dict[str, int]]:
        """The cache in the end, and the phases of a beam search that ends with all beams alive."""
        shape, layers = self.shape, self.shape.num_decoder_layers
        memory = self.size * rows * source_len * shape.dim
        capacity = kv_capacity(FIRST_CAPACITY, new_tokens)
        cross = kv_bytes(shape, rows, max(source_len, FIRST_CAPACITY), self.size)
        opening = 2 * layers * (cross + kv_bytes(shape, rows, FIRST_CAPACITY, self.size))
        phases = {"encode": self.forward(rows, source_len, shape.num_encoder_layers, causal=False)}
        projected = 2 * kv_bytes(shape, rows, source_len, self.size)
        phases["first token"] = memory + opening + max(projected, self.logits(rows) * (1 if beams == 1 else 2))
        wide = rows * beams
        own = kv_bytes(shape, wide, capacity, self.size)
        cache = 2 * layers * (beams * cross + own)
        if beams > 1:
            # Rows are put in order buffer by buffer; the encoder's states too.
            phases["reorder"] = cache + beams * memory + max(beams * cross, own, beams * memory)
        whole = cache + beams * memory
        crossing = self.step(wide, 1) + self.full(wide, 1, source_len, causal=False)
        step = max(self.step(wide, new_tokens), crossing)
        phases["step"] = whole + max(step, self.logits(wide) * (1 if beams == 1 else 3))
        phases["grow"] = whole + self.growth(wide, FIRST_CAPACITY, capacity)
        return cache, phases

    def growth(self, rows: int, first: int, last: int) -> int:
        """The old buffer of the last layer's values, beside the new one that it's copied to."""
        return kv_bytes(self.shape, rows, max(first, last // 2), self.size) if last > first else 0

    def logits(self, rows: int) -> int:
        """Of the last positions, in fp32; in bf16 before that."""
        return rows * self.shape.num_outputs * (FP32 + (self.size if self.size != FP32 else 0))

    def step(self, rows: int, keys: int) -> int:
        """One new position for each row, against so many keys."""
        return self.layer(rows, 1, keys, causal=True, cached=True, streams=2)

    def forward(self, rows: int, length: int, layers: int, causal: bool, cached: bool = False) -> int:
        """A pass over whole sequences, the states that it gives included; its cache is not."""
        return self.layer(rows, length, length, causal, cached, streams=2 if layers > 1 else 1)

    def layer(self, rows: int, length: int, keys: int, causal: bool, cached: bool, streams: int) -> int:
        """The most that lives in a layer: embeddings, its input, and either its attention or its feed-forward half."""
        shape, tokens = self.shape, rows * length
        stream = self.size * tokens * shape.dim
        queries = self.size * tokens * shape.num_heads * shape.head_dim
        own_keys = kv_bytes(shape, rows, length, self.size)
        projected, turned = queries + 2 * own_keys, 0
        if shape.position == "rotary" or shape.qk_norm:
            turned = (2 if shape.qk_norm and shape.position == "rotary" else 1) * (queries + own_keys)
        # What was projected is let go once keys and values lie in the cache, unless queries are a part of it.
        kept = turned if cached and turned else projected + turned
        core = self.core(rows, length, keys, causal) + (queries if shape.attention == "gated" else 0)
        attention = max(projected + turned, kept + queries + max(core, stream))
        inner = self.size * tokens * shape.ffn_dim
        made = 2 * inner if shape.activation in ("swiglu", "relu2") else inner
        mlp = stream + self.size * tokens * up_width(shape) + made
        normed = stream if shape.norm_order == "pre" else 0
        return streams * stream + normed + max(attention, mlp)

    def core(self, rows: int, length: int, keys: int, causal: bool) -> int:
        """What self-attention needs beside queries, keys, values and its output."""
        if self.shape.attention == "block":
            return self._blocks(rows, length, keys, causal)
        return self.full(rows, length, keys, causal)

    def full(self, rows: int, length: int, keys: int, causal: bool) -> int:
        """The same of full attention: nothing where it's fused; else copies for each head, scores and a mask."""
        shape = self.shape
        if self.size == FP32 or keys > LONGEST_PLAIN:
            return 0
        queries = self.size * rows * length * shape.num_heads * shape.head_dim
        copied = self.size * rows * keys * shape.num_heads * shape.head_dim
        scores = self.size * rows * shape.num_heads * length * keys
        repeated = 2 * copied if shape.num_kv_heads != shape.num_heads else 0
        mask = 2 * length * keys if causal and length > 1 else 0
        return repeated + mask + max(2 * queries + copied + scores, 2 * scores, scores + copied)

    def _blocks(self, rows: int, length: int, keys: int, causal: bool) -> int:
        shape = self.shape
        means = 2 * kv_bytes(shape, rows, -(-keys // shape.block_len), self.size)
        if length == 1:
            # Keys and values with their summaries behind them; values in whole blocks and their products meanwhile.
            own = kv_bytes(shape, rows, keys, self.size)
            return own + max(own, own * (2 if keys % shape.block_len else 1)) + means
        most = 0
        for piece in block_pieces(shape, rows, length, causal, self.size):
            asked = rows * piece.blocks * shape.num_heads * shape.block_len
            asking, seen = (
                self.size * asked * shape.head_dim,
                kv_bytes(shape, rows, piece.blocks * piece.near, self.size),
            )
            scores = self.size * asked * (piece.near + piece.far)
            cut = kv_bytes(shape, rows, (piece.blocks - 1) * shape.block_len + piece.near, self.size)
            most = max(most, asking + seen + scores + max(cut, scores, 2 * asking))
        return means + most
