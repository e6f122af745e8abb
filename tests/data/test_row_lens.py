"""Row lengths of packed pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chinchilla.data.packing import best_fit, row_lens


def test_sides_of_like_length_share_a_row_in_the_datas_proportion():
    lengths = np.array([[10, 20, 30], [12, 26, 37]])
    assert row_lens(lengths, 64) == (64, 80)
    assert row_lens(lengths[::-1], 64) == (80, 64)


def test_a_summary_has_a_row_of_its_own_length():
    random = np.random.default_rng(0)
    lengths = np.stack([random.integers(40, 256, 2000), random.integers(4, 13, 2000)])
    source, target = row_lens(lengths, 256)
    assert (source, target) == (256, 16) and row_lens(lengths[::-1], 256) == (16, 256)
    rows = best_fit(np.arange(2000), lengths, (source, target))
    assert lengths[0].sum() / (len(rows) * source) > 0.9


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=40), st.integers(8, 80))
def test_nearly_every_pair_within_the_longest_fits_a_row(pairs, max_len):
    lengths = np.array(pairs).T
    lens = row_lens(lengths, max_len)
    within = (lengths <= max_len).all(axis=0)
    fits = (lengths <= np.array(lens)[:, None]).all(axis=0)
    assert fits[within].mean() >= 0.99 if within.sum() >= 100 else (~fits[within]).sum() <= 1
    assert max(lens) >= max_len and max(lens) <= 2 * max_len + 4
    assert within.sum() == 0 or lens[0] % 4 == 0 or lens[0] == max_len
