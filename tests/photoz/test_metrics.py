import numpy as np
import pytest
from scipy import integrate, stats

from jaxz.photoz import metrics, terms
from jaxz.photoz.metrics import evaluate_metrics
from jaxz.photoz.pdf import PDF
from jaxz.photoz.terms import crps, pdf_terms, wasserstein


def values(*arguments, **options):
    return {name: metric["value"] for name, metric in evaluate_metrics(*arguments, **options).items()}


def random_pdf(n, bins=25, seed=0):
    edges = np.sort(np.random.default_rng(seed).uniform(0, 3, bins + 1))  # bins of unequal width
    return PDF(edges, np.random.default_rng(seed + 1).dirichlet(np.full(bins, 0.4), n))


def gaussians(mean, sigma, edges):
    mass = np.diff(stats.norm.cdf(edges, mean[:, None], sigma), axis=1)
    return PDF(edges, mass / mass.sum(axis=1, keepdims=True))


def test_point_metrics_by_hand():
    z_true = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    e = np.array([-0.1, 0.0, 0.02, 0.06, 0.52])  # median 0.02; |e - median| = .12 .02 0 .04 .5, median .04
    found = values(z_true + e * (1 + z_true), z_true)
    assert found["bias_mean"] == pytest.approx(0.1)
    assert found["bias_median"] == pytest.approx(0.02)
    assert found["sigma_mad"] == pytest.approx(1.4826 * 0.04)
    assert found["nmad0"] == pytest.approx(1.4826 * 0.06)
    assert found["sigma_iqr"] == pytest.approx(0.06 / 1.349)
    assert found["sigma_68"] == pytest.approx((0.2256 - -0.036) / 2)  # p16 at rank 0.64, p84 at rank 3.36
    assert found["eta_05"] == pytest.approx(3 / 5)
    assert found["eta_15"] == pytest.approx(1 / 5)
    assert found["outlier_rail"] == pytest.approx(1 / 5)  # threshold 3 x 0.0445 = 0.133
    assert found["rms"] == pytest.approx(np.sqrt((0.01 + 0 + 0.0004 + 0.0036 + 0.2704) / 5))
    assert found["r2"] == pytest.approx(1 - (0.01 + 0 + 0.0004 + 0.0144 + 0.2704) / 1.2)
    assert found["hsc_loss"] == pytest.approx(np.mean([1 - 1 / (1 + (x / 0.15) ** 2) for x in e]))
    assert found["objects"] == 5


def test_outlier_threshold_has_a_floor():
    z_true = np.zeros(100)
    z_phot = np.concatenate([np.zeros(98), [0.05, 0.07]])  # sigma_iqr is 0: the threshold is 0.06
    assert values(z_phot, z_true)["outlier_rail"] == pytest.approx(0.01)


def test_point_metrics_of_gaussian_residuals():
    generator = np.random.default_rng(5)
    z_true = generator.uniform(0, 2, 200_000)
    found = values(z_true + (0.01 + 0.03 * generator.normal(size=z_true.size)) * (1 + z_true), z_true, resamples=0)
    for name in ("sigma_mad", "sigma_68", "sigma_iqr"):
        assert found[name] == pytest.approx(0.03, rel=0.01)
    assert found["bias_median"] == pytest.approx(0.01, abs=3e-4)
    assert found["eta_05"] == pytest.approx(stats.norm.sf(4 / 3) + stats.norm.cdf(-2), abs=2e-3)


@pytest.mark.parametrize("offset", [-2.0, -0.3, 0.0, 0.1, 1.7])
def test_crps_of_a_gaussian(offset):
    """Closed form of Gneiting & Raftery 2007, eq. 21: sigma [x (2 Phi(x) - 1) + 2 phi(x) - 1 / sqrt(pi)]."""
    mean, sigma = np.array([0.7, 1.5]), 0.1
    pdf = gaussians(mean, sigma, np.linspace(-0.5, 3, 3501))
    x = offset
    expected = sigma * (x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi))
    assert crps(pdf, mean + sigma * x) == pytest.approx([expected] * 2, rel=1e-4)


def test_step_distances_against_integration():
    pdf = random_pdf(6)
    z_true = np.array([0.01, 0.6, 1.234, pdf.edges[7], 2.8, 1.0])
    for row, z in enumerate(z_true):

        def step(x, power, row=row, z=z):
            return abs(pdf[[row]].cdf(x)[0] - (x >= z)) ** power

        for function, power in ((wasserstein, 1), (crps, 2)):
            points = np.unique(np.append(pdf.edges, [0, 3, z]))
            brute = sum(
                integrate.quad(step, a, b, args=(power,))[0] for a, b in zip(points[:-1], points[1:], strict=True)
            )
            assert function(pdf, z_true)[row] == pytest.approx(brute, abs=1e-9)


