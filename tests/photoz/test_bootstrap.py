import numpy as np
import pytest

from jaxz.photoz.bootstrap import Estimate, hierarchical_bootstrap, sky_cells

MEAN = lambda a: {"mean": a["x"].mean()}


def test_the_error_of_a_mean_is_that_between_cells_and_seeds():
    """x = cell effect + seed effect + noise: the variance of the mean is the sum of their shares, by theory."""
    generator, cells, each, seeds = np.random.default_rng(0), 100, 20, 8
    of_cell, of_seed = generator.normal(0, 0.3, cells), generator.normal(0, 0.2, seeds)
    noise = generator.normal(0, 0.1, (seeds, cells * each))
    runs = [{"x": np.repeat(of_cell, each) + effect + noise[n]} for n, effect in enumerate(of_seed)]
    found = hierarchical_bootstrap(MEAN, {"a": runs}, np.repeat(np.arange(cells), each), resamples=2000)["a"]["mean"]
    assert found.value == pytest.approx(np.mean([run["x"].mean() for run in runs]))
    between_cells = np.mean([run["x"].reshape(cells, each).mean(1) for run in runs], axis=0).var(ddof=1) / cells
    between_seeds = np.var([run["x"].mean() for run in runs], ddof=1) / seeds
    assert found.error == pytest.approx(np.sqrt(between_cells + between_seeds), rel=0.1)
    alone = hierarchical_bootstrap(MEAN, {"a": runs[:1]}, np.repeat(np.arange(cells), each), resamples=2000)["a"][
        "mean"
    ]
    assert alone.error == pytest.approx(runs[0]["x"].reshape(cells, each).mean(1).std(ddof=1) / 10, rel=0.1)


def test_objects_of_a_cell_are_drawn_together():
    """A thousand copies of ten numbers tell no more than the ten."""
    x = np.random.default_rng(1).normal(size=10)
    run = [{"x": np.repeat(x, 1000)}]
    error = hierarchical_bootstrap(MEAN, {"a": run}, np.repeat(np.arange(10), 1000), resamples=2000)["a"]["mean"].error
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(10), rel=0.1)


def test_what_two_arms_share_cancels_in_their_difference():
    generator = np.random.default_rng(2)
    shared, cells = generator.normal(size=(3, 400)), np.arange(400) // 4
    arms = {"a": [{"x": x} for x in shared], "b": [{"x": x + 0.25} for x in shared]}
    found = hierarchical_bootstrap(MEAN, arms, cells, resamples=50)
    difference = found["b"]["mean"] - found["a"]["mean"]
    assert difference.value == pytest.approx(0.25) and difference.error < 1e-12
    assert found["a"]["mean"].error > 0.01


def test_it_is_a_function_of_the_seed_and_of_the_cells_not_of_the_rows_order():
    x, cells = np.random.default_rng(3).normal(size=60), np.arange(60) % 12
    found = [
        hierarchical_bootstrap(MEAN, {"a": [{"x": x[p]}]}, cells[p], resamples=20, seed=seed)["a"]["mean"].draws
        for p, seed in ((np.arange(60), 5), (np.argsort(cells, kind="stable"), 5), (np.arange(60), 6))
    ]
    assert found[0] == pytest.approx(found[1]) and not np.allclose(found[0], found[2])


def test_sky_cells_are_of_seven_arcminutes():
    ra, dec = np.meshgrid(np.arange(40) / 60, np.arange(40) / 60)  # a position an arcminute
    found = sky_cells(10 + ra.ravel(), dec.ravel())
    cells, counts = np.unique(found, return_counts=True)
    assert np.sqrt(1600 / len(cells)) == pytest.approx(6.87, rel=0.2) and counts.max() <= 60
    for place in cells:
        rows = np.flatnonzero(found == place)
        assert np.ptp(ra.ravel()[rows]) * 60 < 11 and np.ptp(dec.ravel()[rows]) * 60 < 11  # they lie together


def test_without_positions_or_in_few_cells_there_are_none():
    many = np.arange(9.0)
    assert sky_cells(many, np.full(9, np.nan)) is None and sky_cells(many[:4], many[:4]) is None
    assert len(np.unique(sky_cells(many, many))) == 9


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="do not fit the 4 of cells"):
        hierarchical_bootstrap(MEAN, {"a": [{"x": np.zeros(3)}]}, np.arange(4))
    with pytest.raises(ValueError, match="all objects are in one"):
        hierarchical_bootstrap(MEAN, {"a": [{"x": np.zeros(3)}]}, np.zeros(3))
    assert np.isnan(Estimate(1.0, np.array([1.0, np.nan])).error)
