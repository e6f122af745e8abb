"""Search against exhaustive search, greedy against plain argmax, sampling against the distribution it draws from."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chinchilla.config.shape import Shape
from chinchilla.models.generate import Sampling, complete, draw, translate
from chinchilla.models.transformer import Transformer

PAD, BOS, EOS = 0, 1, 2


def make(vocab_size: int = 30, encoder_layers: int = 1, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "dim": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "ffn_dim": 24,
        "num_encoder_layers": encoder_layers,
        "num_decoder_layers": 2,
        "max_len": 40,
        # Tied embeddings make random models repeat their last token, which would hide mistakes.
        "tied_embeddings": False,
        "head_bias": True,
    }
    return Transformer(Shape(**(common | changes))).eval()


def never_ending(model: Transformer) -> Transformer:
    with torch.no_grad():
        model.head.bias[EOS] = -1e9
    return model


def sources(rows: int, length: int = 7, vocab_size: int = 30) -> Tensor:
    return torch.randint(3, vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_probabilities(model: Transformer, source: Tensor, answer: list[int]) -> Tensor:
    """(length,) of each token of `answer`, by the whole forward pass; padding and start are barred."""
    target = torch.tensor([[BOS, *answer[:-1]]])
    logits = model.logits(model(source[None], target).hidden)[0]
    logits[:, [PAD, BOS]] = -math.inf
    return F.log_softmax(logits, dim=1)[torch.arange(len(answer)), torch.tensor(answer)]


@torch.no_grad()
def argmax_answer(model: Transformer, source: Tensor, max_new: int) -> list[int]:
    """Greedy, the whole sequence anew for each token."""
    answer: list[int] = []
    while len(answer) < max_new:
        logits = model.logits(model(source[None], torch.tensor([[BOS, *answer]])).hidden)[0, -1]
        logits[[PAD, BOS]] = -math.inf
        token = int(logits.argmax())
        if token == EOS:
            break
        answer.append(token)
    return answer


def best_of_all(model: Transformer, source: Tensor, max_new: int, penalty: float) -> list[int]:
    """The best ended answer among all that there are."""
    words = range(3, model.shape.vocab_size)
    found = []
    for length in range(max_new):
        for answer in itertools.product(words, repeat=length):
            score = float(log_probabilities(model, source, [*answer, EOS]).sum()) / (length + 1) ** penalty
            found.append((score, list(answer)))
    return max(found)[1]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_beam_that_holds_everything_finds_the_best_of_all(seed, penalty):
    """Three words and the end: 27 unended answers of 3 words, 4 continuations each, are all in 108 beams."""
    model = make(6, seed=seed)
    source = sources(3, 5, 6)
    expected = [best_of_all(model, row, 4, penalty) for row in source]
    for beam_size in (108, 300):
        assert translate(model, source, None, [4] * 3, beam_size, penalty) == expected


def test_a_narrow_beam_can_miss_it():
    """The test above can fail: the width matters."""
    answers = {
        beam_size: [translate(make(6, seed=seed), sources(3, 5, 6), None, [4] * 3, beam_size) for seed in range(6)]
        for beam_size in (1, 2, 108)
    }
    assert answers[1] != answers[108] != answers[2]


@pytest.mark.parametrize("beam_size", [30, 31, 64])
def test_a_beam_wider_than_the_vocabulary_is_no_fault(beam_size):
    answers = translate(make(), sources(2), None, [3, 5], beam_size)
    assert [len(answer) <= most for answer, most in zip(answers, (3, 5), strict=True)] == [True, True]
    assert not {PAD, BOS, EOS} & {token for answer in answers for token in answer}


@pytest.mark.parametrize("attention", ["full", "gated", "block"])
@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_greedy_search_is_argmax(attention, position):
    model = make(attention=attention, position=position, block_len=4)
    source, limits = sources(6), [1, 12, 5, 20, 12, 3]
    expected = [argmax_answer(model, row, most) for row, most in zip(source, limits, strict=True)]
    assert translate(model, source, None, limits, 1) == expected
    assert len({len(answer) for answer in expected}) > 2


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_rows_of_unequal_length_answer_as_if_alone(beam_size):
    model = make(seed=3)
    lengths = [9, 2, 5, 9, 1]
    segments = torch.arange(9) < torch.tensor(lengths)[:, None]
    source = sources(5, 9).masked_fill(~segments, PAD)
    together = translate(model, source, segments, [14, 3, 9, 14, 6], beam_size)
    alone = [
        translate(model, source[row : row + 1, :length], None, [most], beam_size)[0]
        for row, (length, most) in enumerate(zip(lengths, (14, 3, 9, 14, 6), strict=True))
    ]
    assert together == alone


@pytest.mark.parametrize("beam_size", [1, 3])
def test_answers_are_as_long_as_they_may_be_and_rows_leave_when_they_end(monkeypatch, beam_size):
    model, rows = never_ending(make()), []
    decode = model.decode

    def watched(target: Tensor, *rest: Any) -> Tensor:
        rows.append(len(target))
        return decode(target, *rest)

    monkeypatch.setattr(model, "decode", watched)
    limits = [1, 6, 3, 6]
    answers = translate(model, sources(4), None, limits, beam_size)
    assert [len(answer) for answer in answers] == limits
    assert [count // (beam_size if call else 1) for call, count in enumerate(rows)] == [4, 3, 3, 2, 2, 2]


def test_search_stops_once_nothing_can_beat_the_best_ended_answer(monkeypatch):
    model, calls = make(), []
    with torch.no_grad():
        model.head.bias[EOS] = 30.0
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda *given: calls.append(1) or decode(*given))
    assert translate(model, sources(3), None, [30] * 3, 4) == [[], [], []]
    assert len(calls) == 1


def test_beam_search_finds_likelier_answers_than_greedy_search():
    model, source = never_ending(make(seed=5)), sources(25)
    scores = {}
    for beam_size in (1, 4, 16):
        answers = translate(model, source, None, [8] * 25, beam_size)
        pairs = zip(source, answers, strict=True)
        scores[beam_size] = torch.stack([log_probabilities(model, row, answer).sum() for row, answer in pairs])
    assert (scores[4] >= scores[1] - 1e-5).float().mean() > 0.9
    assert scores[1].mean() < scores[4].mean() < scores[16].mean()


def test_a_longer_answer_gains_by_the_length_penalty():
    model, source = make(8, seed=2), sources(12, 6, 8)
    lengths = [sum(map(len, translate(model, source, None, [12] * 12, 6, penalty))) for penalty in (0.0, 0.5, 1.0, 2.0)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@torch.no_grad()
def plain_continuation(model: Transformer, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.logits(model(target=torch.tensor([ids])).hidden)[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", ["full", "gated", "block"])
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-7])
def test_a_greedy_completion_is_argmax_without_a_cache(attention, temperature):
    model = make(encoder_layers=0, attention=attention, block_len=4)
    for prompt in ([BOS], [BOS, 5, 9, 12], [BOS, *range(3, 20)]):
        expected = plain_continuation(model, prompt, 12)
        assert complete(model, prompt, Sampling(12, temperature), frozenset()) == expected


def test_a_stop_token_ends_the_answer_and_is_left_out():
    model = make(encoder_layers=0)
    whole = complete(model, [BOS, 7], Sampling(12, 0), frozenset())
    stop = whole[4]
    assert complete(model, [BOS, 7], Sampling(12, 0), frozenset({stop, 99})) == whole[: whole.index(stop)]


def test_an_answer_ends_where_the_model_ends():
    model = make(encoder_layers=0, max_len=16)
    assert len(complete(model, list(range(3, 15)), Sampling(50, 0), frozenset())) == 4
    assert complete(model, list(range(3, 19)), Sampling(50, 0), frozenset()) == []
    assert complete(model, [BOS], Sampling(0, 0), frozenset()) == []


def test_a_seed_decides_the_answer():
    model = make(encoder_layers=0)

    def answer(seed: int) -> list[int]:
        torch.rand(3)  # nobody else's draws matter
        return complete(model, [BOS, 4], Sampling(15, 1.0, seed=seed), frozenset())

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(6)}) == 6


LOGITS = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log()


def drawn(sampling: Sampling, count: int = 400, logits: Tensor = LOGITS) -> list[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    return [draw(logits, sampling, generator) for _ in range(count)]


def test_draws_follow_the_distribution():
    counts = torch.bincount(torch.tensor(drawn(Sampling(1, 1.0), 5000)), minlength=5)
    expected = LOGITS.exp() * 5000
    # Five classes: chi-squared with 4 degrees of freedom is below 18.5 with 99.9 %.
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5
    halved = torch.bincount(torch.tensor(drawn(Sampling(1, 0.5), 5000)), minlength=5)
    expected = F.softmax(LOGITS * 2, dim=0) * 5000
    assert float(((halved - expected) ** 2 / expected).sum()) < 18.5


@pytest.mark.parametrize(
    ("changes", "support"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 4}),
        ({"top_k": 2, "top_p": 0.99}, {1, 3}),
        ({"top_k": 3, "top_p": 0.4}, {1}),
        ({"temperature": 0.0, "top_k": 3}, {1}),
    ],
)
def test_draws_come_from_the_best_tokens_only_and_from_all_of_them(changes, support):
    assert set(drawn(Sampling(1, **({"temperature": 1.0} | changes)))) == support


@pytest.mark.parametrize("top_p", [1e-3, 1e-38, 1e-45, 1e-50, 5e-324, 0.0])
def test_however_small_the_share_the_best_token_is_kept(top_p):
    assert set(drawn(Sampling(1, 1.0, top_p=top_p), 20)) == {1}


@settings(max_examples=100)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12),
    st.floats(0, 3),
    st.integers(0, 15),
    st.floats(0, 1),
    st.integers(0, 2**63 - 1),
)
def test_any_settings_draw_a_token_that_they_allow(logits, temperature, top_k, top_p, seed):
    values = torch.tensor(logits)
    token = draw(values, Sampling(1, temperature, top_k, top_p, seed), torch.Generator().manual_seed(seed))
    better = values > values[token]
    assert int(better.sum()) < (top_k or len(logits))
    if temperature == 0:
        assert not better.any()
    elif better.any():
        among = values.double().sort(descending=True).values[: top_k or None]
        chances = F.softmax((among - among.max()) / max(temperature, 1e-6), dim=0)
        # All that are better come first; together they don't reach top_p.
        assert float(chances[: int(better.sum())].sum()) < top_p + 1e-5
