import numpy as np
import pytest

from jaxz.photoz.balance import label_weights, near_balanced


def test_class_balanced_weights_by_the_formula():
    counts = np.array([1, 10, 0, 1000, 100_000])
    found, some = label_weights(counts, "class_balanced"), counts > 0
    expected = np.array([(1 - 0.999) / (1 - 0.999**n) for n in counts[some]])
    assert found[some] / found[0] == pytest.approx(expected / expected[0])
    assert found[2] == 1 and np.average(found, weights=counts) == pytest.approx(1)
    assert found[4] / found[0] == pytest.approx(1 / 1000, rel=1e-3)  # of very many, as of 1000


def test_lds_weights_by_the_formula():
    counts = np.random.default_rng(0).poisson(50, 30).astype(float)
    found = label_weights(counts, "lds")
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / 8)
    smooth = [np.sum(kernel * counts[b - 2 : b + 3]) / kernel.sum() for b in range(2, 28)]
    assert found[2:28] / found[2] == pytest.approx(np.sqrt(smooth[0] / np.array(smooth)))
    assert np.average(found, weights=counts) == pytest.approx(1)
    assert label_weights(np.full(9, 7.0), "lds") == pytest.approx(np.ones(9))  # the ends are not rare


def test_without_balance_or_labels_all_count_the_same():
    assert (label_weights(np.array([5, 0, 1]), "") == 1).all()
    for balance in ("class_balanced", "lds"):
        assert (label_weights(np.zeros(4), balance) == 1).all()


def test_a_cell_keeps_at_most_so_many():
    generator = np.random.default_rng(1)
    z, magnitude = generator.exponential(0.5, 3000), generator.normal(22, 1, 3000)
    z[:20], magnitude[20:40] = np.nan, np.nan
    edges = np.linspace(0, 2, 11), np.linspace(20, 24, 9)
    chosen = near_balanced(z, magnitude, *edges, most=15)
    everything, kept = (np.histogram2d(z[rows], magnitude[rows], edges)[0] for rows in (slice(40, None), chosen))
    assert (kept == np.minimum(everything, 15)).all()
    assert not (chosen & ~((z < 2) & (magnitude >= 20) & (magnitude < 24))).any()
    assert (near_balanced(z, magnitude, *edges, most=15) == chosen).all()
    other = near_balanced(z, magnitude, *edges, most=15, seed=1)
    assert (other != chosen).any() and other.sum() == chosen.sum()


def test_which_of_a_cell_are_kept_is_drawn_evenly():
    z = np.full(40, 0.5)
    often = sum(near_balanced(z, z, [0, 1], [0, 1], 10, seed) for seed in range(400))
    assert often.sum() == 4000 and abs(often - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)
