"""Continuous batching on a real Transformer: sharing a batch changes nothing in anyone's answer."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.shape import Shape
from chinchilla.models.transformer import Transformer
from chinchilla.serving.answerer import Piece, Prompt
from chinchilla.serving.decoding import TokenDecoding

BOS, EOS, FIRST = 1, 2, 3
SHAPE = {"vocab_size": 60, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48}


def make_model(**changes) -> Transformer:
    torch.manual_seed(0)
    # Tied embeddings make random models repeat their last token, which would hide mistakes.
    defaults = {"num_decoder_layers": 2, "max_len": 48, "tied_embeddings": False}
    return Transformer(Shape(**(SHAPE | defaults | changes))).eval()


def encode(text: str) -> list[int]:
    return [BOS, *(FIRST + ord(letter) - ord("a") for letter in text)]


def decode(ids: list[int]) -> str:
    return "".join(chr(0x100 + token) for token in ids if token >= FIRST)


class Words:
    """A stream as of SentencePiece: a word's space is dropped where a text begins."""

    def __init__(self) -> None:
        self.begun = False

    def push(self, token: int) -> str:
        space, self.begun = " " if self.begun else "", True
        return f"{space}w{token}"

    def finish(self) -> str:
        return ""


class Letters:
    """A stream in which every token is a letter by itself."""

    def push(self, token: int) -> str:
        return decode([token])

    def finish(self) -> str:
        return ""


def start(model: Transformer, ends: bool = True) -> TokenDecoding:
    return TokenDecoding(model, encode, Letters, frozenset([EOS]) if ends else frozenset())


def alone(model: Transformer, prompt: Prompt, ends: bool = True) -> tuple[str, str]:
    """The reference: no cache, no batch, the whole sequence anew for each token; greedy."""
    ids, text = encode(prompt.content), ""
    for _ in range(prompt.max_tokens):
        with torch.inference_mode():
            token = int(model.logits(model(target=torch.tensor([ids])).hidden[0, -1]).argmax())
        if ends and token == EOS:
            return text, "stop"
        ids.append(token)
        text += decode([token])
    return text, "length"


def drive(decoding: TokenDecoding, arrivals: list[tuple[int, Prompt]]) -> dict[str, tuple[str, str]]:
    """Let each prompt join before its step; collect the answers by prompt text."""
    waiting, rows, answers = sorted(arrivals, key=lambda item: item[0]), [], {}

    def take(new_rows: list[str], pieces: list[Piece]) -> None:
        for name, piece in zip(new_rows, pieces, strict=True):
            text, _ = answers.get(name, ("", None))
            answers[name] = (text + piece.text, piece.finish)

    step = 0
    while waiting or rows:
        while waiting and waiting[0][0] <= step:
            prompt = waiting.pop(0)[1]
            rows.append(prompt.content)
            take(rows[-1:], decoding.join([prompt]))
        gone = [index for index, name in enumerate(rows) if answers[name][1]]
        decoding.leave(gone)
        rows = [name for index, name in enumerate(rows) if index not in gone]
        if rows:
            take(rows, decoding.step())
        step += 1
    return answers


def prompts(count: int, seed: int, max_tokens: int) -> list[tuple[int, Prompt]]:
    draws = random.Random(seed)
    texts = {"".join(draws.choices("abcdefghij", k=draws.randint(1, 20))) for _ in range(count)}
    return [(draws.randint(0, 12), Prompt(text, draws.randint(1, max_tokens), 0.0)) for text in sorted(texts)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned"},
        {"position": "sinusoidal", "norm": "layer", "norm_order": "post", "bias": True},
        {"attention": "gated", "qk_norm": True},
        {"attention": "block", "block_len": 4},
        {"attention": "block", "block_len": 8, "block_summaries": False},
    ],
)
def test_rows_that_come_and_go_answer_as_if_alone(changes):
    model = make_model(**changes)
    arrivals = prompts(14, seed=1, max_tokens=24)
    answers = drive(start(model), arrivals)
    assert answers == {prompt.content: alone(model, prompt) for _, prompt in arrivals}


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8))
def test_any_arrivals_answer_as_if_alone(seed: int, count: int):
    model = make_model()
    arrivals = prompts(count, seed, max_tokens=27)
    answers = drive(start(model, ends=False), arrivals)
    assert answers == {prompt.content: alone(model, prompt, ends=False) for _, prompt in arrivals}


def test_a_row_may_fill_the_model_to_its_last_position_beside_others():
    model = make_model(max_len=32)
    long, short = Prompt("a" * 15, 16, 0.0), Prompt("b", 30, 0.0)
    answers = drive(start(model, ends=False), [(0, long), (10, short)])
    assert answers == {prompt.content: alone(model, prompt, ends=False) for prompt in (long, short)}


def test_the_cache_shrinks_when_the_longest_row_leaves():
    decoding = start(make_model(), ends=False)
    decoding.join([Prompt("a" * 30, 9, 0.0), Prompt("b", 9, 0.0)])
    assert decoding._cache.length == 31
    decoding.leave([0])
    cache = decoding._cache
    assert cache.length == 2 and cache.left_padding is None
    decoding.leave([0])
    assert decoding._cache.length == 0


def test_the_same_seed_draws_the_same_text_in_any_company():
    model = make_model()
    prompt = Prompt("abc", 20, temperature=1.0, top_k=20, top_p=0.9, seed=7)
    lonely = drive(start(model, ends=False), [(0, prompt)])["abc"]
    company = [(0, Prompt("defghij", 25, 1.3, seed=7)), (3, prompt), (5, Prompt("b", 9, 0.5, seed=1))]
    assert drive(start(model, ends=False), company)["abc"] == lonely
    other = Prompt("abc", 20, temperature=1.0, top_k=20, top_p=0.9, seed=8)
    assert drive(start(model, ends=False), [(0, other)])["abc"] != lonely


def test_a_stop_text_ends_a_row():
    model = make_model()
    text, _ = alone(model, Prompt("abc", 12, 0.0), ends=False)
    stop = text[5:7]
    answer = drive(start(model, ends=False), [(0, Prompt("abc", 12, 0.0, stop=(stop,)))])["abc"]
    assert answer == (text.split(stop)[0], "stop")


def test_a_continuation_keeps_the_space_before_its_first_word():
    decoding = TokenDecoding(make_model(), encode, Words, frozenset())
    assert decoding.join([Prompt("abc", 2, 0.0)])[0].text.startswith(" w")


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 0.01])
def test_any_small_temperature_is_nearly_greedy_and_finite(temperature: float):
    model = make_model()
    prompt = Prompt("abc", 8, temperature, seed=3)
    assert drive(start(model, ends=False), [(0, prompt)])["abc"] == alone(model, prompt, ends=False)
