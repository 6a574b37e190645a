"""Conversion of a synthetic survey with a WCS: pixels, positions, fluxes, masks, labels, resuming."""

import dataclasses
import json
import os
import re
import signal
import textwrap
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import mad_std
from astropy.table import Table
from scipy.spatial import cKDTree

import jaxz
from data_tools import convert, cutting, inputs
from data_tools.catalogs.spec import CatalogColumns, CatalogPhotometry, Match
from data_tools.places import is_inside
from data_tools.survey import BandSource, Detection, Photometry, Splits, Survey, load_survey
from data_tools.tiles import MASK_BITS
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError, run
from tests.data_tools.survey_files import (
    HEIGHT,
    PEAK,
    WIDTH,
    ZERO_POINTS,
    arguments,
    galactic_to_icrs,
    grid_positions,
    independent_noise,
    sky_of,
    tiles,
    write_survey,
)

ROOT = Path(__file__).parents[2]
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "field_7")


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "dataset"
    convert.main(arguments(folder, out, "--size", str(SIZE), "--samples_per_shard", "40"))
    return jaxz.open_dataset(out)


def test_catalogue_positions_land_on_the_central_pixel(converted):
    x, y = grid_positions()
    ids = converted.column("object_id")
    assert sorted(ids.tolist()) == [1000 + n for n in range(len(x)) if n != 3]  # which has no position
    assert ids.tolist() != sorted(ids.tolist())
    images = {band: np.pad(image, SIZE, constant_values=np.nan) for band, image in tiles().items()}
    scale = {b.name: 10 ** (0.4 * (b.zero_point_ab - ZERO_POINTS[b.name])) for b in converted.manifest.bands}
    for row, source in enumerate(ids - 1000):
        sample = converted.cutout(row)
        left, low = x[source] + SIZE // 2, y[source] + SIZE // 2  # of the padded image
        for c, band in enumerate("grz"):
            truth = images[band][low : low + SIZE, left : left + SIZE]
            good = np.isfinite(truth) & (truth * scale[band] <= 65504)
            assert ((sample["image_mask"][c] == 0) == good).all()
            np.testing.assert_allclose(sample["image"][c][good], (truth * scale[band])[good], rtol=2**-10, atol=1e-6)
            assert (sample["image"][c][~np.isfinite(truth)] == 0).all()
            if good[SIZE // 2, SIZE // 2]:
                brightest = np.where(good, sample["image"][c], 0)
                assert np.unravel_index(brightest.argmax(), (SIZE, SIZE)) == (SIZE // 2, SIZE // 2)
                assert brightest.max() == pytest.approx(PEAK, rel=0.02)


def test_exact_positions_and_sky_coordinates_are_kept(converted):
    ra, dec = sky_of(converted.column("x"), converted.column("y"))
    np.testing.assert_allclose(converted.column("ra"), ra, atol=1e-7)
    np.testing.assert_allclose(converted.column("dec"), dec, atol=1e-7)


def test_mask_bits_and_bands_observed(converted):
    rows = {source - 1000: row for row, source in enumerate(converted.column("object_id"))}
    x, y = grid_positions()
    observed = converted.column("bands_observed")
    for source, row in rows.items():
        left, low = x[source] - SIZE // 2, y[source] - SIZE // 2
        absent = low + SIZE <= 80 and left + SIZE <= 120
        assert observed[row] == (0b011 if absent else 0b111)
    flags = np.zeros((3, HEIGHT + 2 * SIZE, WIDTH + 2 * SIZE), np.uint8)
    for source, row in rows.items():
        left, low = x[source] + SIZE // 2, y[source] + SIZE // 2
        flags[:, low : low + SIZE, left : left + SIZE] |= converted.cutout(row)["image_mask"]
    flags = flags[:, SIZE : SIZE + HEIGHT, SIZE : SIZE + WIDTH]
    assert flags[0, 100, 100] == MASK_BITS["bad"] and (flags[0] > 0).sum() == 1
    assert flags[1, 155, 155] == MASK_BITS["saturated"] and (flags[1] > 0).sum() == 1
    assert set(np.unique(flags[2])) == {0, MASK_BITS["nodata"]}


def test_labels_follow_the_catalogue(converted):
    source = converted.column("object_id") - 1000
    spectroscopic = source % 3 == 0
    z = converted.column("z")
    np.testing.assert_allclose(z[spectroscopic], 0.1 + source[spectroscopic] / 200, rtol=1e-6)
    assert np.isnan(z[~spectroscopic]).all() and np.isnan(converted.column("z_spec")[~spectroscopic]).all()
    assert converted.column("z_kind").tolist() == np.where(spectroscopic, "spec", "none").tolist()
    assert converted.column("z_quality").tolist() == np.array([4, 3, 4, 0])[source % 4].tolist()
    assert converted.column("z_flag_orig").tolist() == np.array(["4", "3", "14", "1"])[source % 4].tolist()
    assert set(converted.column("field")) == {"field_7"} and set(converted.column("survey")) == {"synthetic"}


def test_fluxes_are_microjansky_with_the_empty_sky_as_error(converted):
    """A point source of PEAK sigma: its AB magnitude is zero point - 2.5 log10(counts), and 0 mag is 3631 Jy."""
    noise = independent_noise(3.0)  # pixels: 1.5 arcsec
    for band, sigma in {"g": 2.0, "r": 3.0}.items():
        truth = 3631e6 * 10 ** (-0.4 * ZERO_POINTS[band]) * sigma
        flux, error = converted.column(f"flux_{band}"), converted.column(f"fluxerr_{band}")
        known = np.isfinite(flux)
        assert known.mean() > 0.97
        pulls = (flux - truth * PEAK)[known] / (truth * noise)
        assert 0.8 < mad_std(pulls) < 1.2 and abs(np.median(pulls)) < 0.3
        assert np.median(error[known]) == pytest.approx(truth * noise, rel=0.08)
    magnitude = 23.9 - 2.5 * np.log10(PEAK * 3)
    assert np.nanmedian(converted.column("mag_ref")) == pytest.approx(magnitude, abs=1e-3)
    blank = converted.column("bands_observed") == 0b011
    assert blank.any() and np.isnan(converted.column("flux_z")[blank]).all()


def test_sentinels_lie_in_no_tile():
    sentinels = np.array([1e30, -1e30, 2.0**63, np.inf, -np.inf, np.nan])
    for x, y in ((sentinels, np.full(6, 6.0)), (np.full(6, 5.0), sentinels), (sentinels, sentinels)):
        assert not is_inside(x, y, 12, 10).any()
    assert is_inside(np.array([-0.5, -0.51, 9.49, 9.5]), np.zeros(4), 12, 10).tolist() == [True, False, True, False]


def test_detection_finds_the_lit_pixels(tmp_path, folder, capsys):
    """The sources are single pixels: a filter of 2 pixels makes them rounds of more than five."""
    convert.main(arguments(folder, tmp_path / "out", "--size", "16", catalog=False))
    summary = json.loads(capsys.readouterr().out)
    dataset = jaxz.open_dataset(tmp_path / "out")
    x, y = grid_positions()
    distance, _ = cKDTree(np.stack([dataset.column("x"), dataset.column("y")], 1)).query(np.stack([x, y], 1))
    assert (distance < 0.1).all()
    assert summary["samples"] == len(dataset) == len(x) + 1  # and the pixel past float16
    assert "ra" in dataset.manifest.columns and set(dataset.column("z_kind")) == {"none"}


def test_workers_and_interruption_do_not_change_a_byte(folder, converted, tmp_path, monkeypatch):
    out = tmp_path / "again"
    argv = arguments(folder, out, "--size", str(SIZE), "--samples_per_shard", "40", "--workers", "1")
    write_shard, calls = DatasetWriter.write_shard, []

    def interrupted(self, n, *args):
        calls.append(n)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_shard(self, n, *args)

    monkeypatch.setattr(DatasetWriter, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.main(argv)
    assert not (out / "dataset.json").exists() and not (out / "index/00002.parquet").exists()
    convert.main(argv)
    assert sorted(calls) == sorted([*range(len(converted.manifest.shards)), 2])  # what was done is not done again
    for shard in converted.manifest.shards:
        for name in (f"shards/{shard.name}.tar", f"index/{shard.name}.parquet"):
            assert (out / name).read_bytes() == (converted.path / name).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    convert.main(argv)  # complete: nothing is touched
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(InputError, match=r"size: 14, but .* was begun with 16"):
        convert.main([*argv, "--size", "14"])


def test_an_input_replaced_during_an_interruption_is_refused(tmp_path, monkeypatch, capsys):
    """Two bands whose files have one name in two folders; the batch system stops the conversion after two shards."""
    images, out = write_survey(tmp_path / "field"), tmp_path / "out"
    for band in "gr":
        (images / band).mkdir()
        (images / f"tile_{band}.fits").rename(images / band / "tile.fits")
    text = (images / "survey.toml").read_text().replace("tile_{band}.fits", "{band}/tile.fits")
    (images / "survey.toml").write_text(text)
    argv = arguments(images, out, "--size", str(SIZE), "--samples_per_shard", "40", "--workers", "1")
    write_shard, old = DatasetWriter.write_shard, signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not handled"))

    def stopped(self, n, *args):
        if n == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            raise RuntimeError("was not stopped")
        write_shard(self, n, *args)

    monkeypatch.setattr(DatasetWriter, "write_shard", stopped)
    try:
        with pytest.raises(SystemExit) as ended:
            run(convert.main, argv, resumes=True)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert ended.value.code == 75
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert {path.name for path in before} >= {"00000.tar", "00001.tar", "writing.json"}

    def refused(named: str):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "read_band", None)  # nothing is measured for it
            with pytest.raises(SystemExit) as ended:
                run(convert.main, argv, resumes=True)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and re.search(
            f"^error: {named}: (its content is not that with|.* was begun with) .*\n\\Z", said, re.M
        )

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "versions", lambda *names: dict.fromkeys(names, "0.1"))
        refused("version of astropy")
    images.rename(tmp_path / "other")
    argv = [argument.replace(str(images), str(tmp_path / "other")) for argument in argv]
    refused("field")
    (tmp_path / "other").rename(images)
    argv = [argument.replace(str(tmp_path / "other"), str(images)) for argument in argv]
    pixels, grid = fits.getdata(images / "g/tile.fits", header=True)
    fits.writeto(images / "g/tile.fits", pixels * 2, grid, overwrite=True)
    refused(r"input bands\.g\.file")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


@pytest.mark.parametrize("catalog", [True, False], ids=["catalogue", "detection"])
def test_a_tile_on_galactic_coordinates(tmp_path, catalog):
    """The catalogue's ra and dec, and those written, are ICRS whatever the frame of the tile."""
    images = write_survey(tmp_path / "field", galactic=True)
    convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE), catalog=catalog))
    dataset = jaxz.open_dataset(tmp_path / "out")
    assert len(dataset) > 120
    ra, dec = galactic_to_icrs(*sky_of(dataset.column("x"), dataset.column("y")))
    np.testing.assert_allclose(dataset.column("ra"), ra, atol=1e-6)
    np.testing.assert_allclose(dataset.column("dec"), dec, atol=1e-6)
    for row in range(0, len(dataset), 7):  # in r, where one more is lit
        assert dataset.cutout(row)["image"][1].argmax() == SIZE // 2 * SIZE + SIZE // 2


