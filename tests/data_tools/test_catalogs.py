"""Catalogues of six formats: every value comes out as it went in, whatever the chunks; columns, units, refusals."""

import dataclasses
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
from data_tools.catalogs.spec import CatalogColumns, CatalogPhotometry
from data_tools.catalogs.tables import open_table
from jaxz.errors import InputError

ROWS = 53
FLUX = CatalogPhotometry("model", flux="{band}_F", fluxerr="{band}_E", unit="nJy", names={"g": "HSC_g", "r": "HSC_r"})
SPEC = CatalogColumns(obj_class="TYPE", flags="FLAGS", photometry=FLUX)


def quiet(text: str) -> None:
    pass


BY_NAME = CatalogColumns()


def read(path, spec=BY_NAME, rows=500_000, match=None, say=quiet) -> tuple[dict, object]:
    """All columns of a catalogue, and the catalogue."""
    catalog = open_catalog(path, spec, match=match, say=say)
    chunks = list(catalog.chunks(rows))
    assert max(len(chunk["object_id"]) for chunk in chunks) <= rows
    for chunk in chunks:
        assert list(chunk) == list(catalog.columns)
        for name, column in catalog.columns.items():
            assert chunk[name].dtype.kind == "U" if column.dtype == "string" else chunk[name].dtype == column.dtype
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in catalog.columns}, catalog


def same(a: dict, b: dict) -> None:
    """Bit for bit, NaN included."""
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


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
            values = np.ma.filled(rows[name], np.nan) if rows.masked and name == "EBV" else np.asarray(rows[name])
            if name == "EBV":
                values = np.ma.filled(rows[name], np.nan)
            file[f"photometry/{name}"] = values.astype("S") if values.dtype.kind == "U" else values
        file["photometry/p(z)"] = np.zeros((len(rows), 4))  # may be there, unused


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


def small(**columns) -> Table:
    """Four objects at (n, n) degrees."""
    n = np.arange(4)
    return Table({"ID": n, "RA": n * 1.0, "DEC": n * 1.0, **columns})


def write(folder, rows: Table, name: str = "c.fits"):
    rows.write(folder / name, overwrite=True)
    return folder / name


@pytest.mark.parametrize(
    "unit, ujy",
    [
        ("uJy", 1), ("nJy", 1e-3), ("Jy", 1e6), ("mJy", 1e3), ("nanomaggy", 3.630780547701014),
        ("nmgy", 3.630780547701014),
        ("nanomaggies", 3.630780547701014), ("maggy", 3.630780547701014e9), ("erg/s/cm2/Hz", 1e29), ("10**-9 Jy", 1e-3),
    ],
)  # fmt: skip
def test_fluxes_become_microjansky(unit, ujy, tmp_path):
    """A maggy is AB magnitude 0, 10^(0.4 23.9) microjansky; by the file's unit or the survey file's alike."""
    flux, error = np.array([1.0, -2.0, 0.0, 5.0]), np.array([0.5, 1.0, 2.0, 4.0])
    rows = small(F=flux / ujy, E=error / ujy)
    photometry = CatalogPhotometry("total", flux={"g": "F"}, fluxerr={"g": "E"}, unit=unit)
    found, _ = read(write(tmp_path, rows), CatalogColumns(photometry=photometry))
    np.testing.assert_allclose(found["flux_g"], flux, rtol=1e-6)
    np.testing.assert_allclose(found["fluxerr_g"], error, rtol=1e-6)
    rows["F"].unit = unit if unit in ("uJy", "nJy", "Jy") else None
    if rows["F"].unit:
        same(found, read(write(tmp_path, rows), CatalogColumns(photometry=dataclasses.replace(photometry, unit="")))[0])


