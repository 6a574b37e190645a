"""The sky of images that clipping alone does not measure, and fluxes in apertures against brute force."""

import math
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D

from data_tools import convert
from data_tools.cutting import is_observed
from data_tools.measure import aperture_flux, aperture_noise, cut, measure_sky, nearest_pixel, noise_area
from data_tools.planes import flag_pixels
from data_tools.tiles import MASK_BITS
from jaxz.errors import InputError
from tests.data_tools.survey_files import arguments, independent_noise, overlap, write_survey


@pytest.mark.parametrize("photons", [0.05, 0.3, 1.0, 2.0])
def test_sky_of_few_photons_a_pixel(photons):
    """Poisson: the variance is the mean. Two pixels in five are flagged at the left; sources are clipped."""
    rng = np.random.default_rng(0)
    pixels = rng.poisson(photons, (601, 703)).astype(np.float32) * 0.01
    flags = np.zeros(pixels.shape, np.uint8)
    flags[:, :100] = rng.random((601, 100)) < 0.4
    pixels[flags > 0] = 7
    xy = rng.uniform(150, 550, (60, 2))
    pixels[tuple(xy.astype(int).T[::-1])] += 0.01 * 80 * photons**0.5 + 1
    sky = measure_sky(pixels, flags, 128, "test")
    assert sky.sigma == pytest.approx(0.01 * photons**0.5, rel=0.1)
    residual = sky.subtracted(pixels, flags)
    assert residual.shape == sky.rms.shape == pixels.shape and (residual[flags > 0] == 0).all()
    level = (pixels - residual)[flags == 0]
    assert level.mean() == pytest.approx(0.01 * photons, rel=0.08)
    empty = np.stack([rng.uniform(600, 680, 500), rng.uniform(20, 580, 500)], 1)
    flux = aperture_flux(residual, flags, empty, 6.0)
    assert abs(flux.mean()) < 0.15 * 0.01 * photons * np.pi * 36


def test_whole_numbers_and_reals_have_the_same_sky():
    """Rounding to steps of half a sigma, which ties many pixels, is no reason for another level."""
    pixels = np.random.default_rng(1).normal(500, 2, (512, 512)).astype(np.float32)
    flags = np.zeros(pixels.shape, np.uint8)
    sky, whole = measure_sky(pixels, flags, 128, "test"), measure_sky(np.round(pixels), flags, 128, "test")
    assert whole.level == pytest.approx(sky.level, abs=0.05)
    assert whole.sigma == pytest.approx(np.hypot(2, 12**-0.5), rel=0.02)


def test_a_constant_image_has_no_noise():
    with pytest.raises(InputError, match="no noise"):
        measure_sky(np.full((256, 256), 3, np.float32), np.zeros((256, 256), np.uint8), 64, "test")


def test_a_sky_that_float16_does_not_resolve_is_refused(tmp_path):
    folder = write_survey(tmp_path)
    with fits.open(folder / "tile_r.fits", mode="update") as hdus:
        hdus[0].data += 3.0 * 600  # sigma is 3
    with pytest.raises(InputError, match=r"subtract_background: false.*tile_r.fits.* lies 60\d sigma from 0"):
        convert.main(arguments(folder, tmp_path / "dataset", "--size", "16"))
    assert not (tmp_path / "dataset").exists()
    survey = folder / "survey.toml"
    survey.write_text("subtract_background = true\n" + survey.read_text())
    convert.main(arguments(folder, tmp_path / "dataset", "--size", "16", "--dry_run"))


def stars(shape: tuple[int, int], number: int, width: float = 2.0) -> np.ndarray:
    """Gaussians of peaks 10 to 1000 at random places."""
    rng, (y, x) = np.random.default_rng(5), np.indices(shape)
    places = rng.uniform(0, shape, (number, 2))
    shape_of = lambda at: np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2))
    return sum(10 ** rng.uniform(1, 3) * shape_of(at) for at in places)


def test_the_noise_of_apertures_beside_sources_is_that_of_the_sky_alone():
    """Independent pixels: the sum over a circle has the variance of its squared overlaps. Averaged over 2 x 2 pixels:
    that of a sum of independent ones, each in the weights of its four neighbours."""
    radius, shape = 5.0, (600, 600)
    white = np.random.default_rng(2).normal(size=shape)
    half = (white + np.roll(white, 1, 0) + np.roll(white, 1, 1) + np.roll(white, (1, 1), (0, 1))) / 4
    circle = np.hypot(*np.indices((15, 15)) - 7) < radius  # whole pixels, to a percent of the area
    weights = sum(np.roll(circle, at, (0, 1)) for at in ((0, 0), (1, 0), (0, 1), (1, 1))) / 4
    for noise, sigma, truth in ((white, 1.0, circle.sum()), (half, 0.5, (weights**2).sum())):
        pixels = (noise + stars(shape, 80)).astype(np.float32)
        rms, flags = np.full(shape, sigma, np.float32), np.zeros(shape, np.uint8)
        assert aperture_noise(pixels, flags, rms, radius) == pytest.approx(truth**0.5, rel=0.06)


