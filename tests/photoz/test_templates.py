import numpy as np
import pytest

from jaxz.photoz import templates
from jaxz.photoz.spectra import HISTORIES, WAVELENGTH, star
from jaxz.photoz.spectra import templates as galaxies

CENTRES = (3700, 4800, 6200, 7700, 9000, 12500, 16500, 21500)  # angstrom
CURVES = [templates.Curve(np.array([0.92, 1.08]) * centre, np.ones(2)) for centre in CENTRES]
EDGES = np.linspace(0, 4, 101)
GRID = (EDGES[1:] + EDGES[:-1]) / 2


@pytest.fixture(scope="module")
def models():
    return templates.model_fluxes(WAVELENGTH, galaxies(), CURVES, GRID)


def mean(spectrum, start, stop):
    return spectrum[slice(*np.searchsorted(WAVELENGTH, (start, stop)))].mean()


def test_stars_are_black_bodies_with_edges():
    plain = WAVELENGTH**-5.0 / np.expm1(1.438777e8 / (WAVELENGTH * 5000))
    red = WAVELENGTH > 4000
    ratio = star(5000.0)[red] / plain[red]
    assert ratio == pytest.approx(ratio[0])
    assert mean(star(9500.0), 3500, 3640) < 0.6 * mean(star(9500.0), 3660, 3800)  # the Balmer jump of an A star
    assert mean(star(4500.0), 3850, 3990) < 0.65 * mean(star(4500.0), 4010, 4150)


def test_galaxies_age_as_they_should():
    spectra = galaxies()
    assert len(spectra) == len(HISTORIES) and (spectra >= 0).all()
    old, young = spectra[:4], spectra[-1]
    d4000 = [mean(row, 4050, 4250) / mean(row, 3750, 3950) for row in (*old, young)]
    assert (np.diff(d4000) < 0).all() and d4000[0] > 1.6
    assert mean(young, 1400, 1600) > 20 * mean(old[0], 1400, 1600)
    assert mean(young, 700, 900) < 0.1 * mean(young, 950, 1150)
    sides = lambda row: (mean(row, 6200, 6400) + mean(row, 6730, 6930)) / 2
    width = lambda row: (mean(row, 6400, 6730) / sides(row) - 1) * 330  # angstrom, of H alpha
    assert 300 < width(young) < 3000 and abs(width(old[0])) < 10


def test_model_fluxes_of_a_power_law_and_of_a_step():
    """f_lambda = lambda^-2 is flat in f_nu at any redshift; below a break nothing is seen."""
    flat = templates.model_fluxes(WAVELENGTH, WAVELENGTH[None] ** -2.0, CURVES[3:], np.array([0.0, 1.0]))
    assert flat == pytest.approx(1, rel=1e-3)
    step = np.where(WAVELENGTH < 4000, 0, WAVELENGTH**-2.0)[None]
    found = templates.model_fluxes(WAVELENGTH, step, CURVES, np.array([0.0, 1.0]))[:, 0] > 0.05
    assert found.argmax(axis=1).tolist() == [1, 3]  # 4000 angstrom lies below 4416; redshifted, 8000 in the 4th band


@pytest.mark.parametrize("width", [10.0, 145.0, 1500.0])
def test_band_fluxes_of_a_filter_however_narrow(width):
    """F_lambda = lambda^a in a top hat of photons: the mean of f_nu, lambda^(a + 2), over ln(lambda) in closed form."""
    low, high, a = 9000 - width / 2, 9000 + width / 2, 1.5
    curves = [templates.Curve(np.array([low, high]), np.ones(2)), *CURVES]
    found = templates.band_fluxes(WAVELENGTH, WAVELENGTH[None] ** a, curves, np.array([0.0]))[0, 0, 0]
    mean = (high ** (a + 2) - low ** (a + 2)) / (a + 2) / np.log(high / low)
    assert found == pytest.approx(mean, rel=1.5 * templates.STEP if width < 100 else 5e-4)


