"""Limits as bounds on shapes: what holds them, and the nearest that is named where nothing does."""

import re

import pytest

from chinchilla.config.errors import BudgetError
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import Shape
from chinchilla.config.units import SIZE_BYTES, parse
from chinchilla.planning.bounds import bounds, serving_bytes, unfit
from chinchilla.planning.by_law import law_plan
from chinchilla.planning.count import num_params
from chinchilla.planning.room import Room
from chinchilla.planning.search import Facts

WEB = Facts(
    task="generate", vocab_size=32_000, unique_tokens=10**12, num_examples=10**9, mean_source_len=0,
    mean_target_len=1024, max_len=1024, bytes_per_token=4.2,
)  # fmt: skip


def shape(dim: int, layers: int) -> Shape:
    return Shape(
        vocab_size=8000, dim=dim, num_heads=4, num_kv_heads=4, head_dim=dim // 4, ffn_dim=4 * dim,
        num_encoder_layers=layers, num_decoder_layers=layers, norm="layer",
    )  # fmt: skip


REQUEST = WEB.request
LADDER = [shape(dim, layers) for dim in (64, 128, 256) for layers in (1, 2, 4)]


def named(error: BudgetError) -> int:
    """The nearest size that an error names."""
    found = re.search(r"takes ([0-9.e+]+ [kMGT]?B)", str(error))
    assert found, error
    return int(parse(found[1], SIZE_BYTES, "size"))


def left(limits: Limits) -> list[Shape]:
    held_to = bounds(REQUEST, None, limits)
    return [each for each in LADDER if all(bound.holds(each) for bound in held_to)]


def test_nothing_set_bounds_nothing() -> None:
    assert bounds(REQUEST, None, Limits()) == []
    assert left(Limits()) == LADDER


def test_each_limit_keeps_what_is_within_it() -> None:
    assert left(Limits(size=4 * num_params(LADDER[4]))) == [
        each for each in LADDER if num_params(each) <= num_params(LADDER[4])
    ]
    most = serving_bytes(LADDER[4], REQUEST)
    assert left(Limits(serve_memory=most)) == [each for each in LADDER if serving_bytes(each, REQUEST) <= most]
    assert LADDER[4] in left(Limits(serve_memory=most))
    assert LADDER[4] not in left(Limits(serve_memory=most - 1))


@pytest.mark.parametrize("key", ["size", "serve_memory"])
def test_the_nearest_that_is_named_can_be_met(key: str) -> None:
    limits = Limits.model_validate({key: 1000})
    error = unfit(LADDER, bounds(REQUEST, None, limits))
    assert f"limits.{key} is 1 kB" in str(error)
    assert "1+1 layers of 64, vocabulary 8000" in str(error)
    assert left(Limits.model_validate({key: named(error)})) == [LADDER[0]]
    assert left(Limits.model_validate({key: round(0.98 * named(error))})) == []


def test_what_only_together_cannot_be_met_gives_way_where_it_can() -> None:
    """No shape is both small on disk and lean in memory; without the lean one the small one is there."""
    held_to = bounds(REQUEST, None, Limits(size=4 * num_params(LADDER[0]), serve_memory=1000))
    assert "limits.serve_memory is 1 kB" in str(unfit(LADDER, held_to))
    room = Room(10_000, WEB.batch(512), "fp32", "adamw")
    held_to = bounds(REQUEST, None, Limits(size=4 * num_params(LADDER[0]), memory=10_000), room)
    assert "limits.memory, 10 kB: raise it" in str(unfit(LADDER, held_to))


def test_a_law_keeps_within_the_memory_of_serving() -> None:
    free = law_plan(1e20, WEB, Model(), Limits())
    most = serving_bytes(free.shape, REQUEST) // 3
    held = law_plan(1e20, WEB, Model(), Limits(serve_memory=most))
    assert most / 1.4 < serving_bytes(held.shape, REQUEST) <= most
    assert "within limits.serve_memory" in held.decisions[0].reason
    with pytest.raises(BudgetError, match=r"limits\.serve_memory is 1 MB, and the leanest model that may be built"):
        law_plan(1e20, WEB, Model(), Limits(serve_memory=10**6))
