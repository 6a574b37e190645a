"""Which files are the tiles of a survey, and what is said of grids that do not fit."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits

from data_tools.inputs import input_paths, unmatched
from data_tools.planes import read_band
from data_tools.survey import Survey, load_survey
from data_tools.tiles import find_tiles
from jaxz.errors import InputError
from tests.data_tools.survey_files import SURVEY, header

NOISE = np.random.default_rng(0).normal(size=(60, 70)).astype(np.float32)


def survey_of(folder: Path, *changes: tuple[str, str]) -> Survey:
    """The survey of `write_survey`, its files named by tile and band."""
    text = SURVEY.replace("tile_{band}", "{tile}_{band}").replace("z_band", "{tile}_z").replace("hdu = 1\n", "")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "survey.toml").write_text(text)
    return load_survey(folder / "survey.toml")


def write(path: Path, value: float, **keywords) -> None:
    fits.writeto(path, NOISE + np.float32(value), header(), **keywords)


def test_each_file_may_be_compressed_and_what_is_not_read_is_counted(tmp_path):
    survey = survey_of(tmp_path, ('name = "z"', 'name = "z"\nweight_file = "w_{tile}.fits"'))
    for n, (tile, band) in enumerate((t, b) for t in "ab" for b in "grz"):
        write(tmp_path / f"{tile}_{band}.fits", n)
        write(tmp_path / f"w_{tile}.fits", 9, overwrite=True)
    for name in ("a_g", "b_z", "w_b"):
        plain = tmp_path / f"{name}.fits"
        plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    for name in ("a_r", "w_a"):
        plain = tmp_path / f"{name}.fits"
        image = fits.CompImageHDU(fits.getdata(plain), header(), compression_type="GZIP_2", quantize_level=0)
        fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / f"{name}.fits.fz")
        plain.unlink()
    (tmp_path / "b_r.fits.gz").write_bytes(b"of the plain file beside it, which counts")
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "c_g.FIT", 0)
    tiles = find_tiles(survey, tmp_path)
    assert [tile.name for tile in tiles] == ["a", "b"]
    for n, (tile, band) in enumerate((t, b) for t in tiles for b in survey.bands):
        pixels, flags, _ = read_band(survey, tmp_path, tile, band)
        np.testing.assert_array_equal(pixels, NOISE + np.float32(n))
        assert not flags.any()
    args = SimpleNamespace(survey=str(tmp_path / "survey.toml"), images=tmp_path, catalog=None, match=None)
    left = unmatched(tmp_path, input_paths(survey, args, tiles))
    assert left == [tmp_path / "b_r.fits.gz", tmp_path / "more" / "c_g.FIT"]


@pytest.mark.parametrize("resample", ["native", "reproject"])
def test_a_scale_that_is_not_the_bands_is_told_whatever_becomes_of_it(resample, tmp_path):
    for band in "grz":
        write(tmp_path / f"a_{band}.fits", 0)
    here = ('name = "synthetic"', f'name = "synthetic"\nresample = "{resample}"')
    find_tiles(survey_of(tmp_path, here, ('name = "r"', 'name = "r"\npixel_scale_arcsec = 0.5')), tmp_path)
    survey = survey_of(tmp_path, here, ('name = "r"', 'name = "r"\npixel_scale_arcsec = 0.6'))
    with pytest.raises(InputError, match=r"bands\.r\.pixel_scale_arcsec: 0.6, but the WCS of .*a_r.fits' says 0.5"):
        find_tiles(survey, tmp_path)
    survey = survey_of(tmp_path, here, ("pixel_scale_arcsec = 0.5", "pixel_scale_arcsec = 0.7"))
    told = {"native": "pixel_scale_arcsec: 0.7, but", "reproject": r"0.7 is the scale of no band .* {'g': 0.5, 'r': 0"}
    with pytest.raises(InputError, match=told[resample]):
        find_tiles(survey, tmp_path)


def test_of_a_cube_the_hint_names_the_planes(tmp_path):
    planes = [fits.PrimaryHDU(np.stack([NOISE] * 2)), *(fits.ImageHDU(NOISE, name=n) for n in ("SCI", "WHT"))]
    fits.HDUList(planes).writeto(tmp_path / "a_g.fits")
    for band in "rz":
        write(tmp_path / f"a_{band}.fits", 0)
    with pytest.raises(InputError, match=r"shape \(2, 60, 70\); use one of 1 \(SCI\), 2 \(WHT\)"):
        find_tiles(survey_of(tmp_path), tmp_path)