def test_chi2_is_the_least_of_all_combinations(models):
    """Of three templates, by brute force: the best of all least-squares fits without negative amplitudes."""
    draw = np.random.default_rng(0)
    flux, error = draw.uniform(0.5, 2, (4, len(CURVES))), np.full((4, len(CURVES)), 0.2)
    some = models[::20, [0, 4, 9]]
    found, single = (templates.fit(flux, error, some, combine=c, floor=0.0) for c in (True, False))
    subsets = [[t for t in range(3) if bits >> t & 1] for bits in range(1, 8)]
    for n in range(4):
        for z in range(len(some)):
            fits = {}
            for chosen in subsets:
                x = np.linalg.lstsq(some[z, chosen].T, flux[n])[0]
                if (x >= 0).all():
                    fits[tuple(chosen)] = (((flux[n] - x @ some[z, chosen]) / 0.2) ** 2).sum()
            assert found[n, z] == pytest.approx(min(fits.values()))
            assert single[n, z] == pytest.approx(min(chi2 for chosen, chi2 in fits.items() if len(chosen) == 1))


def test_what_is_not_observed_counts_nothing(models):
    flux, error = np.ones((3, len(CURVES))), np.full((3, len(CURVES)), 0.1)
    flux[0, 2], error[1, 2], flux[2, 2], error[2, 2] = np.nan, -1, 1e9, np.inf
    seen = [0, 1, *range(3, len(CURVES))]
    expected = templates.fit(flux[:1, seen], error[:1, seen], models[:, :, seen])
    assert templates.fit(flux, error, models) == pytest.approx(np.repeat(expected, 3, 0))
    blank = templates.posterior(templates.fit(np.full_like(flux, np.nan), error, models), EDGES)
    assert blank.probability == pytest.approx(1 / len(GRID))


def test_redshifts_and_zero_points_of_mixtures_come_back(models):
    draw = np.random.default_rng(1)
    at = draw.integers(5, len(GRID), 150)
    truth, mixed = GRID[at], draw.dirichlet(np.full(len(HISTORIES), 0.5), 150)
    flux = np.einsum("nt,ntc->nc", mixed, models[at]) * (1 + 0.02 * draw.normal(size=(150, len(CURVES))))
    error = np.full_like(flux, 0.02)
    pdf = templates.posterior(templates.fit(flux, error, models, floor=0.01), EDGES)
    e = (pdf.median() - truth) / (1 + truth)
    assert 1.4826 * np.median(np.abs(e)) < 0.02 and np.mean(np.abs(e) > 0.15) < 0.1

    off = np.array([1.2, 1, 1, 0.9, 1, 1, 1, 1])
    few = models[:, [0, 4, 9]]  # with as many templates as bands, they follow the offsets
    flux = few[at, draw.integers(0, 3, 150)] * (1 + 0.02 * draw.normal(size=flux.shape))
    found = templates.zero_points(flux * off, error, truth, few, GRID)
    expected = (1 / off) / np.exp(np.log(1 / off).mean())
    assert found == pytest.approx(expected, rel=0.03)


def test_repair_reaches_redshifts_without_labels():
    """Templates whose ultraviolet is wrong, mended by galaxies below z = 1, find those of z 1.2 to 2; and chi^2 at the
    known redshifts falls to the noise."""
    draw, centres = np.random.default_rng(2), np.array(CENTRES, float)
    chosen = galaxies()[[0, 4, 9]]
    right = templates.model_fluxes(WAVELENGTH, chosen, CURVES, GRID)
    wrong = chosen * np.interp(np.log(WAVELENGTH), np.log([2000, 5000]), [0.3, 1.0])
    models = templates.model_fluxes(WAVELENGTH, wrong, CURVES, GRID)

    def observe(low, high, n):
        at = draw.integers(*np.searchsorted(GRID, (low, high)), n)
        flux = np.einsum("nt,ntc->nc", draw.dirichlet(np.full(3, 0.3), n), right[at])
        return flux * (1 + 0.02 * draw.normal(size=flux.shape)), 0.02 * flux, GRID[at]

    def missed(models, flux, error, z):
        found = templates.posterior(templates.fit(flux, error, models, floor=0.02), EDGES).median()
        return np.median(np.abs(found - z) / (1 + z))

    flux, error, z = observe(0.1, 1.0, 400)
    mended = templates.repair(flux, error, z, models, GRID, centres, floor=0.0)
    chi2 = templates.fit(flux, error, mended, floor=0.0)[np.arange(400), np.abs(z[:, None] - GRID).argmin(1)]
    assert np.median(chi2) < 2 * len(CURVES)
    flux, error, z = observe(1.2, 2.0, 150)
    assert missed(mended, flux, error, z) < 0.6 * missed(models, flux, error, z)