def test_counts_magnitudes_inverse_variances_offsets_and_extinction(tmp_path):
    """Closed forms: m = 23.9 - 2.5 log10(f / uJy), df = f dm ln(10) / 2.5, an offset o makes f 10^(-0.4 o)."""
    flux, error, a = np.array([3.0, 0.25, 40.0, 7.0]), np.array([0.1, 0.05, 1.0, 0.2]), np.array([0.1, 0.2, 0.3, 0.4])
    magnitude, magerr = 23.9 - 2.5 * np.log10(flux), 2.5 / np.log(10) * error / flux
    counts = flux * 10 ** (0.4 * (27 - 23.9))
    columns = {"C": counts, "CE": error * counts / flux, "IV": (flux / counts / error) ** 2}
    columns |= {"M": magnitude, "ME": magerr, "A": a, "DM": magnitude - a}
    path = write(tmp_path, small(**columns))

    def measured(**fields):
        names = {name: {"g": column} for name, column in fields.items() if isinstance(column, str) and name != "unit"}
        others = {name: value for name, value in fields.items() if name not in names}
        found, catalog = read(path, CatalogColumns(photometry=CatalogPhotometry("model", **names, **others)))
        return found, catalog.columns

    ways = (
        dict(flux="C", fluxerr="CE", unit="count", zero_point_ab=27.0),
        dict(flux="C", ivar="IV", zero_point_ab=27.0),
        dict(mag="M", magerr="ME"),
        dict(mag="DM", magerr="ME", extinction="A", unit="mag"),
    )
    for fields in ways:
        found, columns = measured(**fields)
        np.testing.assert_allclose(found["flux_g"], flux, rtol=1e-6)
        np.testing.assert_allclose(found["fluxerr_g"], error, rtol=1e-6)
        shifted, described = measured(**fields, offsets={"g": 0.101})
        np.testing.assert_allclose(shifted["flux_g"], flux * 10 ** (-0.4 * 0.101), rtol=1e-6)
        np.testing.assert_allclose(shifted["fluxerr_g"], error * 10 ** (-0.4 * 0.101), rtol=1e-6)
        assert "+0.101 mag applied" in described["flux_g"].description
    assert "extinction put back" in columns["flux_g"].description
    found, _ = measured(mag="M")
    assert "fluxerr_g" not in found


def test_offsets_are_the_bands_own_whatever_their_order(tmp_path):
    """The official COSMOS2020 notebook gives one catalogue another's offsets by counting them."""
    path = write(tmp_path, small(g_F=np.ones(4), r_F=np.ones(4)))
    names = {"g": "g", "r": "r"}
    for offsets in ({"g": 0.073, "r": 0.101}, {"r": 0.101, "g": 0.073}):
        photometry = CatalogPhotometry("model", flux="{band}_F", names=names, unit="uJy", offsets=offsets)
        found, _ = read(path, CatalogColumns(photometry=photometry))
        assert found["flux_g"][0] == np.float32(10 ** (-0.4 * 0.073))
        assert found["flux_r"][0] == np.float32(10 ** (-0.4 * 0.101))


def test_numbers_that_stand_for_nothing_are_missing_and_counted(tmp_path):
    """Sentinels, huge and infinite numbers, errors that are no errors: neither flux nor error was measured."""
    n = 8
    f = np.array([1, -99, 1e20, np.inf, -3, 2, 3, np.nan], np.float32)
    e = np.array([1, 1, 1, 1, 1, 0, -99, 1], np.float32)
    rows = Table({"ID": np.arange(n), "RA": np.r_[10.0, -99, 30, 40, 50, 60, 70, -10], "DEC": np.r_[1.0, -99, 3:9]})
    rows["F"], rows["E"], rows["ZP"] = f, e, np.float32([0, 99, 0.5, -9.9, 1e30, 3, 7, np.nan])
    rows["M"] = [20, 99, -99, 99.0, 24, 25, np.nan, 1e20]
    spec = CatalogColumns(
        z_phot="ZP", mag_ref="M", sentinels={"z_phot": [0, 99, -9.9], "flux": [-3]},
        photometry=CatalogPhotometry("x", flux={"g": "F"}, fluxerr={"g": "E"}, unit="uJy"),
    )  # fmt: skip
    found, catalog = read(write(tmp_path, rows), spec)
    nan = np.nan
    np.testing.assert_array_equal(found["flux_g"], np.float32([1, nan, nan, nan, nan, nan, nan, nan]))
    np.testing.assert_array_equal(np.isnan(found["fluxerr_g"]), np.isnan(found["flux_g"]))
    np.testing.assert_array_equal(found["z_phot"], np.float32([nan, nan, 0.5, nan, nan, 3, 7, nan]))
    np.testing.assert_array_equal(found["mag_ref"], np.float32([20, nan, nan, nan, 24, 25, nan, nan]))
    np.testing.assert_array_equal(found["ra"], [10, nan, 30, 40, 50, 60, 70, 350])
    assert np.isnan(found["dec"][1]) and found["dec"][7] == 8
    assert catalog.invalid == {"ra": 1, "dec": 1, "z_phot": 4, "mag_ref": 4, "flux_g": 6}


