import numpy as np
import pytest
from scipy import stats

from jaxz.photoz import clap
from jaxz.photoz.pdf import PDF

EDGES = np.linspace(0, 2, 41)


def sky(n, seed):
    """A latent number that is the redshift, blurred more where it is large, beside one that says nothing."""
    draw = np.random.default_rng(seed)
    z = draw.uniform(0.3, 1.7, n)
    return np.column_stack([z + 0.03 * draw.normal(size=n), draw.normal(size=n)]), z


def test_pit_of_neighbours_by_brute_force():
    latent, z = sky(60, 0)
    choices = np.array([5, 20, 59])
    found = clap.own_pit(clap.KDTree(latent), slice(10, 30), z, choices)
    for i in range(10, 30):
        near = np.argsort(((latent - latent[i]) ** 2).sum(1))
        near = near[near != i]
        assert found[i - 10] == pytest.approx([np.mean(z[near[:k]] < z[i]) for k in choices])


def test_copies_of_an_object_do_not_make_it_its_own_neighbour():
    latent, z = np.zeros((30, 2)), np.arange(30.0)
    found = clap.own_pit(clap.KDTree(latent), slice(0, 30), z, np.array([29]))
    assert found[:, 0] == pytest.approx(np.arange(30) / 29)


def test_distance_from_uniform():
    even, low = np.arange(100), np.zeros(100, int)
    assert clap.from_uniform(np.stack([even, low])) == pytest.approx([0, 0.495])


def test_adaptive_neighbours_are_histograms_of_the_nearest():
    (latent, z), (wanted, true) = sky(1500, 1), sky(300, 2)
    pdf, k = clap.adaptive_neighbours(latent, z, wanted, EDGES)
    assert set(k) <= set(clap.NEIGHBOURS)
    near = np.argsort(((latent - wanted[7]) ** 2).sum(1))[: k[7]]
    assert pdf.probability[7] == pytest.approx(np.histogram(z[near], EDGES)[0] / k[7])
    assert np.median(np.abs(pdf.median() - true)) < 0.1
    with pytest.raises(ValueError, match="5 objects with redshift"):
        clap.adaptive_neighbours(latent[:5], z[:5], wanted, EDGES)


def test_local_recalibration_mends_each_region_and_stays_a_density():
    """p(z) is too wide where the latent is low, biased where it is high."""
    draw = np.random.default_rng(3)

    def objects(n):
        latent = draw.uniform(size=(n, 1))
        high = latent[:, 0] > 0.5
        z = 1 + np.where(high, 0.1, 0.0) + np.where(high, 0.2, 0.1) * draw.normal(size=n)
        mass = np.diff(stats.norm.cdf(np.linspace(-1, 3, 101), 1, 0.2))
        return latent, PDF(np.linspace(-1, 3, 101), np.tile(mass / mass.sum(), (n, 1))), z

    held, held_pdf, held_z = objects(6000)
    latent, pdf, z = objects(1500)
    mended = clap.recalibrate_locally(pdf, latent, held, held_pdf.cdf(held_z), 600)
    for region in (latent[:, 0] < 0.45, latent[:, 0] > 0.55):
        before, after = (stats.kstest(p.cdf(z)[region], "uniform").statistic for p in (pdf, mended))
        assert after < before / 2
    assert (mended.probability >= 0).all()


def test_refit_learns_soft_labels():
    latent, _ = sky(2000, 4)
    mass = np.diff(stats.norm.cdf(EDGES, latent[:, :1], 0.1))
    pdf = PDF(EDGES, mass / mass.sum(1, keepdims=True))
    found = clap.refit(latent[:1700], pdf[:1700], latent[1700:], seed=0, steps=600)
    assert np.abs(found.cumulative - pdf[1700:].cumulative).mean() < 0.02


def test_harmonic_mean():
    first, second = PDF([0, 1, 2], [[0.2, 0.8]]), PDF([0, 1, 2], [[0.6, 0.4]])
    inverse = np.array([1 / (1 / 0.2 + 1 / 0.6), 1 / (1 / 0.8 + 1 / 0.4)])
    assert clap.harmonic_mean([first, second]).probability[0] == pytest.approx(inverse / inverse.sum())
    apart = clap.harmonic_mean([PDF([0, 1, 2], [[1.0, 0.0]]), PDF([0, 1, 2], [[0.0, 1.0]])])
    assert apart.probability[0] == pytest.approx([0.5, 0.5])
