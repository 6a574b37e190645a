"""Redshifts: given by position as brute force gives them, in chunks of any size; their quality, kind and label."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from data_tools.catalogs.catalog import open_catalog
from data_tools.catalogs.match import match_positions
from data_tools.catalogs.spec import CatalogColumns, Match
from data_tools.survey import load_survey
from jaxz.errors import InputError
from tests.data_tools.catalog_files import BY_NAME, quiet, read, same

RADIUS = 1.0  # arcsec


def sky(number: int, rng, centre: tuple[float, float], side_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    """ra, dec of points in a square, so dense that many have several neighbours within the radius."""
    side = side_arcsec / 3600
    dec = np.clip(centre[1] + rng.uniform(-side, side, number) / 2, -90, 90)
    stretch = 1 / max(np.cos(np.radians(centre[1])), 0.01)
    return (centre[0] + stretch * rng.uniform(-side, side, number) / 2) % 360, dec


def brute_force(ra, dec, other_ra, other_dec, quality) -> dict[int, tuple[int, float]]:
    """{row of the catalogue: (row of the compilation, arcsec)}, one redshift at a time, by astropy's separations."""
    objects, given = SkyCoord(ra, dec, unit="deg"), {}
    for k in range(len(other_ra)):
        arcsec = SkyCoord(other_ra[k], other_dec[k], unit="deg").separation(objects).arcsec
        nearest = int(np.argmin(arcsec))
        if arcsec[nearest] <= RADIUS:
            given.setdefault(nearest, []).append((-quality[k], arcsec[nearest], k))
    return {row: (min(found)[2], min(found)[1]) for row, found in given.items()}


@pytest.mark.parametrize("centre", [(150.0, 2.2), (0.0, -30.0), (10.0, 89.9999)], ids=["field", "ra 0", "pole"])
def test_matches_are_those_of_brute_force_whatever_the_chunks(centre):
    rng = np.random.default_rng(5)
    ra, dec = sky(900, rng, centre, 60.0)
    other_ra, other_dec = sky(400, rng, centre, 64.0)
    quality = rng.integers(0, 5, 400)
    ra[[3, 500]], other_dec[7] = np.nan, np.nan
    known, others = np.flatnonzero(np.isfinite(ra)), np.flatnonzero(np.isfinite(other_dec))
    truth = brute_force(ra[known], dec[known], other_ra[others], other_dec[others], quality[others])
    truth = {int(known[row]): (int(others[k]), arcsec) for row, (k, arcsec) in truth.items()}
    assert 150 < len(truth) < 300  # several redshifts for one object, and some out of reach

    for size in (7, 64, 900):
        chunks = ((ra[i : i + size], dec[i : i + size]) for i in range(0, 900, size))
        found = match_positions(chunks, other_ra, other_dec, quality, RADIUS)
        assert dict(zip(found.rows.tolist(), found.found.tolist(), strict=True)) == {
            r: k for r, (k, _) in truth.items()
        }
        assert (np.diff(found.rows) > 0).all() and len(set(found.found.tolist())) == len(found.found)
        np.testing.assert_allclose(found.arcsec, [truth[row][1] for row in found.rows.tolist()], rtol=1e-7, atol=1e-9)


def test_of_objects_at_one_place_the_first_is_given_the_redshift():
    ra, dec = np.array([10.0, 20, 20, 20, 30]), np.zeros(5)
    for size in (1, 2, 5):
        chunks = [(ra[i : i + size], dec[i : i + size]) for i in range(0, 5, size)]
        found = match_positions(chunks, np.array([20.0, 20.0]), np.zeros(2), np.array([3, 3]), RADIUS)
        assert (found.rows.tolist(), found.found.tolist(), found.arcsec.tolist()) == ([1], [0], [0.0])


def test_the_radius_is_kept_and_nothing_to_match_is_no_error():
    step = RADIUS / 3600
    for apart, matched in ((0.999, 1), (1.001, 0)):
        chunks = [(np.array([10.0]), np.array([apart * step]))]
        found = match_positions(chunks, np.array([10.0]), np.zeros(1), np.array([4]), RADIUS)
        assert len(found.rows) == matched
    nothing = np.full(1, np.nan)
    assert len(match_positions([(nothing, nothing)], np.ones(1), np.ones(1), np.ones(1), RADIUS).rows) == 0
    assert len(match_positions([(np.ones(1), np.ones(1))], nothing, nothing, np.ones(1), RADIUS).rows) == 0


def offset(arcsec: float) -> float:
    return arcsec / 3600