def test_repair_without_objects_or_need_changes_nothing(models):
    some, none = models[:, [0, 4, 9]], np.empty((0, len(CURVES)))
    centres = np.array(CENTRES, float)
    assert templates.repair(none, none, np.empty(0), some, GRID, centres) == pytest.approx(some)
    at = np.arange(10, 60, 5)
    flux = some[at, 1]
    mended = templates.repair(flux, 0.01 * flux, GRID[at], some, GRID, centres)
    assert mended == pytest.approx(some, rel=1e-3)


def test_magnitude_prior():
    z = np.linspace(0.01, 6, 600)
    prior = templates.magnitude_prior(np.array([18.0, 20, 22, 25, np.nan]), z)
    assert np.array_equal(prior[0], prior[1]) and (prior[-1] == 1).all()
    middle = (prior[:4] * z).sum(1) / prior[:4].sum(1)
    assert 0.3 < middle[1] < 0.5 and (np.diff(middle[1:]) > 0).all()
    # Of one type alone the peak is z_m: z^a exp(-(z/z_m)^a) has its maximum there (Benitez 2000, eq. 23)
    assert z[prior[1].argmax()] == pytest.approx(0.41, abs=0.03)


GRID_NEAR = np.arange(0, 1.2, 0.005)


@pytest.fixture(scope="module")
def moving():
    """Models of two spectra that templates have wrong, and of those; z of 600 objects and a function that gives their
    true fluxes at other redshifts, as bright in the sum of the bands."""
    draw, old_and_young = np.random.default_rng(0), galaxies()[[0, 6]]
    made = lambda spectra: templates.band_fluxes(WAVELENGTH, spectra, CURVES[:6], GRID_NEAR) / 1e7
    true = made(old_and_young * (1 + 0.25 * np.sin(6 * np.log(WAVELENGTH))))
    share, z = draw.uniform(0.1, 1, (600, 2)), 0.005 * draw.integers(20, 120, 600)

    def at(redshift):
        flux = np.einsum("nt,ntc->nc", share, true[np.rint(redshift / 0.005).astype(int)])
        return flux / flux.sum(axis=1, keepdims=True)

    return true, made(old_and_young), z, at


def test_the_true_spectra_move_galaxies_exactly_whatever_is_missing(moving):
    true, _, z, at = moving
    flux, expected = at(z), at(z + 0.2) / at(z)
    found = templates.redshifted(flux, 0.02 * flux, z, z + 0.2, true, GRID_NEAR)
    assert found == pytest.approx(expected, rel=1e-6)
    assert templates.redshifted(flux, 0.02 * flux, z, z, true, GRID_NEAR) == pytest.approx(1)
    error = 0.02 * flux
    flux[0, 2], error[1, 2], flux[2] = np.nan, np.inf, np.nan
    found = templates.redshifted(flux, error, z, z + 0.2, true, GRID_NEAR)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert np.isnan(found[2]).all() and np.isfinite(found[3:]).all()


def test_repaired_spectra_move_galaxies_beyond_the_redshifts_that_taught_them(moving):
    _, wrong, z, at = moving
    flux = at(z) * (1 + 0.02 * np.random.default_rng(1).normal(size=(len(z), 6)))
    mended = templates.repair(flux, 0.02 * flux, z, wrong, GRID_NEAR, np.array(CENTRES[:6], float))

    def missed(models, to):
        factor = templates.redshifted(at(z), 0.02 * at(z), z, to, models, GRID_NEAR)
        return np.median(np.abs(np.log(factor * at(z) / at(to))))

    for step in (0.1, 0.25):
        assert missed(mended, z + step) < 0.02 < 0.05 < missed(wrong, z + step)
