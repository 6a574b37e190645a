"""The sky of real surveys and the ladder of selections, simulated: each against its closed form."""

import astropy.units as u
import numpy as np
import pytest
import speclite.filters
from scipy.stats import kstest

from data_tools import simulate
from data_tools.simulator import bands, photometry, population, render, sky, sources, spectra, spectroscopy, survey
from data_tools.simulator.population import AGN, GALAXY, STAR
from jaxz.data.dataset import open_dataset
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from jaxz.photoz.spectra import WAVELENGTH, igm_transmission, star

REFERENCE = bands.REFERENCE
NOBODY = {"neighbours": None, "owner": np.empty(0, int)}


def some(objects, chosen):
    """Rows of a NamedTuple of arrays."""
    return type(objects)(*(x[chosen] for x in objects))


# --- stars and active nuclei -----------------------------------------------------------------------------------------


def speclite_magnitudes(f_lambda, wavelength):
    unit = u.erg / u.s / u.cm**2 / u.AA
    curves = [speclite.filters.load_filter(band.curve) for band in bands.BANDS]
    return np.array([curve.get_ab_magnitude(f_lambda * unit, wavelength * u.AA) for curve in curves])


@pytest.mark.parametrize("n", [0, 15, 39])
def test_a_star_through_the_filters_against_speclite(n):
    expected = speclite_magnitudes(1e-15 * star(spectra.TEMPERATURES[n]) / star(5000).max(), WAVELENGTH)
    assert np.abs(spectra.star_colours()[n] - (expected - expected[REFERENCE])).max() < 0.01
    share = np.sqrt(np.log(spectra.TEMPERATURES[n] / 2900) / np.log(10000 / 2900))
    assert sources.star_colours(np.array([share]))[0] == pytest.approx(spectra.star_colours()[n], abs=1e-6)


@pytest.mark.parametrize("kind, z", [(0, 0.8), (1, 2.2), (2, 3.3)])
def test_a_quasar_through_the_filters_against_speclite(kind, z):
    rest = np.geomspace(450, 30000, 40000)
    seen = 1e-15 * spectra.quasars(rest)[kind] * igm_transmission(rest * (1 + z), z)
    expected = speclite_magnitudes(seen, rest * (1 + z))
    quantile = np.array([1e-9, 0.5, 1 - 1e-9])[kind]
    found = sources.agn_colours(np.array([quantile]), np.array([z]))[0]
    assert np.abs(found - (expected - expected[REFERENCE])).max() < 0.03  # the grid's step in z, across sharp lines


@pytest.fixture(scope="module")
def many():
    return sources.sources(5, 0, 40_000)


def test_the_classes_have_their_shares_and_counts(many):
    for which, share in sources.SHARES.items():
        here = many.obj_class == which
        assert here.mean() == pytest.approx(share, abs=4 * np.sqrt(share / len(here)))
        mag = many.mag[here, REFERENCE]
        slope = sources.COUNTS[which]
        cumulative = (10 ** (slope * mag) - 10 ** (slope * 18)) / (10 ** (slope * 25) - 10 ** (slope * 18))
        assert kstest(cumulative, "uniform").pvalue > 1e-3
    assert np.all(many.z[many.obj_class == STAR] == 0) and np.all(many.z[many.obj_class == AGN] > 0)
    plain = population.galaxies(5, 0, 40_000)
    left = many.obj_class == GALAXY
    assert np.array_equal(many.mag[left], plain.mag[left])


# --- the sky ---------------------------------------------------------------------------------------------------------


def test_noise_is_correlated_as_linear_interpolation_makes_it():
    """Brute force: white exposures at random phases, interpolated linearly along both axes and averaged."""
    rng = np.random.default_rng(0)
    expected = np.zeros((3, 3))  # of lags 0, 1, 2 along y and x
    noise = render.sky_noise((200, 10, 24, 24), 1, 0, correlated=True).astype(float)
    found = np.array(
        [[np.mean(noise[..., dy:, dx:] * noise[..., : 24 - dy, : 24 - dx]) for dx in range(3)] for dy in range(3)]
    )
    for a, b in rng.random((20_000, 2)):
        y, x = (np.convolve(k, k[::-1])[1:] for k in ([a, 1 - a], [b, 1 - b]))
        expected[:2, :2] += np.outer(y, x)
    assert found == pytest.approx(expected / expected[0, 0], abs=0.01)
    assert found[0, 0] == pytest.approx(1, abs=0.005)


