"""Tokenizers: lossless, repeatable, read back from JSON, refused when malformed, decoded token by token."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from chinchilla.config.errors import UsageError
from chinchilla.data.tokenizer import SPECIALS, Specials, TextStream, Tokenizer, sample

TEXTS = [f"The {colour} house number {n} stands here, naïve and 高い." for n in range(50) for colour in ("red", "blue")]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, request.param, vocab_size=320)


ANY_TEXT = st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from([*SPECIALS, "house", " ", "\n", "é"])).map(
    "".join
)


@settings(max_examples=100)
@given(ANY_TEXT)
def test_any_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(4 <= number < tokenizer.vocab_size for number in ids)
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 319)))
def test_a_stream_gives_what_decoding_at_once_gives(tokenizer, ids):
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in ids if number < tokenizer.vocab_size]
    whole = tokenizer.decode([number for number in ids if number < tokenizer.vocab_size])
    assert "".join(pieces) + stream.finish() == whole


def test_a_stream_never_shows_half_a_character(tokenizer):
    text = "naïve 🏠 高い"
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces
    assert stream.finish() == ""


def test_a_stream_keeps_the_spaces_of_a_tokenizer_that_drops_the_first():
    words = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    foreign = Tokenizer(backend, Specials(0, 0, 0, 0))
    stream = TextStream(foreign)
    assert [stream.push(number) for number in (1, 2, 3)] == ["Hello", " world", "!"]


def test_the_specials_have_their_ids_and_the_size_is_kept(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size <= 320
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert len(vocabulary) == tokenizer.vocab_size
    assert tokenizer.decode([1, *tokenizer.encode("house"), 2, 0, 0]) == "house"


def test_json_brings_the_same_tokenizer_back(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    for again in (Tokenizer.load(path), Tokenizer.from_json(tokenizer.to_json())):
        assert again.to_json() == tokenizer.to_json()
        text = "a </s> in a text, and 高い"
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text


def test_bpe_is_the_same_in_another_process():
    code = (
        "import hashlib; from chinchilla.data.tokenizer import Tokenizer;"
        f"print(hashlib.sha256(Tokenizer.train({TEXTS!r}, 'bpe', 400).to_json().encode()).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout != ""


def test_a_small_corpus_gives_a_smaller_vocabulary():
    assert Tokenizer.train(["ab ab"], "bpe", vocab_size=5000).vocab_size < 300


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UsageError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(path)


def foreign_json() -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<s>"])
    backend.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend.enable_padding(length=9)
    return backend.to_str()


def test_a_tokenizer_without_the_specials_needs_their_ids():
    with pytest.raises(UsageError, match="has no <pad>, </s>, <mask>; add them"):
        Tokenizer.from_json(foreign_json())
    with pytest.raises(UsageError, match="not all among its 259 ids"):
        Tokenizer.from_json(foreign_json(), Specials(0, 1, 2, 1000))


def test_a_foreign_tokenizer_reads_its_own_specials_in_a_text():
    foreign = Tokenizer.from_json(foreign_json(), Specials(pad_id=0, bos_id=1, eos_id=0, mask_id=0))
    ids = foreign.encode("<|im_start|>hi<|endoftext|>")
    assert (ids[0], ids[-1], len(ids)) == (1, 0, 4)
    assert foreign.decode(ids) == "hi"
    assert foreign.eos_id == 0


def test_a_large_corpus_is_sampled_evenly():
    texts = [f"{n:05d}" for n in range(10_000)]
    kept = list(sample(texts, size_bytes=1000))
    assert 500 <= sum(map(len, kept)) <= 1000
    steps = {int(b) - int(a) for a, b in pairwise(kept)}
    assert len(steps) == 1
    assert int(kept[-1]) > 9_000
    assert list(sample(texts[:10], size_bytes=1000)) == texts[:10]
