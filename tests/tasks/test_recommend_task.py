"""Ranks among what a user has not had, against a count by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks_fakes import make_model

from chinchilla.config.errors import DataError
from chinchilla.data.items import FIRST_ITEM, Items
from chinchilla.tasks.recommend import Recommend, next_scores, rank_metrics

ITEMS = Items(names=tuple(f"film {number}" for number in range(30)))
HISTORIES = [["film 3", "film 7"], ["film 1"], [f"film {number}" for number in range(20)]]


def decoder(**changes):
    return make_model(**{"num_encoder_layers": 0, "vocab_size": ITEMS.vocab_size, "max_len": 16} | changes)


@torch.no_grad()
def test_a_score_is_the_models_next_token_after_the_last_items():
    model = decoder()
    found = next_scores(model, ITEMS, HISTORIES, seen=True)
    for history, row in zip(HISTORIES, found, strict=True):
        ids = [1, *ITEMS.ids(history)[-15:]]
        logits = model.logits(model(target=torch.tensor([ids])).hidden)[0, -1]
        assert row[FIRST_ITEM:] == pytest.approx(logits.log_softmax(0)[FIRST_ITEM:].numpy(), rel=1e-5)
        assert (row[:FIRST_ITEM] == -math.inf).all()


def test_what_a_user_has_had_is_not_recommended():
    model, task = decoder(), Recommend()
    (found,) = task.serve(model, ITEMS, HISTORIES[2:], k=15)
    items = [each["item"] for each in found["recommendations"]]
    assert len(items) == 10 and not set(items) & set(HISTORIES[2])  # ten are left
    chances = [each["score"] for each in found["recommendations"]]
    assert chances == sorted(chances, reverse=True) and sum(chances) < 1
    (again,) = task.serve(model, ITEMS, HISTORIES[2:], k=30, exclude_seen=False)
    assert len(again["recommendations"]) == 30
    assert task.reply(model, ITEMS, HISTORIES[2]) == ", ".join(items[:5])


def test_scores_are_of_ranks_among_what_is_left():
    model = decoder()
    examples = [(history, "film 25") for history in HISTORIES]
    rows = next_scores(model, ITEMS, HISTORIES)
    place = FIRST_ITEM + 25
    ranks = [1 + sum(value > row[place] for value in row.tolist()) for row in rows]
    assert Recommend().score(model, ITEMS, examples).metrics == pytest.approx(rank_metrics(ranks))
    with pytest.raises(DataError, match="no user to score on"):
        Recommend().score(model, ITEMS, [])


@torch.no_grad()
def test_who_takes_the_same_again_is_scored_on_it_too():
    model = decoder()
    history = [f"film {number}" for number in range(9)]
    order = [ITEMS.name(place) for place in next_scores(model, ITEMS, [history], seen=True)[0].argsort()[::-1][:30]]
    again = min(history, key=order.index)
    rank = 1 + sum(name not in history for name in order[: order.index(again)])
    assert Recommend().score(model, ITEMS, [(history, again)]).metrics["mrr"] == pytest.approx(1 / rank)


@torch.no_grad()
def test_a_model_without_an_opinion_gains_nothing():
    model = decoder()
    model.head.weight.zero_()
    metrics = Recommend().score(model, ITEMS, [(history, "film 25") for history in HISTORIES[:2]]).metrics
    assert metrics["hit_rate_10"] == 0 and metrics["mrr"] < 0.04


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_better_ranks_never_score_less(ranks):
    before, after = rank_metrics(ranks), rank_metrics([max(1, rank - 1) for rank in ranks])
    assert all(0 <= before[name] <= after[name] <= 1 for name in before)
    assert rank_metrics([1])["ndcg_10"] == 1 and rank_metrics([11])["hit_rate_10"] == 0
