"""Synthetic galaxies: their spectra and numbers against textbooks, their images against direct integration."""

import tracemalloc

import astropy.units as u
import numpy as np
import pytest
import speclite.filters
from astropy.cosmology import FlatLambdaCDM
from scipy.stats import kstest

from data_tools.simulator import bands, photometry, population, render, spectra, spectroscopy, survey

NAMES = [band.name for band in bands.BANDS]
U, G = NAMES.index("u"), NAMES.index("g")
PSF = bands.PSF_SIGMA / bands.PIXEL_SCALE  # pixels


# --- spectra ---------------------------------------------------------------------------------------------------------


def colours(kind, dust, z):
    return -np.diff(spectra.flux_grid().magnitudes(np.asarray(kind), np.asarray(dust), np.asarray(z)), axis=-1)


def test_ultraviolet_dropouts_at_redshift_three_and_a_half():
    kind, dust = np.meshgrid(np.linspace(0, 4, 17), np.linspace(0, 0.3, 7))
    assert np.all(colours(kind, dust, 3.5)[..., U] > 3)
    assert np.all(colours(kind, dust, 1.0)[..., U] < 3)  # and not before


def test_the_4000_angstrom_break_of_ellipticals_marches_through_g_minus_r():
    z = np.linspace(0.1, 0.8, 71)
    g_r = colours(0.0, 0.0, z)[:, G]
    assert np.all(np.diff(g_r) > 0)
    assert 0.7 < g_r[0] < 1.0 and 1.6 < g_r[30] < 1.9  # z = 0.1, 0.4: Coleman, Wu & Weedman's E gives 0.92, 1.76


@pytest.mark.parametrize("kind, z", [(0, 0.3), (2, 1.2), (4, 2.51), (3, 4.1)])
def test_the_flux_grid_against_speclite(kind, z):
    """Magnitudes of the same spectrum, redshifted by the book and integrated by speclite."""
    rest = np.geomspace(450, 30000, 40000)
    f_lambda = spectra.templates(rest)[kind] * 10 ** (-0.4 * 0.15 * spectra.calzetti(rest))
    norm = np.interp(spectra.NORM, rest, f_lambda * rest**2 / 2.998e18)  # f_nu
    observed = rest * (1 + z)
    seen = f_lambda / (1 + z) * spectra.igm_transmission(observed, z)
    unit = u.erg / u.s / u.cm**2 / u.AA
    expected = [
        speclite.filters.load_filter(band.curve).get_ab_magnitude(seen * unit, observed * u.AA) + 2.5 * np.log10(norm)
        for band in bands.BANDS
    ]
    magnitudes = spectra.flux_grid().magnitudes(np.array(float(kind)), np.array(0.15), np.array(z)) - 48.6
    bright = np.array(expected) - min(expected) < 12
    assert np.abs(magnitudes - expected)[bright].max() < 0.01
    assert bright.sum() >= 7


def test_calzetti_reddening_has_its_own_r_v():
    k_b, k_v = spectra.calzetti(np.array([4400.0, 5500.0]))
    assert k_v == pytest.approx(4.05, abs=0.02)
    assert k_b - k_v == pytest.approx(1, abs=0.1)


def test_intergalactic_absorption():
    lyman_alpha = 1215.67 * 4
    transmission = spectra.igm_transmission(np.array([lyman_alpha + 1, lyman_alpha - 1, 1100 * 4, 700 * 4]), 3.0)
    assert transmission[0] == 1
    assert transmission[1] == pytest.approx(np.exp(-0.0036 * 4**3.46), rel=2e-3)
    assert np.all(np.diff(transmission[[0, 1, 3]]) < 0) and transmission[3] < 0.2


# --- population ------------------------------------------------------------------------------------------------------


