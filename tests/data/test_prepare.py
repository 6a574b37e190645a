"""What the device does to stored numbers, against formulas written out here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz.config import default
from jaxz.data.augment import Augment
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.errors import InputError

KEY = jax.random.key(0)
AUGMENT = ConfigDict({**default().augment.to_dict(), "shift": 2})


def turn_and_shift(image, mask, numbers, shift):
    settings = ConfigDict({**AUGMENT.to_dict(), "shift": shift})
    own = Augment(settings, (), image.shape[-1], image.shape[-1])
    run = jax.jit(lambda *arrays: own(*arrays, KEY, image.shape[-1])[:2])
    return run(image, mask, jnp.ones(image.shape[:2]), numbers)


@pytest.fixture
def manifest(blob_dataset):
    return open_dataset(blob_dataset).manifest


def batch_of(rng, count=5, bands=3, size=16):
    return {
        "image": rng.normal(size=(count, bands, size, size)).astype(np.float16) * 20,
        "ebv": rng.uniform(0, 0.3, count).astype(np.float32),
        "bands_observed": np.full(count, 0b111, np.uint32),
    }


def test_the_stretch_is_asinh_of_dereddened_flux_over_three_sky_sigma(manifest):
    batch = batch_of(np.random.default_rng(0)) | {"flux_r": np.array([5, -1, 0, np.nan, 9], np.float32)}
    batch["fluxerr_r"] = np.array([1, 2, np.nan, 3, 4], np.float32)
    prepared = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, True)))(batch, KEY)
    extinction = np.array([3.2, 2.3, 1.7])  # magnitudes per unit of E(B-V)
    flux = batch["image"].astype(np.float64) * 10 ** (0.4 * batch["ebv"][:, None] * extinction)[..., None, None]
    np.testing.assert_allclose(prepared["image"], np.arcsinh(flux / 3), rtol=2e-5, atol=1e-6)
    assert prepared["mask"].all()
    np.testing.assert_allclose(prepared["sky"], 10 ** (0.4 * batch["ebv"][:, None] * extinction) / 3, rtol=1e-6)
    for name in ("flux_r", "fluxerr_r"):
        np.testing.assert_allclose(prepared[name], batch[name] * 10 ** (0.4 * batch["ebv"] * 2.3), rtol=1e-6)
    as_seen = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, False)))(batch, KEY)
    np.testing.assert_array_equal(as_seen["flux_r"], batch["flux_r"])
    np.testing.assert_allclose(as_seen["sky"], np.full((5, 3), 1 / 3), rtol=1e-6)


def test_a_reddening_that_is_none_counts_as_unknown(manifest):
    """Such as a catalogue's -99, whose flux would be 0 or infinite."""
    batch = batch_of(np.random.default_rng(0))
    ebv = np.array([-99, np.inf, np.nan, 1e30, 0.1], np.float32)
    prepare = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, True)))
    found, bare = prepare(batch | {"ebv": ebv}, KEY), prepare(batch | {"ebv": np.zeros(5, np.float32)}, KEY)
    np.testing.assert_array_equal(found["image"][:4], bare["image"][:4])
    assert (np.abs(found["image"][4]) > np.abs(bare["image"][4])).all()
    np.testing.assert_array_equal(found["ebv"], np.where(ebv == ebv[4], ebv, 0))  # as networks read it


def test_images_of_another_survey_are_dereddened_by_its_own_filters(manifest):
    """A band of one name is not one filter; of a band that the other lacks nothing is seen."""
    batch = batch_of(np.random.default_rng(0))
    redder = [dataclasses.replace(band, a_over_ebv=2 * band.a_over_ebv) for band in manifest.bands[:2]]
    theirs = dataclasses.replace(manifest, bands=(*redder, dataclasses.replace(manifest.bands[2], name="other")))
    prepared = jax.jit(Prepare(theirs, Normalisation.create(manifest, (), 3.0, True)))(batch, KEY)
    extinction = 2 * np.array([3.2, 2.3])
    flux = batch["image"][:, :2].astype(np.float64)
    flux *= 10 ** (0.4 * batch["ebv"][:, None] * extinction)[..., None, None]
    np.testing.assert_allclose(prepared["image"][:, :2], np.arcsinh(flux / 3), rtol=2e-5, atol=1e-6)
    assert not prepared["mask"][:, 2].any()


