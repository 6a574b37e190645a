"""Catalogues of six formats: every value comes out as it went in, whatever the chunks, in bounded memory."""

import gzip
import tracemalloc
import warnings
from decimal import Decimal

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from data_tools.catalogs.catalog import open_catalog
from data_tools.catalogs.spec import CatalogColumns, CatalogPhotometry, Match
from data_tools.catalogs.tables import open_table
from tests.data_tools.catalog_files import quiet, read, same, small
from tests.data_tools.test_catalog_refusals import two_tables

ROWS = 53
FLUX = CatalogPhotometry("model", flux="{band}_F", fluxerr="{band}_E", unit="nJy", names={"g": "HSC_g", "r": "HSC_r"})
SPEC = CatalogColumns(obj_class="TYPE", flags="FLAGS", photometry=FLUX)


def table() -> Table:
    rng, n = np.random.default_rng(3), np.arange(ROWS)
    columns = {
        "ID": (1 << 60) + n,  # past what a float holds
        "RA": rng.uniform(0, 360, ROWS) * u.deg,
        "DEC": rng.uniform(-90, 90, ROWS) * u.deg,
        "ZSPEC": np.where(n % 3, -99.0, rng.uniform(0, 5, ROWS)),
        "ZFLAG": n % 5,
        "TYPE": np.where(n % 2, "STAR", "galaxy 2"),
        "FLAGS": n % 7,
    }
    for band in ("g", "r"):
        columns[f"HSC_{band}_F"] = rng.normal(5, 3, ROWS)
        columns[f"HSC_{band}_E"] = rng.uniform(1, 2, ROWS)
    found = Table(columns)
    found["EBV"] = MaskedColumn(rng.uniform(0, 1, ROWS), mask=n % 4 == 0)
    return found


def expected(rows: Table) -> dict[str, np.ndarray]:
    """What the dataset's columns must be."""
    z = np.where(rows["ZSPEC"] > 0, rows["ZSPEC"], np.nan).astype(np.float32)
    columns = {
        "object_id": np.asarray(rows["ID"]),
        "ra": np.asarray(rows["RA"]),
        "dec": np.asarray(rows["DEC"]),
        "z_spec": z,
        "z_quality": np.asarray(rows["ZFLAG"], np.int32),
        "z_flag_orig": np.array([str(flag) for flag in rows["ZFLAG"]]),
        "ebv": np.ma.filled(rows["EBV"], np.nan).astype(np.float32),
        "obj_class": np.asarray(rows["TYPE"]),
        "flags": np.asarray(rows["FLAGS"]),
        "z": z,
        "z_err": np.full(len(rows), np.nan, np.float32),
        "z_kind": np.where(np.isfinite(z), "spec", "none"),
    }
    for band in ("g", "r"):
        for ours, theirs in (("flux", "F"), ("fluxerr", "E")):
            columns[f"{ours}_{band}"] = (rows[f"HSC_{band}_{theirs}"].astype(float) * 1e-3).astype(np.float32)
    return columns


def write_hdf5_group(rows: Table, path) -> None:
    with h5py.File(path, "w") as file:
        for name in rows.colnames:
            values = np.ma.filled(rows[name], np.nan) if name == "EBV" else np.asarray(rows[name])
            file[f"photometry/{name}"] = values.astype("S") if values.dtype.kind == "U" else values
        file["photometry/p(z)"] = np.zeros((len(rows), 4))  # may be there, unused
        file["photometry/z_grid"] = np.zeros(4)
        file["photometry/itself"] = file["photometry"]


def write_folder(rows: Table, path) -> None:
    path.mkdir()
    for n in range(3):
        rows[n * 20 : (n + 1) * 20].write(path / f"tile_{n}.fits")


def write_partitions(rows: Table, path) -> None:
    for n in range(3):
        (path / f"part={n}").mkdir(parents=True)
        part = rows[n * 20 : (n + 1) * 20]
        columns = {
            name: pa.array(np.ma.getdata(part[name]), mask=np.ma.getmaskarray(part[name])) for name in part.colnames
        }
        pq.write_table(pa.table(columns), path / f"part={n}" / "0.parquet")  # nulls where astropy writes masks


def plain(rows: Table, path) -> None:
    rows.write(path)


def packed(write):
    def write_packed(rows: Table, path) -> None:
        unpacked = path.with_suffix("")
        write(rows, unpacked)
        path.write_bytes(gzip.compress(unpacked.read_bytes()))
        unpacked.unlink()

    return write_packed


