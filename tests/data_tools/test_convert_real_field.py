"""Conversion of a real field in 13 bands of four surveys, each on its own WCS, against the FITS files themselves."""

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

import jaxz
from data_tools import convert
from data_tools.survey import BandSource, load_survey
from jaxz.data.dataset import Dataset
from tests.data_tools.sources import in_cutout, measure, near

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
FIELD = ROOT / "../shared/data/blast_sn_hosts_multisurvey_fits/2010H"
SURVEY = ROOT / "data_tools/surveys/sn2010h_field.toml"
SIZE = 96
BRIGHT = 40  # times the noise in the aperture
RING_ARCSEC = 5.0
FWHM_TO_SIGMA = 1 / 2.3548
FEW = {"FUV": 0, "NUV": 3, "W3": 1, "W4": 1, "J": 5, "H": 5, "K": 4}  # bright objects; elsewhere there are more


@pytest.fixture(scope="module", params=["native", "reproject"])
def converted(request, tmp_path_factory):
    """(how the bands were resampled, the dataset)."""
    if not FIELD.is_dir():
        pytest.skip("needs ../shared/data/blast_sn_hosts_multisurvey_fits")
    folder = tmp_path_factory.mktemp(request.param)
    survey = folder / "survey.toml"
    survey.write_text(SURVEY.read_text().replace('resample = "native"', f'resample = "{request.param}"'))
    arguments = ["--survey", str(survey), "--images", str(FIELD), "--out", str(folder / "dataset"), "--size", str(SIZE)]
    convert.main(arguments)
    return request.param, jaxz.open_dataset(folder / "dataset")


def compared(dataset: Dataset, how: str, band: BandSource) -> np.ndarray:
    """[N, 2] of the bright objects of a band: flux in the dataset over that in the file, less 1; distance between
    their centres on the sky, in pixels of the file."""
    number = [b.name for b in dataset.manifest.bands].index(band.name)
    stored = dataset.manifest.bands[number]
    path = FIELD / band.file.replace("{band}", band.name)
    image, header = fits.getdata(path), fits.getheader(path)
    wcs, scale, cut_scale = WCS(header), band.pixel_scale_arcsec or 0.396, stored.pixel_scale_arcsec
    zero_point = band.zero_point_ab + (header[band.zero_point_header] if band.zero_point_header else 0)
    cut_wcs = wcs if how == "native" else WCS(fits.getheader(FIELD / "SDSS/SDSS_r.fits"))
    radius = np.clip(1.5 * band.psf_fwhm_arcsec, 4, 12)
    ring = radius + RING_ARCSEC
    sigma = np.clip(band.psf_fwhm_arcsec * FWHM_TO_SIGMA, scale / 2, ring / 4)  # a window that fits into the ring
    sky = SkyCoord(dataset.column("ra"), dataset.column("dec"), unit="deg")
    own = f"_{band.name}" if how == "native" else ""
    found = []
    for row, x, y, cut_x, cut_y in zip(
        range(len(dataset)), *wcs.world_to_pixel(sky), dataset.column(f"x{own}"), dataset.column(f"y{own}"), strict=True
    ):
        there = measure(image, x, y, radius=radius / scale, ring=ring / scale, sigma=sigma / scale, least=BRIGHT)
        if there is None:
            continue
        sample, at = dataset.cutout(row), in_cutout(cut_x, cut_y, SIZE)
        if near(sample["image_mask"][number], *at, ring / cut_scale)[0].any():
            continue
        image_here = sample["image"][number]
        here = measure(image_here, *at, radius=radius / cut_scale, ring=ring / cut_scale, sigma=sigma / cut_scale)
        ratio = here[0] / there[0] * 10 ** (0.4 * (zero_point - stored.zero_point_ab))
        centre = cut_wcs.pixel_to_world(*np.add(here[1], np.subtract((cut_x, cut_y), at)))
        found.append((ratio - 1, wcs.pixel_to_world(*there[1]).separation(centre).arcsec / scale))
    return np.array(found).reshape(-1, 2)


def test_bright_objects_are_where_and_as_bright_as_in_the_files(converted):
    how, dataset = converted
    assert len(dataset) >= 150
    for band in load_survey(SURVEY).bands:
        flux, apart = compared(dataset, how, band).T
        assert len(flux) >= FEW.get(band.name, 15), band.name
        assert np.abs(flux).max(initial=0) <= {"native": 0.01, "reproject": 0.02}[how], (band.name, flux)
        assert apart.max(initial=0) <= 0.1, (band.name, apart)


def test_the_field_streams(converted):
    how, dataset = converted
    stream = jaxz.Stream(jaxz.Source(dataset, columns=("mag_ref",), where="split == 'train'"), 32, seed=1)
    batch = next(stream)
    assert batch["image"].shape == (32, 13, SIZE, SIZE) and np.isfinite(batch["image"]).all()
    scales = {band.pixel_scale_arcsec for band in dataset.manifest.bands}
    assert scales == ({0.396, 1.0, 1.375, 1.5} if how == "native" else {0.396})
    assert (dataset.column("bands_observed") == 2**13 - 1).mean() > 0.3  # 2MASS ends within the field


@pytest.mark.parametrize("name", ["r", "i", "J"])
def test_flux_columns_are_those_of_apertures_in_the_files(converted, name):
    """In microjansky, of bright objects, in 8 arcsec; the sky is that of a ring here and of a mesh there."""
    _, dataset = converted
    band = next(band for band in load_survey(SURVEY).bands if band.name == name)
    image, header = fits.getdata(FIELD / band.file.replace("{band}", name), header=True)
    wcs, scale = WCS(header), band.pixel_scale_arcsec or 0.396
    zero_point = band.zero_point_ab + (header[band.zero_point_header] if band.zero_point_header else 0)
    sky = SkyCoord(dataset.column("ra"), dataset.column("dec"), unit="deg")
    window = {"radius": 4 / scale, "ring": 9 / scale, "sigma": 1.0, "least": 2 * BRIGHT}
    found = [measure(image, x, y, **window) for x, y in zip(*wcs.world_to_pixel(sky), strict=True)]
    bright = [row for row, measured in enumerate(found) if measured]
    true = np.array([found[row][0] for row in bright]) * 10 ** (0.4 * (23.9 - zero_point))
    ratio = dataset.column(f"flux_{name}")[bright] / true
    assert len(bright) >= 3 and np.median(ratio) == pytest.approx(1, abs=0.02)
