"""Conversion of a synthetic survey with a WCS: pixels, positions, fluxes, masks, labels, resuming."""

import dataclasses
import json
import math
import re
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import mad_std
from scipy.spatial import cKDTree

import jaxz
from data_tools import convert
from data_tools.detect import aperture_flux, aperture_noise, noise_area
from data_tools.survey import SECTIONS, BandSource, Survey, load_survey
from data_tools.tiles import MASK_BITS, cut, fits_inside, nearest_pixel
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.survey_files import (
    HEIGHT,
    PEAK,
    WIDTH,
    ZERO_POINTS,
    arguments,
    grid_positions,
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
    kept = (x >= SIZE // 2) & (x + SIZE // 2 <= WIDTH) & (y >= SIZE // 2) & (y + SIZE // 2 <= HEIGHT)
    kept[3] = False  # has no position
    ids = converted.column("object_id")
    assert ids.tolist() == (1000 + np.flatnonzero(kept)).tolist()
    images = tiles()
    scale = {b.name: 10 ** (0.4 * (b.zero_point_ab - ZERO_POINTS[b.name])) for b in converted.manifest.bands}
    for row, source in enumerate(ids - 1000):
        sample = converted.cutout(row)
        left, low = x[source] - SIZE // 2, y[source] - SIZE // 2
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
    flags = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    for source, row in rows.items():
        left, low = x[source] - SIZE // 2, y[source] - SIZE // 2
        flags[:, low : low + SIZE, left : left + SIZE] |= converted.cutout(row)["image_mask"]
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


def overlap(shape: tuple[int, int], x: float, y: float, radius: float, fine: int = 100) -> np.ndarray:
    """[H, W]: the share of each pixel in a circle, counted on fine x fine points a pixel."""
    across, up = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in shape[::-1])
    inside = np.hypot(across[None, :] - x, up[:, None] - y) < radius
    return inside.reshape(shape[0], fine, shape[1], fine).mean((1, 3))


def independent_noise(radius: float) -> float:
    """Sigma of an aperture's sum over independent pixels of sigma 1, in the mean over its place in the pixel."""
    places = np.random.default_rng(0).uniform(8, 9, (40, 2))
    return math.sqrt(np.mean([(overlap((18, 18), x, y, radius, 40) ** 2).sum() for x, y in places]))


def test_aperture_flux_equals_a_sum_over_subpixels():
    rng = np.random.default_rng(3)
    image, flags = rng.normal(size=(20, 24)).astype(np.float32), np.zeros((20, 24), np.uint8)
    centre, radius = np.array([[10.3, 8.8]]), 3.7
    weight = overlap(image.shape, *centre[0], radius)
    assert aperture_flux(image, flags, centre, radius)[0] == pytest.approx((weight * image).sum(), abs=2e-3)
    flags[9, 12] = 1
    assert np.isnan(aperture_flux(image, flags, centre, radius)[0])
    assert np.isnan(aperture_flux(image, flags, np.array([[1.0, 8.0]]), radius)[0])  # leaves the tile


def test_aperture_noise_sees_correlated_noise():
    rng = np.random.default_rng(4)
    white = rng.normal(size=(600, 600))
    flags = np.zeros(white.shape, np.uint8)
    independent = independent_noise(4.0)
    assert math.sqrt(noise_area(4.0)) == pytest.approx(independent, rel=0.02)
    assert aperture_noise(white, flags, 4.0) == pytest.approx(independent, rel=0.05)
    blocks = np.kron(rng.normal(size=(150, 150)), np.ones((4, 4)))  # 16 pixels share a value
    assert aperture_noise(blocks, flags, 4.0) > 2.5 * independent


def test_nearest_pixel_and_edges():
    assert nearest_pixel(np.array([0.49, 0.5, 1.0, 1.49, -0.5, -0.51])).tolist() == [0, 1, 1, 1, 0, -1]
    plane = np.arange(12 * 10).reshape(12, 10)
    assert (cut([plane], 4.4, 5.6, 4)[0] == plane[4:8, 2:6]).all()
    xs = np.array([1.49, 1.5, 8.49, 8.5])
    assert fits_inside(xs, np.full(4, 6.0), 4, plane.shape).tolist() == [False, True, True, False]


def test_detection_finds_the_lit_pixels(tmp_path, folder, capsys):
    """The sources are single pixels: a filter of 2 pixels makes them rounds of more than five."""
    convert.main(arguments(folder, tmp_path / "out", "--size", "16", catalog=False))
    summary = json.loads(capsys.readouterr().out)
    dataset = jaxz.open_dataset(tmp_path / "out")
    x, y = grid_positions()
    inside = fits_inside(x, y, 16, (HEIGHT, WIDTH))
    distance, _ = cKDTree(np.stack([dataset.column("x"), dataset.column("y")], 1)).query(np.stack([x, y], 1)[inside])
    assert (distance < 0.3).all()
    assert summary["samples"] == len(dataset) == inside.sum() + 1  # and the pixel past float16
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


def test_dry_run_writes_nothing(folder, converted, tmp_path, capsys):
    argv = arguments(folder, tmp_path / "out", "--size", str(SIZE), "--samples_per_shard", "40", "--dry_run")
    convert.main(argv)
    said = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert (said["samples"], said["shards"]) == (len(converted), len(converted.manifest.shards))
    assert said["bytes"] == pytest.approx(sum(s.bytes for s in converted.manifest.shards), rel=0.1)
    assert [b["zero_point_ab"] for b in said["bands"]] == [round(b.zero_point_ab, 4) for b in converted.manifest.bands]


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
    dataset, truth = jaxz.open_dataset(tmp_path / "out"), tiles()["g"]
    seen = 0
    for row, (x, y) in enumerate(zip(dataset.column("x"), dataset.column("y"), strict=True)):
        sample = dataset.cutout(row)
        place = np.s_[round(y) - 8 : round(y) + 8, round(x) - 8 : round(x) + 8]
        mask = sample["image_mask"][0]
        assert ((mask & MASK_BITS["bad"] > 0) == ((weight[place] == 0) | np.isinf(truth[place]))).all()
        assert ((mask & MASK_BITS["saturated"] > 0) == (np.isfinite(truth[place]) & (truth[place] >= 9000))).all()
        assert (sample["image"][0][mask & MASK_BITS["bad"] > 0] == 0).all()
        seen |= int(np.bitwise_or.reduce(mask, axis=None))
    assert seen == MASK_BITS["bad"] | MASK_BITS["saturated"]


@pytest.mark.parametrize("path", sorted((ROOT / "data_tools/surveys").glob("*.toml")), ids=lambda path: path.stem)
def test_survey_files_of_the_repository_load(path):
    survey = load_survey(path)
    assert survey.name == path.stem and survey.text == path.read_text()


def test_example_survey_shows_every_field():
    """A field that is added must be shown to users."""
    values = tomllib.loads((ROOT / "data_tools/surveys/example.toml").read_text())
    assert set(values) == {f.name for f in dataclasses.fields(Survey)} - {"text"}
    assert set(values["bands"][0]) == {f.name for f in dataclasses.fields(BandSource)}
    for section, kind in SECTIONS.items():
        left_out = {"x", "y", "pixel_origin"} if section == "catalog" else set()
        assert set(values[section]) == {f.name for f in dataclasses.fields(kind)} - left_out


def test_recipes_of_the_format_page_work(converted, tmp_path, monkeypatch):
    (tmp_path / "DATASET").symlink_to(converted.path)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/dataset_format.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    recipes = [block for block in blocks if block.startswith("import")]
    assert len(recipes) == 3
    for recipe in recipes:
        names = {}
        exec(recipe, names)
        if "row" in names:
            np.testing.assert_array_equal(names["image"], converted.cutout(7)["image"])
            assert names["row"]["key"] == converted.cutout(7)["key"]
        if "webdataset" in names:
            assert names["sample"]["meta.json"]["object_id"] == converted.column("object_id")[3 * 40 - 1]
