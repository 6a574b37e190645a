"""The order is a permutation, uniform, a pure function of its arguments, and does not change between versions."""

import numpy as np
import pytest
from scipy import stats

from jaxz.data.order import Order, derive, permute


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permute_is_a_bijection(n):
    assert sorted(permute(np.arange(n), n, derive(1, n))) == list(range(n))


def test_permute_is_uniform():
    n, keys = 6, 1500
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, derive(key))] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_permute_leaves_no_serial_correlation():
    values = permute(np.arange(20_000), 20_000, derive(5))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(np.arange(20_000), values)[0, 1]) < 0.03


@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_every_epoch_visits_each_row_once(window):
    order = Order((5, 0, 17, 1, 30), seed=3, window=window)
    epochs = [order(e, np.arange(53)) for e in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(53))
    assert not np.array_equal(epochs[0], epochs[1])


def test_any_part_of_an_epoch_equals_that_part_of_the_whole():
    order = Order((50, 60, 70), seed=1, window=2)
    whole = order(4, np.arange(180))
    for start, stop in ((0, 10), (95, 140), (179, 180)):
        assert np.array_equal(order(4, np.arange(start, stop)), whole[start:stop])


def test_a_window_mixes_only_its_own_shards():
    counts = (100,) * 8
    rows = Order(counts, seed=0, window=2)(0, np.arange(800))
    for start in range(0, 800, 200):
        assert len(set(rows[start : start + 200] // 100)) == 2


def test_without_shuffling_the_order_is_that_of_the_rows():
    assert Order((3, 4), seed=0, shuffle=False)(2, np.arange(7)).tolist() == list(range(7))


def test_the_order_is_frozen():
    """Golden values: runs under way resume only if these never change."""
    assert Order((40, 60), seed=7, window=1)(2, np.arange(5)).tolist() == GOLDEN_WINDOW
    assert Order((10**6,) * 40, seed=7)(2, np.array([0, 1, 39_999_999])).tolist() == GOLDEN_LARGE


GOLDEN_WINDOW = [57, 62, 82, 89, 99]
GOLDEN_LARGE = [2852504, 25165616, 37358156]