def test_apertures_hold_the_noise_that_the_kernel_says():
    """Closed form: of a Gaussian weight of variance v, neighbours' products are exp(-1 / 4v) of the squares."""
    psf, aperture = bands.PSF_SIGMA / bands.PIXEL_SCALE, survey.APERTURE_SIGMA / bands.PIXEL_SCALE
    ratio = photometry.aperture_to_pixel_noise(psf, aperture, 0.25)
    assert ratio == pytest.approx(1 + 0.5 * np.exp(-1 / (4 * (aperture**2 - psf**2))), rel=1e-3)
    assert photometry.aperture_to_pixel_noise(psf, aperture, 0.0) == pytest.approx(1)
    noise = render.sky_noise((1500, len(psf), 24, 24), 2, 0, correlated=True)
    centre = np.full((1500, 2), 11.3)
    flux, error = photometry.matched_fluxes(noise, centre, psf, aperture, np.ones(len(psf)), 0.25)
    _, white = photometry.matched_fluxes(noise, centre, psf, aperture, np.ones(len(psf)))
    assert (flux / error).std() == pytest.approx(1, abs=0.02)
    assert error / white == pytest.approx(np.tile(ratio, (1500, 1)), rel=1e-2)


def test_zero_points_of_tiles_come_back_from_bright_stars(many):
    stars = (many.obj_class == STAR) & (many.mag[:, REFERENCE] < 21)
    stars = some(many, np.flatnonzero(stars)[:300])
    over = sky.over(stars, 5, 0, 24, "survey", "S2")._replace(**NOBODY)
    seen = survey.observe(stars, 5, 0, 24, sky=over)
    error = 1.0857 * seen.flux_error / seen.flux + 1e-3
    offset = -2.5 * np.log10(seen.flux / seen.true_flux)
    bright = seen.observed & (error < 4e-3)
    assert bright.sum() > 500
    fields = population.fields(5)
    quadrant = 2 * (stars.dec > fields.dec[stars.field]) + (np.sin(np.radians(stars.ra - fields.ra[stars.field])) > 0)
    means = []
    for b in range(len(bands.BANDS)):
        for tile in np.unique(4 * stars.field + quadrant):
            here = bright[:, b] & (4 * stars.field + quadrant == tile)
            if here.sum() > 1:
                means.append(offset[here, b].mean())
                assert np.all(np.abs(offset[here, b] - means[-1]) < 5 * error[here, b])
    assert len(means) > 100
    assert np.std(means) == pytest.approx(0.015, abs=0.003) and abs(np.mean(means)) < 0.005


def test_depth_and_seeing_are_those_of_the_columns():
    objects = sources.sources(3, 0, 96)
    over = sky.over(objects, 3, 0, 32, "survey", "S2")._replace(**NOBODY)
    noisy, clean = (survey.observe(objects, 3, 0, 32, "float32", noise, over) for noise in (True, False))
    sigma = (noisy.image - clean.image).std((2, 3))[noisy.observed]
    assert sigma / over.seen.sky_sigma[noisy.observed] == pytest.approx(np.ones(len(sigma)), abs=0.2)
    assert 0.1 < np.log(over.seen.sky_sigma).std() < 0.18
    star = np.flatnonzero(objects.obj_class == STAR)[:3]
    y, x = np.indices((32, 32)) - 15.5
    for n in star:
        for b in np.flatnonzero(noisy.observed[n]):
            image = clean.image[n, b].astype(float)
            variance = [
                ((d - o) ** 2 * image).sum() / image.sum() for d, o in zip((x, y), objects.offset[n], strict=True)
            ]
            assert 2.3548 * 0.2 * np.sqrt(variance) == pytest.approx(over.seen.psf_fwhm[n, b], rel=0.02)


def test_neighbours_are_as_many_as_the_counts_say_and_anywhere():
    objects = sources.sources(5, 0, 4000)
    near, owner = sources.neighbours(objects, 5, 0, 64)
    number = np.bincount(owner, minlength=4000)
    expected = population.density() * (64 * 0.2 / 3600) ** 2
    assert number.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 4000))
    assert number.var() == pytest.approx(expected, rel=0.15)
    for axis in near.offset.T:
        assert kstest(axis / 64 + 0.5, "uniform").pvalue > 1e-3
    assert np.array_equal(near.ebv, objects.ebv[owner]) and not np.isin(near.z, objects.z[objects.z > 0]).any()