def test_other_stretches_are_those_of_the_published_networks(manifest):
    """sign(x) (sqrt(|x| + 1) - 1) (Pasquet et al. 2019) and sign(x) ln(1 + |x|); the sky's sigma is stretched alike."""
    batch = batch_of(np.random.default_rng(0))
    x = batch["image"].astype(np.float64) / 3
    by_hand = {"sqrt": (np.sqrt(np.abs(x) + 1) - 1, 1 / 6), "log": (np.log(np.abs(x) + 1), 1 / 3)}
    for name, (size, sky) in by_hand.items():
        normalisation = Normalisation.create(manifest, (), 3.0, False, name)
        assert Normalisation.from_json(normalisation.to_json()) == normalisation
        prepared = jax.jit(Prepare(manifest, normalisation))(batch, KEY)
        np.testing.assert_allclose(prepared["image"], np.sign(x) * size, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(prepared["sky"], np.full((5, 3), sky), rtol=1e-6)


def test_a_normalisation_of_old_is_asinh(manifest):
    normalisation = Normalisation.create(manifest, (), 3.0, False)
    old = {name: value for name, value in normalisation.to_json().items() if name != "stretch"}
    assert Normalisation.from_json(old) == normalisation


def test_another_zero_point_of_the_same_sky_gives_the_same_numbers(manifest):
    """A model sees microjansky: 2.5 mag of zero point are a factor of 10 in stored numbers."""
    normalisation = Normalisation.create(manifest, (), 3.0, False)
    other = dataclasses.replace(
        manifest, bands=tuple(dataclasses.replace(b, zero_point_ab=b.zero_point_ab + 2.5) for b in manifest.bands)
    )
    batch = batch_of(np.random.default_rng(1))
    scaled = {**batch, "image": batch["image"].astype(np.float32) * 10}
    a, b = jax.jit(Prepare(manifest, normalisation))(batch, KEY), jax.jit(Prepare(other, normalisation))(scaled, KEY)
    np.testing.assert_allclose(a["image"], b["image"], rtol=1e-5)
    np.testing.assert_allclose(a["sky"], 10 * b["sky"], rtol=1e-5)  # stored sky sigma stayed 1


def test_bands_are_matched_by_name(manifest):
    normalisation = Normalisation.create(manifest, ("i", "g"), 3.0, False)
    batch = batch_of(np.random.default_rng(2))
    prepared = jax.jit(Prepare(manifest, normalisation))(batch, KEY)
    np.testing.assert_allclose(
        prepared["image"], np.arcsinh(batch["image"][:, [2, 0]].astype(np.float32) / 3), rtol=1e-5
    )
    without_g = dataclasses.replace(
        manifest, bands=manifest.bands[1:], arrays={"image": Array("image", "float16", (2, 16, 16))}
    )
    part = {**batch, "image": batch["image"][:, 1:], "bands_observed": np.full(5, 0b11, np.uint32)}
    lacking = jax.jit(Prepare(without_g, normalisation))(part, KEY)
    np.testing.assert_array_equal(lacking["image"][:, 0], prepared["image"][:, 0])
    assert not lacking["mask"][:, 1].any() and lacking["mask"][:, 0].all()


@pytest.mark.parametrize("garbage", [0.0, 1e4, -300.0, np.nan, np.inf])
def test_what_is_not_observed_changes_nothing(manifest, garbage):
    manifest = dataclasses.replace(
        manifest, arrays={**manifest.arrays, "image_mask": Array("mask", "uint8", (3, 16, 16))}
    )
    prepare = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, True), default().augment))
    batch = batch_of(np.random.default_rng(3)) | {
        "epoch": np.zeros(5, np.int32),
        "position": np.arange(5, dtype=np.uint32),
    }
    batch["bands_observed"][:2] = 0b101
    batch["image_mask"] = np.zeros(batch["image"].shape, np.uint8)
    batch["image_mask"][2, 0, 3, 4] = 2
    filled = {**batch, "image": batch["image"].copy()}
    filled["image"][:2, 1] = garbage
    filled["image"][2, 0, 3, 4] = garbage
    a, b = prepare(batch, KEY), prepare(filled, KEY)
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["mask"], b["mask"])
    assert (~a["mask"]).sum() == 2 * 256 + 1


def test_a_pixel_that_is_not_finite_is_masked(manifest):
    batch = batch_of(np.random.default_rng(4))
    batch["image"][1, 2, 5, 6] = np.nan
    prepared = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, False)))(batch, KEY)
    assert not prepared["mask"][1, 2, 5, 6] and (~prepared["mask"]).sum() == 1
    assert np.isfinite(prepared["image"]).all()


def test_symmetries_are_the_eight_of_the_square_by_position():
    rng = np.random.default_rng(0)
    image = jnp.asarray(np.repeat(rng.normal(size=(1, 2, 6, 6)), 400, 0))
    numbers = jnp.stack([jnp.zeros(400, jnp.uint32), jnp.arange(400, dtype=jnp.uint32)], 1)  # epoch, position
    everywhere = jnp.ones(image.shape, bool)
    moved, _ = turn_and_shift(image, everywhere, numbers, 0)
    np.testing.assert_array_equal(turn_and_shift(image, image > 0, numbers, 0)[1], moved > 0)
    eight = [np.rot90(f, k, (1, 2)) for f in (image[0], image[0][:, :, ::-1]) for k in range(4)]
    which = [next(i for i, e in enumerate(eight) if np.array_equal(e, m)) for m in np.asarray(moved)]
    counts = np.bincount(which, minlength=8)
    assert counts.min() > 25 and counts.max() < 80  # 50 +- 7 expected of each
    shuffled = np.random.default_rng(1).permutation(400)  # the same sample, whichever batch it comes in
    again, _ = turn_and_shift(image[shuffled], everywhere, numbers[shuffled], 0)
    np.testing.assert_array_equal(again, moved[shuffled])
    for more in ([1, 0], [0, 1]):
        others, _ = turn_and_shift(image, everywhere, numbers + jnp.array(more, jnp.uint32), 0)
        assert not np.array_equal(others, moved)
    sourced, _ = turn_and_shift(image, everywhere, jnp.pad(numbers, ((0, 0), (0, 1)), constant_values=1), 0)
    assert not np.array_equal(sourced, moved)


