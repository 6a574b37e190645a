"""Stamps of other surveys as a model takes them: against Gaussians whose flux in each pixel is known."""

import dataclasses
from math import erf

import jax
import numpy as np
import pytest

from jaxz.data.fit import Fit, remap
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.errors import InputError

KEY = jax.random.key(0)


def band(name: str, wavelength: float, scale: float = 0.2, zero_point: float = 27.0) -> Band:
    return Band(name, wavelength, 100.0, zero_point, scale, 3.0, 1.0, 0.8)


def survey(size: int, *bands: Band, **arrays: Array) -> Manifest:
    columns = {name: Column("float32") for b in bands for name in (f"flux_{b.name}", f"fluxerr_{b.name}")}
    return Manifest({"image": Array("image", "float32", (len(bands), size, size)), **arrays}, tuple(bands), columns)


TRAINED = survey(16, band("g", 480), band("r", 620))
MODEL = Normalisation.create(TRAINED, (), 3.0, False)


def fraction(size: int, scale: float, sigma: float, middle: float) -> np.ndarray:
    """[size]: what each pixel has of a Gaussian `middle` arcsec from the centre of pixel size // 2."""
    edges = (np.arange(size + 1) - size // 2 - 0.5) * scale - middle
    return np.diff([erf(x / sigma / 2**0.5) / 2 for x in edges])


@pytest.mark.parametrize(("theirs", "ours"), [(0.168, 0.2), (0.2, 0.168), (0.262, 0.2), (0.1, 0.2), (0.2, 0.2)])
@pytest.mark.parametrize("fwhm", [0.7, 1.0])
def test_flux_place_and_size_in_arcsec_stay(theirs, ours, fwhm):
    old, sigma, middle = 64, fwhm / 2.35482, 0.04
    new = int(old * theirs / ours) // 2 * 2 - 2
    found = remap(old, ours / theirs, new) @ fraction(old, theirs, sigma, middle)
    place = (np.arange(new) - new // 2) * ours
    expected = fraction(new, ours, sigma, middle)
    assert found.sum() == pytest.approx(expected.sum(), abs=1e-10)
    assert found @ place == pytest.approx(middle, abs=3e-4)
    width = np.sqrt(found @ (place - middle) ** 2 - ours**2 / 12)  # a pixel is a box
    assert width == pytest.approx(sigma, rel=4e-3)
    np.testing.assert_allclose(found, expected, atol=0.025 * expected.max())


def test_a_batch_is_resampled_in_both_axes_and_its_noise_told():
    theirs = survey(40, band("r", 620, 0.1), band("g", 480, 0.1))
    fit = Fit(theirs, dataclasses.replace(MODEL, size=16))
    sigma_y, sigma_x = 0.4, 0.5
    make = lambda size, scale: np.outer(fraction(size, scale, sigma_y, 0.1), fraction(size, scale, sigma_x, -0.1))
    image = np.broadcast_to(make(40, 0.1), (1, 2, 40, 40)).astype(np.float32)
    found = fit({"image": image})["image"]
    np.testing.assert_allclose(found[0, 0], make(16, 0.2), atol=1e-3 * make(16, 0.2).max())
    draw = np.random.default_rng(0).normal(size=(200, 2, 40, 40)).astype(np.float32)
    noise = np.std(fit({"image": draw})["image"])
    assert noise == pytest.approx(fit.manifest.bands[0].sky_sigma, rel=0.02)
    seen = Prepare(fit.manifest, MODEL)(fit({"image": image}), KEY)
    np.testing.assert_allclose(seen["sky"], noise / 3, rtol=0.02)


def test_what_is_masked_or_beyond_the_stamp_is_not_observed():
    theirs = survey(12, band("g", 480), band("r", 620), image_mask=Array("mask", "uint8", (2, 12, 12)))
    fit = Fit(theirs, MODEL)
    image = np.random.default_rng(0).normal(size=(2, 2, 12, 12)).astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    image[0, 0, 3, 4], mask[1, 1, 5, 6], image[1, 1, 5, 6] = np.nan, 4, 1e9
    seen = Prepare(fit.manifest, MODEL)(fit({"image": image, "image_mask": mask}), KEY)
    expected = np.zeros((2, 2, 16, 16), bool)
    expected[:, :, 2:14, 2:14] = True
    expected[0, 0, 5, 6] = expected[1, 1, 7, 8] = False
    np.testing.assert_array_equal(seen["mask"], expected)
    np.testing.assert_allclose(
        np.sinh(seen["image"])[:, :, 2:14, 2:14][expected[:, :, 2:14, 2:14]],
        (image / 3)[expected[:, :, 2:14, 2:14]],
        rtol=1e-5,
    )


def test_a_bad_pixel_takes_along_those_made_from_it():
    theirs = survey(32, band("g", 480, 0.168), band("r", 620, 0.168))
    fit, image = Fit(theirs, MODEL), np.ones((1, 2, 32, 32), np.float32)
    image[0, 0, 16, 16] = np.inf
    found = np.asarray(fit({"image": image})["image"])
    touched = np.outer(remap(32, 0.2 / 0.168, 16)[:, 16] != 0, remap(32, 0.2 / 0.168, 16)[:, 16] != 0)
    np.testing.assert_array_equal(np.isnan(found[0, 0]), touched)
    assert 4 <= touched.sum() <= 25
    np.testing.assert_allclose(found[0, 1], (0.2 / 0.168) ** 2, rtol=1e-5)  # a surface brightness


def test_an_odd_stamp_is_cut_about_the_pixel_that_holds_the_object():
    image = np.zeros((1, 2, 21, 21), np.float32)
    image[..., 10, 10] = 1
    found = np.asarray(Fit(survey(21, band("g", 480), band("r", 620)), MODEL)({"image": image})["image"])
    assert found[0, 0, 8, 8] == 1 and found.sum() == 2


def test_bands_are_named_and_zero_points_converted():
    """A survey whose numbers are four times as large for the same flux, its bands in another order, by other names."""
    zero_point = 27.0 + 2.5 * np.log10(4)
    theirs = survey(
        16, band("HSC-R", 625, zero_point=zero_point), band("HSC-G", 475, zero_point=zero_point), band("y", 980)
    )
    fit = Fit(theirs, MODEL, {"HSC-G": "g", "HSC-R": "r"})
    image = np.random.default_rng(0).normal(size=(2, 2, 16, 16)).astype(np.float32)
    other = np.stack([4 * image[:, 1], 4 * image[:, 0], image[:, 0]], 1)
    found = Prepare(fit.manifest, MODEL)(fit({"image": other}), KEY)
    expected = Prepare(TRAINED, MODEL)({"image": image}, KEY)
    np.testing.assert_allclose(found["image"], expected["image"], rtol=1e-5)
    assert fit.columns["flux_HSC-G"] == "flux_g" and fit.columns["flux_y"] == "flux_y"
    said = " ".join(fit.told)
    assert "HSC-R = r" in said and "HSC-G = g" in said and "not used: y" in said


def test_a_map_goes_before_names_and_missing_bands_are_told():
    fit = Fit(survey(16, band("g", 480), band("g2", 490)), MODEL, {"g2": "g"})
    image = np.stack([np.full((1, 16, 16), 5.0), np.full((1, 16, 16), 7.0)], 1)
    seen = Prepare(fit.manifest, MODEL)(fit({"image": image}), KEY)
    np.testing.assert_allclose(np.sinh(seen["image"][:, 0]), 7 / 3, rtol=1e-5)
    assert seen["mask"][:, 0].all() and not seen["mask"][:, 1].any()
    assert "lacks count as not observed: r" in " ".join(fit.told)
    assert "flux_g" not in fit.columns and fit.columns["flux_g2"] == "flux_g"


def test_a_map_says_that_a_band_of_the_same_name_is_meant():
    assert Fit(survey(16, band("g", 900)), MODEL, {"g": "g"}).manifest.bands[0].name == "g"


def test_of_two_columns_for_one_band_that_of_the_map_is_read():
    """A flux_g of no band of the survey, before or behind the one that it maps to g."""
    whole = survey(16, band("HSC-G", 480))
    for columns in (whole.columns | {"flux_g": Column("int32")}, {"flux_g": Column("int32")} | whole.columns):
        fit = Fit(dataclasses.replace(whole, columns=columns), MODEL, {"HSC-G": "g"})
        assert fit.columns == {"flux_HSC-G": "flux_g", "fluxerr_HSC-G": "fluxerr_g"}
        assert fit.manifest.columns["flux_g"] == Column("float32")


@pytest.mark.parametrize(
    ("bands", "named", "message"),
    [
        (
            [band("u", 350)],
            {},
            r"bands: the dataset has \['u'\], the model wants \['g', 'r'\]; none match by name.*--band_map",
        ),
        ([band("g", 480)], {"x": "g"}, "band_map: 'x' is no band of the dataset"),
        ([band("g", 480)], {"g": "x"}, "band_map: 'x' is no band of the model"),
        ([band("a", 480), band("b", 490)], {"a": "g", "b": "g"}, "two bands are named the model's 'g'"),
        ([band("g", 900)], {}, "bands.g.wavelength_nm: 900 is another filter than the model's 'g' at 480"),
        ([band("g", 480, 1.0)], {}, "bands.g.pixel_scale_arcsec: 1.0 is over 4 times from the model's 0.2"),
    ],
)
def test_what_does_not_fit_is_refused(bands, named, message):
    with pytest.raises(InputError, match=message):
        Fit(survey(16, *bands), MODEL, named)


def test_images_of_many_sizes_are_refused():
    images = {"image": Array("image", "float32", (1, None, 16), max=16)}
    with pytest.raises(InputError, match=r"arrays.image: the dataset has no image \[C,H,W\] of one size"):
        Fit(dataclasses.replace(survey(16, band("g", 480)), arrays=images), MODEL)
