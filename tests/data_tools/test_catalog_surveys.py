"""Every built-in survey reads a catalogue of its own column names; real catalogues read as their numbers stand."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table

from data_tools.catalogs.spec import NUMBERS, TEXTS, CatalogColumns, CatalogPhotometry
from data_tools.survey import SURVEYS, load_survey
from jaxz.errors import InputError
from tests.data_tools.catalog_files import read, same

DATA = Path(__file__).parents[3] / "shared/data"
BUILT_IN = sorted(p.stem for p in SURVEYS.glob("*.toml") if load_survey(p).catalog)
ROWS = 5


def columns_of(spec: CatalogColumns) -> dict[str, np.ndarray]:
    """A column for every name in the survey file: ids 0 .. 4, fluxes 1 .. 5 of their unit, errors 0.1."""
    n = np.arange(ROWS)
    made = {"ra": n * 0.1, "dec": n * 0.1, "z_spec": n * 0.1, "ebv": n * 0.01, "mag_ref": 20.0 + n}
    columns = {}
    for name in (*TEXTS, *NUMBERS):
        for column in np.atleast_1d(getattr(spec, name)).tolist():
            if column:
                texts = [list(spec.z_quality_map or {"4": 4})[0]] * ROWS if name == "z_quality" else n
                columns[column] = np.asarray(made.get(name, texts))
    if spec.sky and not spec.ra:
        columns |= {"right_ascension": made["ra"], "declination": made["dec"]}
    if spec.photometry is not None:
        values = {"flux": n + 1.0, "fluxerr": np.full(ROWS, 0.1), "ivar": np.full(ROWS, 100.0), "mag": 20.0 + n}
        values |= {"magerr": np.full(ROWS, 0.1), "extinction": np.full(ROWS, 0.25), "psf_fwhm": np.full(ROWS, 0.8)}
        for quantity, measured in values.items():
            columns |= dict.fromkeys(spec.photometry.columns(quantity).values(), measured)
    return columns


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_survey_reads_its_columns(name, tmp_path):
    survey = load_survey(name)
    spec, photometry = survey.catalog, survey.catalog.photometry
    Table(columns_of(spec)).write(tmp_path / "c.fits")
    found, catalog = read(tmp_path / "c.fits", spec)
    assert len(found["object_id"]) == ROWS == len(set(found["object_id"].tolist()))
    np.testing.assert_allclose(found["dec"], np.arange(ROWS) * 0.1)
    named = {column for column in (*TEXTS, *NUMBERS) if getattr(spec, column)} - {"z_kind", "z_quality"}
    assert named <= set(found) and all(catalog.choices[column] for column in named)
    bands = {band.name for band in survey.bands}
    for band in photometry.names if photometry else ():
        assert band in bands
        factor = {"uJy": 1, "nJy": 1e-3, "nanomaggy": 10**0.56, "count": 1, "": 1}[photometry.unit]
        truth = factor * np.arange(1, ROWS + 1) * 10 ** (-0.4 * photometry.offsets.get(band, 0))
        if photometry.mag:
            truth = 10 ** (0.4 * (23.9 - 20 - np.arange(ROWS) - (0.25 if photometry.extinction else 0)))
        np.testing.assert_allclose(found[f"flux_{band}"], truth, rtol=1e-6)
        error = truth * 0.1 * np.log(10) / 2.5 if photometry.mag else truth / np.arange(1, ROWS + 1) * 0.1
        np.testing.assert_allclose(found[f"fluxerr_{band}"], error, rtol=1e-6)
        assert photometry.kind in catalog.columns[f"flux_{band}"].description


def test_the_bands_of_built_in_surveys_are_what_filters_are():
    for name in BUILT_IN:
        survey = load_survey(name)
        wavelengths = [band.wavelength_nm for band in survey.bands]
        assert all(300 < w < 2300 for w in wavelengths) and wavelengths == sorted(wavelengths), name
        extinction = [band.a_over_ebv for band in survey.bands]
        assert extinction == sorted(extinction, reverse=True) and all(0.2 < a < 5 for a in extinction), name
        assert all(band.width_nm < 0.6 * band.wavelength_nm for band in survey.bands), name


def test_cosmos2020_tells_stars_and_agn_from_redshifts(tmp_path):
    survey = load_survey("cosmos2020_farmer")
    columns = columns_of(survey.catalog)
    columns["lp_zBEST"], columns["lp_type"] = np.float32([0, 99, 1.5, -99, 0.3]), np.float32([1, 2, 0, -9, 0])
    Table(columns).write(tmp_path / "c.fits")
    found, catalog = read(tmp_path / "c.fits", survey.catalog)
    np.testing.assert_array_equal(found["z_phot"], np.float32([np.nan, np.nan, 1.5, np.nan, 0.3]))
    assert found["obj_class"].tolist() == ["star", "agn", "galaxy", "failed", "galaxy"]
    assert catalog.invalid["z_phot"] == 3 and (found["z_kind"] == "none").all()


def test_a_survey_is_named_or_a_file(tmp_path):
    assert load_survey("sdss_dr17") == load_survey(SURVEYS / "sdss_dr17.toml")
    with pytest.raises(InputError, match=r"survey: 'sdss_dr16' is neither a file nor a built-in .*mean 'sdss_dr17'"):
        load_survey("sdss_dr16")
    with pytest.raises(InputError, match=r"survey: .*nothing.toml' cannot be read"):
        load_survey(tmp_path / "nothing.toml")


def test_the_match_file_lies_beside_the_survey_file(tmp_path):
    text = (SURVEYS / "cosmos2020_farmer.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("radius_arcsec = 0.6", 'radius_arcsec = 0.6\nfile = "z/specz.fits"'))
    assert load_survey(path).match.file == str(tmp_path / "z/specz.fits")
    for name in ("/etc/passwd", "../specz.fits"):
        path.write_text(text.replace("radius_arcsec = 0.6", f'radius_arcsec = 0.6\nfile = "{name}"'))
        with pytest.raises(InputError, match=r"match.file: .* leaves the survey file's folder; use --match"):
            load_survey(path)


BAD = {
    "offset of no band": ("offsets = { q = 1.0 }", "catalog.photometry.offsets: 'q' is not known here"),
    "offset": ('offsets = { g = "1" }', "catalog.photometry.offsets: .* must map bands to finite numbers"),
    "offset, infinite": ("offsets = { g = inf }", "catalog.photometry.offsets: .* must map bands to finite numbers"),
    "no pattern": ('psf_fwhm = "seeing"', "catalog.photometry.psf_fwhm: 'seeing' must hold {band}"),
    "both": ('mag = "{band}_MAG"', "catalog.photometry: .*'flux', 'fluxerr', 'mag'.* do not go together"),
    "bands": ('ivar = { g = "a" }', "catalog.photometry: .*do not go together"),
    "zero point": ('zero_point_ab = "x"', "catalog.photometry.zero_point_ab: 'x' must be a number"),
    "unknown": ('fluxes = "x"', "catalog.photometry.fluxes is not a known field. Did you mean 'flux'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_photometry_section_is_refused(case, tmp_path):
    line, message = BAD[case]
    text = (SURVEYS / "cosmos2020_farmer.toml").read_text()
    (tmp_path / "s.toml").write_text(text.replace('kind = "model"\n', f'kind = "model"\n{line}\n'))
    with pytest.raises(InputError, match=message):
        load_survey(tmp_path / "s.toml")


BAD_CATALOG = {
    "quality": ('z_quality_map = { "4" = 5 }', "catalog.z_quality_map: .* must map flags to 0, 1, 2, 3 or 4"),
    "kind": ('z_kind_map = { "a" = "slitless" }', "catalog.z_kind_map: .* must map to spec, grism or phot"),
    "class": ("hdu = 1.5", "catalog.hdu: 1.5 must be a whole number or text"),
    "label": ('label_from = ["spectrum"]', "catalog.label_from: .* must list some of spec, grism and phot"),
    "units": ('units = { rah = "deg" }', "catalog.units: 'rah' is not known here"),
    "kind's kind": ("z_kind_map = { a = [1] }", "catalog.z_kind_map: .* must map to spec, grism or phot"),
    "what to ignore": ("ignore = [[1]]", r"catalog.ignore: \[1\] is not known here"),
    "unit": ("units = { ra = 1 }", "catalog.units.ra: 1 must be text"),
    "ignore": ('ignore = ["redshift"]', "catalog.ignore: 'redshift' is not known here"),
    "origin": ("pixel_origin = 2", "catalog.pixel_origin: 2 must be 0"),
    "x alone": ('x = "X"', "catalog: .* are named as position columns; name ra and dec, or x and y"),
    "tile": ("tile = []", r"catalog.tile: \[\] must name columns"),
}


@pytest.mark.parametrize("case", BAD_CATALOG)
def test_a_wrong_catalog_section_is_refused(case, tmp_path):
    line, message = BAD_CATALOG[case]
    text = (SURVEYS / "euclid_q1.toml").read_text()
    (tmp_path / "s.toml").write_text(text.replace('object_id = "object_id"\n', f'object_id = "object_id"\n{line}\n'))
    with pytest.raises(InputError, match=message):
        load_survey(tmp_path / "s.toml")


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def test_real_cosmos_fluxes_of_lephare(tmp_path):
    """30 columns of erg/s/cm2/Hz without a unit in the file, and no positions, which are added."""
    rows = Table.read(real("lephare_cosmos_100/COSMOS_first100specz.fits"))
    rows["RA"], rows["DEC"] = 150.0, 2.0
    rows.write(tmp_path / "c.fits")
    curve = {"g": "hsc/gHSC.pb", "i": "hsc/iHSC.pb", "K": "vista/K.lowres", "ch1": "cosmos/irac_ch1.lowres"}
    photometry = CatalogPhotometry("x", flux="f_{band}", fluxerr="ferr_{band}", names=curve, unit="erg/s/cm2/Hz")
    found, catalog = read(tmp_path / "c.fits", CatalogColumns(photometry=photometry))
    assert found["object_id"].dtype == np.int64 and catalog.choices["z_spec"] == "'zspec', by its name"
    np.testing.assert_array_equal(found["object_id"], rows["id"])
    z = np.asarray(rows["zspec"])
    np.testing.assert_array_equal(found["z"], np.where((z > -0.01) & (z < 20), z, np.nan).astype(np.float32))
    for band, name in curve.items():
        flux, error = np.asarray(rows[f"f_{name}"]) * 1e29, np.asarray(rows[f"ferr_{name}"]) * 1e29
        observed = (error > 0) & np.isfinite(flux)
        np.testing.assert_allclose(found[f"flux_{band}"], np.where(observed, flux, np.nan), rtol=1e-6)
        np.testing.assert_allclose(found[f"fluxerr_{band}"], np.where(observed, error, np.nan), rtol=1e-6)
    assert np.isfinite(found["flux_i"]).sum() > 90


def test_real_hst_catalogue_by_its_names_alone():
    path = real("btk_galsim_cosmos_hst100/real_galaxy_catalog_26_extension_example.fits")
    rows = Table.read(path)
    found, catalog = read(path, CatalogColumns(mag_ref="MAG"))
    for ours, theirs in (("object_id", "IDENT"), ("ra", "RA"), ("dec", "DEC")):
        np.testing.assert_array_equal(found[ours], rows[theirs])
    np.testing.assert_array_equal(found["mag_ref"], np.asarray(rows["MAG"], np.float32))
    assert (found["z_kind"] == "none").all() and catalog.rows == 100
    assert catalog.columns["mag_ref"].description.endswith("; column MAG of the catalogue")


def test_real_sdss_magnitudes(tmp_path):
    """BOSS galaxies of the ANNz examples: a CSV of magnitudes whose header is the program's own."""
    lines = real("annz_boss_dr10_ugriz/train/boss_dr10_0.csv").read_text().splitlines()
    names = ["ID", "RA", "DEC", *(name[2:] for name in lines[0].lstrip("#").split(";"))]
    rows = [f"{n},{n * 0.01},0,{line}" for n, line in enumerate(lines[1:])]
    (tmp_path / "boss.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
    photometry = CatalogPhotometry(
        "model", mag="MAG_{band}", magerr="MAGERR_{band}", names={b: b.upper() for b in "ugriz"}
    )
    spec = CatalogColumns(photometry=photometry)
    found, catalog = read(tmp_path / "boss.csv", spec)
    table = np.loadtxt(lines[1:], delimiter=",")
    np.testing.assert_allclose(found["z"], table[:, -1], rtol=1e-6)
    np.testing.assert_allclose(23.9 - 2.5 * np.log10(found["flux_r"]), table[:, 4], rtol=1e-6)
    np.testing.assert_allclose(2.5 / np.log(10) * found["fluxerr_r"] / found["flux_r"], table[:, 5], rtol=1e-5)
    assert catalog.choices["z_spec"] == "'Z', by its name" and len(found["z"]) == 6000
    same(found, read(tmp_path / "boss.csv", spec, 997)[0])


def test_simulated_lsst_catalogue_of_rail(tmp_path):
    """An HDF5 group of columns; magnitudes of what was not detected are NaN, and no flux."""
    with h5py.File(real("rail_dc2_9816_sim/test_dc2_training_9816.hdf5")) as file:
        truth = {name: column[()] for name, column in file["photometry"].items()}
    rows = len(truth["id"])
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        for name, values in {**truth, "ra": np.linspace(50, 60, rows), "dec": np.zeros(rows)}.items():
            file[f"photometry/{name}"] = values
    photometry = CatalogPhotometry(
        "x", mag="mag_{band}_lsst", magerr="mag_err_{band}_lsst", names={b: b for b in "ugrizy"}
    )
    found, _ = read(tmp_path / "c.hdf5", CatalogColumns(photometry=photometry))
    np.testing.assert_array_equal(found["z_spec"], truth["redshift"].astype(np.float32))
    for band in "ugrizy":
        magnitude, error = truth[f"mag_{band}_lsst"], truth[f"mag_err_{band}_lsst"]
        observed = np.isfinite(found[f"flux_{band}"])
        np.testing.assert_array_equal(observed, magnitude < 99)
        relative = found[f"fluxerr_{band}"][observed] / found[f"flux_{band}"][observed]
        np.testing.assert_allclose(relative * 2.5 / np.log(10), error[observed], rtol=1e-6)
        np.testing.assert_allclose(
            23.9 - 2.5 * np.log10(found[f"flux_{band}"][observed]), magnitude[observed], rtol=1e-6
        )
