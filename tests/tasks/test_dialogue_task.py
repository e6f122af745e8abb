"""Answers alone are scored; what is said before them is only read."""

import math

import pytest
import torch
import torch.nn.functional as F
from tasks_fakes import TEXTS, make_model

from chinchilla.config.errors import DataError, UsageError
from chinchilla.data.chat_template import CHAT
from chinchilla.data.examples import Chat, Message
from chinchilla.data.tokenizer import Tokenizer
from chinchilla.models.generate import Sampling
from chinchilla.tasks.dialogue import ChatCodec, Dialogue, answer_nats, distinct

CODEC = ChatCodec(Tokenizer.train(TEXTS * 3, "bpe", 300, CHAT.marks))
CHATS = (
    Chat((Message("user", "the cat?"), Message("assistant", "on the mat"))),
    Chat((
        Message("system", "be kind"), Message("user", "the moon?"), Message("assistant", "a stone ß"),
        Message("user", "larger?"), Message("assistant", "a larger stone"),
    )),
)  # fmt: skip


def decoder(**changes):
    return make_model(**{"num_encoder_layers": 0, "vocab_size": CODEC.tokenizer.vocab_size, "max_len": 128} | changes)


@torch.no_grad()
def by_hand(model, chat: Chat) -> tuple[float, int]:
    """Cross-entropy of the answers' tokens, each after all before it."""
    total, count = 0.0, 0
    ids: list[int] = []
    for part in CHAT.parts(chat.messages, CODEC.tokenizer):
        for token in part.ids:
            if part.answer:
                logits = model.logits(model(target=torch.tensor([ids])).hidden)[0, -1:]
                total += float(F.cross_entropy(logits, torch.tensor([token])))
                count += 1
            ids.append(token)
    return total, count


@pytest.mark.parametrize("chat", CHATS)
def test_an_answers_nats_are_its_cross_entropy_after_what_was_said(chat):
    model = decoder()
    nats, tokens, size_bytes = answer_nats(model, CODEC, chat)
    expected, count = by_hand(model, chat)
    assert (nats, tokens) == (pytest.approx(expected, rel=1e-5), count)
    said = [message.content for message in chat.messages if message.role == "assistant"]
    assert size_bytes == sum(len(text.encode()) for text in said)


def test_scores_weigh_every_byte_alike():
    model = decoder()
    score = Dialogue().score(model, CODEC, CHATS)
    sums = [answer_nats(model, CODEC, chat) for chat in CHATS]
    nats, tokens, size_bytes = (sum(each) for each in zip(*sums, strict=True))
    assert score.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size_bytes)
    assert score.metrics["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert [sample.reference for sample in score.samples] == ["on the mat", "a larger stone"]
    assert score.samples[1].source.splitlines()[-1] == "user: larger?"


def test_variety_counts_different_runs_of_words():
    assert distinct([["a", "b", "a"], ["a", "b"]], 1) == 2 / 5
    assert distinct([["a", "b", "a"], ["a", "b"]], 2) == 2 / 3
    assert distinct([[], ["a"]], 2) == 0.0


def test_what_does_not_fit_is_refused_by_name():
    model = decoder(max_len=24)
    long = (Message("user", "moon " * 40),)
    with pytest.raises(UsageError, match=r"longer than the \d+ tokens that the model can read"):
        Dialogue().answer(model, CODEC, long, Sampling(4, temperature=0))
    with pytest.raises(DataError, match="no chat to score on"):
        Dialogue().score(model, CODEC, [])
    with pytest.raises(DataError, match="no chat of the test data fits"):
        Dialogue().score(model, CODEC, [Chat((*long, Message("assistant", "yes " * 30)))])


def test_an_answer_ends_where_the_template_says():
    model = decoder()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[CHAT.stop_id(CODEC.tokenizer)] = 1.0
        model.decoder.norm.weight.fill_(1.0)
    found = Dialogue().answer(model, CODEC, CHATS[0].messages[:1], Sampling(6, temperature=0))
    assert isinstance(found, str)
