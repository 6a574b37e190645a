"""Conversion of eight single exposures of DECam (TPV distortion, weights, masks), each a channel, against the files."""

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import jaxz
from data_tools import convert
from data_tools.survey import load_survey
from tests.data_tools.sources import in_cutout, measure

ROOT = Path(__file__).parents[2]
DECAM = ROOT / "../shared/data/legacypipe_decam_grz_exposures"
IMAGES = DECAM / "images/decam/CP/V4.8.2a"
SURVEY = ROOT / "data_tools/surveys/decam_exposures.toml"
GALAXY, EMPTY = (244.779735, 12.072332), (244.7794, 12.0737)  # deg, ICRS
SIZE, RADIUS, RING = 32, 8, 12  # pixels
PIXEL_ARCSEC = 0.262


@pytest.fixture(scope="module", params=["native", "reproject"])
def converted(request, tmp_path_factory):
    if not DECAM.is_dir():
        pytest.skip("needs ../shared/data/legacypipe_decam_grz_exposures")
    folder = tmp_path_factory.mktemp(request.param)
    text = SURVEY.read_text()
    assert 'resample = "reproject"' in text
    (folder / "survey.toml").write_text(text.replace('resample = "reproject"', f'resample = "{request.param}"'))
    catalog = folder / "catalog.fits"
    Table({"id": [1, 2], "ra": [GALAXY[0], EMPTY[0]], "dec": [GALAXY[1], EMPTY[1]]}).write(catalog)
    arguments = ["--survey", str(folder / "survey.toml"), "--catalog", str(catalog), "--images", str(IMAGES)]
    convert.main([*arguments, "--out", str(folder / "dataset"), "--size", str(SIZE)])
    return request.param, jaxz.open_dataset(folder / "dataset")


def test_the_galaxy_is_where_and_as_bright_as_in_each_exposure(converted):
    how, dataset = converted
    row = int(np.flatnonzero(dataset.column("object_id") == 1)[0])
    sample, sky = dataset.cutout(row), SkyCoord(*GALAXY, unit="deg")
    bands = load_survey(SURVEY).bands
    reference = WCS(fits.getheader(IMAGES / next(b.file for b in bands if b.name == "r_150329"), 1))
    for n, (band, stored) in enumerate(zip(bands, dataset.manifest.bands, strict=True)):
        image, header = fits.getdata(IMAGES / band.file, 1, header=True)
        wcs = WCS(header)
        assert header["CTYPE1"] == "RA---TPV"
        cut_wcs, own = (wcs, f"_{band.name}") if how == "native" else (reference, "")
        x, y = map(float, wcs.world_to_pixel(sky))
        cut_x, cut_y = (dataset.column(f"{axis}{own}")[row] for axis in "xy")
        np.testing.assert_allclose([cut_x, cut_y], cut_wcs.world_to_pixel(sky), atol=1e-4)
        at = in_cutout(cut_x, cut_y, SIZE)
        window = {"radius": RADIUS, "ring": RING, "sigma": 2.0}
        there, here = measure(image, x, y, **window), measure(sample["image"][n], *at, **window)
        ratio = here[0] / there[0] * 10 ** (0.4 * (band.zero_point_ab - stored.zero_point_ab))
        assert ratio == pytest.approx(1, abs={"native": 0.01, "reproject": 0.02}[how]), band.name
        centre = cut_wcs.pixel_to_world(*np.add(here[1], np.subtract((cut_x, cut_y), at)))
        assert wcs.pixel_to_world(*there[1]).separation(centre).arcsec < 0.1 * PIXEL_ARCSEC, band.name


def test_zero_points_are_those_of_the_ccds_table_and_epochs_agree(converted):
    _, dataset = converted
    table = fits.getdata(DECAM / "survey-ccds-1.fits.gz")
    true = {str(row["image_filename"]): row["ccdzpt"] + 2.5 * np.log10(row["exptime"]) for row in table}
    magnitudes = {"g": [], "r": [], "z": []}
    row = int(np.flatnonzero(dataset.column("object_id") == 1)[0])
    for band in load_survey(SURVEY).bands:
        assert band.zero_point_ab == pytest.approx(true[f"decam/CP/V4.8.2a/{band.file}"], abs=1e-4)
        magnitudes[band.name[0]].append(-2.5 * np.log10(dataset.column(f"flux_{band.name}")[row]))
    # 4 arcsec lose up to a tenth of the light in the worst seeing; 2.5 log10(exptime) differs by 0.26 to 0.42
    assert all(np.ptp(values) < 0.15 for values in magnitudes.values()), magnitudes


def test_where_no_aperture_is_empty_errors_are_those_of_independent_pixels(converted):
    """51 x 41 pixels and a bright star: the variance of a circle of 4 arcsec is about its area, in pixels."""
    _, dataset = converted
    area = np.pi * (2.0 / PIXEL_ARCSEC) ** 2
    row = int(np.flatnonzero(dataset.column("object_id") == 1)[0])
    for band in dataset.manifest.bands:
        sigma = dataset.column(f"sky_sigma_{band.name}")[row] * band.ujy_per_unit
        assert dataset.column(f"fluxerr_{band.name}")[row] == pytest.approx(sigma * area**0.5, rel=0.05)
        facts = dataset.manifest.provenance["bands"][band.name]
        assert facts["aperture_to_pixel_noise"] is None and facts["crowded"] == [""]


def test_past_the_exposures_there_is_no_data(converted):
    """The cutout of the second object leaves the exposures: masked there, and 0."""
    how, dataset = converted
    row = int(np.flatnonzero(dataset.column("object_id") == 2)[0])
    sample = dataset.cutout(row)
    for n, band in enumerate(load_survey(SURVEY).bands):
        shape = fits.getdata(IMAGES / band.file, 1).shape
        own = f"_{band.name}" if how == "native" else ""
        left, low = (int(np.floor(dataset.column(f"{axis}{own}")[row] + 0.5)) - SIZE // 2 for axis in "xy")
        rows, columns = np.indices((SIZE, SIZE))
        if how == "native":
            absent = (columns + left < 0) | (columns + left >= shape[1])
            absent |= (rows + low < 0) | (rows + low >= shape[0])
            np.testing.assert_array_equal(sample["image_mask"][n] == 4, absent)
        assert 0 < (sample["image_mask"][n] == 4).sum() < SIZE**2 / 2
        assert (sample["image"][n][sample["image_mask"][n] > 0] == 0).all()