def test_light_of_neighbours_is_added_and_blends_are_said_so():
    objects = population.galaxies(6, 0, 3)
    over = sky.over(objects, 6, 0, 32, "survey", "S2")
    owner = np.array([0, 1, 1])
    bright = some(objects, [0, 1, 1])._replace(
        offset=np.array([[14.0, 14], [3, 2], [-13, 9]]), mag=objects.mag[[0, 1, 1]]
    )
    alone, both = (
        survey.observe(objects, 6, 0, 32, "float32", False, over._replace(neighbours=n, owner=o))
        for n, o in ((None, owner[:0]), (bright, owner))
    )
    drawn = sky.over(some(objects, owner), 6, 0, 32, "survey", "S2")._replace(**NOBODY)
    theirs = survey.observe(bright, 6, 0, 32, "float32", False, drawn)
    assert both.image[0] == pytest.approx(alone.image[0] + theirs.image[0], rel=1e-4, abs=1e-4)
    assert both.image[1] == pytest.approx(alone.image[1] + theirs.image[1] + theirs.image[2], rel=1e-4, abs=1e-4)
    assert np.array_equal(both.image[2], alone.image[2])
    assert both.blended.tolist() == [False, True, False] and not alone.blended.any()


def test_an_object_is_the_same_however_the_work_is_cut():
    made = []
    for first, count in ((80, 40), (97, 21)):
        objects = sources.sources(2, first, count)
        over = sky.over(objects, 2, first, 16, "survey", "S3")
        seen = survey.observe(objects, 2, first, 16, sky=over)
        found = spectroscopy.observe(objects, seen.mag_ref, 2, first, "S1", errors=True)
        split = np.full(count, "train")
        made.append({"image": seen.image} | survey.columns(objects, seen, found, first, split, over))
    for name, values in made[0].items():
        part, other = values[17:38], made[1][name]
        assert list(part) == list(other) if part.dtype.kind == "U" else np.array_equal(part, other, equal_nan=True), (
            name
        )


# --- spectra ---------------------------------------------------------------------------------------------------------


def test_wrong_redshifts_are_of_one_line_taken_for_another(many):
    found = spectroscopy.observe(many, many.mag[:, REFERENCE], 5, 0, "S0", errors=True)
    ratio = (1 + found.z_spec) / (1 + many.z)
    right = np.abs(ratio - 1) < 6 * spectroscopy.Z_ERROR
    assert np.array_equal(right, ~found.wrong)
    lines = np.array([3728 / 6563, 6563 / 3728, 5007 / 6563, 1216 / 3728])
    off = np.abs(ratio[found.wrong, None] / lines - 1)
    assert off.min(1).max() < 6 * spectroscopy.Z_ERROR
    assert len(np.unique(off.argmin(1))) == 4
    assert found.z_spec.min() > -0.01
    assert found.wrong.mean() == pytest.approx(0.0135, abs=0.0025)  # stars and 1.6 < z < 2.1 have no such lines
    for quality, sure in ((2, 0.75), (3, 0.95), (4, 0.99)):  # what C1's classes promise
        assert right[found.z_quality == quality].mean() > sure
    assert np.mean(found.z_quality[found.wrong] < 4) == pytest.approx(0.8, abs=0.08)


def excess(values, taken, mag):
    """How much larger `values` are with spectra than without, at the same magnitude, in its standard errors."""
    difference = variance = 0.0
    for low in np.arange(21, 25, 0.05):
        here = (mag >= low) & (mag < low + 0.05)
        a, b = values[here & taken], values[here & ~taken]
        if min(len(a), len(b)) > 4:
            weight = len(a) * len(b) / (len(a) + len(b))
            difference += weight * (a.mean() - b.mean())
            variance += weight**2 * np.var(values[here]) * (1 / len(a) + 1 / len(b))
    return difference / np.sqrt(variance)


