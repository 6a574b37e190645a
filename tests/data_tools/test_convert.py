"""Conversion of a synthetic survey with a WCS and of the real nine-band tile."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from astropy.io import fits
from astropy.stats import mad_std
from astropy.table import Table
from scipy.spatial import cKDTree

import jaxz
from data_tools import convert
from data_tools.detect import aperture_flux, aperture_noise, noise_area
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
    header,
    sky_of,
    tiles,
    write_survey,
)

ROOT = Path(__file__).parents[2]
TILE = ROOT / "../shared/data/profound_kids_viking_9band"
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


def edit(old: str, new: str):
    def change(folder: Path):
        text = (folder / "survey.toml").read_text()
        assert old in text
        (folder / "survey.toml").write_text(text.replace(old, new, 1))

    return change


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, image, **keywords):
    return lambda folder: fits.writeto(folder / name, image, overwrite=True, **keywords)


def cut_file(name: str, size: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def catalogue(**columns):
    """Replace columns; None removes one."""

    def change(folder: Path):
        table = Table.read(folder / "catalog.fits")
        for name, values in columns.items():
            table.remove_column(name)
            if values is not None:
                table[name] = np.resize(values, len(table))
        table.write(folder / "catalog.fits", overwrite=True)

    return change


NOISE = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
BAD_FILES = {
    "unknown key": (
        edit("pixel_scale_arcsec", "pixel_scale_arcsecs"),
        "pixel_scale_arcsecs is not a known.*Did you mean",
    ),
    "unknown band key": (edit("width_nm", "width"), r"bands\[0\].width is not a known field. Did you mean 'width_nm'"),
    "missing field": (edit("a_over_ebv = 3.2\n", ""), r"bands\[0\].a_over_ebv is missing"),
    "wrong type": (
        edit("zero_point_ab = 25.0", 'zero_point_ab = "25"'),
        r"bands\[0\].zero_point_ab: '25' must be a num",
    ),
    "not positive": (
        edit("wavelength_nm = 480", "wavelength_nm = -4"),
        r"bands\[0\].wavelength_nm: -4.0 must be great",
    ),
    "not TOML": (edit("[catalog]", "[catalog"), "survey: .* is not TOML"),
    "repeated band": (edit('name = "r"', 'name = "g"'), r"bands\[1\].name: 'g' stands twice"),
    "no such band": (edit('band = "r"', 'band = "R2"'), "detection.band: 'R2' is not a band"),
    "fractions": (edit("train = 0.6", "train = 0.7"), "splits.fractions: .* sum to 1.1; make them sum to 1"),
    "cells": (edit("cell_arcmin = 0.8", "cell_arcmin = 0.1"), "splits.cell_arcmin: 0.1 is too small .* at least 0.75"),
    "wrong scale": (
        edit("pixel_scale_arcsec = 0.5", "pixel_scale_arcsec = 0.6"),
        "pixel_scale_arcsec: 0.6, but .* 0.5",
    ),
    "no tile": (remove("tile_r.fits"), "bands.r.file: .*tile_r.fits' is not there"),
    "no weights": (
        edit("hdu = 1\n", 'hdu = 1\nweight_file = "w.fits"\n'),
        "bands.z.weight_file: .*w.fits' is not there",
    ),
    "other shape": (rewrite("tile_r.fits", NOISE[:-1], header=header()), r"bands.r.file: .* is \[299, 340\], but"),
    "other grid": (rewrite("tile_r.fits", NOISE, header=header(0.5)), "off the pixel grid of .* by 0.50 pixels"),
    "cube": (rewrite("tile_g.fits", np.stack([NOISE] * 2)), r"bands.g.hdu: HDU 0 .* shape \(2, 300, 340\)"),
    "no image there": (edit("hdu = 1", "hdu = 0"), "bands.z.hdu: HDU 0 of .* holds no image; use 1"),
    "no such HDU": (edit("hdu = 1", "hdu = 7"), "bands.z.hdu: 7, but .* has HDUs 0 to 1"),
    "not FITS": (cut_file("tile_g.fits", 100), "bands.g.file: .*tile_g.fits' is not a readable FITS file"),
    "truncated": (cut_file("tile_r.fits", 100_000), "bands.r.file: .*tile_r.fits' is not a readable FITS file"),
    "truncated, compressed": (cut_file("z_band.fits", 60_000), "bands.z.file: .*z_band.fits' is not a readable FITS"),
    "blank": (rewrite("tile_g.fits", NOISE * np.nan, header=header()), "bands.g.file: no part of the tile has half"),
    "constant": (rewrite("tile_g.fits", NOISE * 0, header=header()), "bands.g.file: the sky has a sigma of 0"),
    "no catalogue": (remove("catalog.fits"), "catalog: .* cannot be read as a table"),
    "no ra": (catalogue(RA=None), "catalog.ra: 'RA' is not a column of .*catalog.fits'"),
    "text as ra": (catalogue(RA=["10h"]), "catalog.ra: 'RA' holds .*, not numbers"),
    "repeated ids": (catalogue(ID=[5, 6]), "catalog.object_id: 'ID' holds 5 more than once"),
    "elsewhere": (catalogue(RA=[10.0]), "catalog: none of 182 objects has its cutout of 16 pixels in the tile"),
    "no positions": (
        edit('ra = "RA"\ndec = "DEC"\n', ""),
        "catalog: no position columns are named; name ra and dec, or",
    ),
    "half a position": (edit('dec = "DEC"\n', ""), "catalog: .*ra.* position columns are named; name ra and dec, or x"),
    "unmapped quality": (edit("z_quality_map", "#"), "catalog.z_quality: the flags .*'14'.* are not 0 to 4"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_input_is_one_sentence_and_writes_nothing(case, tmp_path, folder):
    change, message = BAD_FILES[case]
    images = tmp_path / "field"
    images.mkdir()
    for path in folder.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    change(images)
    with pytest.raises(InputError, match=message) as caught:
        convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


BAD_ARGUMENTS = {
    "odd size": (["--size", "15"], "size: 15 must be even"),
    "too large": (["--size", "302"], "size: 302 is larger than the tile"),
    "no workers": (["--workers", "0"], "workers: 0 must be at least 1"),
    "no samples": (["--samples_per_shard", "0"], "samples_per_shard: 0 must be at least 1"),
    "no folder": (["--images", "nowhere"], "images: 'nowhere' is not a directory"),
    "no survey": (["--survey", "nowhere.toml"], "survey: 'nowhere.toml' cannot be read"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case, folder, tmp_path):
    more, message = BAD_ARGUMENTS[case]
    with pytest.raises(InputError, match=message):
        convert.main(arguments(folder, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_sky_positions_need_a_wcs(folder, tmp_path):
    images = write_survey(tmp_path / "field")
    for name, hdu in (("tile_g.fits", 0), ("tile_r.fits", 0), ("z_band.fits", 1)):
        pixels = fits.getdata(images / name, hdu)
        fits.HDUList([fits.PrimaryHDU()] * hdu + [(fits.ImageHDU if hdu else fits.PrimaryHDU)(pixels)]).writeto(
            images / name, overwrite=True
        )
    with pytest.raises(InputError, match=r"catalog\.ra: 'RA' needs a WCS, and the tiles have none; name x and y"):
        convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    table, (x, y) = Table.read(images / "catalog.fits"), grid_positions()
    table["X_IMAGE"], table["Y_IMAGE"] = x + 1.0, y + 1.0
    table.write(images / "catalog.fits", overwrite=True)
    edit('ra = "RA"\ndec = "DEC"\n', 'x = "X_IMAGE"\ny = "Y_IMAGE"\npixel_origin = 1\n')(images)
    convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    dataset = jaxz.open_dataset(tmp_path / "out")
    assert "ra" not in dataset.manifest.columns
    for row in range(0, len(dataset), 7):
        assert dataset.cutout(row)["image"][0].argmax() == SIZE // 2 * SIZE + SIZE // 2


def test_command_line_ends_with_2_and_one_sentence(folder, tmp_path):
    command = [sys.executable, "-m", "data_tools.convert", *arguments(folder, tmp_path / "out", "--size", "15")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.strip() == "error: size: 15 must be even and at least 2; the centre is pixel size / 2"
    ended = subprocess.run([*command[:-2], "--dry_runs"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def kids(tmp_path_factory):
    if not TILE.is_dir():
        pytest.skip("needs ../shared/data/profound_kids_viking_9band")
    out = tmp_path_factory.mktemp("kids") / "dataset"
    survey = ROOT / "data_tools/surveys/kids_viking_tile.toml"
    convert.main(["--survey", str(survey), "--images", str(TILE), "--out", str(out), "--samples_per_shard", "600"])
    return jaxz.open_dataset(out)


@pytest.fixture(scope="module")
def kids_tiles(kids):
    """{band: (float32 [2600, 2600], factor)}: the files, and the factor that the manifest's zero point says."""
    files = {b.name: 0.0 if b.name in "ugri" else 30.0 for b in kids.manifest.bands}
    return {
        band.name: (fits.getdata(TILE / f"{band.name}.fits", 1), 10 ** (0.4 * (band.zero_point_ab - files[band.name])))
        for band in kids.manifest.bands
    }


