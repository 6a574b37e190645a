"""Conversion of several overlapping tiles: against the whole sky that they were cut from."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import jaxz
from data_tools import convert
from data_tools.tiles import MASK_BITS
from jaxz.errors import InputError
from tests.data_tools.survey_files import (
    SURVEY,
    WIDTH,
    ZERO_POINTS,
    arguments,
    grid_positions,
    header,
    tiles,
    write_survey,
)

ROOT = Path(__file__).parents[2]
SIZE = 16
PLACES = {"a": (0, 0), "b": (140, 0), "c": (0, 120), "d": (140, 120)}  # of the first pixel: x, y
TILE = (180, 200)  # height, width: 60 pixels of overlap
MORE = ["--size", str(SIZE), "--samples_per_shard", "40", "--tiles_per_block", "1"]


def write_tiles(folder: Path, without: set = frozenset({("b", "z")})) -> Path:
    """The survey of `write_survey` in four tiles, z in one of them not observed; g with its weights and mask."""
    write_survey(folder)
    for name in ("tile_g", "tile_r", "z_band"):
        (folder / f"{name}.fits").unlink()
    text = SURVEY.replace('file = "tile_{band}.fits"', 'file = "{tile}/{band}.fits"').replace("z_band", "{tile}/z")
    extra = 'hdu = "IMAGE"\nweight_hdu = 3\nmask_hdu = 2\nmask_bits = { bad = ["BAD", 5], saturated = ["SAT"] }\n'
    (folder / "survey.toml").write_text(text.replace("zero_point_ab = 25.0\n", "zero_point_ab = 25.0\n" + extra))
    images = tiles()
    for name, (x, y) in PLACES.items():
        (folder / name).mkdir()
        for band, image in images.items():
            grid = header(shift=-x)
            grid["CRPIX2"] -= y
            pixels = image[y : y + TILE[0], x : x + TILE[1]]
            if (name, band) in without:
                continue
            if band == "z":
                packed = fits.CompImageHDU(pixels, grid, compression_type="GZIP_2", quantize_level=0)
                fits.HDUList([fits.PrimaryHDU(), packed]).writeto(folder / name / "z.fits")
            elif band == "r":
                fits.writeto(folder / name / "r.fits", pixels, grid)
            else:
                planes = [fits.PrimaryHDU(), fits.ImageHDU(pixels, grid, name="IMAGE"), fits.ImageHDU(mask(x, y))]
                planes[2].header["MP_BAD"], planes[2].header["MP_SAT"], planes[2].header["MP_CLIPPED"] = 0, 1, 9
                planes.append(fits.ImageHDU(weight(x, y)))
                fits.HDUList(planes).writeto(folder / name / "g.fits")
    return folder


def mask(x: int, y: int) -> np.ndarray:
    """int32 planes: BAD every 50th pixel of the sky, SAT every 70th, CLIPPED everywhere, number 5 every 90th."""
    at = np.add.outer(np.arange(y, y + TILE[0]) * WIDTH, np.arange(x, x + TILE[1]))
    return ((at % 50 == 0) * 1 + (at % 70 == 0) * 2 + (at % 90 == 0) * 32 + 512).astype(np.int32)


def weight(x: int, y: int) -> np.ndarray:
    at = np.add.outer(np.arange(y, y + TILE[0]) * WIDTH, np.arange(x, x + TILE[1]))
    return np.where(at % 110 == 0, 0, np.where(at % 130 == 0, np.nan, 1.0)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiles(tmp_path_factory.mktemp("tiled") / "field")


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "dataset"
    convert.main(arguments(folder, out, *MORE))
    return jaxz.open_dataset(out)


def a_tile(x: float, y: float) -> str:
    """One that a position lies in: with the most pixels of the cutout in it, then the nearest centre, then the name."""
    left, low = int(x) - SIZE // 2, int(y) - SIZE // 2
    best = None
    for name, (x0, y0) in PLACES.items():
        if not (x0 <= x < x0 + TILE[1] and y0 <= y < y0 + TILE[0]):
            continue
        inside = sum(x0 <= i < x0 + TILE[1] for i in range(left, left + SIZE))
        inside *= sum(y0 <= j < y0 + TILE[0] for j in range(low, low + SIZE))
        away = np.hypot(x - x0 - (TILE[1] - 1) / 2, y - y0 - (TILE[0] - 1) / 2)
        if best is None or (-inside, away) < best[0]:
            best = (-inside, away), name
    return best[1]


def test_each_object_is_cut_once_from_its_tile(converted):
    """Which one that is, is tested in test_places.py."""
    x, y = grid_positions()
    ids = converted.column("object_id") - 1000
    assert sorted(ids.tolist()) == [n for n in range(len(x)) if n != 3]
    images = tiles()
    scale = {b.name: 10 ** (0.4 * (b.zero_point_ab - ZERO_POINTS[b.name])) for b in converted.manifest.bands}
    seen = {name: 0 for name in PLACES}
    for row, (source, field) in enumerate(zip(ids.tolist(), converted.column("field").tolist(), strict=True)):
        seen[place := field] += 1
        x0, y0 = PLACES[place]
        assert converted.column("x")[row] == pytest.approx(x[source] - x0, abs=0.41)
        sample = converted.cutout(row)
        for c, band in enumerate("grz"):
            pixels = images[band][y0 : y0 + TILE[0], x0 : x0 + TILE[1]].astype(float)
            flags = np.where(np.isnan(pixels), MASK_BITS["nodata"], 0)
            if band == "g":
                planes, weights = mask(x0, y0), weight(x0, y0)
                flags[(planes & 33 > 0) | ~(weights > 0) | np.isinf(pixels)] |= MASK_BITS["bad"]
                flags[planes & 2 > 0] |= MASK_BITS["saturated"]
            flags[np.isfinite(pixels) & (pixels * scale[band] > 65504)] |= MASK_BITS["saturated"]
            if (place, band) == ("b", "z"):
                flags[:] = MASK_BITS["nodata"]
            left, low = x[source] - x0 + SIZE // 2, y[source] - y0 + SIZE // 2
            cut = np.s_[low : low + SIZE, left : left + SIZE]
            truth = np.pad(flags, SIZE, constant_values=MASK_BITS["nodata"])[cut]
            np.testing.assert_array_equal(sample["image_mask"][c], truth)
            good = truth == 0
            values = np.pad(pixels * scale[band], SIZE)[cut]
            np.testing.assert_allclose(sample["image"][c][good], values[good], rtol=2**-10, atol=1e-6)
            assert (sample["image"][c][truth & 5 > 0] == 0).all()
            assert bool(converted.column("bands_observed")[row] >> c & 1) == bool(good.any())
    assert min(seen.values()) > 20
    assert np.isnan(converted.column("flux_z")[converted.column("field") == "b"]).all()


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def test_parts_merged_are_the_same_bytes(folder, converted, tmp_path, capsys):
    argv = arguments(folder, tmp_path / "out", *MORE)
    for part in ("3/4", "1/4", "2/4"):
        convert.main([*argv, "--part", part])
    with pytest.raises(InputError, match=r"merge: \d+ of \d+ shards are missing, the first is 000\d\d; run the parts"):
        convert.main([*argv, "--merge"])
    convert.main([*argv, "--part", "4/4"])
    convert.main([*argv, "--merge"])
    assert files(tmp_path / "out") == files(converted.path)
    with pytest.raises(InputError, match="part: '5/4' must be I/N"):
        convert.main([*argv, "--part", "5/4"])


@pytest.mark.long
def test_workers_killed_again_and_again_write_the_same_bytes(folder, converted, tmp_path):
    """kill -9 of the whole process group while it plans, and once there are more and more shards."""
    out = tmp_path / "out"
    argv = arguments(folder, out, *MORE, "--workers", "3")
    command = [sys.executable, "-m", "data_tools.convert", *argv]
    done = {}
    for shards in (-1, 1, 4):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        reached = lambda shards=shards: (
            len(list(out.glob("index/*.parquet"))) >= shards if shards > 0 else any(tmp_path.glob(".out.plan-*"))
        )
        while not reached():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert all(path.stat().st_mtime_ns == then for path, then in done.items())  # what was done is not done again
        done = {path: path.stat().st_mtime_ns for path in out.glob("index/*.parquet")}
    assert not (out / "dataset.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert files(out) == files(converted.path)
    assert list(tmp_path.iterdir()) == [out]


def test_a_blank_band_of_one_tile_is_not_observed_there(folder, converted, tmp_path, capsys):
    images = tmp_path / "field"
    shutil.copytree(folder, images)
    pixels, grid = fits.getdata(images / "c/r.fits", header=True)
    fits.writeto(images / "c/r.fits", pixels * np.nan, grid, overwrite=True)
    capsys.readouterr()
    convert.main(arguments(images, tmp_path / "out", *MORE))
    summary, dataset = json.loads(capsys.readouterr().out), jaxz.open_dataset(tmp_path / "out")
    assert {band["name"]: band["blank_tiles"] for band in summary["bands"]} == {"g": 0, "r": 1, "z": 0}
    blank = dataset.column("field") == "c"
    assert blank.any() and (dataset.column("bands_observed")[blank] & 2 == 0).all()
    assert (dataset.column("bands_observed")[~blank] & 2 > 0).all()
    for row in np.flatnonzero(blank)[:3]:
        assert (dataset.cutout(row)["image_mask"][1] == MASK_BITS["nodata"]).all()


def test_a_damaged_tile_ends_it_and_once_it_is_mended_the_conversion_goes_on(folder, converted, tmp_path):
    images = tmp_path / "field"
    shutil.copytree(folder, images)
    whole = (images / "d/r.fits").read_bytes()
    broken = bytearray(whole)
    broken[2880 + 1000 :] = b""
    (images / "d/r.fits").write_bytes(broken)
    with pytest.raises(InputError, match=r"bands\.r\.file: .*d/r.fits' is not a readable FITS file .* fetch it again"):
        convert.main(arguments(images, tmp_path / "out", *MORE))
    assert not (tmp_path / "out").exists()
    (images / "d/r.fits").write_bytes(whole)
    convert.main(arguments(images, tmp_path / "out", *MORE))
    assert files(tmp_path / "out").keys() == files(converted.path).keys()


def test_a_full_disk_leaves_what_can_be_completed(folder, converted, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor: int):
        calls.append(1)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    argv = arguments(folder, tmp_path / "out", *MORE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            convert.main(argv)
    assert not (tmp_path / "out/dataset.json").exists()
    convert.main(argv)
    assert files(tmp_path / "out") == files(converted.path)


def test_room_is_asked_for_before_anything_is_written(folder, tmp_path, monkeypatch):
    free = os.statvfs(tmp_path)
    for field, value, message in (
        ("f_bavail", 1, r"has 0\.00\d+ MB free, and \d+(\.\d+)? MB are"),
        ("f_favail", 3, "3 inodes free, and"),
    ):
        values = list(free)
        values[{"f_bavail": 4, "f_favail": 7}[field]] = value
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda path, values=values: os.statvfs_result(values))
            with pytest.raises(InputError, match=message):
                convert.main(arguments(folder, tmp_path / "out", *MORE))
        assert list(tmp_path.iterdir()) == []


def test_pixel_positions_name_their_tile(folder, tmp_path):
    """Tiles without a WCS, and a catalogue of pixels and tiles."""
    images = tmp_path / "field"
    shutil.copytree(folder, images)
    for path in images.glob("?/?.fits"):
        with fits.open(path) as hdus:
            for hdu in hdus:
                for key in [k for k in hdu.header if k[:5] in ("CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT")]:
                    del hdu.header[key]
            hdus.writeto(path, overwrite=True)
    x, y = grid_positions()
    names = np.array([a_tile(a, b) for a, b in zip(x, y, strict=True)])
    first = np.array([PLACES[name] for name in names])
    table = Table({"ID": 1000 + np.arange(len(x)), "X": x - first[:, 0] + 1.0, "Y": y - first[:, 1] + 1.0})
    table["TILE"] = np.where(np.arange(len(x)) == 7, "elsewhere", names)
    table.write(images / "catalog.fits", overwrite=True)
    text = (images / "survey.toml").read_text()
    start, end = text.index("[catalog]"), text.index("[detection]")
    columns = '[catalog]\nobject_id = "ID"\nx = "X"\ny = "Y"\npixel_origin = 1\ntile = "TILE"\n\n'
    (images / "survey.toml").write_text(text[:start] + columns + text[end:])
    convert.main(arguments(images, tmp_path / "out", *MORE))
    dataset = jaxz.open_dataset(tmp_path / "out")
    assert len(dataset) == len(x) - 1 and "ra" not in dataset.manifest.columns
    for row in range(0, len(dataset), 9):
        peak = dataset.cutout(row)["image"][1].argmax()
        assert peak == SIZE // 2 * SIZE + SIZE // 2 or dataset.cutout(row)["image_mask"][1].any()
    split, source = dataset.column("split"), dataset.column("object_id") - 1000
    assert set(split) == {"train", "test", "gap"}
    for a in np.flatnonzero(split == "train"):  # neighbours in a tile are not of two splits
        near = (names[source] == names[source[a]]) & (np.hypot(x[source] - x[source[a]], y[source] - y[source[a]]) < 22)
        assert "test" not in set(split[near])


@pytest.mark.parametrize("resample", ["native", "reproject"])
def test_a_band_that_a_whole_shard_lacks_and_the_same_bytes_by_more_workers(folder, tmp_path, resample):
    images = tmp_path / "field"
    shutil.copytree(folder, images)
    text = (images / "survey.toml").read_text().replace("[[bands]]", f'resample = "{resample}"\n\n[[bands]]', 1)
    (images / "survey.toml").write_text(text.replace('name = "r"', 'name = "r"\npsf_fwhm_header = "SEEING"', 1))
    for path in images.glob("?/r.fits"):
        fits.setval(path, "SEEING", value=0.9)
        for key, value in (("CRVAL1", 150.00000131234567), ("CRVAL2", 40.00000031234567)):
            fits.setval(path, key, value=value)
    (images / "c" / "r.fits").unlink()
    argv = arguments(images, tmp_path / "one", *MORE)
    convert.main(argv)
    convert.main([*arguments(images, tmp_path / "two", *MORE), "--workers", "2"])
    assert files(tmp_path / "one") == files(tmp_path / "two")
    dataset = jaxz.open_dataset(tmp_path / "one")
    lacking = dataset.column("field") == "c"
    names = ["psf_fwhm_r", *(["x_r", "y_r"] if resample == "native" else [])]
    for name in names:
        assert (np.isfinite(dataset.column(name)) == ~lacking).all()
    assert (dataset.column("bands_observed")[lacking] & 2 == 0).all() and lacking.any()
