"""Splits by cell: what they promise about distances, against brute force."""

from functools import partial

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_tools import splits
from data_tools.splits import GAP, assign_splits, assign_splits_pixels
from jaxz.errors import InputError

ARCSEC = np.radians(1 / 3600)


def unit_vectors(ra, dec):
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)


def nearest_other(points, split):
    """The smallest distance between objects of two different splits, GAP aside."""
    names = sorted(set(split) - {GAP})
    trees = {name: cKDTree(points[split == name]) for name in names}
    return min(trees[b].query(trees[a].data)[0].min() for k, a in enumerate(names) for b in names[k + 1 :])


# the equator, the border of HEALPix's polar caps, the corners of its base cells, ra = 0, a pole
PLACES = [(150.0, 2.0), (44.9, 41.81), (90.0, 41.8), (0.0, -30.0), (10.0, 60.0), (90.0, 85.0), (17.0, 89.95)]


@pytest.mark.parametrize("ra, dec", PLACES)
@pytest.mark.parametrize("count", [200, 2000, 20000])
@pytest.mark.parametrize("balanced", [False, True])
def test_no_two_splits_come_nearer_than_the_gap(ra, dec, count, balanced):
    rng = np.random.default_rng(count)
    x, y = np.radians(rng.uniform(-0.1, 0.1, (2, count)))  # a tangent plane: the same density at the pole
    centre = unit_vectors(np.array([ra]), np.array([dec]))[0]
    east = np.array([-np.sin(np.radians(ra)), np.cos(np.radians(ra)), 0])
    vectors = centre + x[:, None] * east + y[:, None] * np.cross(centre, east)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    longitude = np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 360
    latitude = np.degrees(np.arcsin(vectors[:, 2]))
    # cells of 51 arcsec
    split, _ = assign_splits(longitude, latitude, gap_arcsec=10, order=12, seed=1, balanced=balanced)
    assert {"train", "test"} | ({"val"} if balanced or count > 200 else set()) <= set(split)
    assert nearest_other(unit_vectors(longitude, latitude), split) >= 2 * np.sin(10 * ARCSEC / 2)
    assert np.mean(split == GAP) < 0.5  # four bands of 10 in 51 arcsec hold 63 %, a third of them between splits


@pytest.mark.parametrize("count", [100, 1000, 20000])
def test_no_two_splits_come_nearer_than_the_gap_in_an_image(count):
    x, y = np.random.default_rng(count).uniform(-500, 1500, (2, count))  # an origin inside of the image
    split, cell = assign_splits_pixels(x, y, gap_px=40, cell_px=170, seed=0)
    assert nearest_other(np.stack([x, y], 1), split) >= 40
    assert len(np.unique(cell)) == len(np.unique(np.stack([np.floor(x / 170), np.floor(y / 170)], 1), axis=0))


def test_the_gap_takes_no_more_than_the_borders():
    x, y = np.random.default_rng(0).uniform(0, 2000, (2, 50000))
    split, _ = assign_splits_pixels(x, y, gap_px=10, cell_px=200, seed=0)
    inside = (np.minimum(x % 200, 200 - x % 200) > 10) & (np.minimum(y % 200, 200 - y % 200) > 10)
    assert not np.any(split[inside] == GAP)
    assert 0.03 < np.mean(split == GAP) < 1 - 0.9**2  # some, and less than all borders hold


@pytest.mark.parametrize("balanced", [False, True])
def test_a_cell_belongs_to_one_split_whatever_the_order_of_the_objects(balanced):
    assign_splits = partial(splits.assign_splits, balanced=balanced)
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(30, 33, 5000), rng.uniform(-2, 1, 5000)
    split, cell = assign_splits(ra, dec, gap_arcsec=9, seed=3)
    for one in np.unique(cell):
        assert len(set(split[cell == one]) - {GAP}) <= 1
    shuffled = rng.permutation(5000)
    again, _ = assign_splits(ra[shuffled], dec[shuffled], gap_arcsec=9, seed=3)
    assert np.array_equal(again, split[shuffled])
    assert not np.array_equal(assign_splits(ra, dec, gap_arcsec=9, seed=4)[0], split)


