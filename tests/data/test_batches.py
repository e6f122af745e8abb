"""Batches: a pure function of (seed, epoch, index), every example once an epoch, little padding, right masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError, FaultError
from chinchilla.config.run import Data
from chinchilla.data.batches import IGNORED, PairBatches, TextBatches
from chinchilla.data.encode import EncodedDocuments, EncodedPairs, Ragged, encode_documents, encode_pairs
from chinchilla.data.examples import Document, Pair, texts
from chinchilla.data.readers import read_pairs
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.verbs.data import get

PAD, BOS, EOS = 0, 1, 2


def ragged(rows: list[list[int]]) -> Ragged:
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    return Ragged(flat, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def numbered(lengths: list[tuple[int, int]]) -> EncodedPairs:
    """Pairs whose tokens say which pair they belong to."""
    sources, targets = ([[10 + n] * pair[side] for n, pair in enumerate(lengths)] for side in (0, 1))
    return EncodedPairs(ragged(sources), ragged(targets), PAD, BOS, EOS)


def epoch_of(batches, epoch: int) -> list[dict[str, torch.Tensor]]:
    return [batches.batch(rows) for rows in batches.order(epoch)]


def unpack(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int], list[int]]]:
    """The examples of a packed batch: source, target and label tokens of each."""
    found = []
    for row in range(len(batch["source"])):
        for segment in range(1, int(batch["source_segments"][row].max()) + 1):
            given_ = batch["source_segments"][row] == segment
            wanted = batch["target_segments"][row] == segment
            names = (("source", given_), ("target", wanted), ("labels", wanted))
            found.append(tuple(batch[name][row][mask].tolist() for name, mask in names))
    return found


LENGTHS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=80)


@settings(max_examples=100)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 3), st.integers(0, 3))
def test_every_pair_comes_once_an_epoch_whole_and_rightly_framed(lengths, batch_tokens, seed, epoch):
    batches = PairBatches(numbered(lengths), max_len=16, batch_tokens=batch_tokens, seed=seed)
    examples = [example for batch in epoch_of(batches, epoch) for example in unpack(batch)]
    expected = []
    for number, (source, target) in enumerate(lengths):
        token = 10 + number
        expected.append(([token] * source + [EOS], [BOS] + [token] * target, [token] * target + [EOS]))
    assert sorted(examples) == sorted(expected)
    assert batches.unique_tokens == sum(target + 1 for _, target in lengths)


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 9))
def test_all_batches_of_pairs_have_one_size_and_padding_is_marked(lengths, batch_tokens, epoch):
    batches = PairBatches(numbered(lengths), max_len=16, batch_tokens=batch_tokens, seed=0)
    order = batches.order(epoch)
    assert len(order) == batches.num_batches(epoch)
    for batch in map(batches.batch, order):
        for name, length in zip(("source", "target"), batches.row_lens, strict=True):
            assert batch[name].shape == batch[f"{name}_segments"].shape == (batches.num_rows, length)
            assert batch[name].dtype == torch.int64
            empty = batch[f"{name}_segments"] == 0
            assert (batch[name][empty] == PAD).all()
        assert ((batch["labels"] == IGNORED) == (batch["target_segments"] == 0)).all()
        assert ((batch["target"] == BOS).sum(1) == (batch["source"] == EOS).sum(1)).all()


def test_the_order_is_a_pure_function_of_seed_epoch_and_index():
    random = np.random.default_rng(0)
    pairs = numbered([tuple(pair) for pair in random.integers(1, 15, (500, 2))])
    documents = EncodedDocuments(ragged([[n] * (n % 20) for n in range(300)]), BOS, EOS)
    for make in (
        lambda seed: PairBatches(pairs, 16, 200, seed),
        lambda seed: TextBatches(documents, 16, 200, seed),
    ):
        used = make(5)
        for epoch in (4, 0, 2):  # what was asked before leaves no trace
            fresh = make(5)
            for one, other in zip(epoch_of(used, epoch), epoch_of(fresh, epoch), strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one)
        assert not same(epoch_of(make(5), 0), epoch_of(make(6), 0))
        assert not same(epoch_of(make(5), 0), epoch_of(make(5), 1))


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a["labels"], b["labels"]) for a, b in zip(left, right, strict=True)
    )


def test_pairs_meet_other_pairs_in_the_next_epoch():
    random = np.random.default_rng(0)
    batches = PairBatches(numbered([tuple(pair) for pair in random.integers(1, 15, (500, 2))]), 32, 400, 0)
    together = [{frozenset((rows[rows >= 0] % 500).tolist()) for rows in batches.order(epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1]


def test_pairs_that_are_too_long_are_left_out_and_counted():
    batches = PairBatches(numbered([(3, 3), (50, 3), (3, 50), (4, 4)]), max_len=8, batch_tokens=100, seed=0)
    assert sorted(len(source) for batch in epoch_of(batches, 0) for source, _, _ in unpack(batch)) == [4, 5]
    assert batches.left_out == 2
    with pytest.raises(DataError, match="no pair of at most max_len = 8 tokens"):
        PairBatches(numbered([(50, 50)]), max_len=8, batch_tokens=100, seed=0)


DOCUMENTS = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@settings(max_examples=100)
@given(DOCUMENTS, st.integers(1, 20), st.integers(1, 100), st.integers(0, 3))
def test_running_text_gives_each_token_at_most_once_with_the_one_before(sizes, max_len, batch_tokens, epoch):
    # Token 10 + 100 n + i is the i-th of document n, so that a token tells which came before it.
    rows = [[10 + 100 * n + i for i in range(size)] for n, size in enumerate(sizes)]
    batches = TextBatches(EncodedDocuments(ragged(rows), BOS, EOS), max_len, batch_tokens, seed=1)
    order = batches.order(epoch)
    labels, target = (torch.cat([batches.batch(part)[name] for part in order]) for name in ("labels", "target"))
    assert labels.shape[1] == min(max_len, sum(sizes) + len(sizes))
    assert len(order) == batches.num_batches(epoch)
    lasts = {row[-1] if row else BOS for row in rows}
    for label, before in zip(labels.flatten().tolist(), target.flatten().tolist(), strict=True):
        if label == EOS:
            assert before in lasts
        else:
            assert before == (label - 1 if label % 100 != 10 else BOS)
    words = labels[labels != EOS].tolist()
    assert len(words) == len(set(words))
    assert (labels == EOS).sum() <= len(sizes)
    batch_size = len(order[0]) * labels.shape[1]
    assert sum(sizes) + len(sizes) - labels.numel() < labels.shape[1] + batch_size
    assert all(len(part) == len(order[0]) for part in order)


def test_what_running_text_drops_is_another_piece_in_each_epoch():
    rows = [[10 + 100 * n + i for i in range(12)] for n in range(3)]
    batches = TextBatches(EncodedDocuments(ragged(rows), BOS, EOS), max_len=16, batch_tokens=16, seed=0)
    seen = [set(torch.cat([batch["labels"] for batch in epoch_of(batches, n)]).flatten().tolist()) for n in range(20)]
    assert all(len(epoch) < 37 for epoch in seen)
    assert set.union(*seen) == {token for row in rows for token in row} | {EOS}


def test_rows_of_several_epochs_may_be_asked_for_at_once():
    batches = TextBatches(EncodedDocuments(ragged([list(range(10, 60))] * 4), BOS, EOS), 8, 32, seed=0)
    rows = [batches.order(epoch)[0] for epoch in (0, 3)]
    both = batches.batch(np.concatenate(rows))["labels"]
    assert torch.equal(both, torch.cat([batches.batch(part)["labels"] for part in rows]))


def test_empty_data_is_refused():
    with pytest.raises(DataError, match="no text"):
        TextBatches(EncodedDocuments(ragged([]), BOS, EOS), 8, 32, 0)
    with pytest.raises(DataError, match="no pair"):
        PairBatches(numbered([]), 8, 32, 0)


def test_encoding_keeps_every_token_and_its_row():
    tokenizer = Tokenizer.train(["one two three"], "bpe", 300)
    pairs = [Pair("one", "two three"), Pair("x y", "1"), Pair("three", "three")] * 700
    encoded = encode_pairs(iter(pairs), tokenizer)
    assert len(encoded.source) == len(encoded.target) == 2100
    for number in (0, 1, 1000, 2099):
        assert tokenizer.decode(encoded.source[number].tolist()) == pairs[number].source
        assert tokenizer.decode(encoded.target[number].tolist()) == pairs[number].target
    documents = [Document(pair.target) for pair in pairs]
    assert np.array_equal(encode_documents(documents, tokenizer).text.flat, encoded.target.flat)


@pytest.fixture(scope="module")
def libreoffice() -> Path:
    try:
        return get("libreoffice-help")
    except FaultError as error:
        pytest.skip(f"libreoffice-help cannot be fetched here: {error}")


@pytest.mark.parametrize("batch_tokens", [1024, 4096, 8192])
def test_under_five_per_cent_of_the_real_pairs_positions_are_padding(libreoffice, real_pairs, batch_tokens):
    batches = PairBatches(real_pairs, max_len=128, batch_tokens=batch_tokens, seed=0)
    real = total = 0
    for batch in map(batches.batch, batches.order(0)):
        for name in ("source_segments", "target_segments"):
            real += int((batch[name] > 0).sum())
            total += batch[name].numel()
    assert batches.padding == pytest.approx(1 - real / total)
    assert batches.padding < 0.05
    labels = batches.unique_tokens / batches.num_batches(0)
    assert labels == pytest.approx(batch_tokens, rel=0.1)


@pytest.fixture(scope="module")
def real_pairs(libreoffice) -> EncodedPairs:
    data = Data(train=libreoffice / "train.tsv")
    pairs = list(read_pairs(data.train, data))
    tokenizer = Tokenizer.train((text for pair in pairs[::8] for text in texts(pair)), "bpe", 8000)
    return encode_pairs(pairs, tokenizer)
