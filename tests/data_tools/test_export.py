"""FITS cubes and HDF5 files against what the dataset holds, read by astropy and h5py."""

import csv
import json
import os

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from data_tools import export
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.survey_images import survey_images
from tests.helpers import blobs


@pytest.fixture(scope="module", params=["raw", "compact"])
def source(request, tmp_path_factory):
    return open_dataset(survey_images(tmp_path_factory.mktemp("export") / "d", encoding=request.param))


def microjansky(dataset, sample):
    """By the definition of the zero points; NaN in what the mask calls bad or nodata."""
    zero_points = np.array([27.0, 28.0, 29.0])[:, None, None]
    flux = sample["image"].astype(float) * 10 ** (-0.4 * (zero_points - 23.9))
    bits = dataset.manifest.arrays["image_mask"].bits
    return np.where(sample["image_mask"] & (bits["bad"] | bits["nodata"]), np.nan, flux)


def test_a_cube_per_object(source, tmp_path):
    assert export.main([str(source.path), "--out", str(tmp_path / "fits"), "--where", "z > 0.5"]) is None
    rows, paths = source.select("z > 0.5"), list((tmp_path / "fits").glob("*.fits"))
    with open(tmp_path / "fits" / "index.csv", encoding="utf-8") as file:
        listed = {line["file"]: (line["key"], line["object_id"]) for line in csv.DictReader(file)}
    assert listed.keys() == {path.name for path in paths}
    assert len(paths) == len(rows) > 10
    where = {one: row for row, one in enumerate(source.column("key").tolist())}
    for path in paths:
        assert path.suffix == ".fits" and set(path.stem) <= set("J0123456789_-s")  # object ids hold dots and slashes
        with fits.open(path, checksum=True) as hdus:
            table = Table.read(hdus["CATALOG"])
            row = where[table["key"][0]]
            sample, header = source.cutout(row), hdus[0].header
            assert listed[path.name] == (sample["key"], sample["object_id"])
            assert header["BUNIT"] == "uJy" and header["NAXIS3"] == 3 and header["BAND2"] == "r"
            np.testing.assert_allclose(hdus[0].data, microjansky(source, sample), rtol=1e-6)
            np.testing.assert_array_equal(hdus["IMAGE_MASK"].data, sample["image_mask"])
            assert hdus["IMAGE_MASK"].header["BIT_2"] == "saturated"
            np.testing.assert_array_equal(hdus["FEATURES"].data, sample["features"])
            for name in source.manifest.columns:
                value = sample[name]
                assert table[name][0] == (
                    value.encode("ascii", "backslashreplace").decode() if name == "object_id" else value
                )
            assert header["OBJECT"] == table["object_id"][0]
            sky = WCS(header).celestial.pixel_to_world(4, 4)  # pixel [size // 2, size // 2] holds the object
            assert sky.ra.deg == pytest.approx(sample["ra"], abs=1e-9)
            assert sky.dec.deg == pytest.approx(sample["dec"], abs=1e-9)
            north, east = (WCS(header).celestial.pixel_to_world(*xy) for xy in ((4, 5), (3, 4)))
            assert (north.dec - sky.dec).arcsec == pytest.approx(0.2, rel=1e-6) and east.ra > sky.ra
            assert sky.separation(east).arcsec == pytest.approx(0.2, rel=1e-6)


def test_the_exact_centre_is_kept(tmp_path):
    """Pixel 4 is the one nearest to x, y: the position lies up to half a pixel from it."""
    assert export.centre((8, 8), {"x": 100.3, "y": 7.8}) == pytest.approx((5.3, 4.8))
    assert export.centre((8, 8), {}) == (5.0, 5.0)