def test_numbers_that_stand_for_nothing_become_nan_and_are_counted(tmp_path, capsys):
    images = write_survey(tmp_path / "field")
    table = Table.read(images / "catalog.fits")
    n = np.arange(len(table))
    table["EBV"] = np.array([0.0, -99, 0.03, 20.0, 1e30, np.nan])[n % 6]
    table["ZERR"] = np.array([1e-4, -1.0, 0.0, 99, np.nan, -np.inf])[n % 6]
    table["ZSPEC"] = np.array([0.5, -99.0, 1e30, np.inf, np.nan, -0.005])[n % 6]
    table.write(images / "catalog.fits", overwrite=True)
    text = (images / "survey.toml").read_text().replace('z_spec = "ZSPEC"', 'z_spec = "ZSPEC"\nz_spec_err = "ZERR"')
    (images / "survey.toml").write_text(text)
    convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    summary, dataset = json.loads(capsys.readouterr().out), jaxz.open_dataset(tmp_path / "out")
    kind = (dataset.column("object_id") - 1000) % 6
    truth = {
        "ebv": np.array([0, np.nan, 0.03, np.nan, np.nan, np.nan]),
        "z_spec_err": np.array([1e-4, np.nan, np.nan, np.nan, np.nan, np.nan]),
        "z_spec": np.array([0.5, np.nan, np.nan, np.nan, np.nan, -0.005]),
    }
    for name, values in truth.items():
        np.testing.assert_array_equal(dataset.column(name), values[kind].astype(np.float32))
    bad = {"ebv": (1, 3, 4), "z_spec_err": (1, 2, 3, 5), "z_spec": (1, 2, 3)}
    assert summary["invalid"] == {name: int(np.isin(n % 6, kinds).sum()) for name, kinds in bad.items()}
    assert dataset.manifest.provenance["invalid"] == summary["invalid"]


