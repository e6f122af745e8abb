"""Noise on texts: only ordinary tokens of what is read, the same again for the same place, and nothing of it lost."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import UsageError
from chinchilla.config.noise import Noise
from chinchilla.data.batches import IGNORED, PairBatches
from chinchilla.data.encode import EncodedPairs, encode_texts
from chinchilla.data.packed_batches import Aligned, PackedBatches
from chinchilla.data.ragged import Ragged, starts, unless_longer
from chinchilla.data.text_noise import TextNoise, text_noise
from chinchilla.data.tokenizer import Specials, Tokenizer

WORDS = re.findall(r"\w+", "the larger stone lies under the water while another stone is larger than the first one")
TEXTS = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))] * 3
MASK, EOS, BOS, PAD = 3, 2, 1, 0


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return Tokenizer.train(TEXTS, request.param, 330)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train(TEXTS, "bpe", 330)


def ragged(rows) -> Ragged:
    return Ragged(np.array([id for row in rows for id in row], np.int32), np.cumsum([0, *map(len, rows)]))


def rows_of(texts: Ragged) -> list[list[int]]:
    return [texts[row].tolist() for row in range(len(texts))]


@pytest.mark.parametrize("chance", [0.2, 0.999])
def test_tokens_in_pieces_spell_the_same_texts(tokenizer, chance):
    noise = text_noise(Noise(backoff=chance), tokenizer)
    texts = encode_texts(TEXTS, tokenizer)
    found, origin = noise.apart(texts, (5, 0))
    assert [tokenizer.decode(row) for row in rows_of(found)] == TEXTS
    assert len(found.flat) > (1 + 0.2 * chance) * len(texts.flat)
    again, _ = noise.apart(texts, (5, 0))
    other, _ = noise.apart(texts, (5, 1))
    assert np.array_equal(again.flat, found.flat) and not np.array_equal(other.flat, found.flat)
    spelt = [tokenizer.decode(found.flat[origin == place].tolist()) for place in range(40)]
    assert spelt == [tokenizer.decode([int(token)]) for token in texts.flat[:40]]


def test_merges_are_undone_by_their_chance_from_the_last_one_on(bpe):
    noise = text_noise(Noise(backoff=0.3), bpe)
    model = json.loads(bpe.to_json())["model"]
    ids = model["vocab"]
    pairs = {left + right: (left, right) for left, right in (tuple(pair) for pair in model["merges"])}
    token, (left, right) = next((token, pair) for token, pair in pairs.items() if pair[0] in pairs)
    texts = ragged([[ids[token]]] * 20_000)
    found, _ = noise.apart(texts, (0,))
    kept = np.mean(found.lengths == 1)
    assert kept == pytest.approx(0.7, abs=0.015)
    # Where the last merge is undone, its left half comes apart by the same chance.
    split = [row for row in rows_of(found) if len(row) > 1]
    whole = sum(row[0] == ids[left] for row in split) / len(split)
    assert whole == pytest.approx(0.7, abs=0.03)
    assert noise.halves[ids[token]].tolist() == [ids[left], ids[right]]


def test_with_every_merge_undone_only_bytes_are_left(bpe):
    noise = text_noise(Noise(backoff=0.999999), bpe)
    found, _ = noise.apart(encode_texts(["larger stone"], bpe), (0,))
    letters = [bpe.encode(letter) for letter in ("l", "a", "r", "g", "e", "r", " ", "s", "t", "o", "n", "e")]
    assert rows_of(found) == [[id for letter in letters for id in letter]]


def test_masks_stand_at_ordinary_tokens_by_their_share(bpe):
    noise = text_noise(Noise(drop=0.25), bpe)
    ids = np.tile(np.array([BOS, 40, 41, 42, EOS, PAD], np.int64), (4000, 1))
    found = noise.masked(ids, (3, 1))
    assert (found[:, [0, 4, 5]] == ids[:, [0, 4, 5]]).all()
    masked = found[:, 1:4] == MASK
    assert masked.mean() == pytest.approx(0.25, abs=0.015)
    assert (found[:, 1:4][~masked] == ids[:, 1:4][~masked]).all()
    assert np.array_equal(found, noise.masked(ids, (3, 1))) and not np.array_equal(found, noise.masked(ids, (3, 2)))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=12), st.integers(0, 8))
def test_rows_that_got_too_long_stay_as_they_were(sizes, room):
    old = ragged([[row] * size for row, (size, _) in enumerate(sizes)])
    new = ragged([[100 + row] * size for row, (_, size) in enumerate(sizes)])
    wanted = [[100 + row] * after if after <= room else [row] * before for row, (before, after) in enumerate(sizes)]
    assert rows_of(unless_longer(new, old, room)) == wanted
    assert starts(new, room).tolist() == [place < room for _, size in sizes for place in range(size)]


def pairs_of(tokenizer, noise) -> EncodedPairs:
    texts = encode_texts(TEXTS, tokenizer)
    return EncodedPairs(texts, texts, PAD, BOS, EOS, noise)


BOTH = Noise(drop=0.2, backoff=0.3)


def test_a_pairs_source_alone_is_varied_anew_each_epoch_and_the_same_after_a_resume(bpe):
    noise = text_noise(BOTH, bpe)
    plain, batches = (PairBatches(pairs_of(bpe, each), 64, 100, seed=4) for each in (None, noise))
    resumed = PairBatches(pairs_of(bpe, noise), 64, 100, seed=4)
    assert batches.unique_tokens == plain.unique_tokens and batches.row_lens == plain.row_lens
    texts = {tuple(bpe.encode(text)) for text in TEXTS}
    sources = []
    for epoch in (1, 0):
        order = batches.order(epoch)
        for index, rows in enumerate(order):
            batch = batches.batch(rows)
            assert (batch["source"] == MASK).any() and not (batch["target"] == MASK).any()
            labels = batch["labels"][batch["labels"] != IGNORED].tolist()
            ends = [place for place, label in enumerate(labels) if label == EOS]
            assert {tuple(labels[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)} <= texts
            if index == 1:
                again = resumed.batch(resumed.order(epoch)[index])
                assert all(torch.equal(batch[name], again[name]) for name in batch)
        sources.append(sum(int((batches.batch(rows)["source_segments"] > 0).sum()) for rows in order))
    assert sources[0] != sources[1] and min(sources) > 1.1 * sum(len(text) for text in texts) * 3


def test_of_a_pair_without_room_the_source_stays_whole(bpe):
    long = " ".join(WORDS)
    room = len(bpe.encode(long)) + 1
    texts = encode_texts([long] * 8, bpe)
    batches = PairBatches(EncodedPairs(texts, texts, PAD, BOS, EOS, text_noise(Noise(backoff=0.5), bpe)), room, 64, 0)
    for rows in batches.order(2):
        batch = batches.batch(rows)
        for source in batch["source"][batch["source_segments"][:, 0] > 0]:
            assert source.tolist() == [*bpe.encode(long), EOS]


def test_a_classified_text_keeps_its_class_first_and_is_cut_to_its_row(bpe):
    ids = [[BOS, *bpe.encode(text)] for text in TEXTS]
    labels = np.full(sum(map(len, ids)), IGNORED, np.int32)
    labels[np.cumsum([0, *map(len, ids)])[:-1]] = np.arange(len(ids)) % 7
    row_len = max(map(len, ids)) + 2
    batches = PackedBatches(Aligned(ragged(ids), labels, text_noise(BOTH, bpe)), row_len, 6, 1, "source")
    seen, longer = [], 0
    for rows in batches.order(1):
        batch = batches.batch(rows)
        assert ((batch["labels"] != IGNORED) <= (batch["source"] == BOS)).all()
        assert (batch["source"] == BOS).sum() == (batch["labels"] != IGNORED).sum()
        assert (batch["source"] == MASK).any()
        seen += batch["labels"][batch["labels"] != IGNORED].tolist()
        longer += int((batch["source_segments"] > 0).sum())
    assert sorted(seen) == sorted((np.arange(len(ids)) % 7).tolist())
    assert longer > 1.02 * len(labels) and 0 <= batches.padding < 1


def test_a_tokenizer_without_a_mask_takes_the_unknown_token_or_is_refused(bpe):
    content = json.loads(bpe.to_json())
    without = Tokenizer.from_json(json.dumps(content), Specials(PAD, BOS, EOS, PAD))
    with pytest.raises(UsageError, match=r"noise\.drop: the tokenizer has neither a mask nor an unknown token"):
        text_noise(Noise(drop=0.1), without)
    content["added_tokens"][3]["content"] = "<unk>"
    content["model"]["vocab"] = {
        {"<mask>": "<unk>"}.get(name, name): id for name, id in content["model"]["vocab"].items()
    }
    unknown = text_noise(Noise(drop=0.1), Tokenizer.from_json(json.dumps(content), Specials(PAD, BOS, EOS, PAD)))
    assert unknown.mask_id == MASK and not unknown.ordinary[MASK]


def test_a_tokenizer_that_merges_nothing_has_no_pieces_to_back_off_to():
    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[UNK]": 4, "stone": 5}
    model = {
        "type": "WordPiece",
        "vocab": vocab,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    tokenizer = Tokenizer.from_json(json.dumps({"version": "1.0", "added_tokens": [], "model": model}), Specials())
    with pytest.raises(
        UsageError, match=r"noise\.backoff: takes a BPE or unigram tokenizer, and this one is WordPiece"
    ):
        text_noise(Noise(backoff=0.1), tokenizer)
    assert isinstance(text_noise(Noise(drop=0.1), tokenizer), TextNoise)


def test_nothing_asked_for_is_no_noise(bpe):
    assert text_noise(Noise(), bpe) is None
