import numpy as np
import pytest
from scipy import stats

from jaxz.photoz.binned import (
    binned_metrics,
    dependence_metrics,
    equal_bins,
    macro_metrics,
    residual_curve,
    residual_slope,
    tomography,
)
from jaxz.photoz.metrics import main_metrics
from jaxz.photoz.pdf import PDF


def test_binned():
    z_true = np.array([0.1, 0.2, 0.9, 1.0])
    bins = binned_metrics(z_true + 0.1 * (1 + z_true), z_true, by=z_true, edges=[0, 0.5, 0.7, 1.0])
    assert [b["objects"] for b in bins] == [2, 0, 2]
    assert [b["centre"] for b in bins] == [pytest.approx(0.15), None, pytest.approx(0.95)]
    assert bins[0]["bias_median"]["value"] == pytest.approx(0.1)
    assert bins[1]["bias_median"] == {"value": None, "error": None}
    assert (bins[2]["low"], bins[2]["high"]) == (0.7, 1.0)


def test_densities_are_binned_with_their_objects():
    pdf = PDF([0.0, 1.0, 2.0], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    z_true, bands = np.array([0.5, 0.5, 0.5]), np.array([3, 3, 5])
    bins = binned_metrics(pdf.median(), z_true, bands, [2.5, 3.5, 4.5, 5.5], pdf)
    assert [b["objects"] for b in bins] == [2, 0, 1]
    assert bins[0]["wasserstein"]["value"] == pytest.approx((0.25 + 1.0) / 2)  # E|z - z_true| of either
    assert bins[2]["cde_loss"]["value"] == pytest.approx(0.5 - 2 * 0.5)


def test_errors_in_bins_are_of_whole_cells():
    """A hundred copies of an object tell no more than one; a bin of few cells draws objects one by one."""
    draw, cells = np.random.default_rng(4), np.repeat(np.arange(40), 100)
    e = np.repeat(draw.normal(0, 0.05, 40), 100)
    z_true = np.where(cells < 37, 0.5, 1.5)
    named = dict(cells=cells, metrics=lambda c: {"mean": ((c["z_phot"] - c["z_true"]) / (1 + c["z_true"])).mean(-1)})
    near, far = binned_metrics(z_true + e * (1 + z_true), z_true, z_true, [0, 1, 2], resamples=1000, **named)
    assert near["mean"]["error"] == pytest.approx(e[:3700].std() / 36**0.5, rel=0.1)
    assert far["mean"]["error"] == pytest.approx(e[3700:].std() / 300**0.5, rel=0.1)


def test_slopes_and_macro_metrics_are_of_the_same_bins():
    draw = np.random.default_rng(5)
    z_true = draw.uniform(0, 2, 4000)
    z_phot = z_true + (1 + z_true) * (0.02 * draw.normal(size=4000) + 0.1 * (1 - z_true))
    edges = equal_bins(z_true)
    assert edges[0] == z_true.min() and np.ptp(np.diff(edges)) < 1e-12 and (z_true > edges[-1]).sum() == 8
    found = dependence_metrics(z_phot, z_true, edges)
    assert found["slope_z_true"] == pytest.approx(-0.1, abs=0.002)
    assert found["slope_z_phot"] == residual_slope(residual_curve(z_phot, z_true, z_phot, edges))[0]
    assert found["spread_bias_median"] == pytest.approx(
        0.18, abs=0.01
    )  # of bins of a fifth of the redshifts' range / 2
    assert found.items() >= macro_metrics(z_phot, z_true, edges).items()


def test_every_redshift_bin_counts_the_same():
    generator = np.random.default_rng(1)
    z_true = np.concatenate([generator.uniform(0, 1, 400), generator.uniform(1, 2, 40), [2.5] * 10])  # too few there
    e = 0.02 * generator.normal(size=450) - 0.14 * (z_true >= 1)
    found = macro_metrics(z_true + e * (1 + z_true), z_true, [0, 1, 2, 3])
    low, high = (
        main_metrics((z_true + e * (1 + z_true))[rows], z_true[rows]) for rows in (slice(400), slice(400, 440))
    )
    for name in ("sigma_mad", "eta_15"):
        assert found[f"macro_{name}"] == pytest.approx((low[name] + high[name]) / 2)
        assert found[f"spread_{name}"] == pytest.approx(abs(low[name] - high[name]))
    assert found["macro_bias_median"] == pytest.approx((abs(low["bias_median"]) + abs(high["bias_median"])) / 2)
    assert found.keys() == macro_metrics(z_true, z_true, [5, 6]).keys()
    assert all(np.isnan(v) for v in macro_metrics(z_true, z_true, [5, 6]).values())


def test_residual_slopes_tell_regression_to_the_mean():
    """z_phot = 1 + (z_true - 1) / 2 + noise has a slope in z_true, and none in z_phot where the noise is its share."""
    generator, n = np.random.default_rng(2), 40_000
    z_phot = generator.normal(2, 0.2, n)
    z_true = z_phot + generator.normal(0, 0.2, n)  # E[z_true | z_phot] = z_phot
    by_phot = residual_curve(z_phot, z_true, z_phot, np.linspace(1.5, 2.5, 11))
    by_true = residual_curve(z_phot, z_true, z_true, np.linspace(1.5, 2.5, 11))
    assert by_true["mean"] == pytest.approx(-(by_true["centre"] - 2) / 2 / (1 + by_true["centre"]), abs=0.004)
    slope, error = residual_slope(by_true)
    assert slope == pytest.approx(-1 / 6, abs=0.01) and 0 < error < 0.01
    assert abs(residual_slope(by_phot)[0]) < 0.02  # of the order of the variance: e divides by 1 + z_true


def test_the_slope_is_that_of_weighted_least_squares():
    curve = {
        "centre": np.array([0.1, 0.5, 1.1]),
        "mean": np.array([0.0, -0.02, -0.01]),
        "error": np.array([1, 2, 4]) / 99,
    }
    fit, covariance = np.polyfit(curve["centre"], curve["mean"], 1, w=1 / curve["error"], cov="unscaled")
    assert residual_slope(curve) == pytest.approx((fit[0], covariance[0, 0] ** 0.5))
    assert np.isnan(residual_slope({name: values[:1] for name, values in curve.items()})).all()


def test_tomography_by_hand():
    pdf = PDF([0.0, 1.0, 2.0], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    z_true = np.array([0.5, 1.5, 1.2])
    first, second, empty = tomography(pdf, pdf.median(), z_true, [0, 1.1, 2, 3])
    assert (first["objects"], second["objects"], empty["objects"]) == (2, 1, 0)
    assert first["mean_bias"] == pytest.approx((0.75 - 1.0) / 2)  # the stack holds 0.75 and 0.25
    assert first["kld"] == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    # |CDF - step|: 0 to .375, then .125 to 0 at 2/3 and up to .25; .25 to .375, then .125 to 0
    areas = (0.375 * 0.5 / 2, 0.125 / 6 / 2 + 0.25 / 3 / 2, (0.25 + 0.375) / 4, 0.125 * 0.5 / 2)
    assert first["wasserstein"] == pytest.approx(sum(areas))
    assert empty["mean_bias"] is empty["kld"] is None
    for beyond in (-0.1, 2.1):  # half of the truth off the grid, where p(z) is 0: not nearer to it for that
        assert tomography(pdf[[0, 0]], np.full(2, 0.5), np.array([0.5, beyond]), [0, 2])[0]["kld"] == np.inf


def test_distance_of_a_stack_against_scipy():
    generator = np.random.default_rng(3)
    edges = np.linspace(0, 2, 21)
    pdf, z_true = PDF(edges, generator.dirichlet(np.full(20, 0.5), 40)), generator.uniform(0, 2, 40)
    stack = pdf.probability.mean(0)
    fine = np.linspace(0, 2, 200_001)[:-1] + 5e-6
    expected = stats.wasserstein_distance(fine, z_true, u_weights=np.repeat(stack, 10_000))
    assert tomography(pdf, np.ones(40), z_true, [0, 2])[0]["wasserstein"] == pytest.approx(expected, abs=1e-5)