def test_without_room_for_empty_apertures_their_noise_is_not_known():
    rms, flags = np.ones((50, 40), np.float32), np.zeros((50, 40), np.uint8)
    empty = np.random.default_rng(3).normal(size=(50, 40)).astype(np.float32)
    star = (empty + 1000 * stars((50, 40), 1, 6.0)).astype(np.float32)
    assert np.isfinite(aperture_noise(empty, flags, rms, 2.0))
    assert np.isnan(aperture_noise(empty, flags, rms, 7.6)) and np.isnan(aperture_noise(star, flags, rms, 2.0))
    assert np.isnan(aperture_noise(empty, flags + 1, rms, 2.0))


def test_aperture_flux_equals_a_sum_over_subpixels():
    rng = np.random.default_rng(3)
    image, flags = rng.normal(size=(20, 24)).astype(np.float32), np.zeros((20, 24), np.uint8)
    centre, radius = np.array([[10.3, 8.8]]), 3.7
    weight = overlap(image.shape, *centre[0], radius)
    assert aperture_flux(image, flags, centre, radius)[0] == pytest.approx((weight * image).sum(), abs=2e-3)
    flags[9, 12] = 1
    assert np.isnan(aperture_flux(image, flags, centre, radius)[0])
    assert np.isnan(aperture_flux(image, flags, np.array([[1.0, 8.0]]), radius)[0])  # leaves the tile


def test_numbers_that_stand_for_no_value_are_bad_as_infinity_is():
    """They would make fluxes of 1e30 microjansky."""
    pixels = np.array([1.0, np.nan, np.inf, 1e30, -3.4028235e38, 5e4], np.float32)
    kinds = [0, *(MASK_BITS[kind] for kind in ("nodata", "bad", "bad", "bad", "saturated"))]
    assert flag_pixels(pixels, 4e4).tolist() == kinds


def test_the_area_of_a_wide_aperture_takes_little_memory():
    tracemalloc.start()
    area, most = noise_area(40.0), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert area == pytest.approx(math.pi * 40.0**2, rel=0.02)
    assert most < 10e6


def test_aperture_noise_sees_correlated_noise():
    rng = np.random.default_rng(4)
    white = rng.normal(size=(600, 600))
    flags = np.zeros(white.shape, np.uint8)
    independent = independent_noise(4.0)
    assert math.sqrt(noise_area(4.0)) == pytest.approx(independent, rel=0.02)
    assert aperture_noise(white, flags, np.ones(white.shape), 4.0) == pytest.approx(independent, rel=0.05)
    blocks = np.kron(rng.normal(size=(150, 150)), np.ones((4, 4)))  # 16 pixels share a value
    assert aperture_noise(blocks, flags, np.ones(white.shape), 4.0) > 2.5 * independent


def test_cutouts_are_those_of_astropy():
    """Cutout2D with 0-based positions, its edges filled (mode="partial")."""
    assert nearest_pixel(np.array([0.49, 0.5, 1.0, 1.49, -0.5, -0.51])).tolist() == [0, 1, 1, 1, 0, -1]
    plane = np.arange(12 * 10, dtype=float).reshape(12, 10)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-0.5, 9.49, 300), rng.uniform(-0.5, 11.49, 300)
    for cutout, i, j in zip(cut(plane, x, y, 6, -1), nearest_pixel(x), nearest_pixel(y), strict=True):
        # an even Cutout2D around pixel i begins at i - 2.5, rounded up: half a pixel less names our i - 3
        truth = Cutout2D(plane, (i - 0.5, j - 0.5), 6, mode="partial", fill_value=-1).data
        np.testing.assert_array_equal(cutout, truth)


def test_a_cutout_is_observed_where_any_of_its_pixels_is_good():
    rng = np.random.default_rng(0)
    flags = np.where(rng.random((40, 50)) < 0.97, MASK_BITS["bad"], 0).astype(np.uint8)
    x, y = rng.uniform(-9, 59, 400), rng.uniform(-9, 49, 400)  # some centres, and some whole cutouts, are off the tile
    column, row = np.floor(x + 0.5) - 4, np.floor(y + 0.5) - 4
    truth = [
        not flags[max(int(j), 0) : max(int(j) + 8, 0), max(int(i), 0) : max(int(i) + 8, 0)].all()
        for i, j in zip(column, row, strict=True)
    ]
    assert is_observed(flags, x, y, 8).tolist() == truth
    assert 0.3 < np.mean(truth) < 0.9
