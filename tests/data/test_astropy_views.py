"""Tables, microjansky and WCS against Astropy's own and against the tiles that cutouts are of."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import jaxz
from data_tools import convert
from jaxz.data.astropy_views import cutout_wcs
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.survey_files import arguments, write_survey
from tests.helpers import blobs


def test_a_table_has_units_descriptions_and_what_is_missing(tmp_path):
    columns = {
        "object_id": Column("int64", "", "whose"),
        "ra": Column("float64", "deg", "ICRS"),
        "mag_ref": Column("float32", "AB mag"),
        "flux_r": Column("float32", "microjansky"),
        "flag": Column("bool"),
        "name": Column("string"),
        "odd": Column("float32", "furlong per fortnight"),
    }
    big = 2**60 + 1
    stored = {
        "object_id": [big, 7, 9, 11],
        "ra": [1.0, 2.0, None, 4.0],
        "mag_ref": [20.0, np.nan, 21.0, 22.0],
        "flux_r": [1.0, 2.0, 3.0, 4.0],
        "flag": [True, None, False, True],
        "name": ["a", None, "", "long name"],
        "odd": [0.0] * 4,
    }
    arrays = {"tag": Array("vector", "int16", (3,), "index", unit="m")}
    writer = DatasetWriter(tmp_path / "d", Manifest(arrays, (), columns), {})
    tag = np.arange(12, dtype=np.int16).reshape(4, 3)
    for n in (0, 1):
        part = {name: values[2 * n : 2 * n + 2] for name, values in stored.items()}
        writer.write_shard(n, [f"k{2 * n}", f"k{2 * n + 1}"], {"tag": tag[2 * n : 2 * n + 2]}, part)
    writer.finish(2, {})
    dataset = jaxz.open_dataset(tmp_path / "d")
    table = dataset.table()
    assert isinstance(table, Table) and table.colnames == ["key", *columns]
    assert table["object_id"].tolist() == stored["object_id"] and table["object_id"].dtype == np.int64
    assert table["object_id"].description == "whose" and table["ra"].unit == u.deg
    assert (table["mag_ref"].unit, table["flux_r"].unit) == (u.ABmag, u.uJy)
    assert table["flux_r"].quantity.to_value(u.nJy).tolist() == [1000, 2000, 3000, 4000]
    np.testing.assert_array_equal(table["ra"], [1, 2, np.nan, 4])
    assert table["flag"].tolist() == stored["flag"] and table["name"].tolist() == stored["name"]
    assert str(table["odd"].unit) == "furlong per fortnight" and table["name"].unit is None
    chosen = dataset.table(where="flux_r > 2", columns=["name", "tag"])
    assert chosen.colnames == ["name", "tag"] and chosen["tag"].unit == u.m
    np.testing.assert_array_equal(chosen["tag"], tag[2:])
    chosen.write(tmp_path / "t.fits")
    np.testing.assert_array_equal(Table.read(tmp_path / "t.fits")["tag"], tag[2:])
    table["flux_r"] *= 2
    table["object_id"][0] = 5
    assert dataset.table()["object_id"][0] == big
    with pytest.raises(InputError, match="column 'nam' is not in .* Did you mean 'name'"):
        dataset.table(columns=["nam"])


def test_a_table_reads_no_other_column_and_no_tar(blob_dataset, monkeypatch):
    asked, read = [], pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns, **how: asked.append(columns) or read(self, columns, **how)
    )
    monkeypatch.setattr("os.open", None)
    jaxz.open_dataset(blob_dataset).table(where="z > 0.5", columns=["mag_ref"])
    assert {name for columns in asked for name in columns} == {"mag_ref", "z"}


@pytest.mark.parametrize("encoding", ["raw", "compact"])
def test_cutouts_in_microjansky(tmp_path, encoding):
    dataset = jaxz.open_dataset(blobs(tmp_path / "d", samples=8, shards=1, encoding=encoding))
    for row in range(8):
        stored, flux = (dataset.cutout(row, unit)["image"] for unit in ("", "uJy"))
        assert flux.dtype == np.float32
        zero_points = np.array([band.zero_point_ab for band in dataset.manifest.bands])[:, None, None]
        magnitude = zero_points - 2.5 * np.log10(np.maximum(stored, 1e-3).astype(float))
        truth = (magnitude * u.ABmag).to_value(u.uJy)
        np.testing.assert_allclose(flux[stored > 1e-3], truth[stored > 1e-3], rtol=1e-5)
        assert (np.sign(flux) == np.sign(stored)).all()
    with pytest.raises(InputError, match="unit: 'mJy' must be 'uJy', or ''"):
        dataset.cutout(0, "mJy")
    assert "wcs" not in dataset.cutout(0)  # it has no positions


def test_notebook_calls_import_no_jax(blob_dataset):
    code = (
        "import sys, jaxz; d = jaxz.open_dataset(sys.argv[1]); d.table('z > 0.5'); d.cutout(3, 'uJy');"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, blob_dataset]).returncode == 0


SHAPE = (24, 32)


def tile(angle=0.0, flip=1.0, centre=(150.0, 2.0), scale=0.2):
    """A tangential WCS, turned by `angle` degrees."""
    wcs, turn = WCS(naxis=2), np.radians(angle)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ("RA---TAN", "DEC--TAN"), centre, (4000.0, 3000.0)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs.wcs.cd = rotation @ np.diag([-flip, 1.0]) * scale / 3600
    return wcs


def places_on(wcs, count=500, seed=0):
    draw = np.random.default_rng(seed)
    x, y = draw.uniform(20, 8000, count), draw.uniform(20, 6000, count)
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    return {"x": x, "y": y, "ra": ra % 360, "dec": dec}


@pytest.mark.parametrize(
    "angle, flip, centre", [(0, 1, (150, 2)), (37, 1, (0.05, -60)), (-120, -1, (359.99, 30)), (5, 1, (77, 89.0))]
)
def test_the_wcs_of_a_cutout_is_that_of_its_tile(angle, flip, centre):
    wcs = tile(angle, flip, centre)
    places = places_on(wcs)
    column, row = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0]))
    for number in range(0, 500, 50):
        found = cutout_wcs(pa.table(places), number, SHAPE, 0.2)
        left, low = (int(np.floor(places[name][number] + 0.5)) - SHAPE[k] // 2 for name, k in (("x", 1), ("y", 0)))
        truth = wcs.pixel_to_world(column + left, row + low)
        assert found.pixel_to_world(column, row).separation(truth).arcsec.max() < 0.02 * 0.2
        assert found.array_shape == SHAPE
        here = found.wcs_world2pix(places["ra"][number], places["dec"][number], 0)
        np.testing.assert_allclose(here, [places["x"][number] - left, places["y"][number] - low], atol=1e-6)


def test_there_is_no_wcs_where_the_neighbours_do_not_tell_it():
    places = places_on(tile())
    known = lambda places, row=0, scale=0.2: cutout_wcs(pa.table(places), row, SHAPE, scale) is not None
    assert known(places) and not known(places, scale=0.21)
    assert not known({name: values[:4] for name, values in places.items()})
    assert known({name: values[:5] for name, values in places.items()})
    lost = {name: values.copy() for name, values in places.items()}
    lost["ra"][0] = np.nan
    assert not known(lost) and known(lost, 1)
    line = places_on(tile())
    line["y"] = np.full(500, 100.0)
    line["ra"], line["dec"] = tile().wcs_pix2world(line["x"], line["y"], 0)
    assert not known(line)
    noisy = {**places, "x": places["x"] + np.random.default_rng(0).normal(0, 1, 500)}
    assert not known(noisy)


@pytest.mark.parametrize("shape, most", [((1, *SHAPE), None), ((1, SHAPE[0], None), SHAPE[1])])
def test_images_of_many_sizes_have_no_wcs(tmp_path, shape, most):
    bands = (Band("r", 620, 100, 27, 0.2, 2.3, 1, 0.8),)
    images, columns = (
        Array("image", "float32", shape, max=most),
        dict.fromkeys(("x", "y", "ra", "dec"), Column("float64")),
    )
    writer = DatasetWriter(tmp_path / "d", Manifest({"image": images}, bands, columns), {})
    stamps = np.zeros((50, 1, *SHAPE), np.float32)
    writer.write_shard(0, [f"k{n}" for n in range(50)], {"image": stamps}, places_on(tile(), 50))
    writer.finish(1, {})
    sample = jaxz.open_dataset(tmp_path / "d").cutout(0)
    assert sample["image"].shape == (1, *SHAPE) and ("wcs" in sample) == (most is None)


def test_neighbours_are_those_of_the_same_tile():
    here, there = tile(20), tile(-70, centre=(150.1, 2.1))
    both = {name: np.concatenate([a, b]) for (name, a), b in zip(
        places_on(here).items(), places_on(there, seed=1).values(), strict=True)}  # fmt: skip
    assert cutout_wcs(pa.table(both), 0, SHAPE, 0.2) is None
    field = ["a"] * 500 + ["b"] * 500
    for row, wcs in ((0, here), (500, there)):
        found = cutout_wcs(pa.table({**both, "field": field}), row, SHAPE, 0.2)
        np.testing.assert_allclose(found.wcs.cd, wcs.wcs.cd, atol=1e-3 * 0.2 / 3600)


def test_converted_cutouts_have_the_wcs_of_a_tile_on_galactic_coordinates(tmp_path):
    folder = write_survey(tmp_path / "survey", galactic=True)
    convert.main(arguments(folder, tmp_path / "out", "--size", "12"))
    dataset = jaxz.open_dataset(tmp_path / "out")
    truth = WCS(fits.getheader(folder / "tile_r.fits"))
    column, row = np.meshgrid(np.arange(12), np.arange(12))
    for number in range(0, len(dataset), 20):
        sample = dataset.cutout(number)
        left, low = (int(np.floor(sample[name] + 0.5)) - 6 for name in ("x", "y"))
        sky = truth.pixel_to_world(column + left, row + low).icrs
        assert sample["wcs"].pixel_to_world(column, row).separation(sky).arcsec.max() < 0.01