def test_an_object_has_the_same_split_in_every_catalogue(folder, converted, tmp_path):
    table = Table.read(folder / "catalog.fits")
    table[np.arange(len(table)) % 5 < 2].write(tmp_path / "part.fits")
    argv = arguments(folder, tmp_path / "out", "--size", str(SIZE))
    convert.main([*argv, "--catalog", str(tmp_path / "part.fits")])
    part = jaxz.open_dataset(tmp_path / "out")
    order = np.argsort(converted.column("object_id"))
    rows = order[np.searchsorted(converted.column("object_id"), part.column("object_id"), sorter=order)]
    assert len(part) > 50 and len(set(part.column("split"))) == 3
    assert part.column("split").tolist() == converted.column("split")[rows].tolist()
    assert part.manifest.splits["rule"] == "hash"


def test_dry_run_writes_nothing(folder, converted, tmp_path, capsys):
    argv = arguments(folder, tmp_path / "out", "--size", str(SIZE), "--samples_per_shard", "40", "--dry_run")
    convert.main(argv)
    said = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert (said["samples"], said["shards"]) == (len(converted), len(converted.manifest.shards))
    assert said["bytes"] == pytest.approx(sum(s.bytes for s in converted.manifest.shards), rel=0.1)
    assert said["splits"] == converted.manifest.splits["counts"]
    labels = converted.column("z").astype(float)
    assert (said["labelled"], said["invalid"]) == (np.isfinite(labels).sum(), converted.manifest.provenance["invalid"])
    assert [b["zero_point_ab"] for b in said["bands"]] == [round(b.zero_point_ab, 4) for b in converted.manifest.bands]


