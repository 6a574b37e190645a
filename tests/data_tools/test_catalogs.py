"""Columns of a catalogue: found by name, in the dataset's units, cleaned."""

import dataclasses

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Column, Table

from data_tools.catalogs.spec import CatalogColumns, CatalogPhotometry
from jaxz.errors import InputError
from tests.data_tools.catalog_files import read, same, small, write


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
    rows["F"], rows["E"], rows["ZP"] = f, e, np.float32([0, 99, 0.5, 9.9, 1e30, 3, 7, np.nan])
    rows["M"] = [20, 99, -99, 99.0, 24, 25, np.nan, 1e20]
    spec = CatalogColumns(
        z_phot="ZP", mag_ref="M", sentinels={"z_phot": [0, 99, 9.9], "flux": [-3]},
        photometry=CatalogPhotometry("x", flux={"g": "F"}, fluxerr={"g": "E"}, unit="nJy"),
    )  # fmt: skip
    found, catalog = read(write(tmp_path, rows), spec)
    nan = np.nan
    np.testing.assert_array_equal(found["flux_g"], np.float32([1e-3, nan, nan, nan, nan, nan, nan, nan]))
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


def test_a_unit_that_nobody_knows_does_not_matter_where_the_survey_file_has_one(tmp_path):
    said, rows = [], small(F=Column(np.ones(4), unit="internal units"))
    photometry = CatalogPhotometry("x", flux={"g": "F"}, unit="uJy")
    found, _ = read(write(tmp_path, rows), CatalogColumns(photometry=photometry), say=said.append)
    assert found["flux_g"].tolist() == [1] * 4
    assert "catalog.photometry.flux.g: 'F' says 'internal units', the survey file 'uJy': that is taken" in said
    with pytest.raises(InputError, match="'internal units' is not known; give another by photometry.unit"):
        read(tmp_path / "c.fits", CatalogColumns(photometry=CatalogPhotometry("x", flux={"g": "F"})))


def test_fluxes_and_errors_may_have_units_of_their_own(tmp_path):
    rows = small(F=np.ones(4) * u.uJy, E=np.ones(4) * u.nJy)
    photometry = CatalogPhotometry("x", flux={"g": "F"}, fluxerr={"g": "E"})
    found, _ = read(write(tmp_path, rows), CatalogColumns(photometry=photometry))
    assert found["flux_g"][0] == 1 and found["fluxerr_g"][0] == np.float32(1e-3)


def test_pixels_tiles_and_joined_ids(tmp_path):
    rows = Table({"brick": [7, 7, 8], "obj": [0, 1, 0], "X": [1.0, 2.5, np.nan], "Y": [1.0, 9, 4], "tract": [9, 9, 10]})
    rows["patch"] = ["4,1", "4,2", ""]
    spec = CatalogColumns(object_id=["brick", "obj"], x="X", y="Y", pixel_origin=1, tile=["tract", "patch"])
    found, catalog = read(write(tmp_path, rows), spec, rows=2)
    assert found["object_id"].tolist() == ["7-0", "7-1", "8-0"] and found["tile"].tolist() == ["9-4,1", "9-4,2", ""]
    np.testing.assert_array_equal(found["x"], [0, 1.5, np.nan])
    np.testing.assert_array_equal(found["y"], [0, 8, np.nan])
    assert "ra" not in found and catalog.columns["object_id"].dtype == "string"