def test_bands_on_grids_of_their_own_have_a_wcs_each(tmp_path):
    """As `resample = "native"` writes them: scales differ, and so does the fraction of a pixel."""
    centres = {"x_g": [10.4], "y_g": [3.0], "x_r": [7.7], "y_r": [8.2], "x_i": [np.nan], "y_i": [np.nan]}
    path = survey_images(tmp_path / "d", samples=1, shards=1, scales=(0.2, 0.5, 1.0), **centres)
    assert export.main([str(path), "--out", str(tmp_path / "fits")]) is None
    sample, dataset = open_dataset(path).cutout(0), open_dataset(path)
    [file] = (tmp_path / "fits").glob("*.fits")
    with fits.open(file) as hdus:
        assert hdus[0].data is None
        for n, (scale, x, y) in enumerate([(0.2, 4.4, 4.0), (0.5, 3.7, 4.2), (1.0, 4.0, 4.0)]):
            image = hdus["IMAGE", n + 1]
            np.testing.assert_allclose(image.data, microjansky(dataset, sample)[n], rtol=1e-6)
            assert image.header["BAND1"] == "gri"[n] and image.header["BUNIT"] == "uJy"
            ra, dec = WCS(image.header).wcs_pix2world([[x, y], [x, y + 1]], 0).T
            assert ra[0] == pytest.approx(sample["ra"], abs=1e-9) and dec[0] == pytest.approx(sample["dec"], abs=1e-9)
            assert (dec[1] - dec[0]) * 3600 == pytest.approx(scale, rel=1e-6)


def test_a_full_disk_is_one_sentence(source, tmp_path, monkeypatch):
    """What HDF5 says of it is an error of its own; the room is asked for before."""
    no_space = RuntimeError("Can't decrement id ref count (file write failed: No space left on device)")
    for out in ("a.h5", "a"):
        with monkeypatch.context() as patch:
            patch.setattr(export, "in_units", lambda *arguments: (_ for _ in ()).throw(no_space))
            with pytest.raises(OSError, match=f"No space left on device: .*{out}"):
                export.main([str(source.path), "--out", str(tmp_path / out)])
        with monkeypatch.context() as patch:
            found = list(os.statvfs(tmp_path))
            found[4] = 1  # f_bavail
            patch.setattr(os, "statvfs", lambda path, found=found: os.statvfs_result(found))
            with pytest.raises(InputError, match="MB free, and 0.039 MB are needed; make room"):
                export.main([str(source.path), "--out", str(tmp_path / out)])
    assert not any(tmp_path.iterdir())


def test_one_hdf5_file(source, tmp_path):
    assert export.main([str(source.path), "--out", str(tmp_path / "a.hdf5"), "--rows", "3:17,30,2"]) is None
    rows = [2, *range(3, 17), 30]
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["image"].attrs["unit"] == "uJy" and file["image"].shape == (16, 3, 8, 8)
        assert json.loads(file["image_mask"].attrs["bits"])["nodata"] == 4
        assert [name.decode() for name in file["bands/name"][:]] == ["g", "r", "i"]
        assert file["bands/zero_point_ab"][:].tolist() == [27, 28, 29] and file["columns/ra"].attrs["unit"] == "deg"
        for n, row in enumerate(rows):
            sample = source.cutout(row)
            np.testing.assert_allclose(file["image"][n], microjansky(source, sample), rtol=1e-6)
            np.testing.assert_array_equal(file["image_mask"][n], sample["image_mask"])
            for name in source.manifest.columns:
                value = file["columns"][name][n]
                np.testing.assert_equal(value.decode() if isinstance(value, bytes) else value, sample[name], name)


def test_bands_that_are_not_observed_are_nan_without_a_mask_too(tmp_path):
    dataset = open_dataset(blobs(tmp_path / "d", samples=20, shards=2, fill=123.0))
    assert export.main([str(dataset.path), "--out", str(tmp_path / "a.h5")]) is None
    with h5py.File(tmp_path / "a.h5") as file:
        lacking = np.isnan(file["image"][:]).all((2, 3))
    assert lacking[::10, 0].all() and lacking.sum() == 2