def test_step_distances_outside_of_the_grid():
    pdf = PDF([1.0, 2.0], [[1.0], [1.0]])  # uniform from 1 to 2
    z_true = np.array([0.5, 2.25])
    assert wasserstein(pdf, z_true) == pytest.approx([1.0, 0.75])  # E|z - z_true|
    assert crps(pdf, z_true) == pytest.approx([0.5 + 1 / 3, 0.25 + 1 / 3])


def test_crps_in_blocks(monkeypatch):
    pdf, z_true = random_pdf(100), np.random.default_rng(4).uniform(0, 3, 100)
    whole = crps(pdf, z_true)
    monkeypatch.setattr(terms, "BLOCK", 7 * len(pdf.edges))
    assert np.array_equal(crps(pdf, z_true), whole)


def test_pdf_terms_by_hand():
    pdf = PDF([0.0, 1.0, 3.0], [[0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])  # densities 0.4 and 0.3
    found = pdf_terms(pdf, np.array([0.5, 2.0, 4.0]))
    assert found["pit"] == pytest.approx([0.2, 0.7, 1.0])
    assert found["cde_loss"] == pytest.approx(np.array([0.16 + 2 * 0.09] * 3) - 2 * np.array([0.4, 0.3, 0]))
    assert found["nll"] == pytest.approx([-np.log(0.4), -np.log(0.3), -np.log(1e-6)])
    square = 50 * 0.008**2 + 100 * 0.006**2  # of 150 bins of 0.02
    assert found["brier"] == pytest.approx([square - 2 * 0.008 + 1, square - 2 * 0.006 + 1, square + 1])


def test_the_brier_score_does_not_depend_on_the_grid():
    z_true = np.random.default_rng(5).uniform(0, 2, 50)
    seen = [gaussians(z_true + 0.02, 0.05, edges) for edges in (np.arange(0, 301) / 100, np.arange(0, 151) / 50)]
    fine, coarse = (pdf_terms(pdf, z_true)["brier"] for pdf in seen)
    assert fine == pytest.approx(coarse, abs=1e-6)
    longer = PDF(np.arange(-50, 351) / 100, np.pad(seen[0].probability, ((0, 0), (50, 50))))
    assert pdf_terms(longer, z_true)["brier"] == pytest.approx(fine, abs=1e-9)


def test_terms_of_blocks_are_those_of_the_whole(monkeypatch):
    pdf, z_true = random_pdf(50), np.random.default_rng(6).uniform(0, 2, 50)
    whole = pdf_terms(pdf, z_true)
    monkeypatch.setattr("jaxz.photoz.pdf.BLOCK", 7)
    for name, values in pdf_terms(pdf, z_true).items():
        assert values == pytest.approx(whole[name], rel=1e-12)


def test_pit_statistics_against_scipy():
    pit = np.random.default_rng(7).beta(1.2, 0.9, (3, 500))
    assert metrics.pit_ks(pit) == pytest.approx([stats.kstest(row, "uniform").statistic for row in pit])
    assert metrics.pit_cvm(pit) == pytest.approx([stats.cramervonmises(row, "uniform").statistic for row in pit])


def test_calibrated_densities_look_calibrated():
    """Truths drawn from the densities themselves: a bin by its mass, evenly inside the bin."""
    n, generator = 20_000, np.random.default_rng(8)
    pdf = random_pdf(n)
    bins = (pdf.probability.cumsum(axis=1) < generator.uniform(size=(n, 1))).sum(axis=1)
    z_true = pdf.edges[bins] + generator.uniform(size=n) * np.diff(pdf.edges)[bins]
    found = values(pdf.median(), z_true, pdf, resamples=0)
    assert found["coverage_68"] == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / n))
    assert found["pit_ks"] < 1.95 / np.sqrt(n)  # exceeded once in a thousand
    assert found["pit_outlier_rate"] == pytest.approx(2e-4, abs=4e-4)
    assert found["nz_bias"] == pytest.approx(0, abs=0.01)

    blurred = PDF(pdf.edges, (pdf.probability + np.diff(pdf.edges) / np.ptp(pdf.edges)) / 2)
    worse = values(pdf.median(), z_true, blurred, resamples=0)
    for score in ("crps", "cde_loss", "nll", "brier", "pit_cvm"):  # proper scores are best at the true density
        assert found[score] < worse[score]