def test_moves_shift_whole_pixels_and_mask_what_comes_in():
    rng = np.random.default_rng(0)
    image = jnp.asarray(np.repeat(rng.normal(size=(1, 2, 6, 6)), 300, 0))
    everywhere = jnp.ones(image.shape, bool)
    moved, mask = turn_and_shift(image, everywhere, jnp.arange(300, dtype=jnp.uint32)[:, None], 2)
    views = [np.rot90(f, k, (1, 2)) for f in (image[0], image[0][:, :, ::-1]) for k in range(4)]
    cut = lambda x, dy, dx: np.pad(x, ((0, 0), (2, 2), (2, 2)))[:, 2 + dy : 8 + dy, 2 + dx : 8 + dx]
    moves = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    possible = {cut(view, *move).tobytes(): (n, move) for n, view in enumerate(views) for move in moves}
    inside = {move: cut(np.ones((2, 6, 6), bool), *move) for move in moves}
    seen = set()
    for sample, observed in zip(np.asarray(moved), np.asarray(mask), strict=True):
        view, move = possible[sample.tobytes()]
        np.testing.assert_array_equal(observed, inside[move])
        seen.add((view, *move))
    assert len({view for view, _, _ in seen}) == 8 and len({(dy, dx) for _, dy, dx in seen}) > 20


def test_what_does_not_fit_is_refused(manifest):
    normalisation = Normalisation.create(manifest, (), 3.0, False)
    with pytest.raises(InputError, match=r"data.bands: 'k' is not a band"):
        Normalisation.create(manifest, ("k",), 3.0, False)
    renamed = tuple(dataclasses.replace(b, name=b.name + "2") for b in manifest.bands)
    with pytest.raises(InputError, match="none match by name"):
        Prepare(dataclasses.replace(manifest, bands=renamed), normalisation)
    coarse = tuple(dataclasses.replace(b, pixel_scale_arcsec=0.4) for b in manifest.bands)
    with pytest.raises(InputError, match=r"bands.g.pixel_scale_arcsec: 0.4 is not the model's 0.2"):
        Prepare(dataclasses.replace(manifest, bands=coarse), normalisation)
    small = dataclasses.replace(manifest, arrays={"image": Array("image", "float16", (3, 8, 8))})
    with pytest.raises(InputError, match=r"arrays.image.shape"):
        Prepare(small, normalisation)
    quiet = (manifest.bands[0], dataclasses.replace(manifest.bands[1], sky_sigma=0.0), manifest.bands[2])
    with pytest.raises(InputError, match="bands.r.sky_sigma: 0.0 must be positive"):
        Prepare(dataclasses.replace(manifest, bands=quiet), normalisation)


def test_levels_of_images_that_are_stored_raw_are_refused(manifest):
    prepare = Prepare(manifest, Normalisation.create(manifest, (), 3.0, False))
    batch = batch_of(np.random.default_rng(0)) | {"image_dither": np.zeros(5, np.uint32)}
    with pytest.raises(InputError, match="image_dither belongs to compact images"):
        prepare(batch, KEY)


def test_json_round_trip(manifest):
    normalisation = Normalisation.create(manifest, ("r",), 2.0, True)
    assert Normalisation.from_json(normalisation.to_json()) == normalisation


def test_observed_pixels_that_are_not_finite_are_masked_and_counted(manifest):
    manifest = dataclasses.replace(
        manifest, arrays={**manifest.arrays, "image_mask": Array("mask", "uint8", (3, 16, 16))}
    )
    batch = batch_of(np.random.default_rng(4)) | {"image_mask": np.zeros((5, 3, 16, 16), np.uint8)}
    prepare = jax.jit(Prepare(manifest, Normalisation.create(manifest, (), 3.0, False), AUGMENT))
    batch |= {"epoch": np.zeros(5, np.int32), "position": np.arange(5, dtype=np.uint32)}
    assert not np.any(prepare(batch, KEY)["nonfinite"])
    batch["image"][0, 1, 3, 4:7] = np.nan, np.inf, -np.inf
    batch["image"][1] = np.nan
    batch["image"][2, 0] = np.inf  # of a band that was not observed
    batch["bands_observed"][2] = 0b110
    batch["image"][3, 2, 0, 0] = np.nan  # flagged, too
    batch["image_mask"][3, 2, 0, 0] = 1
    batch["bands_observed"][4] = 0
    prepared = prepare(batch, KEY)
    np.testing.assert_allclose(prepared["nonfinite"], [3 / 768, 1, 0, 0, 0], rtol=1e-6)
    assert np.isfinite(prepared["image"]).all() and not prepared["mask"][1].any()
