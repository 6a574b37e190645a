import numpy as np
import pytest
from scipy import stats

from jaxz.photoz import calibration
from jaxz.photoz.metrics import pit_ks
from jaxz.photoz.pdf import PDF

EDGES = np.linspace(0, 3, 301)


def gaussians(mean, sigma, edges=EDGES):
    return PDF(edges, calibration.gaussian_bins(mean, sigma, edges))


def toy(n, seed, spread=1.0, offset=0.0):
    """p(z) of width 0.05 about estimates whose errors are `spread` times as wide, and off by `offset`."""
    draw = np.random.default_rng(seed)
    z_phot = draw.uniform(0.7, 2.3, n)
    return gaussians(z_phot, 0.05), z_phot + offset + 0.05 * spread * draw.normal(size=n)


@pytest.mark.parametrize(("spread", "offset"), [(2.0, 0.0), (0.5, 0.0), (1.0, 0.04)])
def test_recalibration_flattens_the_pit_of_other_objects(spread, offset):
    held, z_held = toy(8000, 0, spread, offset)
    pdf, z = toy(1500, 1, spread, offset)
    mended = calibration.recalibrate(pdf, held.cdf(z_held))
    assert pit_ks(pdf.cdf(z)) > 0.1
    assert stats.kstest(mended.cdf(z), "uniform").pvalue > 0.01


def test_recalibration_by_hand():
    """All of 99 PIT at 0.01: the CDF rises there from half of a tenth to the rest, and evenly besides."""
    found = calibration.recalibrate(PDF([0, 1, 2], [[0.05, 0.95]]), np.full(99, 0.01))
    assert found.probability[0] == pytest.approx([0.95 + 0.05 * 0.04 / 0.99, 0.05 * 0.95 / 0.99])


def test_recalibration_by_weights_is_that_by_repetition():
    pdf, pit = gaussians(np.array([1.0, 2.0]), 0.1), np.linspace(0.1, 0.9, 10000) ** 2
    times = 1 + np.arange(10000) // 5000
    weighted, repeated = calibration.recalibrate(pdf, pit, times), calibration.recalibrate(pdf, np.repeat(pit, times))
    assert weighted.cumulative == pytest.approx(repeated.cumulative, abs=2e-3)
    assert np.abs(weighted.cumulative - calibration.recalibrate(pdf, pit).cumulative).max() > 0.1


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_conformal_intervals_cover_whatever_the_pdf_is_worth(spread):
    """P(covered) lies in [level, level + 1 / (n + 1)], whatever objects are held out (Romano et al., th. 1)."""
    inside, n = [], 60
    for seed in range(60):
        pdf, z = toy(n + 200, seed, spread, offset=0.03)
        low, high = calibration.conformal_intervals(pdf[n:], pdf[:n], z[:n], 0.9)
        inside.append(np.mean((z[n:] >= low) & (z[n:] <= high)))
    error = np.std(inside) / len(inside) ** 0.5
    assert 0.9 - 3 * error < np.mean(inside) < 0.9 + 1 / (n + 1) + 3 * error


def test_conformal_intervals_by_hand():
    pdf = PDF([0, 1], np.ones((9, 1)))  # central 80 %: 0.1 to 0.9
    z = np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.7, 2.5, 0.5])
    low, high = calibration.conformal_intervals(pdf[:1], pdf, z, 0.8)  # the 8th of 9 scores, 0.8 of the width 0.8
    assert (low[0], high[0]) == pytest.approx((0.1 - 0.8, 0.9 + 0.8))
    low, high = calibration.conformal_intervals(pdf[:1], pdf[:3], z[:3], 0.8)  # the 4th of 3
    assert (low[0], high[0]) == (-np.inf, np.inf)


def test_weighted_conformal_intervals_cover_under_shift():
    """Errors grow with x; the held-out objects are where they are small. Weights are the true density ratios."""
    inside, plain = [], []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        x, x_new = draw.beta(2, 4, 600), draw.beta(4, 2, 600)
        ratio = lambda x: stats.beta.pdf(x, 4, 2) / stats.beta.pdf(x, 2, 4)
        z, new = (1.5 + 0.2 * v**2 * draw.normal(size=600) for v in (x, x_new))
        pdf = gaussians(np.full(600, 1.5), 0.05)
        for found, weights in ((inside, (ratio(x), ratio(x_new))), (plain, (None, None))):
            low, high = calibration.conformal_intervals(pdf, pdf, z, 0.9, *weights)
            found.append(np.mean((new >= low) & (new <= high)))
    assert np.mean(plain) < 0.85
    assert np.mean(inside) > 0.9 - 3 * np.std(inside) / len(inside) ** 0.5