def test_compact_images_are_the_same_to_half_a_step(folder, converted, tmp_path, capsys):
    argv = arguments(
        folder, tmp_path / "out", "--size", str(SIZE), "--samples_per_shard", "40", "--encoding", "compact"
    )
    convert.main([*argv, "--dry_run"])
    estimate = json.loads(capsys.readouterr().out)["bytes"]
    convert.main(argv)
    dataset = jaxz.open_dataset(tmp_path / "out")
    assert (
        dataset.fingerprint(converted.manifest.columns)["columns"]
        == (converted.fingerprint(converted.manifest.columns)["columns"])
    )
    assert estimate == pytest.approx(sum(s.bytes for s in dataset.manifest.shards), rel=0.2)
    for row in range(len(dataset)):
        a, b = (opened.cutout(row) for opened in (dataset, converted))
        np.testing.assert_array_equal(a["image_mask"], b["image_mask"])
        raw = b["image"].astype(float)
        assert (np.abs(a["image"] - raw) <= 0.0626 + np.abs(raw) * 2**-11).all()
        np.testing.assert_array_equal(a["image"][raw == 0], 0)
    with pytest.raises(InputError, match="encoding: nothing, but .* was begun with 'compact'"):
        convert.main(argv[:-2])


def test_weights_and_saturation_make_bits(folder, tmp_path):
    images = tmp_path / "weighted"
    write_survey(images)
    weight = np.ones((HEIGHT, WIDTH), np.float32)
    weight[40:60] = 0
    fits.writeto(images / "w_g.fits", weight)
    extra = 'file = "tile_{band}.fits"\nweight_file = "w_{band}.fits"\nsaturation = 9000.0\n'
    text = (images / "survey.toml").read_text().replace('file = "tile_{band}.fits"\n', extra, 1)
    (images / "survey.toml").write_text(text)
    convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    dataset, truth = jaxz.open_dataset(tmp_path / "out"), np.pad(tiles()["g"], 16, constant_values=np.nan)
    weight = np.pad(weight, 16, constant_values=1)
    seen = 0
    for row, (x, y) in enumerate(zip(dataset.column("x"), dataset.column("y"), strict=True)):
        sample = dataset.cutout(row)
        place = np.s_[round(y) + 8 : round(y) + 24, round(x) + 8 : round(x) + 24]  # of the padded image
        mask = sample["image_mask"][0]
        assert ((mask & MASK_BITS["bad"] > 0) == ((weight[place] == 0) | np.isinf(truth[place]))).all()
        assert ((mask & MASK_BITS["saturated"] > 0) == (np.isfinite(truth[place]) & (truth[place] >= 9000))).all()
        assert (sample["image"][0][mask & MASK_BITS["bad"] > 0] == 0).all()
        seen |= int(np.bitwise_or.reduce(mask, axis=None))
    assert seen == sum(MASK_BITS.values())  # nodata: past the edges