@pytest.fixture
def files(tmp_path):
    """Six objects a degree apart, some with redshifts, and a compilation around them."""
    main = Table({"ID": np.arange(6) + 100, "RA": np.arange(6.0), "DEC": np.zeros(6)})
    main["zspec"], main["zflag"] = [0.1, 0.2, -99.0, -99.0, 0.5, -99.0], [4, 1, 0, 0, 0, 0]
    main.write(tmp_path / "main.fits")
    rows = [  # ra, dec in arcsec, z, quality, method
        (0, 0.1, 1.0, "3", "MOS"),  # not better than the catalogue's own 4
        (1, 0.2, 1.1, "3", "MOS"),  # better than its 1
        (2, 0.5, 1.2, "2", "MOS"),
        (2, 0.9, 1.25, "4.5", "MOS"),  # further but better
        (3, 0.3, 1.3, "4", "G141"),  # a grism's
        (4, 0.0, 1.4, "0", "MOS"),  # as good as the catalogue's own: that one stays
        (3, 0.1, -99.0, "4", "MOS"),  # no redshift, though a quality
        (2, 0.0, 1.2, "4", "G141"),  # a grism's, near and sure: a spectrum goes before it
        (0, 0.0, 0.9, "4", "G141"),  # likewise
        (5, 0.1, -9.0, "4", "MOS"),  # no redshift
        (5, 1.5, 1.5, "4", "MOS"),  # out of reach
    ]
    other = Table(rows=rows, names=("RA", "DEC", "specz", "Q", "method"))
    other["DEC"] = other["DEC"] / 3600
    other["specz_err"] = 0.001 * (1 + np.arange(len(rows)))
    other.write(tmp_path / "specz_dr1.csv")
    catalog = CatalogColumns(
        z_quality_map={"4*": 4, "3*": 3, "2*": 2}, z_kind="method", z_kind_map={"G1*": "grism"}
    )  # fmt: skip
    return tmp_path / "main.fits", Match(str(tmp_path / "specz_dr1.csv"), RADIUS, catalog)


def test_the_better_redshift_is_taken_and_its_origin_kept(files):
    path, match = files
    spec = CatalogColumns(label_from=["spec", "grism"])
    found, catalog = read(path, spec, 1_000_000, match)
    nan = np.nan
    np.testing.assert_array_equal(found["z_spec"], np.float32([0.1, 1.1, 1.25, nan, 0.5, nan]))
    np.testing.assert_array_equal(found["z_grism"], np.float32([nan, nan, nan, 1.3, nan, nan]))
    np.testing.assert_array_equal(found["z"], np.float32([0.1, 1.1, 1.25, 1.3, 0.5, nan]))
    np.testing.assert_array_equal(found["z_err"], np.float32([nan, 0.002, 0.004, 0.005, nan, nan]))
    assert found["z_kind"].tolist() == ["spec", "spec", "spec", "grism", "spec", "none"]
    assert found["z_quality"].tolist() == [4, 3, 4, 4, 0, 0]
    assert found["z_flag_orig"].tolist() == ["4", "3", "4.5", "4", "0", "0"]
    assert found["z_source"].tolist() == ["", "specz_dr1", "specz_dr1", "specz_dr1", "", ""]
    np.testing.assert_allclose(found["z_match_arcsec"], [nan, 0.2, 0.9, 0.3, nan, nan], rtol=1e-6)
    assert [file.name for file in catalog.files] == ["main.fits", "specz_dr1.csv"]
    assert catalog.choices["match.z_spec"] == "'specz', by its name"
    same(found, read(path, spec, 2, match)[0])
    only_spec, _ = read(path, match=match)
    np.testing.assert_array_equal(only_spec["z"], np.float32([0.1, 1.1, 1.25, nan, 0.5, nan]))


def test_a_match_without_a_file_is_none(files):
    path, _ = files
    said = []
    same(read(path, BY_NAME, match=Match(), say=said.append)[0], read(path)[0])
    assert said[-1] == "match: no file is named; redshifts are the catalogue's own"


def test_a_match_that_cannot_be_made_is_refused(files, tmp_path):
    path, match = files
    with pytest.raises(InputError, match="match: the catalogue's positions are x and y; name ra and dec"):
        open_catalog(path, CatalogColumns(x="RA", y="DEC"), match=match, say=quiet)
    Table({"RA": [1.0], "DEC": [1.0]}).write(tmp_path / "no_z.csv")
    with pytest.raises(InputError, match=r"match.catalog.z_spec: none is named"):
        open_catalog(path, BY_NAME, match=Match(str(tmp_path / "no_z.csv")), say=quiet)
    Table({"RA": [1.0], "DEC": [1.0], "zspec": [-99.0]}).write(tmp_path / "empty.csv")
    with pytest.raises(InputError, match=r"match.file: .*empty.csv' has no redshift"):
        open_catalog(path, BY_NAME, match=Match(str(tmp_path / "empty.csv")), say=quiet)


