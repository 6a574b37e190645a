"""Augmentation against its physics: flux, centroids, noise, PSFs, colours, masks; and how often what happens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz.config import default
from jaxz.data.augment import Augment
from jaxz.data.manifest import Band
from jaxz.data.resample import blurred, gaussian_kernels, rotate, slide
from jaxz.errors import InputError

KEY = jax.random.key(0)
SIZE, COUNT = 24, 300
OFF = default().augment.to_dict() | {"orientation": "none"}
SCALE, FWHM = 0.2, (0.9, 0.7)  # arcsec
BANDS = (
    Band("g", 480.0, 100.0, 27.0, SCALE, 3.2, 1.0, FWHM[0]),
    Band("i", 770.0, 100.0, 27.0, SCALE, 1.7, 1.0, FWHM[1]),
)
NUMBERS = np.stack([np.full(COUNT, 3), np.arange(COUNT)], 1).astype(np.uint32)  # epoch, position


def augment(flux, mask=None, numbers=NUMBERS, size=None, sky=1.0, **settings):
    """As NumPy: flux, mask, sky of flux [B,2,H,H], or of one [2,H,H] repeated."""
    flux = np.broadcast_to(flux, (len(numbers), *np.shape(flux)[-3:])).astype(np.float32)
    mask = np.ones(flux.shape, bool) if mask is None else np.broadcast_to(mask, flux.shape)
    run = compiled(tuple(sorted(settings.items())), flux.shape[-1], size or flux.shape[-1])
    return tuple(map(np.asarray, run(flux, mask, np.full(flux.shape[:2], sky, np.float32), numbers)))


@functools.cache
def compiled(settings, whole, size):
    own = Augment(ConfigDict(OFF | dict(settings)), BANDS, whole, size)
    return jax.jit(lambda *arrays: own(*arrays, KEY, size))


def gaussian(fwhm, x=0.0, y=0.0, size=SIZE):
    """[2,size,size] of flux 1000 in both bands, of `fwhm` pixels, at (x, y) from the middle."""
    place = np.arange(size) - (size - 1) / 2
    s2 = fwhm**2 / (8 * np.log(2))
    image = 1000 / (2 * np.pi * s2) * np.exp(-((place - x) ** 2 + (place[:, None] - y) ** 2) / (2 * s2))
    return np.stack([image, image])


def moments(image):
    """flux, centroid x and y [..., 3] of images [..., H, H], and their variance along x."""
    place = np.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    flux = image.sum((-2, -1))
    x, y = (image * place).sum((-2, -1)) / flux, (image * place[:, None]).sum((-2, -1)) / flux
    return flux, x, y, (image * (place - x[..., None, None]) ** 2).sum((-2, -1)) / flux


# ---- what is off, what is drawn --------------------------------------------------------------------------------------

ON = {
    "orientation": "any",
    "shift": 2,
    "subpixel": True,
    "noise": (1.0, 2.0),
    "psf_fwhm": (0.8, 1.1),
    "ebv": 0.2,
    "band_dropout": 0.3,
    "hole": 5,
}


def noisy(count=COUNT):
    return np.random.default_rng(0).normal(size=(count, 2, 16, 16)).astype(np.float32)


def test_nothing_changes_where_all_is_off():
    flux, sky = noisy(), np.float32(0.7)
    after, mask, sigma = augment(flux, sky=sky)
    np.testing.assert_array_equal(after, flux)
    assert mask.all() and (sigma == sky).all()


def test_settings_draw_apart_from_one_another():
    """What is hidden beside symmetry and move leaves these bit for bit as they are without it."""
    flux = noisy(50)
    moved, _, _ = augment(flux, numbers=NUMBERS[:50], orientation="square", shift=2)
    kept, mask, _ = augment(flux, numbers=NUMBERS[:50], orientation="square", shift=2, band_dropout=0.3, hole=5)
    np.testing.assert_array_equal(kept, np.where(mask, moved, 0))


def test_a_sample_draws_the_same_whichever_batch_it_comes_in_and_each_number_counts():
    flux, some = noisy(50), np.random.default_rng(1).permutation(50)
    all_of = augment(flux, numbers=NUMBERS[:50], **ON)
    for whole, part in zip(all_of, augment(flux[some], numbers=NUMBERS[:50][some], **ON), strict=True):
        np.testing.assert_array_equal(whole[some], part)
    for column in (0, 1):
        other = NUMBERS[:50].copy()
        other[:, column] += 100
        assert not np.array_equal(augment(flux, numbers=other, **ON)[2], all_of[2])


def share(happened):
    """Of the samples, with its binomial error."""
    return np.mean(happened), np.sqrt(np.mean(happened) * (1 - np.mean(happened)) / len(happened))


def test_bands_are_dropped_as_often_as_said_and_never_the_last():
    _, mask, _ = augment(np.ones((2, 8, 8)), numbers=np.arange(4000, dtype=np.uint32)[:, None], band_dropout=0.3)
    observed = mask.all((2, 3))
    assert (observed == mask.any((2, 3))).all() and observed.any(1).all()
    value, error = share(~observed[:, 0])
    assert abs(value - (0.3 - 0.3**2 / 2)) < 4 * error  # both are drawn in 0.09, of which one each time stays
    half = np.ones((COUNT, 2, 8, 8), bool)
    half[:, 0] = False
    assert augment(np.ones((2, 8, 8)), half, band_dropout=0.9)[1][:, 1].all()


def test_a_hole_is_a_square_of_all_bands_anywhere():
    flux, mask, _ = augment(np.ones((2, 8, 8)), numbers=np.arange(4000, dtype=np.uint32)[:, None], hole=3)
    assert ((~mask).sum((2, 3)) == 9).all() and (mask[:, 0] == mask[:, 1]).all() and (flux == mask).all()
    hidden = ~mask[:, 0]
    assert (hidden.any(1).sum(1) == 3).all() and (hidden.any(2).sum(1) == 3).all()
    corners = np.bincount(hidden.any(2).argmax(1) * 6 + hidden.any(1).argmax(1), minlength=36)
    assert corners.min() > 65 and corners.max() < 160  # 111 +- 10.5 of each of 36


# ---- where the light goes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fwhm", "error"), [(3.0, 0.01), (4.5, 0.002)])
def test_a_slide_moves_by_what_is_asked_and_keeps_flux_and_size(fwhm, error):
    """And the moved image is what the source would be there."""
    rng = np.random.default_rng(0)
    offset = rng.uniform(-3, 3, 20).astype(np.float32)
    image = np.broadcast_to(gaussian(fwhm), (20, 2, SIZE, SIZE))
    moved, _ = jax.jit(slide)(image, np.broadcast_to(offset[:, None], (20, SIZE)))
    inner = np.nan_to_num(moved)
    flux, x, y, variance = moments(inner)
    np.testing.assert_allclose(flux, 1000, rtol=2e-5)
    np.testing.assert_allclose(x, -np.stack([offset, offset], 1), atol=1e-3)
    np.testing.assert_allclose(y, 0, atol=1e-3)
    np.testing.assert_allclose(variance, fwhm**2 / (8 * np.log(2)), rtol=1e-3)
    truth = np.stack([gaussian(fwhm, x=-o) for o in offset])
    assert np.abs(np.where(np.isnan(moved), 0, moved - truth)).max() < error * image.max()


def test_a_rotation_turns_by_its_angle_and_keeps_the_flux():
    angle = np.linspace(-np.pi / 4, np.pi / 4, 9).astype(np.float32)
    dy, dx = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 9)).astype(np.float32)
    image = np.broadcast_to(gaussian(3.0, x=5.0, y=-3.0, size=48), (9, 2, 48, 48))
    turned, *_ = jax.jit(rotate)(image, angle, dy, dx)
    flux, x, y, _ = moments(np.nan_to_num(turned))
    # pixel p shows what was at R(angle) p + (dx, dy), so the source is at the inverse of that
    x0, y0 = 5.0 - dx, -3.0 - dy
    wanted_x, wanted_y = np.cos(angle) * x0 + np.sin(angle) * y0, -np.sin(angle) * x0 + np.cos(angle) * y0
    np.testing.assert_allclose(flux, 1000, rtol=1e-4)
    np.testing.assert_allclose(x, np.stack([wanted_x] * 2, 1), atol=1e-3)
    np.testing.assert_allclose(y, np.stack([wanted_y] * 2, 1), atol=1e-3)
    truth = np.stack([gaussian(3.0, x=a, y=b, size=48) for a, b in zip(wanted_x, wanted_y, strict=True)])
    assert np.abs(np.where(np.isnan(turned), 0, turned - truth)).max() < 0.03 * image.max()
    same, down, across = jax.jit(rotate)(noisy(9), np.zeros(9), np.zeros(9), np.zeros(9))
    np.testing.assert_array_equal(same, noisy(9))
    np.testing.assert_allclose(np.stack([down, across]), 1, rtol=1e-6)


def test_every_angle_comes_equally_often_and_every_part_of_a_pixel():
    flux, _, _ = augment(
        gaussian(3.0, x=3.0, size=32), orientation="any", numbers=np.arange(800, dtype=np.uint32)[:, None]
    )
    total, x, y, _ = moments(flux[:, 0])
    np.testing.assert_allclose(np.hypot(x, y), 3, atol=0.02)
    np.testing.assert_allclose(total, 1000, rtol=1e-3)
    counts, _ = np.histogram(np.arctan2(y, x), 12, (-np.pi, np.pi))
    assert counts.min() > 35 and counts.max() < 100  # 67 +- 8
    flux, _, _ = augment(gaussian(3.0), subpixel=True)
    total, x, y, _ = moments(flux[:, 0])
    np.testing.assert_allclose(total, 1000, rtol=2e-5)
    for moved in (x, y):
        assert np.abs(moved).max() < 0.51
        assert np.histogram(moved, 4, (-0.5, 0.5))[0].min() > 45  # 75 +- 7.5


def test_a_crop_is_cut_at_random_and_keeps_the_middle_a_quarter_away_from_its_border():
    flux, mask, _ = augment(gaussian(2.5), size=16)
    assert flux.shape[2:] == (16, 16) and mask.all()
    _, x, y, _ = moments(flux[:, 0])
    assert 3.5 < np.abs(x).max() <= 4.01 and 3.5 < np.abs(y).max() <= 4.01  # 8 - 4 pixels, a quarter of 16
    for corner in flux[:, 0]:
        np.testing.assert_allclose(corner.sum(), 1000, rtol=2e-3)


def test_a_crop_takes_from_around_it_what_interpolation_needs():
    assert augment(noisy_field(), size=12, subpixel=True)[1].all()


def noisy_field():
    return np.random.default_rng(0).normal(size=(2, SIZE, SIZE))


# ---- noise, seeing, dust ---------------------------------------------------------------------------------------------


def test_added_noise_has_the_variance_asked_for_in_every_band():
    """Added to images without noise, it alone is seen: sqrt(target^2 - sky^2)."""
    numbers, sky = NUMBERS, 0.5
    flux, _, sigma = augment(np.zeros((2, SIZE, SIZE)), numbers=numbers, sky=sky, noise=(1.0, 2.0))
    assert sigma.min() >= sky and sigma.max() <= 2 * sky and abs(sigma.mean() - 1.5 * sky) < 0.03
    expected = np.sqrt(sigma**2 - sky**2)
    np.testing.assert_allclose(flux.std((2, 3)) / expected, 1, atol=5 / np.sqrt(2 * SIZE**2))
    assert (
        abs(np.corrcoef(sigma.T)[0, 1]) < 0.2 and abs(np.corrcoef(flux[:, 0].ravel(), flux[:, 1].ravel())[0, 1]) < 0.01
    )
    pixels = (flux / expected[..., None, None]).ravel()
    assert abs(pixels.mean()) < 0.01 and abs(pixels.var() - 1) < 0.01
    assert abs((flux[..., 1:] * flux[..., :-1]).mean()) < 0.01 * sky**2  # white
    same, _, sigma = augment(noisy(), noise=(1.0, 1.0))
    np.testing.assert_array_equal(same, noisy())
    assert (sigma == 1).all()


def test_a_blur_widens_a_gaussian_to_the_fwhm_asked_for():
    """By the second moments of kernels and images, which add up; and the flux stays, also at the border."""
    sigma = np.array([0.0, 0.1, 0.3, 0.5, 1.0, 2.0], np.float32)
    kernels = np.asarray(gaussian_kernels(sigma, 7))
    np.testing.assert_allclose(kernels.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose((kernels * np.arange(-7, 8) ** 2).sum(1), sigma**2, rtol=0.02, atol=1e-6)
    assert kernels[0, 7] == 1 and (kernels >= 0).all()
    image = np.stack([gaussian(3.0)] * 3).astype(np.float32)
    own = np.asarray(gaussian_kernels(np.array([[0.5, 1.0]] * 3, np.float32), 4))
    variance = moments(np.asarray(blurred(image, own)))[3] - moments(image)[3]
    np.testing.assert_allclose(variance, [[0.25, 1.0]] * 3, rtol=0.02)
    np.testing.assert_allclose(blurred(noisy(3), own).sum((2, 3)), noisy(3).sum((2, 3)), atol=1e-3)


def test_bands_are_blurred_to_a_fwhm_within_the_range_where_they_are_sharper():
    image = np.stack([gaussian(f / SCALE, size=48)[0] for f in FWHM])  # each band with its own PSF
    flux, _, sigma = augment(image, psf_fwhm=(0.8, 1.0))
    fwhm = SCALE * np.sqrt(8 * np.log(2) * moments(flux)[3])
    np.testing.assert_allclose(moments(flux)[0], 1000, rtol=1e-4)
    assert fwhm[:, 1].min() > 0.79 and fwhm[:, 1].max() < 1.01 and abs(fwhm[:, 1].mean() - 0.9) < 0.02
    untouched = sigma[:, 0] == 1  # half of the targets are sharper than band g is
    np.testing.assert_allclose(fwhm[untouched, 0], 0.9, rtol=1e-4)
    assert abs(untouched.mean() - 0.5) < 0.1 and fwhm[~untouched, 0].min() > 0.9


@pytest.mark.parametrize(
    ("settings", "error"), [({"subpixel": True, "psf_fwhm": (1.0, 1.0)}, 0.015), ({"orientation": "any"}, 0.03)]
)
def test_the_sky_sigma_follows_what_is_done_to_the_noise(settings, error):
    """Within the error of the sample, and the 2 % that is left out of rotations."""
    noise = np.random.default_rng(0).normal(size=(COUNT, 2, SIZE, SIZE))
    flux, mask, sigma = augment(noise, **settings)
    inner = np.s_[:, :, 8:-8, 8:-8]
    assert mask[inner].all() and sigma.max() < 1
    ratio = (flux[inner].var((0, 2, 3)) / (sigma**2).mean(0)) ** 0.5
    np.testing.assert_allclose(ratio, 1, atol=error)


def test_reddening_follows_the_extinction_law_and_dims_the_noise_too():
    flux, _, sigma = augment(np.stack([np.full((8, 8), 100.0)] * 2), ebv=0.3)
    magnitudes = -2.5 * np.log10(flux[:, :, 0, 0] / 100)  # A_g, A_i
    np.testing.assert_allclose(magnitudes[:, 0] / magnitudes[:, 1], 3.2 / 1.7, rtol=1e-3)
    ebv = magnitudes[:, 0] / 3.2
    assert ebv.min() >= 0 and ebv.max() < 0.3 and abs(ebv.mean() - 0.15) < 0.02
    np.testing.assert_allclose(sigma, flux[:, :, 0, 0] / 100, rtol=1e-6)


# ---- what is not observed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [1e6, -3e38, np.nan, np.inf])
@pytest.mark.parametrize("name", ["all", "psf_fwhm", "noise"])
def test_what_is_not_observed_never_leaks(name, garbage):
    settings = ON if name == "all" else {name: ON[name]}
    mask = np.random.default_rng(2).uniform(size=(50, 2, 16, 16)) > 0.01
    mask[:5, 1] = False
    flux = np.where(mask, noisy(50), 0)
    clean = augment(flux, mask, NUMBERS[:50], **settings)
    dirty = augment(np.where(mask, flux, garbage), mask, NUMBERS[:50], **settings)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(clean[0]).all() and not clean[1][:5, 1].any() and (clean[0][~clean[1]] == 0).all()
    assert clean[1].any()


def test_a_pixel_made_from_a_masked_one_is_masked():
    """Six taps along each axis of a part of a pixel; 3.5 sigma of a blur."""
    mask = np.ones((2, SIZE, SIZE), bool)
    mask[0, 12, 12] = False
    _, kept, _ = augment(noisy_field(), mask, subpixel=True)
    inner = ~kept[:, 0, 6:-6, 6:-6]
    assert (inner.sum((1, 2)) == 36).all() and (inner.any(1).sum(1) == 6).all()
    _, kept, _ = augment(noisy_field(), mask, psf_fwhm=(1.2, 1.2))
    sigma = np.sqrt((1.2**2 - 0.9**2) / (8 * np.log(2))) / SCALE
    side = 2 * (np.ceil(3.5 * sigma + 1) - 1) + 1
    assert ((~kept[:, 0]).sum((1, 2)) == side**2).all() and kept[:, 1].all()


def test_what_would_hide_the_object_or_is_not_known_is_refused():
    for name, size in (("shift", 32), ("hole", 16)):
        with pytest.raises(InputError, match=rf"augment.{name}: 16 would hide the object in {size} pixels"):
            Augment(ConfigDict(OFF | {name: 16}), BANDS, 32, 16)
    with pytest.raises(InputError, match="augment.psf_fwhm: 9.0 arcsec would blur over 67 of 32 pixels"):
        Augment(ConfigDict(OFF | {"psf_fwhm": (1.0, 9.0)}), BANDS, 32, 32)
    blank = (Band("g", 480.0, 100.0, 27.0, SCALE, 3.2, 1.0, 0.0),)
    with pytest.raises(InputError, match=r"augment.psf_fwhm: bands.g.psf_fwhm_arcsec is 0, which is unknown"):
        Augment(ConfigDict(OFF | {"psf_fwhm": (1.0, 1.0)}), blank, 32, 32)


def test_views_and_crops_of_an_object_are_drawn_apart():
    flux = noisy(3)
    own = Augment(ConfigDict(OFF | {"noise": (2.0, 2.0)}), BANDS, 16, 16)
    see = jax.jit(lambda key: own(flux, flux < 9, jnp.ones((3, 2)), NUMBERS[:3], key, 16)[0])
    look = lambda n: see(jax.random.fold_in(KEY, n)) - flux
    assert abs(np.corrcoef(look(0).ravel(), look(1).ravel())[0, 1]) < 0.1
