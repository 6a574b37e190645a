"""Overlays that relabel writes, against joins by brute force."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from data_tools import relabel
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.helpers import blobs

COUNT = 400
COLUMNS = {
    "object_id": Column("int64"),
    "ra": Column("float64", "deg"),
    "dec": Column("float64", "deg"),
    "z_spec": Column("float32"),
    "z_spec_err": Column("float32"),
    "z_quality": Column("int32"),
    "z": Column("float32"),
    "z_err": Column("float32"),
    "z_kind": Column("string"),
    "flux_r": Column("float32", "uJy"),
    "name": Column("string"),
    "true_z": Column("float32"),
}


@pytest.fixture
def survey(tmp_path):
    """400 objects on half a square degree: a third with z_spec, a third with a z of another kind, a third with none."""
    draw = np.random.default_rng(1)
    spec, other = np.arange(COUNT) % 3 == 0, np.arange(COUNT) % 3 == 1
    z = draw.uniform(0.1, 2, COUNT).astype(np.float32)
    columns = {
        "object_id": draw.permutation(10 * COUNT)[:COUNT],
        "ra": (359.8 + draw.uniform(0, 0.7, COUNT)) % 360,
        "dec": draw.uniform(-60.7, -60, COUNT),
        "z_spec": np.where(spec, z, np.nan),
        "z_spec_err": np.where(spec, 1e-4, np.nan),
        "z_quality": np.where(spec, 3, 0),
        "z": np.where(spec | other, z, np.nan),
        "z_err": np.where(spec, 1e-4, np.where(other, 0.05, np.nan)),
        "z_kind": np.select([spec, other], ["spec", "phot"], "none"),
        "flux_r": draw.uniform(1, 9, COUNT),
        "name": [f"object {i}" for i in range(COUNT)],
        "true_z": z,
    }
    band = Band("r", 620.0, 100.0, 27.0, 0.2, 2.3, 1.0, 0.8)
    manifest = Manifest({"image": Array("image", "float16", (1, 4, 4))}, (band,), COLUMNS)
    writer = DatasetWriter(tmp_path / "survey", manifest, {})
    for n, rows in enumerate(np.array_split(np.arange(COUNT), 3)):
        part = {name: [values[i] for i in rows] for name, values in columns.items()}
        writer.write_shard(n, [f"k{i}" for i in rows], {"image": np.zeros((len(rows), 1, 4, 4), np.float16)}, part)
    writer.finish(3, {})
    return tmp_path / "survey"


def run(survey, capsys, *rest):
    capsys.readouterr()
    assert relabel.main([str(survey), "--name", "new", *map(str, rest)]) is None
    return json.loads(capsys.readouterr().out)


def labels_of(dataset):
    return [dataset.column(name) for name in ("z_spec", "z", "z_err", "z_kind")]


@pytest.mark.parametrize("suffix", ["csv", "fits", "ecsv", "parquet", "vot"])
def test_redshifts_by_id_and_the_labels_that_follow(survey, tmp_path, suffix, capsys):
    base, draw = open_dataset(survey), np.random.default_rng(2)
    ids = base.column("object_id")
    rows = draw.permutation(COUNT)[:200]
    z = draw.uniform(0.2, 1, 200).astype(np.float32)
    z[:20] = -99  # withdrawn
    same = np.flatnonzero(np.isfinite(base.column("z_spec")[rows]))[10:30]
    z[same] = base.column("z_spec")[rows[same]]  # confirmed
    table = Table({"ID": np.append(ids[rows], [50_000, 50_001]), "zbest": np.append(z, [0.5, 0.5]).astype(np.float32)})
    path = tmp_path / f"new.{suffix}"
    table.write(path, **({"format": "votable"} if suffix == "vot" else {}))
    summary = run(survey, capsys, "--from", path, "--on", "ID", "--column", "z_spec=zbest")
    assert (summary["rows"], summary["matched"], summary["unmatched"]) == (202, 200, 2)
    assert summary["unmatched_first"] == ["50000", "50001"]
    assert summary["invalid"] == {"z_spec": 20}
    wanted = [values.copy() for values in labels_of(base)]
    quality = base.column("z_quality").copy()
    counts = {"added": 0, "changed": 0, "removed": 0}
    for row, value in zip(rows, z, strict=True):
        value = np.float32(np.nan) if value < 0 else value
        before = wanted[0][row]
        if (np.isnan(before) and np.isnan(value)) or before == value:
            continue  # its labels, of whatever kind, and its quality stay
        counts["added" if np.isnan(before) else "removed" if np.isnan(value) else "changed"] += 1
        kind = "none" if np.isnan(value) else "spec"
        for column, new in zip(wanted, (value, value, np.nan, kind), strict=True):
            column[row] = new
        quality[row] = 0
    assert summary["redshifts"] == counts and min(counts.values()) > 0
    now = open_dataset(survey, overlays=["new"])
    for found, truth in zip(labels_of(now), wanted, strict=True):
        np.testing.assert_array_equal(found, truth)
    np.testing.assert_array_equal(now.column("z_quality"), quality)
    assert all(kept == base.manifest.columns[name] for name, kept in now.manifest.columns.items())
    for mine, before in zip(labels_of(open_dataset(survey)), labels_of(base), strict=True):
        np.testing.assert_array_equal(mine, before)


def brute_force(base, table, radius):
    """{row of the dataset: row of the table}, by all pairs."""
    unit = lambda ra, dec: np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], -1)
    ours = unit(np.radians(base.column("ra")), np.radians(base.column("dec")))
    theirs = unit(np.radians(table["RA"]), np.radians(table["DE"]))
    arcsec = np.degrees(2 * np.arcsin(np.linalg.norm(theirs[:, None] - ours[None], axis=-1) / 2)) * 3600
    found = {}
    for row in range(len(table)):
        place = int(np.argmin(arcsec[row]))
        if arcsec[row, place] > radius or table["z"][row] < 0:
            continue
        rank = (-table["q"][row], arcsec[row, place], row)
        found[place] = min(found.get(place, (1, 0, -1)), rank)
    return {place: (row, arcsec) for place, (_, arcsec, row) in found.items()}


def test_a_compilation_by_position_takes_the_best_then_the_nearest(survey, tmp_path, capsys):
    base, draw = open_dataset(survey), np.random.default_rng(4)
    near = draw.integers(COUNT, size=900)
    shift = draw.normal(0, 0.7 / 3600, (2, 900))
    table = Table({
        "RA": (base.column("ra")[near] + shift[0] / np.cos(np.radians(60))) % 360,
        "DE": base.column("dec")[near] + shift[1],
        "z": np.where(draw.random(900) < 0.1, -1.0, draw.uniform(0, 1, 900)).astype(np.float32),
        "q": draw.integers(0, 5, 900),
    })  # fmt: skip
    table["RA"].unit = table["DE"].unit = u.deg
    table["RA"], table["RA"].unit = np.array(table["RA"]) / 15, u.hourangle
    table.write(tmp_path / "c.ecsv")
    table["RA"] = np.array(table["RA"]) * 15
    rest = ("--ra", "RA", "--dec", "DE", "--column", "z_spec=z", "z_quality=q")
    summary = run(survey, capsys, "--from", tmp_path / "c.ecsv", "--match", 1.0, *rest)
    truth = brute_force(base, table, 1.0)
    now = open_dataset(survey, overlays=["new"])
    separation = now.column("match_sep")
    assert set(np.flatnonzero(np.isfinite(separation))) == set(truth)
    assert summary["matched"] == len(truth) > 250
    assert now.manifest.columns["match_sep"].unit == "arcsec"
    for place, (row, arcsec) in truth.items():
        assert now.column("z_spec")[place] == table["z"][row]
        assert now.column("z_quality")[place] == table["q"][row]
        assert separation[place] == pytest.approx(arcsec, abs=1e-6)
    others = np.setdiff1d(np.arange(COUNT), list(truth))
    np.testing.assert_array_equal(now.column("z")[others], base.column("z")[others])


def test_one_spectrum_labels_one_object(tmp_path, survey, capsys):
    base = open_dataset(survey)
    ra, dec = base.column("ra"), base.column("dec")
    apart = np.hypot((ra - ra[0]) * np.cos(np.radians(dec)), dec - dec[0]) * 3600
    neighbour = np.argsort(apart)[1]
    Table({"ra": [ra[0]], "dec": [dec[0]], "z_spec": [0.7]}).write(tmp_path / "one.csv")
    summary = run(survey, capsys, "--from", tmp_path / "one.csv", "--match", apart[neighbour] + 1)
    assert summary["matched"] == 1
    now = open_dataset(survey, overlays=["new"])
    assert now.column("z")[0] == np.float32(0.7)
    np.testing.assert_equal(now.column("z")[neighbour], base.column("z")[neighbour])


def test_weights_text_and_units(survey, tmp_path, capsys):
    base = open_dataset(survey)
    ids = base.column("object_id")[:50]
    table = Table({"object_id": ids, "w": np.linspace(0, 1, 50), "tag": [f"t{i}" for i in range(50)]})
    table["w"].unit, table["w"].description = u.km, "how far"
    table["flux"] = np.arange(50.0) * u.nJy
    table["n"] = MaskedColumn(np.arange(50), mask=np.arange(50) % 2 == 0)
    table["name"] = "renamed"
    table.write(tmp_path / "w.ecsv")
    columns = ("--column", "weight=w", "tag", "flux_r=flux", "n", "name")
    summary = run(survey, capsys, "--from", tmp_path / "w.ecsv", *columns)
    assert summary["columns"]["flux_r"] == "float32 uJy"
    now = open_dataset(survey, overlays=["new"])
    assert now.manifest.columns["weight"] == Column("float64", "km", "how far")
    found = now.arrow(columns=["weight", "tag", "flux_r", "n", "name", "z_spec"]).to_pydict()
    assert found["weight"] == [*np.linspace(0, 1, 50), *[None] * 350]
    assert found["tag"] == [*(f"t{i}" for i in range(50)), *[None] * 350]
    np.testing.assert_allclose(found["flux_r"][:50], np.arange(50) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(found["flux_r"][50:], base.column("flux_r")[50:])
    assert found["n"] == [*(None if i % 2 == 0 else i for i in range(50)), *[None] * 350]
    assert found["name"] == [*["renamed"] * 50, *base.column("name")[50:]]
    np.testing.assert_array_equal(found["z_spec"], base.column("z_spec"))
    assert "z" not in pq.read_schema(survey / "overlays/new.parquet").names


def test_the_overlay_says_where_it_comes_from_and_is_laid_over_others(survey, tmp_path, capsys):
    ids = open_dataset(survey).column("object_id")
    Table({"object_id": ids[:2], "z_spec": [0.25, 0.5]}).write(tmp_path / "a.csv")
    run(survey, capsys, "--from", tmp_path / "a.csv")
    said = json.loads(pq.read_schema(survey / "overlays/new.parquet").metadata[b"jaxz"])
    assert said["tool"] == "data_tools.relabel" and said["input"]["name"] == "a.csv"
    assert said["input"]["sha256"] == hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    before = (survey / "overlays/new.parquet").read_bytes()
    with pytest.raises(InputError, match="name: .*new.parquet exists; choose another name, or give --replace"):
        run(survey, capsys, "--from", tmp_path / "a.csv")
    assert (survey / "overlays/new.parquet").read_bytes() == before
    Table({"object_id": ids[:2], "z_spec": [0.25, 0.75]}).write(tmp_path / "b.csv")
    (survey / "overlays/new.parquet").rename(survey / "overlays/first.parquet")
    summary = run(survey, capsys, "--from", tmp_path / "b.csv", "--overlay", "first")
    assert summary["redshifts"] == {"added": 0, "changed": 1, "removed": 0}
    run(survey, capsys, "--from", tmp_path / "a.csv", "--overlay", "first", "--replace")
    both = open_dataset(survey, overlays=["first", "new"])
    assert both.column("z")[:2].tolist() == [0.25, 0.5]


def test_a_dataset_without_z_spec_gets_it(tmp_path, capsys):
    path = blobs(tmp_path / "d")  # has z, z_err and z_kind
    base = open_dataset(path)
    Table({"object_id": [1, 2], "z_spec": [0.5, np.nan]}).write(tmp_path / "z.csv")
    run(path, capsys, "--from", tmp_path / "z.csv", "--column", "z_spec")
    now = open_dataset(path, overlays=["new"])
    np.testing.assert_array_equal(now.column("z_spec")[:4], np.array([np.nan, 0.5, np.nan, np.nan], np.float32))
    assert now.column("z_kind")[1] == "spec" and now.column("z")[1] == 0.5
    np.testing.assert_array_equal(np.delete(now.column("z"), 1), np.delete(base.column("z"), 1))


def test_of_an_objects_rows_one_with_a_z_is_taken(tmp_path, capsys):
    path = blobs(tmp_path / "d")
    Table({"object_id": [1, 1, 2], "z": [-99.0, 0.5, np.inf]}).write(tmp_path / "z.csv")
    run(path, capsys, "--from", tmp_path / "z.csv", "--column", "z")
    np.testing.assert_array_equal(open_dataset(path, overlays=["new"]).column("z")[1:3], np.float32([0.5, np.nan]))


def test_folds_are_by_sky_cell_with_a_gap(survey, capsys):
    summary = run(survey, capsys, "--folds", 4, "--seed", 3)
    now = open_dataset(survey, overlays=["new"])
    fold, ra, dec = (now.column(name) for name in ("fold", "ra", "dec"))
    assert summary["folds"] == {str(k): int((fold == k).sum()) for k in range(-1, 4)}
    assert all((fold == k).sum() > 0.1 * COUNT for k in range(4))
    gap = np.hypot(4, 4) * 0.2
    x, y = (ra + 180) % 360 * np.cos(np.radians(dec)), dec
    apart = np.hypot(x[:, None] - x, y[:, None] - y) * 3600
    differ = (fold[:, None] != fold) & (fold[:, None] >= 0) & (fold >= 0)
    assert apart[differ].min() >= gap * 0.99
    again = run(survey, capsys, "--folds", 4, "--seed", 3, "--replace")
    assert again["folds"] == summary["folds"]
    assert set(now.select("fold != 2 and fold >= 0")) == set(np.flatnonzero((fold >= 0) & (fold != 2)))


def test_a_near_balanced_subset_has_at_most_so_many_in_a_cell(tmp_path, capsys):
    """Of labelled training objects alone; the others stay objects, with 0."""
    path = blobs(tmp_path / "d", samples=400, size=4)
    summary = run(path, capsys, "--near_balanced", 3, "--z_step", 0.2, "--mag_step", 0.5)
    now = open_dataset(path, overlays=["new"])
    chosen, labelled = now.column("near_balanced") == 1, np.zeros(400, bool)
    labelled[now.select("split == 'train' and z_kind == 'spec'")] = True
    assert not (chosen & ~labelled).any() and summary["chosen"] == chosen.sum() < summary["labelled"] == labelled.sum()
    cell = np.floor(now.column("z") / 0.2) * 1000 + np.floor(now.column("mag_ref") / 0.5)
    for value in np.unique(cell[labelled]):
        assert chosen[cell == value].sum() == min(3, labelled[cell == value].sum())
    assert set(now.select("near_balanced == 1")) == set(np.flatnonzero(chosen))


def test_a_near_balanced_subset_needs_cells_and_labels(survey):
    for rest, message in (
        (["0"], "near_balanced: 0 must be at least 1"),
        (["5", "--z_step", "0"], "z_step: 0.0 must lie in"),
        (["5"], "near_balanced: the dataset has no column 'split'"),
    ):
        with pytest.raises(InputError, match=message):
            relabel.main([str(survey), "--name", "new", "--near_balanced", *rest])


@pytest.mark.parametrize(
    "rest, message",
    [
        (["good.csv", "--column", "z_spec=zz"], "column: 'zz' is not in the table. Did you mean 'z'"),
        (["good.csv", "--column", "object_id=z"], "says who an object is"),
        (["good.csv", "--column", "true_z=z"], "says who an object is, or what a simulation knows"),
        (["good.csv", "--column", "z_spec=z", "z=z"], "'z' follows z_spec"),
        (["good.csv", "--column", "=z"], "column: '' is no name that a column can have"),
        (["good.csv", "--column", "a/b=z"], "column: 'a/b' is no name that a column can have"),
        (["good.csv", "--column", "image=z"], "column: 'image' is no name that a column can have"),
        (["good.csv", "--column", "image_offset=z"], "column: 'image_offset' is no name that a column can have"),
        (["good.csv", "--column", "flux_r=z", "flux_r=nine"], "name a column twice; name each once"),
        (["good.csv", "--column", "z=nine"], "'nine' of .* holds no redshift. z: 3 numbers are no redshifts"),
        (["good.csv", "--seed", "-1"], r"seed: -1 must lie in 0 .. 2\^63 - 1"),
        (["good.csv", "--column", "flux_r=z", "--on", "id2"], "on: 'id2' is not a column"),
        (["good.csv", "--column", "name=z"], "holds float64, the dataset string"),
        (["good.csv", "--column", "z_spec=text"], "holds <U1, the dataset float32"),
        (["good.csv", "--column", "z_quality=z"], "does not fit int32"),
        (["good.csv", "--column", "z_quality=nine"], "must be 0 to 4 in all rows"),
        (["good.csv", "--on", "text", "--column", "flux_r=z"], "on: 'text' holds <U1, object_id of the dataset int64"),
        (["good.csv", "--on", "nine", "--column", "flux_r=z"], "none of the 3 rows .* is of an object"),
        (["unit.ecsv", "--column", "flux_r=flux"], "is in km, the dataset in 'uJy'; convert it"),
        (["unit.ecsv", "--column", "flux_r=mag"], r"is in mag\(AB\), the dataset in 'uJy'; convert it"),
        (["unit.ecsv", "--column", "flux_r=odd"], "is in furlong, the dataset in 'uJy'; convert it"),
        (
            ["good.csv", "--match", "1", "--column", "flux_r=z"],
            "ra: in '.*good.csv' of .* none .* with --ra COLUMN",
        ),
        (["good.csv", "--match", "0"], "match: 0.0 must lie in"),
        (["good.csv", "--column", "z_spec=nine"], "'nine' of .* holds no redshift. z_spec: 3 numbers are no redshifts"),
        (["nothing.csv"], "from: .* cannot be read as a table"),
        (["odd"], r"from: .*odd' cannot be read as a table .*; give FITS[^\n]*$"),
        (["good.csv", "--overlay", "new"], "overlay: 'new' is the one to write"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(survey, tmp_path, rest, message):
    ids = open_dataset(survey).column("object_id")[:3]
    Table({"object_id": ids, "z": [0.1, 0.2, 0.3], "text": list("abc"), "nine": [-9] * 3}).write(tmp_path / "good.csv")
    units = Table({"object_id": ids, "flux": [1.0, 2.0, 3.0], "mag": [20.0] * 3, "odd": [1.0] * 3})
    units["flux"].unit, units["mag"].unit = u.km, u.ABmag
    units["odd"].unit = u.Unit("furlong", parse_strict="silent")
    units.write(tmp_path / "unit.ecsv")
    (tmp_path / "odd").write_text("no table")
    with pytest.raises(InputError, match=message):
        relabel.main([str(survey), "--name", "new", "--from", str(tmp_path / rest[0]), *rest[1:]])
    assert not list(survey.glob("overlays/*"))


def test_an_overlay_in_another_unit_is_refused(survey):
    ids = open_dataset(survey).column("object_id")[:1]
    (survey / "overlays").mkdir()
    field = pa.field("flux_r", pa.float32(), metadata={"unit": "nJy"})
    schema = pa.schema([pa.field("object_id", pa.int64()), field])
    pq.write_table(
        pa.table([pa.array(ids), pa.array([1.0], pa.float32())], schema=schema), survey / "overlays/a.parquet"
    )
    with pytest.raises(InputError, match="column 'flux_r' is in 'nJy', the dataset in 'uJy'; convert it"):
        open_dataset(survey, overlays=["a"])


@pytest.mark.parametrize("images", [Array("image", "f2", (1, 4, 4)), Array("image", "f2", (1, None, 4), max=4)])
def test_folds_of_a_tile_without_sky_positions_are_cells_of_pixels(tmp_path, capsys, images):
    """And without either there are none."""
    draw = np.random.default_rng(5)
    x, y = draw.uniform(0, 4000, (2, COUNT))
    names = {"object_id": Column("string"), "x": Column("float64"), "y": Column("float64")}
    manifest = Manifest({"image": images}, (), names)
    for folder, splits in (("tile", {"cell_px": 300}), ("nothing", {})):
        writer = DatasetWriter(tmp_path / folder, manifest, {})
        values = {"object_id": [f"o{i}" for i in range(COUNT)], "x": x, "y": y}
        writer.write_shard(0, [f"k{i}" for i in range(COUNT)], {"image": np.zeros((COUNT, 1, 4, 4), "f2")}, values)
        writer.finish(1, splits)
    run(tmp_path / "tile", capsys, "--folds", 3)
    fold = open_dataset(tmp_path / "tile", overlays=["new"]).column("fold")
    assert all((fold == k).sum() > COUNT / 5 for k in range(3))
    differ = (fold[:, None] != fold) & (fold[:, None] >= 0) & (fold >= 0)
    assert np.hypot(x[:, None] - x, y[:, None] - y)[differ].min() >= np.hypot(4, 4)
    cells = (x // 300).astype(int) * 100 + (y // 300).astype(int)
    assert all(len(set(fold[(cells == cell) & (fold >= 0)])) <= 1 for cell in np.unique(cells))
    with pytest.raises(InputError, match="folds: the dataset has neither ra and dec nor cells"):
        relabel.main([str(tmp_path / "nothing"), "--name", "new", "--folds", "3"])