def test_the_ladder_of_selections(many):
    mag = many.mag[:, REFERENCE]
    taken = {name: spectroscopy.observe(many, mag, 5, 0, name, errors=False).taken for name in spectroscopy.SELECTIONS}
    assert taken["S0"].sum() == pytest.approx(taken["S2"].sum(), rel=0.1)
    assert kstest(mag[taken["S0"]], mag).pvalue > 1e-3 and kstest(many.z[taken["S0"]], many.z).pvalue > 1e-3
    desert = (many.kind > 0.8) & (many.z > 1.5) & (many.z < 2.2)
    colour = many.mag[:, 1] - many.mag[:, 4]
    for values in (colour, many.z, desert.astype(float)):
        assert abs(excess(values, taken["S1"], mag)) < 4
    assert excess(desert.astype(float), taken["S2"], mag) < -6
    deep = np.isin(many.field, spectroscopy.DEEP_FIELDS)
    assert np.array_equal(taken["S3"], taken["S2"] & deep) and taken["S3"].any()
    unseen = spectroscopy.observe(many, np.full(len(mag), np.nan), 5, 0, "S1", errors=False)
    assert not unseen.taken.any()


def test_fields_with_spectra_of_s3_are_deeper_and_of_poorer_seeing():
    ideal, s2, s3 = (sky.tiles(4, *how) for how in (("ideal", "S3"), ("survey", "S2"), ("survey", "S3")))
    field = np.arange(96) // 4
    deep = np.isin(field, spectroscopy.DEEP_FIELDS)
    assert len(np.unique(field[deep])) == 4 and population.fields(4).observed[np.unique(field[deep])].all()
    nominal = np.array([band.psf_fwhm for band in bands.BANDS])
    assert np.all(ideal.sky_sigma[deep] == 0.5) and np.all(ideal.sky_sigma[~deep] == 1)
    assert np.all(ideal.psf_fwhm[deep] == 1.15 * nominal) and np.all(ideal.psf_fwhm[~deep] == nominal)
    for name in ("psf_fwhm", "sky_sigma", "zero_point_error"):
        assert np.array_equal(getattr(s2, name)[~deep], getattr(s3, name)[~deep])
    assert np.all(s3.sky_sigma[deep] == 0.5 * s2.sky_sigma[deep])
    assert s3.psf_fwhm.max() / 2.3548 < survey.APERTURE_SIGMA  # or apertures could not match them
    assert s2.psf_fwhm.min() / 2.3548 > 1.2 * bands.PIXEL_SCALE  # or images would alias


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_says_which_sky_it_was(tmp_path, capsys):
    arguments = ["--samples", "120", "--size", "16", "--samples_per_shard", "120", "--workers", "1", "--sky", "survey"]
    plan = {"samples": 120, "size": 16, "seed": 0, "samples_per_shard": 120, "sky": "survey", "selection": "S0"}
    writer = DatasetWriter(tmp_path / "d", simulate.make_manifest(plan), {"tool": "simulate", **plan})
    split, summary = simulate.make_splits(plan)
    simulate.write_shard(writer, plan, split, 0)
    writer.finish(1, summary)
    assert simulate.main([str(tmp_path / "d"), *arguments, "--selection", "S0"]) is None
    assert "complete" in capsys.readouterr().out
    with pytest.raises(InputError, match="selection"):
        simulate.main([str(tmp_path / "d"), *arguments])

    found = open_dataset(tmp_path / "d")
    get = found.column
    assert found.manifest.provenance["command"].endswith("--sky survey --selection S0")
    for band in found.manifest.bands:
        assert 1.4 < found.manifest.provenance["bands"][band.name]["aperture_to_pixel_noise"] < 1.5
        assert band.psf_fwhm_arcsec == pytest.approx(np.median(get(f"psf_fwhm_{band.name}")), rel=0.1)
    taken, star = get("z_quality") > 0, get("true_class") == "star"
    assert star.any() and taken.any()
    assert np.array_equal(get("obj_class"), np.where(taken, get("true_class"), ""))
    assert np.array_equal(np.isnan(get("true_z")), star)
    assert np.array_equal(get("z_kind") == "spec", taken & ~star) and np.array_equal(
        np.isfinite(get("z")), taken & ~star
    )
    assert np.array_equal(np.isfinite(get("z_spec")), taken)
    assert len(set(get("tile"))) > len(set(get("field")))