def test_real_tile_every_cutout_is_the_tile(kids, kids_tiles):
    assert [band.name for band in kids.manifest.bands] == ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]
    assert len(kids) >= 1900
    planes = np.stack([pixels.astype(float) * factor for pixels, factor in kids_tiles.values()])
    x, y = kids.column("x"), kids.column("y")
    for row in range(len(kids)):
        sample = kids.cutout(row)
        left, low = math.floor(x[row] + 0.5) - 32, math.floor(y[row] + 0.5) - 32
        truth = planes[:, low : low + 64, left : left + 64]
        assert (sample["image_mask"] == 0).all()
        # half a unit in the last place of float16, and the float32 product before it
        assert (np.abs(sample["image"] - truth) <= np.maximum(np.abs(truth), 2**-14) * (2**-11 + 2**-22)).all()


def test_real_tile_has_unit_sky_noise_and_separated_splits(kids, kids_tiles):
    for name, (pixels, factor) in kids_tiles.items():
        assert mad_std(pixels) * factor == pytest.approx(1, abs=0.06), name
    positions, split = np.stack([kids.column("x"), kids.column("y")], 1), kids.column("split").astype(str)
    names = sorted(set(split) - {"gap"})
    assert names == ["test", "train", "val"]
    for a in names:
        for b in names:
            if a < b:
                nearest, _ = cKDTree(positions[split == a]).query(positions[split == b])
                assert nearest.min() >= 64 * math.sqrt(2)


def test_real_tile_reads_with_stock_webdataset(kids):
    urls = [str(kids.path / "shards" / f"{shard.name}.tar") for shard in kids.manifest.shards]
    number = 0
    for row, sample in enumerate(webdataset.WebDataset(urls, shardshuffle=False).decode()):
        number += 1
        if row % 25 == 0:
            ours = kids.cutout(row)
            assert sample["__key__"] == ours["key"]
            np.testing.assert_array_equal(sample["image.npy"], ours["image"])
            np.testing.assert_array_equal(sample["image_mask.npy"], ours["image_mask"])
            assert sample["meta.json"]["x"] == ours["x"] and sample["meta.json"]["split"] == ours["split"]
    assert number == len(kids)
