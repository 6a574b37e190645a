"""Against galaxies whose spectra are known: mixtures of two that the templates are not."""

import numpy as np
import pytest

from jaxz.photoz import redshifted, templates
from jaxz.photoz.spectra import WAVELENGTH
from jaxz.photoz.spectra import templates as galaxies

CENTRES = np.array([3700, 4800, 6200, 7700, 9000, 12500])  # angstrom
CURVES = [templates.Curve(np.array([0.92, 1.08]) * centre, np.ones(2)) for centre in CENTRES]
GRID = np.arange(0, 1.2, 0.005)
WRONG = 1 + 0.25 * np.sin(6 * np.log(WAVELENGTH))  # what the templates lack


def models(spectra):
    return templates.band_fluxes(WAVELENGTH, spectra, CURVES, GRID) / 1e7


@pytest.fixture(scope="module")
def sky():
    """Models of the true spectra and of the templates; z and flux with its error of 600 objects; a function that gives
    their true fluxes at other redshifts, as bright in the sum of the bands."""
    draw, spectra = np.random.default_rng(0), galaxies()[[0, 6]]
    true, z, share = models(spectra * WRONG), draw.uniform(0.1, 0.6, 600), draw.uniform(0.1, 1, (600, 2))

    def at(redshift):
        flux = np.einsum("nt,ntc->nc", share, true[np.rint(redshift / 0.005).astype(int)])
        return flux / flux.sum(axis=1, keepdims=True)

    z = np.rint(z / 0.005) * 0.005
    return true, models(spectra), z, at


def error_of(factor, z, to, at):
    return np.median(np.abs(np.log(factor * at(z) / at(to))))


def test_the_true_spectra_move_galaxies_exactly(sky):
    true, _, z, at = sky
    to, flux = z + 0.2, at(z)
    found = redshifted.redshifted(flux, 0.02 * flux, z, to, true, GRID)
    assert found == pytest.approx(at(to) / at(z), rel=1e-6)
    assert redshifted.redshifted(flux, 0.02 * flux, z, z, true, GRID) == pytest.approx(1)
    assert (flux * found).sum(axis=1) == pytest.approx(flux.sum(axis=1))


def test_what_is_not_observed_moves_nothing_and_moves_along(sky):
    true, _, z, at = sky
    flux = at(z)
    error = 0.02 * flux
    flux[0, 2], error[1, 2], flux[2] = np.nan, np.inf, np.nan
    found = redshifted.redshifted(flux, error, z, z + 0.2, true, GRID)
    assert found[:2] == pytest.approx((at(z + 0.2) / at(z))[:2], rel=1e-4)
    assert np.isnan(found[2]).all() and np.isfinite(found[3:]).all()


def test_spectra_learn_what_they_lack_beyond_the_redshifts_that_taught_them(sky):
    _, wrong, z, at = sky
    draw = np.random.default_rng(1)
    flux = at(z) * (1 + 0.02 * draw.normal(size=(len(z), len(CENTRES))))
    flux[:20] = flux[20:40]  # wrong redshifts
    learned = redshifted.trained(flux, 0.02 * flux, z, wrong, GRID, CENTRES)
    for to in (z + 0.1, z + 0.25):
        moved = [redshifted.redshifted(at(z), 0.02 * at(z), z, to, m, GRID) for m in (wrong, learned)]
        before, after = (error_of(factor, z, to, at) for factor in moved)
        assert after < 0.015 < 0.05 < before
    with pytest.raises(ValueError, match="above 5 sigma"):
        redshifted.trained(flux, flux, z, wrong, GRID, CENTRES)