def test_against_qp():
    """A thousand random densities on a grid whose end bins are empty: there qp's trapezoids are exact."""
    qp = pytest.importorskip("qp", reason="qp-prob is an optional peer")
    from qp.metrics import point_estimate_metric_classes as points
    from qp.metrics.brier import Brier
    from qp.metrics.concrete_metric_classes import CDELossMetric
    from qp.metrics.pit import PIT

    generator, n, edges = np.random.default_rng(9), 1000, np.linspace(0, 2, 101)
    mass = np.pad(generator.dirichlet(np.full(98, 0.3), n), ((0, 0), (1, 1)))
    pdf, z_true = PDF(edges, mass), generator.uniform(0.02, 1.98, n)
    z_phot = z_true + 0.1 * generator.standard_cauchy(n)
    ensemble = qp.Ensemble(qp.hist, data={"bins": edges, "pdfs": pdf.probability / pdf.widths})
    of_each, peer = pdf_terms(pdf, z_true), PIT(ensemble, z_true)
    found = values(z_phot, z_true, pdf, resamples=0)
    in_bin = (z_true[:, None] >= edges[:-1]) & (z_true[:, None] < edges[1:])  # bins of 0.02
    assert of_each["pit"] == pytest.approx(peer.pit_samps, abs=1e-9)
    for name, expected in {
        "pit_ks": peer.evaluate_PIT_KS().statistic,
        "pit_cvm": peer.evaluate_PIT_CvM().statistic,
        "pit_ad": peer.evaluate_PIT_anderson_ksamp().statistic,
        "brier": Brier(mass, in_bin.astype(float)).evaluate(),
        "cde_loss": CDELossMetric(eval_grid=pdf.centres).evaluate(ensemble, z_true),
        "bias_median": points.PointBias().evaluate(z_phot, z_true),
        "sigma_iqr": points.PointSigmaIQR().evaluate(z_phot, z_true),
        "sigma_mad": points.PointSigmaMAD().evaluate(z_phot, z_true),
        "outlier_rail": points.PointOutlierRate().evaluate(z_phot, z_true),
    }.items():
        assert found[name] == pytest.approx(expected, abs=1e-6), name
    assert pdf.median() == pytest.approx(ensemble.median().ravel(), abs=1e-6)
    assert pdf.quantile(0.16) == pytest.approx(ensemble.ppf(0.16).ravel(), abs=1e-6)
    assert pdf.mode() == pytest.approx(ensemble.mode(pdf.centres).ravel(), abs=1e-6)


def test_the_metrics_of_calibrated_gaussians():
    """Truths drawn from the densities: CRPS is sigma / sqrt(pi), CDE loss -1 / (2 sqrt(pi) sigma), in expectation."""
    n, sigma, generator = 2000, 0.1, np.random.default_rng(12)
    mean = generator.uniform(1, 2, n)
    z_true = mean + sigma * generator.normal(size=n)
    pdf = gaussians(mean, sigma, np.linspace(0, 3, 601))
    of_each = pdf_terms(pdf, z_true)
    x = (z_true - mean) / sigma
    assert of_each["crps"] == pytest.approx(
        sigma * (x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi)), abs=2e-5
    )
    assert of_each["cde_loss"].mean() == pytest.approx(-1 / (2 * np.sqrt(np.pi) * sigma), rel=0.02)
    assert of_each["credibility"] == pytest.approx(2 * stats.norm.cdf(np.abs(x)) - 1, abs=0.04)  # two bins' mass
    assert stats.kstest(of_each["pit"], "uniform").pvalue > 0.01
    assert stats.kstest(of_each["credibility"], "uniform").pvalue > 0.01
    found = values(mean, z_true, pdf, resamples=0)
    inside = np.abs(x)
    assert found["coverage_hpd_68"] == pytest.approx((inside < stats.norm.ppf(0.84)).mean(), abs=0.01)
    assert found["coverage_hpd_95"] == pytest.approx((inside < stats.norm.ppf(0.975)).mean(), abs=0.01)
    assert found["ece"] < 0.02
    wider = values(mean, z_true, gaussians(mean, 2 * sigma, np.linspace(0, 3, 601)), resamples=0)
    levels = np.arange(1, 20) / 20
    expected = np.mean(np.abs(2 * stats.norm.cdf(2 * stats.norm.ppf((1 + levels) / 2)) - 1 - levels))
    assert wider["ece"] == pytest.approx(expected, abs=0.02)


