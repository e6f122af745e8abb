"""Near copies are found, and examples that belong together stand in one family."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.data.families import BANDS, ROWS, families, runs, sketch


def test_items_that_share_a_key_are_a_family_also_by_way_of_others():
    assert families([["a"], ["b"], ["c", "b"], [], ["a", "c"], [("a", 1)]]) == [0, 0, 0, 3, 0, 5]


@given(st.lists(st.sets(st.integers(0, 20), max_size=3), max_size=20))
def test_families_are_the_classes_of_the_closure(keys):
    joined = {(a, b) for a, b in itertools.product(range(len(keys)), repeat=2) if a == b or keys[a] & keys[b]}
    for middle in range(len(keys)):
        into = [a for a, b in joined if b == middle]
        joined |= {(a, b) for a in into for b in [b for a, b in joined if a == middle]}
    assert families(keys) == [min(a for a, b in joined if b == item) for item in range(len(keys))]


def test_runs_are_the_neighbours_in_a_text():
    assert runs(["a", "b", "c", "d"], 3) == {"a b c", "b c d"}
    assert runs("ab", 3, join="") == {"ab"}
    assert runs([], 3) == set()


def test_a_text_without_runs_has_nothing_in_common_with_any():
    assert sketch(runs([], 4)) == []


@pytest.mark.parametrize("shared", [0.3, 0.5, 0.7])
def test_texts_share_a_key_as_often_as_minhash_says(shared):
    """The share of pairs with a key in common is the one that theory gives for their likeness."""
    draw = random.Random(0)
    pairs, size = 300, 200
    common = round(2 * size * shared / (1 + shared))
    found = 0
    for _ in range(pairs):
        words = [str(draw.random()) for _ in range(2 * size - common)]
        one, other = words[:size], words[size - common :]
        assert len({*one} & {*other}) / len({*words}) == pytest.approx(shared, abs=0.01)
        found += bool({*sketch(one)} & {*sketch(other)})
    assert found / pairs == pytest.approx(1 - (1 - shared**ROWS) ** BANDS, abs=0.08)