def test_overlapping_catalogues_agree():
    """Two tiles with other objects beside them; no object of one is near to another split's object of the other."""
    rng = np.random.default_rng(7)
    ra, dec = rng.uniform(30, 31.5, 9000), rng.uniform(-2, -1, 9000)
    west, east = np.flatnonzero(ra < 31), np.flatnonzero((ra > 30.5) & (dec > -1.8))
    split = {}
    for name, rows in (("west", west), ("east", east)):
        split[name] = np.full(len(ra), "", "<U5")
        split[name][rows] = assign_splits(ra[rows], dec[rows], gap_arcsec=30, seed=3)[0]
    shared = np.intersect1d(west, east)
    kept = shared[(split["west"][shared] != GAP) & (split["east"][shared] != GAP)]
    assert len(kept) > 1000 and len(set(split["west"][kept])) == 3
    assert np.array_equal(split["west"][kept], split["east"][kept])
    both = np.concatenate([west, east])
    names = np.concatenate([split["west"][west], split["east"][east]])
    assert nearest_other(unit_vectors(ra[both], dec[both]), names) >= 2 * np.sin(30 * ARCSEC / 2)


def test_hashed_fractions_hold_over_many_cells():
    rng, fractions = np.random.default_rng(0), {"train": 0.6, "val": 0.15, "test": 0.25}
    ra, dec = rng.uniform(0, 360, 40000), np.degrees(np.arcsin(rng.uniform(-1, 1, 40000)))  # a cell each
    split, _ = assign_splits(ra, dec, gap_arcsec=0, order=12, fractions=fractions, seed=5)
    for name, fraction in fractions.items():
        assert abs(np.mean(split == name) - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(ra))


@pytest.mark.parametrize("seed", range(5))
def test_fractions_hold_with_many_cells_and_with_few(seed):
    fractions = {"train": 0.6, "val": 0.15, "test": 0.25}
    x, y = np.random.default_rng(seed).normal(0, 400, (2, 20000))  # crowded in the middle, as clusters are
    for cell_px, within in ((25, 0.01), (1e3, None)):
        split, cell = assign_splits_pixels(x, y, gap_px=0, cell_px=cell_px, fractions=fractions, seed=seed)
        largest = np.unique(cell, return_counts=True)[1].max() / len(x)
        for name, fraction in fractions.items():
            assert abs(np.mean(split == name) - fraction) <= (within or largest)
    assert GAP not in split


def test_few_cells_still_fill_the_splits():
    x, y = np.random.default_rng(0).uniform(0, 400, (2, 1600))  # 16 cells
    for seed in range(20):
        split, _ = assign_splits_pixels(x, y, gap_px=5, cell_px=100, fractions={"train": 0.8, "test": 0.2}, seed=seed)
        assert 0.1 < np.mean(split == "test") < 0.3


def test_no_objects():
    split, cell = assign_splits(np.empty(0), np.empty(0), gap_arcsec=9, seed=0)
    assert len(split) == len(cell) == 0


@pytest.mark.parametrize(
    "options, named",
    [
        ({"gap_px": 60, "cell_px": 100}, "gap_px"),
        ({"gap_px": -1, "cell_px": 100}, "gap_px"),
        ({"gap_px": 1, "cell_px": 100, "fractions": {"train": 0.5}}, "fractions"),
        ({"gap_px": 1, "cell_px": 100, "fractions": {"train": 0.5, "gap": 0.5}}, "fractions"),
        ({"gap_px": 1, "cell_px": 100, "fractions": {"train": 1.5, "test": -0.5}}, "fractions"),
    ],
)
def test_bad_arguments_are_named(options, named):
    with pytest.raises(InputError, match=named):
        assign_splits_pixels(np.zeros(3), np.zeros(3), seed=0, **options)


def test_a_gap_wider_than_the_cells_allow_is_refused():
    with pytest.raises(InputError, match="gap_arcsec"):
        assign_splits(np.zeros(3), np.zeros(3), gap_arcsec=200, order=9, seed=0)