def test_conventions_of_other_surveys_by_hand():
    z_true = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    e = np.array([-0.1, 0.0, 0.02, 0.06, 0.52, 0.01])
    found = values(z_true + e * (1 + z_true), z_true)
    dz = e * (1 + z_true)  # -0.1, 0, 0.02, 0.12, 0.52, 0.01; median 0.015
    assert found["nmad_eazy"] == pytest.approx(1.48 * np.median(np.abs(dz - 0.015) / (1 + z_true)))
    assert found["rms_clipped"] == pytest.approx(np.sqrt((0.01 + 0 + 0.0004 + 0.0036 + 0.0001) / 5))
    mad = np.median(np.abs(e - 0.015))  # biweights of Beers et al. 1990, with the tuning constants 6 and 9
    u, v = (e - 0.015) / (6 * mad), (e - 0.015) / (9 * mad)
    near, wide = np.abs(u) < 1, np.abs(v) < 1
    weight = (1 - u[near] ** 2) ** 2
    location = 0.015 + np.sum(weight * (e[near] - 0.015)) / np.sum(weight)
    top = np.sum((e[wide] - 0.015) ** 2 * (1 - v[wide] ** 2) ** 4)
    scale = np.sqrt(6 * top) / np.abs(np.sum((1 - v[wide] ** 2) * (1 - 5 * v[wide] ** 2)))
    assert (found["hsc_bias"], found["hsc_sigma"]) == (pytest.approx(location), pytest.approx(scale))
    assert found["hsc_outlier"] == pytest.approx(np.mean(np.abs(e - location) > 2 * scale))


def test_bootstrap_errors_match_theory():
    generator = np.random.default_rng(10)
    z_true = np.zeros(4000)
    found = evaluate_metrics(0.1 * generator.normal(size=4000), z_true, resamples=400)
    eta = found["eta_15"]["value"]
    assert found["bias_mean"]["error"] == pytest.approx(0.1 / np.sqrt(4000), rel=0.12)
    assert found["bias_median"]["error"] == pytest.approx(0.1 * np.sqrt(np.pi / 2 / 4000), rel=0.2)
    assert found["eta_15"]["error"] == pytest.approx(np.sqrt(eta * (1 - eta) / 4000), rel=0.12)


def test_bootstrap_is_a_function_of_the_seed():
    z_phot, z_true = np.random.default_rng(11).uniform(0, 1, (2, 50))
    first = evaluate_metrics(z_phot, z_true, seed=3)
    assert first == evaluate_metrics(z_phot, z_true, seed=3)
    assert first["sigma_mad"]["error"] != evaluate_metrics(z_phot, z_true, seed=4)["sigma_mad"]["error"]


def test_objects_of_a_sky_cell_are_drawn_together():
    """Twenty copies of each object tell no more than one."""
    z_phot, z_true = np.random.default_rng(12).uniform(0.2, 1, (2, 400))
    copies = [np.repeat(x, 20) for x in (z_phot, z_true, np.arange(400))]
    found, one = evaluate_metrics(*copies[:2], cells=copies[2]), evaluate_metrics(z_phot, z_true)
    for name in ("bias_mean", "eta_15"):
        assert found[name]["error"] == pytest.approx(one[name]["error"], rel=0.2)
        assert found[name]["value"] == pytest.approx(one[name]["value"])


def test_few_objects():
    pdf = random_pdf(4)
    none = evaluate_metrics([], [], pdf[:0])
    assert none["objects"] == {"value": 0, "error": 0}
    assert none["sigma_mad"] == none["crps"] == {"value": None, "error": None}
    one = evaluate_metrics([1.0], [1.1], pdf[:1])
    assert one["bias_mean"] == {"value": pytest.approx(-0.1 / 2.1), "error": None}
    assert one["r2"] == {"value": None, "error": None}
    four = evaluate_metrics([1.0, 1.2, 0.3, 0.4], [1.1, 1.1, 0.3, 0.5], pdf)
    assert four.keys() == none.keys()
    assert all(m["error"] is None for name, m in four.items() if name != "objects")


def test_refuses_unknown_redshifts():
    with pytest.raises(ValueError, match="z_true: 1 of 2"):
        evaluate_metrics([1.0, 1.0], [1.0, np.nan])
    with pytest.raises(ValueError, match="same objects"):
        evaluate_metrics([1.0], [1.0, 2.0])