@pytest.mark.parametrize("path", sorted((ROOT / "data_tools/surveys").glob("*.toml")), ids=lambda path: path.stem)
def test_survey_files_of_the_repository_load(path):
    survey = load_survey(path)
    assert survey.name == path.stem and survey.text == path.read_text()


def test_example_survey_shows_every_field():
    """A field that is added must be shown to users."""
    values = tomllib.loads((ROOT / "data_tools/surveys/example.toml").read_text())
    assert set(values) == {f.name for f in dataclasses.fields(Survey)} - {"text"}
    assert set(values["bands"][0]) == {f.name for f in dataclasses.fields(BandSource)}
    catalog = {f.name for f in dataclasses.fields(CatalogColumns)} - {"x", "y", "pixel_origin"}
    magnitudes = {"ivar", "mag", "magerr", "extinction"}  # instead of fluxes and their errors
    sections = {
        "catalog": (values["catalog"], catalog),
        "catalog.photometry": (
            values["catalog"]["photometry"],
            {f.name for f in dataclasses.fields(CatalogPhotometry)} - magnitudes,
        ),
        "match": (values["match"], {f.name for f in dataclasses.fields(Match)}),
    }
    for name, kind in {"detection": Detection, "photometry": Photometry, "splits": Splits}.items():
        sections[name] = values[name], {f.name for f in dataclasses.fields(kind)}
    for name, (shown, fields) in sections.items():
        assert set(shown) == fields, name


def test_recipes_of_the_format_page_work(converted, tmp_path, monkeypatch):
    (tmp_path / "DATASET/overlays").mkdir(parents=True)
    for name in ("dataset.json", "index", "shards"):
        (tmp_path / "DATASET" / name).symlink_to(converted.path / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/dataset_format.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    recipes = [block for block in blocks if block.startswith("import") and "blosc2" not in block]  # test_compact's
    assert len(recipes) == 4
    for recipe in recipes:
        names = {}
        exec(recipe, names)
        if "row" in names:
            np.testing.assert_array_equal(names["image"], converted.cutout(7)["image"])
            assert names["row"]["key"] == converted.cutout(7)["key"]
        if "webdataset" in names:
            assert names["sample"]["meta.json"]["object_id"] == converted.column("object_id")[3 * 40 - 1]