def test_positions_are_drawn_in_pieces(monkeypatch):
    """Many objects take the memory of their positions, not of all of their random numbers (256 bytes each)."""
    tracemalloc.start()
    whole = population.positions(5, 3, 400_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
    u = population.uniforms(5, population.OBJECTS, 3 + 399_990, 10, 32)
    assert np.array_equal(whole[0][-10:], (u[:, population.FIELD] * population.FIELDS).astype(int))
    monkeypatch.setattr(population, "CHUNK", 1000)
    for a, b in zip(whole, population.positions(5, 3, 12_345), strict=True):
        assert np.array_equal(a[:12_345], b)


@pytest.fixture(scope="module")
def many():
    return population.galaxies(seed=5, first=0, count=40000)


def test_redshifts_and_luminosities_follow_the_schechter_functions(many):
    """Against plain Monte Carlo integration: uniform in redshift and magnitude, weighted, cut at the same limits."""
    rng = np.random.default_rng(0)
    n = 400_000
    cosmology = FlatLambdaCDM(70, 0.3)
    table = np.linspace(0.02, 4.6, 500)
    z, mag, weights, all_z = rng.uniform(0.03, 4.5, n), rng.uniform(-26, -11, n), [], []
    for p in population.POPULATIONS:
        kind, dust = rng.uniform(*p.kinds, n), rng.uniform(*p.dust, n)
        x = 10 ** (-0.4 * (mag - p.m_star - p.m_star_slope * np.minimum(z, p.m_star_until)))
        phi = p.density * 10 ** (p.density_slope * np.maximum(z - p.density_from, 0)) * x ** (p.alpha + 1) * np.exp(-x)
        volume = np.interp(z, table, cosmology.differential_comoving_volume(table).value) * np.radians(1) ** 2
        k_correction = spectra.flux_grid().magnitudes(kind, dust, z)[:, bands.REFERENCE]
        seen = mag + np.interp(z, table, cosmology.distmod(table).value) + k_correction
        weights.append(phi * volume * ((seen > population.I_BRIGHT) & (seen < population.I_FAINT)))
    all_z, weight = np.tile(z, 2), np.concatenate(weights)
    per_deg2 = weight.sum() / n * (4.5 - 0.03) * (26 - 11) * 0.4 * np.log(10)
    assert population.density() == pytest.approx(per_deg2, rel=0.03)
    assert np.mean(many.kind < 0.8) == pytest.approx(weights[0].sum() / weight.sum(), abs=0.01)
    edges = np.array([0.03, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0, 4.5])
    expected = np.histogram(all_z, edges, weights=weight / weight.sum())[0]
    found = np.histogram(many.z, edges)[0] / len(many.z)
    # Poisson errors of both; the bins of the population's table are finer than these
    error = np.sqrt(found / len(many.z) + np.histogram(all_z, edges, weights=(weight / weight.sum()) ** 2)[0])
    assert np.all(np.abs(found - expected) < 4 * error + 0.02 * expected)


def test_the_sample_is_limited_in_magnitude_and_looks_like_the_sky(many):
    mag = many.mag[:, bands.REFERENCE]
    assert mag.min() >= population.I_BRIGHT and mag.max() <= population.I_FAINT
    medians = [np.median(many.z[(mag > m) & (mag < m + 1)]) for m in (21, 22, 23, 24)]
    assert np.all(np.abs(np.array(medians) - [0.49, 0.62, 0.81, 1.0]) < 0.1)  # COSMOS-like
    assert 0.005 < np.mean(many.z > 3) < 0.03


def test_spectra_are_of_the_bright_and_near(many):
    found = spectroscopy.observe(many, many.mag[:, bands.REFERENCE], 5, 0, "S2", errors=False)
    assert 0.08 < found.taken.mean() < 0.15
    assert np.median(many.z[found.taken]) < 0.75 * np.median(many.z)
    pull = (found.z_spec - many.z) / (spectroscopy.Z_ERROR * (1 + many.z))
    assert kstest(pull, "norm").pvalue > 1e-3


def test_sizes_shrink_with_redshift_at_a_given_luminosity(many):
    kpc = many.re_disk * FlatLambdaCDM(70, 0.3).kpc_proper_per_arcmin(many.z).value / 60
    modulus = FlatLambdaCDM(70, 0.3).distmod(many.z).value
    k_correction = spectra.flux_grid().magnitudes(many.kind, np.full_like(many.z, 0.1), many.z)[:, bands.REFERENCE]
    absolute = many.mag[:, bands.REFERENCE] - modulus - k_correction
    blue = (many.kind > 0.8) & (np.abs(absolute + 21) < 1)
    at_l_star = kpc * 10 ** (0.4 * 0.3 * (absolute + 20.5))  # the sample's limit leaves the brighter ones far away
    near, far = (np.median(at_l_star[blue & (np.abs(many.z - z) < 0.2)]) for z in (0.6, 1.6))
    assert far / near == pytest.approx((2.6 / 1.6) ** -0.8, rel=0.04)


def test_fields_miss_bands_but_never_the_reference():
    for seed in range(20):
        sky = population.fields(seed)
        assert sky.observed[:, bands.REFERENCE].all()
        assert sky.observed.all(1).any() and not sky.observed.all(1).all()
    assert not np.array_equal(population.fields(0).observed, population.fields(1).observed)


def test_fields_do_not_overlap():
    sky = population.fields(3)
    points = np.radians([sky.ra, sky.dec])
    x = np.stack([np.cos(points[1]) * np.cos(points[0]), np.cos(points[1]) * np.sin(points[0]), np.sin(points[1])])
    distance = np.degrees(np.arccos(np.clip(x.T @ x, -1, 1))) + 360 * np.eye(len(sky.ra))
    assert distance.min() > 4 * population.FIELD_RADIUS


# --- images ----------------------------------------------------------------------------------------------------------


def one(flux=1.0, bulge=0.0, re=2.0, q=1.0, angle=0.0, offset=(0.0, 0.0), channels=1):
    o = np.ones(1)
    return render.Shapes(np.full((1, channels), flux), bulge * o, re * o, re * o, q * o, q * o, angle * o,
                         np.array([offset]))  # fmt: skip


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_point_source_has_the_psf_s_moments(size):
    offset = np.array([0.3, -0.45])
    psf = tuple(PSF[np.argsort(PSF)[[0, -1]]])
    for sigma, image in zip(
        psf, np.asarray(render.render(one(re=1e-3, offset=offset, channels=2), psf, size))[0], strict=True
    ):
        y, x = np.indices(image.shape) - (size - 1) / 2
        assert image.sum() == pytest.approx(1, abs=1e-4)
        assert [(x * image).sum(), (y * image).sum()] == pytest.approx(offset, abs=2e-3)
        moments = [((d - o) ** 2 * image).sum() for d, o in zip((x, y), offset, strict=True)]
        assert moments == pytest.approx(2 * [sigma**2], rel=5e-3)


def integrated(sersic, re, q, angle, offset, psf_sigma, size, step):
    """A Sersic profile that ends at render.PROFILE_REACH, of unit flux, times a Gaussian PSF: summed on a fine mesh."""
    b = {1: 1.67834699, 4: 7.66924944}[sersic]  # gammainc(2 n, b) = 1/2
    mesh = np.arange(-render.PROFILE_REACH * re, render.PROFILE_REACH * re, step) + step / 2
    x, y = np.meshgrid(mesh, mesh)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    r = np.hypot(along, across / q) / re
    profile = np.where(r < render.PROFILE_REACH, np.exp(-b * r ** (1 / sersic)), 0)
    pixels = np.arange(size) - (size - 1) / 2
    psf_x, psf_y = (
        np.exp(-0.5 * ((pixels - o)[:, None] - mesh) ** 2 / psf_sigma**2) / np.sqrt(2 * np.pi) / psf_sigma
        for o in offset
    )
    return psf_y @ (profile / profile.sum()) @ psf_x.T


@pytest.mark.parametrize("sersic, step, within", [(1, 0.05, 2e-4), (4, 0.02, 5e-3)])
@pytest.mark.parametrize(
    "re, q, angle, offset", [(1.5, 1, 0, (0, 0)), (2, 0.4, 0.7, (0.3, -0.45)), (3, 0.25, 2, (0.1, 0.2))]
)
def test_profiles_against_direct_integration(sersic, step, within, re, q, angle, offset):
    image = np.asarray(render.render(one(1, float(sersic == 4), re, q, angle, offset), (1.3,), 32))[0, 0]
    expected = integrated(sersic, re, q, angle, offset, 1.3, 32, step)
    assert np.abs(image - expected).max() < within * expected.max()


def test_light_that_leaves_the_stamp_does_not_come_back():
    """The largest disk allowed, on the smallest stamp, against the same drawn in a box five times as wide."""
    shapes = one(1.0, 0.0, population.RE_RANGE[1] / bands.PIXEL_SCALE, 1.0)
    small = np.asarray(render.render(shapes, (1.3,), 16))[0, 0]
    large = np.asarray(render.render(shapes, (1.3,), 208))[0, 0]
    assert np.abs(small - large[96:112, 96:112]).max() < 2e-3 * large.max()


def test_apertures_measure_the_flux_before_the_seeing():
    """Closed form: a Gaussian of covariance S holds p^2 / sqrt(det(S + p^2)) of its flux in exp(-r^2 / 2p^2)."""
    p, re, q = survey.APERTURE_SIGMA / bands.PIXEL_SCALE, 2.5, 0.5
    offset = np.array([[0.4, -0.2]])
    image = np.asarray(render.render(one(100, 0, re, q, 0.6, offset[0], len(NAMES)), tuple(PSF), 48)).astype(float)
    flux, _ = photometry.matched_fluxes(image, 23.5 + offset, PSF, p, np.ones(len(NAMES)))
    weight, sigma = render.mixture(render.EXPONENTIAL)
    a, b = (re * sigma) ** 2, (re * q * sigma) ** 2
    assert flux[0] == pytest.approx(100 * np.sum(weight * p**2 / np.sqrt((a + p**2) * (b + p**2))), rel=1e-3)
    point = np.asarray(render.render(one(100, 0, 1e-3, channels=len(NAMES)), tuple(PSF), 32)).astype(float)
    flux, _ = photometry.matched_fluxes(point, np.array([[15.5, 15.5]]), PSF, p, np.ones(len(NAMES)))
    assert flux[0] == pytest.approx(100, rel=1e-3)


def test_an_aperture_narrower_than_the_psf_is_refused():
    with pytest.raises(ValueError, match="aperture_sigma"):
        photometry.matched_fluxes(np.zeros((1, 1, 8, 8)), np.zeros((1, 2)), np.array([2.0]), 2.0, np.ones(1))


def test_a_circular_aperture_has_its_area():
    area = photometry.circular_flux(np.ones((2, 32, 32)), np.array([[15.5, 15.5], [15.1, 16.2]]), 7.5)
    assert area == pytest.approx(np.pi * 7.5**2, rel=5e-3)


def test_depths_are_what_the_band_table_says():
    """A point source of the depth's magnitude, weighted by its PSF, is measured at 5 sigma."""
    flux = 10 ** (-0.4 * (np.array([band.depth for band in bands.BANDS]) - bands.zero_points()))
    image = np.asarray(render.render(one(1, 0, 1e-3, channels=len(NAMES)), tuple(PSF), 32))[0].astype(float)
    assert flux * np.sqrt((image**2).sum((1, 2))) == pytest.approx(5, rel=1e-3)