VVDS = {  # Le Fevre et al. 2005, 2013; Lilly et al. 2009: the flag and what it says
    "4": 4, "3": 3, "2": 2, "1": 1, "0": 0, "9": 2,  # 99, 95, 75 %, a guess, none, one line
    "14": 4, "13": 3, "19": 2, "11": 1,  # broad lines
    "24": 4, "23": 3, "22": 2, "29": 2, "21": 1,  # a second object in the slit
    "4.5": 4, "3.1": 3, "2.5": 3, "2.1": 2, "9.5": 3, "9.3": 3, "9.1": 2, "1.1": 1, "14.5": 4, "-99": 0,  # zCOSMOS
}  # fmt: skip


@pytest.mark.parametrize("kind", [str, float], ids=["text", "numbers"])
def test_flags_of_vvds_vipers_and_zcosmos(kind, tmp_path):
    rows = Table(
        {"ID": np.arange(len(VVDS)), "RA": np.zeros(len(VVDS)), "DEC": np.zeros(len(VVDS)), "Z": np.ones(len(VVDS))}
    )
    rows["zflag"] = [kind(flag) for flag in VVDS]
    rows.write(tmp_path / "c.fits")
    mapping = load_survey("cfhtls_t0007").match.catalog.z_quality_map
    found, _ = read(tmp_path / "c.fits", CatalogColumns(z_quality_map=mapping))
    assert dict(zip(VVDS, found["z_quality"].tolist(), strict=True)) == VVDS
    assert found["z_flag_orig"].tolist() == list(VVDS)


@pytest.mark.parametrize(
    "survey, flags",
    [
        ("sdss_dr17", {"0": 4, "4": 1, "16": 1}),
        ("hsc_pdr3", {"True": 3, "t": 3, "1": 3, "False": 1, "": 0}),
        ("cosmos2020_farmer", {"4": 3, "13": 3, "9": 2, "19": 2, "2": 2, "1": 1, "0": 0}),
    ],
)
def test_flags_of_other_surveys(survey, flags, tmp_path):
    spec = load_survey(survey)
    mapping = (spec.match.catalog if spec.match else spec.catalog).z_quality_map
    rows = Table(
        {"ID": np.arange(len(flags)), "RA": np.zeros(len(flags)), "DEC": np.zeros(len(flags)), "Z": np.ones(len(flags))}
    )
    rows["zflag"] = list(flags)
    rows.write(tmp_path / "c.fits")
    found, _ = read(tmp_path / "c.fits", CatalogColumns(z_quality_map=mapping))
    assert dict(zip(flags, found["z_quality"].tolist(), strict=True)) == flags


def test_labels_come_from_the_first_kind_that_is_there(tmp_path):
    nan = np.nan
    rows = Table({"ID": np.arange(4), "RA": np.zeros(4), "DEC": np.zeros(4), "zspec": [0.5, nan, nan, -99.0]})
    rows["zspec_err"], rows["zg"], rows["zphot"] = [0.001, nan, nan, nan], [0.6, 0.7, nan, nan], [0.8, 0.9, 1.0, nan]
    rows["z_phot_l68"], rows["z_phot_u68"] = [0.7, 0.8, 0.9, nan], [0.9, 1.0, 1.2, nan]
    rows.write(tmp_path / "c.ecsv")
    for kinds, z, z_err, kind in (
        (["spec"], [0.5, nan, nan, nan], [0.001, nan, nan, nan], ["spec", "none", "none", "none"]),
        (["spec", "grism", "phot"], [0.5, 0.7, 1.0, nan], [0.001, nan, 0.15, nan], ["spec", "grism", "phot", "none"]),
        (["phot"], [0.8, 0.9, 1.0, nan], [0.1, 0.1, 0.15, nan], ["phot", "phot", "phot", "none"]),
    ):
        found, _ = read(tmp_path / "c.ecsv", CatalogColumns(z_grism="zg", label_from=kinds))
        np.testing.assert_array_equal(found["z"], np.float32(z))
        np.testing.assert_allclose(found["z_err"], z_err, rtol=1e-6)
        assert found["z_kind"].tolist() == kind


def test_kinds_of_redshifts_are_told_apart_by_a_column(tmp_path):
    rows = Table({"ID": np.arange(3), "RA": np.zeros(3), "DEC": np.zeros(3), "zspec": [0.5, 0.6, 0.7]})
    rows["survey"] = ["zCOSMOS", "3DHST", "PRIMUS prism"]
    rows.write(tmp_path / "c.fits")
    spec = CatalogColumns(z_kind="survey", z_source="survey", z_kind_map={"3DHST": "grism", "PRIMUS*": "phot"})
    found, catalog = read(tmp_path / "c.fits", spec)
    np.testing.assert_array_equal(found["z_spec"], np.float32([0.5, np.nan, np.nan]))
    np.testing.assert_array_equal(found["z_grism"], np.float32([np.nan, 0.6, np.nan]))
    assert found["z_source"].tolist() == ["zCOSMOS", "3DHST", "PRIMUS prism"] and catalog.invalid["z_spec"] == 1
