"""Noise on a table's rows: by each column's deviation and its own categories, the same again for the same place."""

import numpy as np
import pytest
import torch

from chinchilla.config.noise import Noise
from chinchilla.data.batches import IGNORED
from chinchilla.data.table_batches import TableBatches
from chinchilla.data.table_noise import table_noise
from chinchilla.data.table_split import TableRows

COUNT = 20_000


def cells(count=COUNT) -> np.ndarray:
    """Three numbers (of deviation 1, 0.1, and none known) and two categories, of 4 codes and of one but for missing."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(count, 3)) * [1, 0.1, np.nan]
    numbers[random.random(count) < 0.1, 0] = np.nan
    codes = np.stack([random.integers(0, 4, count), np.where(random.random(count) < 0.3, 0, 5)], 1)
    return np.concatenate([numbers, codes], 1).astype(np.float32)


def varied(**noise):
    given = cells()
    return given, table_noise(Noise(**noise), given, 3).varied(given, (7, 1))


def test_numbers_move_by_a_share_of_their_columns_deviation_and_stay_within_it():
    given, found = varied(numbers=0.5)
    known = ~np.isnan(given[:, 0])
    assert np.array_equal(np.isnan(found), np.isnan(given)) and np.array_equal(found[:, 3:], given[:, 3:])
    inner = known & (np.abs(given[:, 0]) < 1)
    assert np.std((found - given)[inner, 0]) == pytest.approx(0.5, rel=0.03)
    assert np.std((found - given)[np.abs(given[:, 1]) < 0.1, 1]) == pytest.approx(0.05, rel=0.03)
    for column in (0, 1):
        assert np.nanmin(found[:, column]) >= np.nanmin(given[:, column])
        assert np.nanmax(found[:, column]) <= np.nanmax(given[:, column])


def test_categories_are_swapped_for_others_of_their_own_column_as_often_as_those_come():
    given, found = varied(swap=0.4)
    assert np.array_equal(found[:, :3], given[:, :3], equal_nan=True)
    assert np.mean(found[:, 3] != given[:, 3]) == pytest.approx(0.4 * 3 / 4, abs=0.015)
    assert np.mean(found[:, 4] != given[:, 4]) == pytest.approx(0.4 * 2 * 0.3 * 0.7, abs=0.015)
    assert set(np.unique(found[:, 4])) == {0, 5}
    assert np.mean(found[:, 4] == 0) == pytest.approx(0.3, abs=0.02)


def test_cells_go_missing_by_chance():
    given, found = varied(missing=0.2)
    gone = np.isnan(found[:, 1])
    assert gone.mean() == pytest.approx(0.2, abs=0.01)
    assert np.mean(found[given[:, 3] > 0, 3] == 0) == pytest.approx(0.2, abs=0.015)
    assert np.array_equal(found[~gone, 1], given[~gone, 1])


def test_nothing_asked_for_is_no_noise():
    assert table_noise(Noise(), cells(), 3) is None
    assert table_noise(Noise(drop=0.1), cells(), 3) is None


def test_batches_vary_rows_anew_each_epoch_and_alike_after_a_resume():
    given = cells(50)
    noise = table_noise(Noise(numbers=0.3, swap=0.3, missing=0.1), given, 3)
    rows = TableRows(given, np.arange(50) % 3, noise)
    batches, resumed = (TableBatches(rows, 16, 2) for _ in range(2))
    order = batches.order(1)
    found = [batches.batch(each) for each in order]
    again = resumed.batch(resumed.order(1)[2])
    assert torch.equal(found[2]["source"].nan_to_num(9), again["source"].nan_to_num(9))
    places = order[2] % 50
    assert found[2]["labels"][:, 0].tolist() == (places % 3).tolist()
    assert not np.array_equal(found[2]["source"], given[places], equal_nan=True)
    # The same rows in another epoch, and in another batch, look otherwise.
    elsewhere = batches.batch(order[2] + 50)["source"]
    assert not torch.equal(found[2]["source"].nan_to_num(9), elsewhere.nan_to_num(9))


def test_validation_sees_the_rows_as_they_are():
    given = cells(20)
    like = TableBatches(TableRows(given, np.arange(20) % 3, table_noise(Noise(swap=0.9), given, 3)), 8, 0)
    valid = TableBatches(TableRows(given, np.arange(20) % 3), 8, 0, like)
    for rows in valid.order(0):
        batch = valid.batch(rows)
        real = batch["labels"][:, 0] != IGNORED
        assert np.array_equal(batch["source"][real], given[rows], equal_nan=True)
