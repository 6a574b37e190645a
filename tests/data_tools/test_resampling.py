"""Resampling to another WCS against Gaussians, integrated over pixels in closed form."""

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy.special import erf

from data_tools.planes import to_grid
from data_tools.tiles import MASK_BITS, Grid, to_pixels, to_sky
from tests.data_tools.sources import centroid, inside

PIXELS = 160
SIGMA_ARCSEC = 1.2
FLUX = 1000.0
BAD, NODATA, SATURATED = (MASK_BITS[name] for name in ("bad", "nodata", "saturated"))


def grid(scale_arcsec: float, angle_deg: float = 0.0, shift: float = 0.0, side: int = PIXELS) -> Grid:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], ["deg", "deg"]
    wcs.wcs.crpix = [side / 2 + 0.5 + shift, side / 2 + 0.5 - shift / 2]
    angle = np.radians(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn @ np.diag([-1, 1]) * scale_arcsec / 3600
    return Grid((side, side), wcs)


def gaussian(where: Grid, x: float, y: float) -> np.ndarray:
    """[H, W] of a Gaussian with FLUX at pixel x, y: the integral over each pixel."""
    sigma = SIGMA_ARCSEC / where.scale_arcsec
    edges = np.arange(PIXELS + 1) - 0.5
    along = lambda centre: np.diff(erf((edges - centre) / (sigma * np.sqrt(2)))) / 2
    return FLUX * along(y)[:, None] * along(x)


@pytest.mark.parametrize("angle", [0.0, 33.0])
@pytest.mark.parametrize("scale", [0.2, 0.36, 0.4, 0.43, 0.6, 0.8], ids=lambda scale: f"{scale / 0.4:g}")
def test_gaussians_keep_their_flux_and_place(scale, angle):
    """From 0.4 arcsec a pixel to half, to nearly the same, and to twice as much."""
    old, new = grid(0.4), grid(scale, angle, shift=0.3, side=int(PIXELS * 0.4 / scale * 1.3))
    for x, y in ((80.0, 80.0), (62.3, 90.8), (101.5, 71.49)):
        moved, flags = to_grid(gaussian(old, x, y).astype(np.float32), np.zeros(old.shape, np.uint8), old, new)
        sky = to_sky(old, np.array([x]), np.array([y]))
        (true_x,), (true_y,) = to_pixels(new, sky["ra"], sky["dec"])
        here = np.where(flags == 0, moved, 0).astype(float)
        assert (here * inside(here.shape, true_x, true_y, 6 * SIGMA_ARCSEC / scale)).sum() == pytest.approx(
            FLUX, rel=0.01
        )
        found = centroid(here, true_x, true_y, SIGMA_ARCSEC / scale)
        assert np.hypot(found[0] - true_x, found[1] - true_y) < 0.05


@pytest.mark.parametrize("scale", [0.4, 0.9])
def test_pixels_of_a_cylindrical_projection_far_from_its_equator_are_small(scale):
    """A plate carree pixel at declination 60 has half of the area that it has at its reference point."""
    old = grid(0.4)
    old.wcs.wcs.crval = [150.0, 60.0]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cunit = ["RA---CAR", "DEC--CAR"], [150.0, 0.0], ["deg", "deg"]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    side = int(PIXELS * 0.4 / scale * 1.2)
    wcs.wcs.crpix = [side, side / 2 + 0.5 - 60 * 3600 / scale]
    new = Grid((side, 2 * side), wcs)
    moved, flags = to_grid(gaussian(old, 80.0, 75.0).astype(np.float32), np.zeros(old.shape, np.uint8), old, new)
    assert np.where(flags == 0, moved, 0).sum() == pytest.approx(FLUX, rel=0.01)


@pytest.mark.parametrize("scale", [0.2, 0.8])
def test_flags_follow(scale):
    """A new pixel is flagged where a flagged old one lies at its place, and not far from there."""
    old, new = grid(0.4), grid(scale, 20.0, side=int(PIXELS * 0.4 / scale * 2))
    pixels, flags = np.full(old.shape, 7.0, np.float32), np.zeros(old.shape, np.uint8)
    flags[40:44, 50:54], flags[80, 90], flags[110:120, 60:66] = BAD, SATURATED, NODATA
    pixels[40:44, 50:54], pixels[110:120, 60:66] = 1e6, np.nan
    moved, found = to_grid(pixels, flags, old, new)
    rows, columns = np.indices(new.shape)
    sky = to_sky(new, columns.ravel().astype(float), rows.ravel().astype(float))
    x, y = (at.reshape(new.shape) for at in to_pixels(old, sky["ra"], sky["dec"]))
    within = lambda left, right, low, high, margin: (
        (x > left - 0.5 - margin) & (x < right + 0.5 + margin) & (y > low - 0.5 - margin) & (y < high + 0.5 + margin)
    )
    tile = (0, PIXELS - 1, 0, PIXELS - 1)
    assert (found[~within(*tile, 0.01)] & NODATA).all()
    bad, lost = (50, 53, 40, 43), (60, 65, 110, 119)
    assert (found[within(*bad, -0.01)] & BAD).all() and (found[within(*lost, -0.01)] & NODATA).all()
    assert (found[within(90, 90, 80, 80, -0.01)] == SATURATED).all()
    reach = 1.6 + 2 * max(scale / 0.4, 1)
    far = within(*tile, -reach) & ~within(*bad, reach) & ~within(*lost, reach) & ~within(90, 90, 80, 80, reach)
    assert (found[far] == 0).all()
    good = found == 0
    area = (scale / 0.4) ** 2
    np.testing.assert_allclose(moved[good], 7.0 * area, rtol=2e-4)  # no bad value has leaked


def test_a_grid_onto_itself_is_the_same():
    old = grid(0.4)
    pixels = np.random.default_rng(0).normal(size=old.shape).astype(np.float32)
    moved, flags = to_grid(pixels, np.zeros(old.shape, np.uint8), old, grid(0.4))
    np.testing.assert_allclose(moved, pixels, atol=1e-5)
    assert not flags.any()
