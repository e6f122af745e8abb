"""What classes weigh: scikit-learn's balance, or a table by ratios; 1 on average over the training examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from chinchilla.config.errors import UsageError
from chinchilla.data.classes import Classes
from chinchilla.tasks.class_weights import class_weights

COUNTS = st.lists(st.integers(1, 500), min_size=2, max_size=8)


def classes(count: int) -> Classes:
    return Classes(names=tuple(f"class {place}" for place in range(count)))


@given(COUNTS)
def test_balanced_weights_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    found = class_weights("balanced", classes(len(counts)).counts(labels))
    assert found == pytest.approx(expected.tolist())


@given(COUNTS, st.data())
def test_a_table_counts_by_ratios_and_is_1_on_average(counts, data):
    names = classes(len(counts)).names
    table = data.draw(st.dictionaries(st.sampled_from(names), st.floats(0.01, 100)))
    found = class_weights(table, dict(zip(names, counts, strict=True)))
    assert np.dot(found, counts) / sum(counts) == pytest.approx(1.0)
    asked = [table.get(name, 1.0) for name in names]
    assert np.array(found) / found[0] == pytest.approx(np.array(asked) / asked[0])


def test_weights_of_a_class_that_is_none_are_refused():
    with pytest.raises(UsageError, match=r"no class 'clas 1' \(did you mean 'class 1'\?\); the classes are 'class 0'"):
        class_weights({"clas 1": 2.0}, dict.fromkeys(classes(3).names, 5))