FORMATS = {
    "c.fits": plain,
    "c.fits.gz": packed(plain),
    "c.parquet": plain,
    "partitions": write_partitions,
    "group.hdf5": write_hdf5_group,
    "compound.hdf5": lambda rows, path: rows.write(path, path="a/table", serialize_meta=True),
    "c.vot": lambda rows, path: rows.write(path, format="votable"),
    "c.ecsv": plain,
    "commas.ecsv": lambda rows, path: rows.write(path, delimiter=","),
    "c.csv": plain,
    "c.csv.gz": packed(plain),
    "folder": write_folder,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_catalogue_reads_the_same_in_every_format_and_in_chunks_of_any_size(name, tmp_path):
    rows = table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of astropy, that HDF5 stores masks apart
        FORMATS[name](rows, tmp_path / name)
    whole, catalog = read(tmp_path / name, SPEC, 1_000_000)
    truth = expected(rows)
    same(whole, truth)
    whole, _ = read(tmp_path / name, SPEC, 1_000_000)
    same(whole, read(tmp_path / name, SPEC, 7)[0])
    assert catalog.invalid["z_spec"] == (rows["ZSPEC"] < 0).sum() and catalog.invalid["ra"] == 0
    assert catalog.rows == (None if "csv" in name else ROWS)
    assert catalog.columns["object_id"].dtype == "int64" and catalog.columns["flux_g"].unit == "uJy"
    assert "model flux" in catalog.columns["flux_g"].description
    assert len(catalog.files) == {"partitions": 3, "folder": 3}.get(name, 1)


def test_fits_numbers_mean_what_astropy_says(tmp_path):
    """Shifted unsigned integers, scaled ones, nulls, booleans and text of a FITS table, against astropy's reader."""
    n = np.arange(9)
    columns = [
        fits.Column("u2", "I", bzero=1 << 15, array=(n * 7000).astype(np.uint16)),
        fits.Column("u4", "J", bzero=1 << 31, array=(n * 500_000_000).astype(np.uint32)),
        fits.Column("u8", "K", bzero=1 << 63, array=np.uint64(2**63 - 1) + n.astype(np.uint64)),
        fits.Column("scaled", "I", array=n),
        fits.Column("null", "J", null=-7, array=np.where(n % 3, n, -7)),
        fits.Column("true", "L", array=n % 2 == 0),
        fits.Column("text", "6A", array=[f" ab{i}" for i in n]),
        fits.Column("float", "E", array=np.where(n % 2, n, np.nan)),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    fits.setval(tmp_path / "t.fits", "TSCAL4", value=0.25, ext=1)
    fits.setval(tmp_path / "t.fits", "TZERO4", value=10.0, ext=1)
    peer = Table.read(tmp_path / "t.fits")
    peer.convert_bytestring_to_unicode()
    opened = open_table(tmp_path / "t.fits")
    [found] = opened.chunks({name: (name, "number") for name in peer.colnames}, 100)
    for name in peer.colnames:
        if name == "text":
            np.testing.assert_array_equal(np.char.strip(found[name]), np.char.strip(np.asarray(peer[name])))
            continue
        ours, theirs = np.ma.asarray(found[name]), np.ma.asarray(peer[name])
        if name != "float":
            np.testing.assert_array_equal(np.ma.getmaskarray(ours), np.ma.getmaskarray(theirs), err_msg=name)
        np.testing.assert_array_equal(ours.filled(0), theirs.filled(0) if name != "float" else np.asarray(peer[name]))


def test_csv_types_do_not_depend_on_its_beginning(tmp_path):
    """Whole numbers, or nothing, in all of the first block, fractions later; a header that stands as a comment."""
    rows = 60_000
    lines = [f"{n},{n % 360},0,," if n < rows - 1 else f"{n},1.5,0.25,0.75,4" for n in range(rows)]
    (tmp_path / "c.csv").write_text("\n".join(["#ID,RA,DEC,zspec,zflag", *lines]) + "\n")
    found, _ = read(tmp_path / "c.csv", rows=10_000)
    assert len(found["object_id"]) == rows and found["object_id"].dtype == np.int64
    assert (found["ra"][-1], found["dec"][-1], found["z_spec"][-1]) == (1.5, 0.25, 0.75)
    assert np.isnan(found["z_spec"][:-1]).all() and found["z_flag_orig"][-2:].tolist() == ["", "4"]


def test_a_packed_table_is_unpacked_elsewhere_and_not_left_there(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "catalogues").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    packed(plain)(table(), tmp_path / "catalogues/c.fits.gz")
    said = []
    found, _ = read(tmp_path / "catalogues/c.fits.gz", SPEC, 7, say=said.append)
    assert len(found["z"]) == ROWS and said[0].endswith(f"to a temporary file in {tmp_path / 'temporary'}")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c.fits.gz"]


def test_a_folder_of_tables_whose_first_has_an_empty_column(tmp_path):
    """What a column of text holds is told by the file that says something of it."""
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles/a.csv").write_text("ID,RA,DEC,zspec\n1,1.0,1.0,\n2,2.0,2.0,\n")
    (tmp_path / "tiles/b.csv").write_text("ID,RA,DEC,zspec\n3,3.0,3.0,0.5\n")
    found, catalog = read(tmp_path / "tiles")
    assert found["object_id"].tolist() == [1, 2, 3] and catalog.rows is None
    np.testing.assert_array_equal(found["z"], np.float32([np.nan, np.nan, 0.5]))


@pytest.mark.parametrize("name", ["c.ecsv", "c.parquet", "c.hdf5"])
def test_masks_that_astropy_stores_beside_their_column_count(name, tmp_path):
    rows = small(zspec=MaskedColumn([0.1, 0.2, 0.3, 0.4], mask=[False, True, False, True]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a mask is stored apart
        how = {"c.ecsv": {"serialize_method": "data_mask"}, "c.hdf5": {"path": "t", "serialize_meta": True}}
        rows.write(tmp_path / name, **how.get(name, {}))
    found, _ = read(tmp_path / name)
    np.testing.assert_array_equal(found["z"], np.float32([0.1, np.nan, 0.3, np.nan]))


def test_units_of_parquet_fields_count(tmp_path):
    fields = [pa.field("ID", pa.int64()), pa.field("RA", pa.float32(), metadata={"unit": "hourangle"})]
    fields += [pa.field("DEC", pa.float64()), pa.field("F", pa.decimal128(5, 2), metadata={"unit": "nJy"})]
    columns = [[1, 2], [1.5, 2.0], [0.0, 1.0], [Decimal("1.00"), Decimal("2.00")]]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    pq.write_table(pa.table(arrays, schema=pa.schema(fields)), tmp_path / "c.parquet")
    photometry = CatalogPhotometry("x", flux={"g": "F"})
    found, _ = read(tmp_path / "c.parquet", CatalogColumns(photometry=photometry))
    np.testing.assert_allclose(found["ra"], [22.5, 30], rtol=1e-15)
    np.testing.assert_array_equal(found["flux_g"], np.float32([0.001, 0.002]))


def test_a_table_is_chosen_by_number_or_name(tmp_path):
    path = two_tables(tmp_path)
    for hdu in (2, "B"):
        assert read(path, CatalogColumns(hdu=hdu))[0]["z_spec"].tolist() == [0.5] * 4
    assert "z_spec" not in read(path, CatalogColumns(hdu=1))[0]


def test_two_million_rows_take_the_memory_of_a_chunk(tmp_path, monkeypatch):
    """The file holds 96 MB; reading it by 50,000 rows, a match by position included, allocates a fraction."""
    rows = 2_000_000
    dtype = np.dtype([("ID", ">i8"), ("RA", ">f8"), ("DEC", ">f8"), ("zspec", ">f8"), ("g", ">f8"), ("e", ">f8")])
    data = np.zeros(rows, dtype)
    data["ID"], data["RA"], data["e"] = np.arange(rows), np.linspace(0, 300, rows), 1
    fits.BinTableHDU(data).writeto(tmp_path / "c.fits")
    del data
    Table({"RA": np.arange(0, 300, 0.5), "DEC": np.zeros(600), "specz": np.full(600, 0.5)}).write(tmp_path / "z.csv")
    spec = CatalogColumns(photometry=CatalogPhotometry("x", flux={"g": "g"}, fluxerr={"g": "e"}, unit="uJy"))
    monkeypatch.setattr("data_tools.catalogs.catalog.MATCH_ROWS", 50_000)
    tracemalloc.start()
    catalog = open_catalog(tmp_path / "c.fits", spec, match=Match(str(tmp_path / "z.csv")), say=quiet)
    number = sum(len(chunk["object_id"]) for chunk in catalog.chunks(50_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == rows and len(catalog.compilation.matched.rows) == 600 and peak < 24e6, peak
