"""What cannot be read as a catalogue is refused in one sentence; nothing is unpickled, no link followed."""

import gzip

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from data_tools.catalogs.spec import CatalogColumns, CatalogPhotometry
from jaxz.errors import InputError
from tests.data_tools.catalog_files import read, small, write


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


def packed_cut_short(folder):
    content = write(folder, small(noise=np.random.default_rng(0).normal(size=(4, 999)))).read_bytes()
    (folder / "c.fits.gz").write_bytes(gzip.compress(content)[:9000])
    return folder / "c.fits.gz"


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
    "packed, cut short": (packed_cut_short, {}, "catalog: .*c.fits.gz' cannot be read as a table .EOFError"),
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
    "flags": (edit(zspec=np.ones(4), zflag=np.arange(4) * 3), {}, r"catalog.z_quality: the flags .*6.* are not 0"),
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
