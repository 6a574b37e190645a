"""Conversion of surveys with an image an object."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import jaxz
from data_tools import convert
from data_tools.tiles import MASK_BITS
from jaxz.errors import InputError
from tests.data_tools.survey_files import header, sky_of

NUMBER, SIZE = 40, 16
SURVEY = """
name = "stamps"
pixel_scale_arcsec = 0.5
[[bands]]
name = "g"
file = "{band}/{image}.fits"
weight_file = "{band}/{image}.w.fits"
zero_point_ab = 23.9
wavelength_nm = 480
width_nm = 140
a_over_ebv = 3.2
psf_fwhm_arcsec = 0.8
[[bands]]
name = "r"
file = "all_r.fits"
hdu = "{image}"
zero_point_ab = 20.0
zero_point_header = "DZP"
wavelength_nm = 620
width_nm = 140
a_over_ebv = 2.3
psf_fwhm_arcsec = 0.8
[catalog]
object_id = "ID"
image = "N"
[photometry]
band = "g"
aperture_diameter_arcsec = 2.0
[splits]
cell_arcmin = 0.8
fractions = { train = 0.6, test = 0.4 }
"""


def images() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """g with a WCS, each of another size, and r whose middle is the object; a lit pixel each."""
    rng = np.random.default_rng(0)
    g = [rng.normal(0, 2, (20 + n % 5, 24 + n % 3)).astype(np.float32) for n in range(NUMBER)]
    r = [rng.normal(0, 3, (11 + n % 4, 13)).astype(np.float32) for n in range(NUMBER)]
    for a, b in zip(g, r, strict=True):
        a[9, 12] += 500
        b[b.shape[0] // 2, b.shape[1] // 2] += 700
    return g, r


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps") / "field"
    (folder / "g").mkdir(parents=True)
    (folder / "survey.toml").write_text(SURVEY)
    g, r = images()
    rng = np.random.default_rng(1)
    x, y = rng.uniform(50, 250, (2, NUMBER))
    ra, dec = sky_of(x, y)
    ids = [f"obj.{n}/a b" for n in range(NUMBER)]
    hdus = [fits.PrimaryHDU()]
    for n in range(NUMBER):
        hdu = fits.ImageHDU(r[n])
        hdu.header["DZP"] = 3.9
        hdus.append(hdu)
        if n % 7 == 3:
            continue  # not observed in g
        grid = header()
        grid["CRPIX1"] -= x[n] - 12
        grid["CRPIX2"] -= y[n] - 9
        fits.writeto(folder / "g" / f"{n + 1}.fits", g[n], grid)
        weight = np.ones(g[n].shape, np.float32)
        weight[0, 0] = 0
        fits.writeto(folder / "g" / f"{n + 1}.w.fits", weight)
    fits.HDUList(hdus).writeto(folder / "all_r.fits")
    Table({"ID": ids, "N": np.arange(1, NUMBER + 1), "RA": ra, "DEC": dec}).write(folder / "catalog.fits")
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    argv = ["--survey", str(folder / "survey.toml"), "--catalog", str(folder / "catalog.fits")]
    return [*argv, "--images", str(folder), "--out", str(out), "--size", str(SIZE), "--workers", "1", *more]


def test_each_object_has_its_own_image(folder, tmp_path):
    convert.main(arguments(folder, tmp_path / "out", "--samples_per_shard", "15"))
    dataset, (g, r) = jaxz.open_dataset(tmp_path / "out"), images()
    assert len(dataset) == NUMBER and len(dataset.manifest.shards) == 3
    numbers = [int(name.split(".")[1].split("/")[0]) for name in dataset.column("object_id")]
    assert sorted(numbers) == list(range(NUMBER)) != numbers
    factor = {b.name: 10 ** (0.4 * (b.zero_point_ab - 23.9)) for b in dataset.manifest.bands}
    for row, n in enumerate(numbers):
        sample = dataset.cutout(row)
        middle = r[n].shape[1] // 2, r[n].shape[0] // 2
        for c, (pixels, (x, y), band) in enumerate(((g[n], (12, 9), "g"), (r[n], middle, "r"))):
            flags = np.zeros(pixels.shape, np.uint8)
            if band == "g":
                flags[0, 0] = MASK_BITS["bad"]
            cut = np.s_[y + SIZE // 2 : y + 3 * SIZE // 2, x + SIZE // 2 : x + 3 * SIZE // 2]
            flags = np.pad(flags, SIZE, constant_values=MASK_BITS["nodata"])[cut]
            if band == "g" and n % 7 == 3:
                flags[:] = MASK_BITS["nodata"]
            np.testing.assert_array_equal(sample["image_mask"][c], flags)
            truth = np.where(flags == 0, np.pad(pixels, SIZE)[cut] * factor[band], 0)
            np.testing.assert_allclose(sample["image"][c], truth, rtol=2**-10, atol=1e-6)
    seen = np.array([n % 7 != 3 for n in numbers])
    assert (dataset.column("bands_observed") == np.where(seen, 3, 2)).all()
    assert (np.isfinite(dataset.column("flux_g")) == seen).all()
    np.testing.assert_allclose(dataset.column("flux_g")[seen], 500, atol=40)
    noise = [np.std(dataset.column(f"sky_sigma_{band}")[seen]) for band in "gr"]
    assert max(noise) < 0.5 and np.median(dataset.column("sky_sigma_g")[seen]) == pytest.approx(1, abs=0.1)


def test_a_part_of_a_path_that_leaves_the_folder_is_refused(folder, tmp_path):
    table = Table.read(folder / "catalog.fits")
    table["N"] = ["../" + str(n) for n in table["N"]]
    table.write(tmp_path / "catalog.fits")
    argv = arguments(folder, tmp_path / "out")
    argv[3] = str(tmp_path / "catalog.fits")
    with pytest.raises(InputError, match=r"catalog\.image: '\.\./1' leaves the images folder"):
        convert.main(argv)
    assert not (tmp_path / "out").exists()


def test_a_band_without_any_image_is_refused(folder, tmp_path):
    text = (folder / "survey.toml").read_text().replace('"{band}/{image}.fits"', '"G/{image}.fits"')
    (tmp_path / "survey.toml").write_text(text)
    argv = arguments(folder, tmp_path / "out")
    argv[1] = str(tmp_path / "survey.toml")
    with pytest.raises(InputError, match=r"bands\.g\.file: .*G/\{image\}.fits' is there for 0 of 40 objects"):
        convert.main(argv)


def test_a_saturated_pixel_keeps_its_value_above_the_sky(folder, tmp_path):
    sky = 20.0
    shutil.copytree(folder, tmp_path / "in")
    for path in (tmp_path / "in" / "g").glob("?.fits"):
        with fits.open(path, mode="update") as hdus:
            hdus[0].data += sky
    survey = tmp_path / "in" / "survey.toml"
    survey.write_text("subtract_background = true\n" + SURVEY.replace("480\n", "480\nsaturation = 400.0\n", 1))
    convert.main(arguments(tmp_path / "in", tmp_path / "out"))
    dataset, (g, _) = jaxz.open_dataset(tmp_path / "out"), images()
    factor = 10 ** (0.4 * (dataset.manifest.bands[0].zero_point_ab - 23.9))
    for row, name in enumerate(dataset.column("object_id")):
        n = int(name.split(".")[1].split("/")[0])
        if n < 9 and n % 7 != 3:  # images 1 to 9
            sample = dataset.cutout(row)
            assert sample["image_mask"][0, SIZE // 2, SIZE // 2] == MASK_BITS["saturated"]
            np.testing.assert_allclose(sample["image"][0, SIZE // 2, SIZE // 2], g[n][9, 12] * factor, rtol=0.01)


def test_a_sky_that_float16_does_not_resolve_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    for path in (tmp_path / "in" / "g").glob("*[0-9].fits"):
        with fits.open(path, mode="update") as hdus:
            hdus[0].data += 3000
    with pytest.raises(InputError, match=r"subtract_background: false, but the sky of .*g/1.fits.* sigma from 0"):
        convert.main(arguments(tmp_path / "in", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