def test_aliases_find_the_columns_and_say_which(tmp_path):
    rows = Table({"IDENT": ["a 1", "b", "c"], "RAJ2000": [1.0, 2, 3] * u.rad / 10, "DEJ2000": [0.1, 0.2, 0.3]})
    rows["Z"], rows["zq"], rows["lp_zBEST"], rows["EBV_MW"] = [0.5, 1, -99], [4, 3, 0], [0.4, 1.1, 2], [0.01] * 3
    rows["z"] = [20.0, 21, 22]  # a magnitude
    said = []
    found, catalog = read(write(tmp_path, rows, "c.ecsv"), say=said.append)
    assert found["object_id"].tolist() == ["a 1", "b", "c"] and catalog.columns["object_id"].dtype == "string"
    np.testing.assert_allclose(found["ra"], np.degrees([0.1, 0.2, 0.3]), rtol=1e-15)
    np.testing.assert_array_equal(found["dec"], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(found["z_spec"], np.float32([0.5, 1, np.nan]))
    np.testing.assert_array_equal(found["z_phot"], np.float32([0.4, 1.1, 2]))
    assert found["z_quality"].tolist() == [4, 3, 0] and found["ebv"][0] == np.float32(0.01)
    assert "catalog: ra is 'RAJ2000' [rad], by its name" in said
    assert "catalog.dec: 'DEJ2000' has no unit, taken as degrees" in said
    assert catalog.choices["z_spec"] == "'Z', by its name"
    spec = CatalogColumns(z_phot="lp_zBEST", ignore=["ebv"], units={"ra": "hourangle"})
    found, catalog = read(tmp_path / "c.ecsv", spec)
    np.testing.assert_allclose(found["ra"], [1.5, 3, 4.5], rtol=1e-15)
    assert "ebv" not in found and catalog.choices["z_phot"] == "'lp_zBEST', named by the survey file"


def test_flags_are_no_quality_without_a_redshift(tmp_path):
    """A photometric flag may be named as a redshift's is."""
    found, _ = read(write(tmp_path, small(flag=np.arange(4) * 1000, z_err=np.zeros(4))))
    assert list(found) == ["object_id", "ra", "dec", "z", "z_err", "z_kind"]
    found, _ = read(write(tmp_path, small(flag=np.arange(4), zspec=np.ones(4))))
    assert found["z_quality"].tolist() == [0, 1, 2, 3]


def test_the_survey_file_s_unit_goes_before_the_file_s_own(tmp_path):
    said, rows = [], small(F=np.ones(4) * u.Jy)
    photometry = CatalogPhotometry("x", flux={"g": "F"}, unit="uJy")
    found, _ = read(write(tmp_path, rows), CatalogColumns(photometry=photometry), say=said.append)
    assert found["flux_g"].tolist() == [1] * 4
    assert "catalog.photometry.flux.g: 'F' says 'Jy', the survey file 'uJy': that is taken" in said


def test_pixels_tiles_and_joined_ids(tmp_path):
    rows = Table({"brick": [7, 7, 8], "obj": [0, 1, 0], "X": [1.0, 2.5, np.nan], "Y": [1.0, 9, 4], "tract": [9, 9, 10]})
    rows["patch"] = ["4,1", "4,2", ""]
    spec = CatalogColumns(object_id=["brick", "obj"], x="X", y="Y", pixel_origin=1, tile=["tract", "patch"])
    found, catalog = read(write(tmp_path, rows), spec, rows=2)
    assert found["object_id"].tolist() == ["7-0", "7-1", "8-0"] and found["tile"].tolist() == ["9-4,1", "9-4,2", ""]
    np.testing.assert_array_equal(found["x"], [0, 1.5, np.nan])
    np.testing.assert_array_equal(found["y"], [0, 8, np.nan])
    assert "ra" not in found and catalog.columns["object_id"].dtype == "string"


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


def test_csv_types_do_not_depend_on_its_beginning(tmp_path):
    """Whole numbers, or nothing, in all of the first block, fractions later; a header that stands as a comment."""
    rows = 60_000
    lines = [f"{n},{n % 360},0,," if n < rows - 1 else f"{n},1.5,0.25,0.75,4" for n in range(rows)]
    (tmp_path / "c.csv").write_text("\n".join(["#ID,RA,DEC,zspec,zflag", *lines]) + "\n")
    found, _ = read(tmp_path / "c.csv", rows=10_000)
    assert len(found["object_id"]) == rows and found["object_id"].dtype == np.int64
    assert (found["ra"][-1], found["dec"][-1], found["z_spec"][-1]) == (1.5, 0.25, 0.75)
    assert np.isnan(found["z_spec"][:-1]).all() and found["z_flag_orig"][-2:].tolist() == ["", "4"]


def edit(**columns):
    def change(folder):
        return write(folder, small(**columns))

    return change


def two_tables(folder):
    tables = [fits.BinTableHDU(small(), name="A"), fits.BinTableHDU(small(zspec=np.full(4, 0.5)), name="B")]
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(folder / "c.fits")
    return folder / "c.fits"


def cut_short(folder):
    path = write(folder, Table({"ID": np.arange(10_000), "RA": np.zeros(10_000), "DEC": np.zeros(10_000)}))
    path.write_bytes(path.read_bytes()[:100_000])
    return path


def pickled(folder):
    with h5py.File(folder / "c.hdf5", "w") as file:
        file["ID"], file["RA"], file["DEC"] = np.arange(4), np.zeros(4), np.zeros(4)
        file.create_dataset("zspec", (4,), h5py.vlen_dtype(np.float64))
    return folder / "c.hdf5"


def linked(folder):
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["DEC"] = np.zeros(4)
    with h5py.File(folder / "c.hdf5", "w") as file:
        file["ID"], file["RA"] = np.arange(4), np.zeros(4)
        file["DEC"] = h5py.ExternalLink("other.hdf5", "/DEC")
    return folder / "c.hdf5"


def two_groups(folder):
    with h5py.File(folder / "c.hdf5", "w") as file:
        for group in "ab":
            file[f"{group}/ID"] = np.arange(4)
    return folder / "c.hdf5"


def objects(folder):
    (folder / "c.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: ID, datatype: int64}\n# - {name: RA, datatype: float64}\n"
        "# - {name: DEC, datatype: float64}\n# - {name: zspec, datatype: string, subtype: json}\n"
        'ID RA DEC zspec\n1 1.0 1.0 {"a":1}\n'.replace('{"a":1}', '"{""a"":1}"')
    )
    return folder / "c.ecsv"


def elsewhere(folder):
    Table({"ID": [1], "RA": [1.0], "DEC": [1.0]}).write(folder / "c.xml", format="votable", tabledata_format="binary")
    text = (folder / "c.xml").read_text()
    start, end = text.index("<STREAM"), text.index("</STREAM>")
    (folder / "c.xml").write_text(f'{text[:start]}<STREAM href="file:///etc/passwd">{text[end:]}')
    return folder / "c.xml"


def late(line: str):
    def change(folder):
        lines = [f"{n},1.0,2.0,0.5" for n in range(100_000)]
        (folder / "c.csv").write_text("\n".join(["ID,RA,DEC,zspec", *lines, line]) + "\n")
        return folder / "c.csv"

    return change


def text_file(text: str):
    def change(folder):
        (folder / "c.csv").write_text(text)
        return folder / "c.csv"

    return change


def other_tile(folder):
    (folder / "tiles").mkdir()
    small().write(folder / "tiles/a.fits")
    small(zspec=np.zeros(4)).write(folder / "tiles/b.fits")
    return folder / "tiles"


def photometry(**fields) -> CatalogColumns:
    return CatalogColumns(photometry=CatalogPhotometry("x", **fields))


REFUSED = {
    "ambiguous": (edit(zspec=np.zeros(4), specz=np.zeros(4)), {}, r"catalog.z_spec: 'zspec' and 'specz' are both"),
    "no id": (lambda f: write(f, Table({"RA": [1.0], "DEC": [1.0]})), {}, "catalog.object_id: none is named"),
    "misspelt": (edit(ZPHOT=np.zeros(4)), {"z_phot": "ZPHOTT"}, "z_phot: 'ZPHOTT' is not a column .* you mean 'ZPHOT'"),
    "arrays": (edit(pz=np.zeros((4, 3))), {"z_phot": "pz"}, "catalog.z_phot: 'pz' of .* holds several values a row"),
    "two tables": (two_tables, {}, "catalog.hdu: '' names 2 binary tables of .*; use one of: 1 'A', 2 'B'"),
    "no such table": (two_tables, {"hdu": 3}, "catalog.hdu: 3 names 0 binary tables"),
    "cut short": (cut_short, {}, "catalog: .* is truncated, its 10000 rows are not all there"),
    "not a table": (text_file("\x00\x01\x02"), {}, r"catalog.object_id: none is named|cannot be read as a table"),
    "empty": (text_file(""), {}, "catalog: .* cannot be read as a table"),
    "header only": (text_file("ID,RA,DEC\n"), {}, "catalog: .* has no rows"),
    "no rows": (lambda f: write(f, small()[:0]), {}, "catalog: .* has no rows; give a catalogue of the field"),
    "pickled": (pickled, {}, "catalog.z_spec: 'zspec' of .* holds objects, which are not read"),
    "a link": (linked, {}, "catalog.dec: none is named"),
    "two groups": (two_groups, {}, "catalog.group: 2 there of the tables of .*; use one of: '/[ab]', '/[ab]'"),
    "no such group": (two_groups, {"group": "c"}, "catalog.group: 'c' is not one of the tables"),
    "objects": (objects, {}, "catalog.z_spec: 'zspec' of .* holds several values a row"),
    "data elsewhere": (elsewhere, {}, "catalog: .* points to data elsewhere .'file:///etc/passwd'.; give those data"),
    "late text": (late("100000,1.0,2.0,abc"), {}, "catalog: column 'zspec' holds other than double .*abc"),
    "late id": (late("x1,1.0,2.0,0.5"), {}, "catalog: column 'ID' holds other than int64 .*x1"),
    "late ragged": (late("1,2.0"), {}, "catalog: .* cannot be read to its end .*; restore the file"),
    "id missing": (late(",1.0,2.0,0.5"), {}, "catalog.object_id: 'ID' has rows without a value; name a complete"),
    "fractional id": (lambda f: write(f, Table({"ID": [0.5], "RA": [1.0], "DEC": [1.0]})), {}, "does not hold whole n"),
    "no angle": (edit(), {"units": {"ra": "Jy"}}, "catalog.ra: 'RA' is in 'Jy', no angle"),
    "no unit at all": (edit(), {"units": {"ra": "furlongs"}}, "catalog.ra: unit 'furlongs' is not known"),
    "flags": (edit(zspec=np.ones(4), zflag=np.arange(4) * 3), {}, r"catalog.z_quality: the flags \['6', '9'\] are not 0 to 4"),
    "tiles differ": (other_tile, {}, "catalog: .*a.fits' and .*b.fits' differ in their columns or units"),
    "empty folder": (lambda f: f, {}, "catalog: .* is empty; give a table or a folder of them"),
    "flux without unit": (edit(F=np.ones(4)), photometry(flux={"g": "F"}), "photometry.flux.g: 'F' has no unit"),
    "counts": (edit(F=np.ones(4)), photometry(flux={"g": "F"}, unit="adu"), "'F' is in counts; give photometry.unit"),
    "magnitudes": (edit(F=np.ones(4)), photometry(flux={"g": "F"}, unit="mag"), "'F' is in 'mag', no flux density"),
    "fluxes": (edit(M=np.ones(4)), photometry(mag={"g": "M"}, unit="uJy"), "unit 'uJy' is not 'mag'"),
    "two units": (
        edit(F=np.ones(4)), photometry(flux={"g": "F"}, unit="Jy", zero_point_ab=25.0),
        "'F' is in 'Jy', and photometry.zero_point_ab is given too",
    ),
    "no such band": (edit(F=np.ones(4)), photometry(flux={"g": "F", "r": "G"}, unit="Jy"), "flux.r: 'G' is not a"),
    "text fluxes": (edit(F=["1"] * 4), photometry(flux={"g": "F"}, unit="Jy"), "flux.g: 'F' of .* holds text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(case, tmp_path):
    make, fields, message = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message):
        read(path, fields if isinstance(fields, CatalogColumns) else CatalogColumns(**fields))


def test_a_table_is_chosen_by_number_or_name(tmp_path):
    path = two_tables(tmp_path)
    for hdu in (2, "B"):
        assert read(path, CatalogColumns(hdu=hdu))[0]["z_spec"].tolist() == [0.5] * 4
    assert "z_spec" not in read(path, CatalogColumns(hdu=1))[0]


def test_two_million_rows_take_the_memory_of_a_chunk(tmp_path):
    """The file holds 96 MB; reading it by 100,000 rows, a match by position included, allocates a fraction."""
    rows = 2_000_000
    dtype = np.dtype([("ID", ">i8"), ("RA", ">f8"), ("DEC", ">f8"), ("zspec", ">f8"), ("g", ">f8"), ("e", ">f8")])
    data = np.zeros(rows, dtype)
    data["ID"], data["RA"], data["e"] = np.arange(rows), np.linspace(0, 300, rows), 1
    fits.BinTableHDU(data).writeto(tmp_path / "c.fits")
    del data
    spec = CatalogColumns(photometry=CatalogPhotometry("x", flux={"g": "g"}, fluxerr={"g": "e"}, unit="uJy"))
    tracemalloc.start()
    catalog = open_catalog(tmp_path / "c.fits", spec, say=quiet)
    number = sum(len(chunk["object_id"]) for chunk in catalog.chunks(100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == rows and peak < 32e6
