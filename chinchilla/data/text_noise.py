"""Noise on texts that are read: tokens masked, and tokens backed off to the pieces that they were merged from.

Backing off undoes merges of the tokenizer, as BPE-dropout (Provilkov 2020, arXiv 1910.13267) leaves them out: each with
one chance, from a token's last merge on. (The paper leaves out merges from the first on, so that long tokens come apart
more often at the same chance. The tokenizers library does so too, with random numbers that cannot be had again.)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.config.errors import UsageError
from chinchilla.config.noise import Noise
from chinchilla.data.ragged import Ragged
from chinchilla.data.tokenizer import Tokenizer

Places = NDArray[np.int64]

UNKNOWN = ("<unk>", "[UNK]")


@dataclass(frozen=True, eq=False)
class TextNoise:
    """How much noise, and what a tokenizer says of its tokens.

    `ordinary` (vocabulary,) tells those that may be masked from special ones; `halves` (vocabulary, 2) are the two
    tokens that each was merged from, -1 where there are none.
    """

    drop: float
    backoff: float
    mask_id: int
    ordinary: NDArray[np.bool_]
    halves: NDArray[np.int32]

    def masked(self, ids: NDArray[np.int64], place: tuple[int, ...]) -> NDArray[np.int64]:
        """The ids with the mask at some ordinary tokens; which ones follows from `place`, numbers from 0."""
        if not self.drop:
            return ids
        chosen = np.random.default_rng(place).random(ids.shape, np.float32) < self.drop
        return np.where(chosen & self.ordinary[ids], self.mask_id, ids)

    def apart(self, texts: Ragged, place: tuple[int, ...]) -> tuple[Ragged, Places]:
        """The texts with some tokens in pieces, and of each token the place in `texts.flat` that it comes from."""
        random = np.random.default_rng(place)
        ids, origin = texts.flat, np.arange(len(texts.flat))
        fresh = np.ones(len(ids), bool)
        while True:
            split = fresh & (self.halves[ids, 0] >= 0)
            split[split] = random.random(int(split.sum()), np.float32) < self.backoff
            if not split.any():
                break
            index = np.repeat(np.arange(len(ids)), 1 + split)
            second = np.diff(index, prepend=-1) == 0
            fresh = split[index]
            ids = np.where(fresh, self.halves[ids[index], second.astype(np.int64)], ids[index])
            origin = origin[index]
        return Ragged(ids, np.searchsorted(origin, texts.offsets)), origin


def text_noise(noise: Noise, tokenizer: Tokenizer) -> TextNoise | None:
    """The noise that a recipe asks for; None where it asks for none.

    Raises:
        UsageError: the tokenizer has no token to mask with, or none that was made of two.
    """
    if not noise.of_texts:
        return None
    content = json.loads(tokenizer.to_json())
    special = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or ()}
    ordinary = np.ones(tokenizer.vocab_size, bool)
    ordinary[[*special.values(), tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]] = False
    halves = np.full((tokenizer.vocab_size, 2), -1, np.int32)
    if noise.backoff:
        for token, pair in _halves(content["model"]).items():
            halves[token] = pair
        halves[~ordinary] = -1
    mask_id = _mask_id(tokenizer, special) if noise.drop else tokenizer.mask_id
    return TextNoise(noise.drop, noise.backoff, mask_id, ordinary, halves)


def _mask_id(tokenizer: Tokenizer, special: Mapping[str, int]) -> int:
    """The mask token, or in a tokenizer without one that of what is unknown."""
    if tokenizer.mask_id != tokenizer.pad_id:
        return tokenizer.mask_id
    found = next((special[name] for name in UNKNOWN if name in special), None)
    if found is None:
        raise UsageError("noise.drop: the tokenizer has neither a mask nor an unknown token; leave it out")
    return found


def _halves(model: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """By a token's id, the two that it was merged from (BPE), or the likeliest two that spell it (unigram)."""
    match model.get("type"):
        case "BPE":
            ids: dict[str, int] = model["vocab"]
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            # Of several merges that spell one token, the first is what made it.
            made = {left + right: (ids[left], ids[right]) for left, right in reversed(pairs)}
            return {ids[token]: halves for token, halves in made.items() if token in ids}
        case "Unigram":
            return _likeliest({piece: (id, score) for id, (piece, score) in enumerate(model["vocab"])})
        case kind:
            raise UsageError(f"noise.backoff: takes a BPE or unigram tokenizer, and this one is {kind}; leave it out")


def _likeliest(known: Mapping[str, tuple[int, float]]) -> dict[int, tuple[int, int]]:
    halves: dict[int, tuple[int, int]] = {}
    for piece, (id, _) in known.items():
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [(known[left], known[right]) for left, right in cuts if left in known and right in known]
        if pairs:
            left, right = max(pairs, key=lambda pair: pair[0][1] + pair[1][1])
            halves[id] = left[0], right[0]
    return halves