def test_masks_of_any_type_and_arrays_without_an_axis(tmp_path):
    image, seen = np.ones((1, 2, 2, 3), np.float32), [[False, True, False], [True, True, False]]  # saturated: 512
    mask = np.array([[[256, 512, 1], [0, 0, -(2**31)]]], np.int32)
    band = dict(wavelength_nm=500.0, width_nm=100.0, zero_point_ab=23.9, pixel_scale_arcsec=0.2, a_over_ebv=3.0)
    bands = tuple(Band(name, **band, sky_sigma=1.0, psf_fwhm_arcsec=0.7) for name in "gr")
    arrays = {"image": Array("image", "float32", (2, 2, 3)), "label": Array("array", "int32", ())}
    arrays |= {"image_mask": Array("mask", "int32", (2, 3), bits={"saturated": 512})}  # of all bands
    writer = DatasetWriter(tmp_path / "d", Manifest(arrays, bands, {}), {})
    writer.write_shard(0, ["a"], {"image": image, "image_mask": mask, "label": np.array([7], np.int32)}, {})
    writer.finish(1, {})
    assert export.main([str(tmp_path / "d"), "--out", str(tmp_path / "fits")]) is None
    with fits.open(tmp_path / "fits" / "a.fits") as hdus:
        np.testing.assert_array_equal(np.isfinite(hdus[0].data), [seen, seen])
        assert hdus["LABEL"].data.tolist() == [7]
    floats = np.array([[[[0.0, 1.0]]]], np.float32)
    assert export.lost(floats, Array("mask", "float32", (1, 1, 2))).tolist() == [[[[False, True]]]]


def test_selections(source, tmp_path):
    ids = [source.cutout(row)["object_id"] for row in (5, 1, 33)]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n\n")
    selected = ["--ids", str(tmp_path / "ids.txt"), "--where", "flags < 10"]
    assert export.main([str(source.path), "--out", str(tmp_path / "a.h5"), *selected]) is None
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["columns/flags"][:].tolist() == [1, 5]
    (tmp_path / "ids.txt").write_text("J001.é/1\nnobody\n")
    (tmp_path / "ids.gz").write_bytes(b"\x1f\x8b\xff")
    for more, match in (
        (["--ids", str(tmp_path / "ids.gz")], "ids.gz' is no text .*; give a file of object_id, one a line"),
        (["--ids", str(tmp_path / "ids.txt")], "1 of .* are not in the dataset, such as 'nobody'"),
        (["--rows", "5:41"], "'5:41' does not lie within the 40 rows"),
        (["--rows", "five"], "'five' is neither a number nor START:STOP"),
        (["--where", "flags > 99"], "select none of the 40 rows"),
    ):
        with pytest.raises(InputError, match=match):
            export.main([str(source.path), "--out", str(tmp_path / "b.h5"), *more])
    assert {path.name for path in tmp_path.iterdir()} == {"ids.txt", "ids.gz", "a.h5"}


def test_nothing_is_overwritten_or_half_written(source, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    for out, match in (
        ("there", "exists"),
        ("a.fits", "must be a folder, for FITS, or end in"),
        ("no/a.h5", "no folder"),
    ):
        with pytest.raises(InputError, match=match):
            export.main([str(source.path), "--out", str(tmp_path / out)])
    calls, real = [], export.in_units

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    for out in ("new", "new.h5"):
        calls.clear()
        monkeypatch.setattr(export, "in_units", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export.main([str(source.path), "--out", str(tmp_path / out)])
        assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_column_that_is_missing_is_said_to_be(tmp_path):
    flags = [1, None, *range(38)]
    dataset = survey_images(tmp_path / "d", flags=flags, shards=1)
    with pytest.raises(InputError, match="column 'flags' is missing in 1 rows; add --where 'not isnull.flags.'"):
        export.main([str(dataset), "--out", str(tmp_path / "a.h5")])
    assert export.main([str(dataset), "--out", str(tmp_path / "a.h5"), "--where", "not isnull(flags)"]) is None