def test_label_width_is_the_missing_scatter():
    draw = np.random.default_rng(0)
    z_phot = draw.choice([0.5, 1.5], 100000) + 0.05 * draw.normal(size=100000)
    found = calibration.label_width(z_phot, z_phot + 0.1 * draw.normal(size=100000), EDGES)
    assert found == pytest.approx(0.1, rel=0.05)


def test_scatter_profile():
    draw, edges = np.random.default_rng(1), np.linspace(0, 2, 21)
    z = draw.uniform(0, 1, 50000)
    found = calibration.scatter_profile(z + 0.2 * draw.normal(size=len(z)), z, edges, 0.1)
    median = stats.chi2.ppf(0.5, 1)  # of a squared normal deviate, whose mean is 1
    assert found[2:8] == pytest.approx(np.sqrt(0.04 * (1 + median) / 2 + 0.01), rel=0.03)
    assert found[-1] == pytest.approx(found[5], rel=0.05)


def test_shifted_labels_undo_regression_to_the_mean():
    """A linear density 1 + b z and scatter s draw estimates by b s^2 / (1 + b z), to first order (Tweedie)."""
    edges, sigma = np.linspace(0, 4, 401), 0.1
    centres, slope = (edges[1:] + edges[:-1]) / 2, 2.0
    count = 1000 * (1 + slope * centres)
    z_cm = calibration.centre_of_mass(edges, count, 10**6, np.full(400, sigma))
    inner = slice(100, 300)
    drawn = slope * sigma**2 / (1 + slope * centres[inner])
    assert z_cm[inner] - centres[inner] == pytest.approx(drawn, rel=0.01)
    assert calibration.centre_of_mass(edges, count, 10, np.full(400, sigma))[inner] == pytest.approx(centres[inner])

    wide, z = calibration.extended_edges(edges), np.array([1.5, 2.5])
    labels = PDF(wide, calibration.gaussian_bins(calibration.shifted(z, z_cm, edges), sigma, wide))
    assert (wide[0], wide[-1], len(wide)) == (pytest.approx(-2), pytest.approx(6), 801)
    assert labels.mean() == pytest.approx(2 * z - np.interp(z, centres, z_cm), abs=1e-6)
    assert labels.probability[0] @ (labels.centres - labels.mean()[0]) ** 2 == pytest.approx(sigma**2, rel=0.01)


def test_bias_in_z_phot_is_subtracted_in_cells_of_the_target():
    """Training redshifts are of other proportions than the target's: the bias to subtract is the target's."""
    draw, edges, rows = np.random.default_rng(2), np.linspace(0, 2, 41), np.arange(20, 25.1, 0.5)

    def objects(n, a, b):
        z, bright = 2 * draw.beta(a, b, n), draw.uniform(20, 25, n)
        return z + 0.02 * (bright - 22) + 0.05 * draw.normal(size=n), z, bright

    train, (z_phot, z, bright) = objects(200000, 2, 3), objects(200000, 3, 2)
    found = calibration.subtract_phot_bias(z_phot, bright, train, edges, rows)
    for middle in (0.6, 1.0, 1.4):
        for row in (20.25, 24.75):
            own = (np.abs(found - middle) < 0.1) & (np.abs(bright - row) < 0.25)
            before = (z_phot - z)[own].mean()
            assert abs((found - z)[own].mean()) < 0.15 * abs(before)


def test_cells_of_few_correct_nothing():
    """Five objects at a z_phot of 0.6, four at 1.6, none of the faint."""
    z_phot = np.repeat([0.6, 1.6], [5, 4])
    train = z_phot, z_phot - 0.1, np.full(9, 21.0)
    target = np.array([0.6, 1.6, 0.6]), np.array([21.0, 21.0, 23.0])
    found = calibration.subtract_phot_bias(*target, train, np.linspace(0, 2, 3), np.array([20.0, 22, 24]))
    assert found == pytest.approx([0.5, 1.6, 0.6])
