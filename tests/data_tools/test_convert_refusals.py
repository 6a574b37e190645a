"""Bad input to the converter ends with one sentence that names the field, and writes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import jaxz
from data_tools import convert, cutting
from jaxz.errors import InputError
from tests.data_tools.survey_files import (
    HEIGHT,
    WIDTH,
    arguments,
    grid_positions,
    header,
    write_survey,
)

ROOT = Path(__file__).parents[2]
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "field_7")


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
    "nan": (edit("zero_point_ab = 25.0", "zero_point_ab = nan"), r"bands\[0\].zero_point_ab: nan must be a finite"),
    "no magnitude": (edit("zero_point_ab = 25.0", "zero_point_ab = 1e9"), r"bands\[0\].zero_point_ab: .* must be"),
    "micrometres": (edit("wavelength_nm = 480", "wavelength_nm = 0.48"), r"bands\[0\].wavelength_nm: 0.48 must be"),
    "infinite": (edit("wavelength_nm = 480", "wavelength_nm = inf"), r"bands\[0\].wavelength_nm: inf must be a finite"),
    "too many digits": (edit("width_nm = 140", f"width_nm = 1{'0' * 400}"), r"bands\[0\].width_nm: inf must be a fin"),
    "wide aperture": (
        edit("aperture_diameter_arcsec = ", "aperture_diameter_arcsec = 1000"),
        "photometry.aperture_diameter_arcsec: 1000.* is .* pixels of .* arcsec; use at most",
    ),
    "seed": (edit("[splits]", f"[splits]\nseed = {2**63}"), r"splits.seed: \d* must lie in 0 .. 2\^63 - 1"),
    "parent folder": (
        edit("tile_{band}.fits", "../tile_{band}.fits"),
        r"bands\[0\].file: '../tile.* leaves the images",
    ),
    "any folder": (edit("tile_{band}.fits", "/etc/passwd"), r"bands\[0\].file: '/etc/passwd' leaves the images folder"),
    "weights elsewhere": (
        edit("hdu = 1\n", 'hdu = 1\nweight_file = "a/../../w.fits"\n'),
        r"bands\[2\].weight_file: .* leaves the images folder; give a path inside of it",
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
    "ecliptic": (
        rewrite("tile_g.fits", NOISE, header=header(axes=("ELON", "ELAT"))),
        "bands.g.file: .*tile_g.fits' has a sky frame that is not equatorial or Galactic .CTYPE ELON-TAN ELAT-TAN",
    ),
    "solar": (rewrite("tile_g.fits", NOISE, header=header(axes=("HPLN", "HPLT"))), "has a sky frame that is not equat"),
    "two frames": (
        rewrite("tile_r.fits", NOISE, header=header(axes=("GLON", "GLAT"))),
        "bands.r.file: .* off the pixel grid of",
    ),
    "cube": (rewrite("tile_g.fits", np.stack([NOISE] * 2)), r"bands.g.hdu: HDU 0 .* shape \(2, 300, 340\)"),
    "no image there": (
        edit("hdu = 1", "hdu = 0"),
        r"bands.z.hdu: HDU 0 of .* holds no image; use one of 1 \(COMPRESSED_IMAGE\)",
    ),
    "no such HDU": (edit("hdu = 1", "hdu = 7"), "bands.z.hdu: 7, but .* has HDUs 0 to 1"),
    "not FITS": (cut_file("tile_g.fits", 100), "bands.g.file: .*tile_g.fits' is not a readable FITS file"),
    "truncated": (cut_file("tile_r.fits", 100_000), "bands.r.file: .*tile_r.fits' is not a readable FITS file"),
    "truncated, compressed": (cut_file("z_band.fits", 60_000), "bands.z.file: .*z_band.fits' is not a readable FITS"),
    "blank": (rewrite("tile_g.fits", NOISE * np.nan, header=header()), "bands.g.file: no part of the tile has half"),
    "constant": (rewrite("tile_g.fits", NOISE * 0, header=header()), "bands.g.file: the sky has a sigma of 0"),
    "no catalogue": (remove("catalog.fits"), "catalog: .*catalog.fits' is not there"),
    "no ra": (catalogue(RA=None), "catalog.ra: 'RA' is not a column of .*catalog.fits'"),
    "text as ra": (catalogue(RA=["10h"]), "catalog.ra: 'RA' of .* holds text, not numbers"),
    "repeated ids": (catalogue(ID=[5, 6]), "catalog.object_id: holds 5 more than once"),
    "no angle": (catalogue(RA=[150.0 + 720]), "catalog: none of 182 objects lies in a tile"),
    "elsewhere": (catalogue(RA=[10.0]), "catalog: none of 182 objects lies in a tile"),
    "no positions": (
        lambda folder: (catalogue(RA=None)(folder), edit('ra = "RA"\n', "")(folder)),
        "catalog.ra: none is named, and no column of .*catalog.fits' has a name that is known to be one; name the col",
    ),
    "half a position": (
        edit('dec = "DEC"\n', 'x = "RA"\n'),
        "catalog: .*ra.* are named as position columns; name ra and dec",
    ),
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


@pytest.mark.parametrize("content", ["a file in the way", "another dataset"])
def test_where_nothing_can_be_written_is_said_before_anything_is_measured(content, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "read_band", None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "out").write_text(content)
    out = tmp_path / "taken" / "out" / "dataset" if content == "a file in the way" else tmp_path / "taken"
    with pytest.raises(InputError, match=r"out: '.*' (cannot be written|exists and is not a dataset)"):
        convert.main(arguments(folder, out, "--size", str(SIZE)))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["out"]


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
    with pytest.raises(
        InputError, match=r"catalog\.ra: needs a WCS, and .*tile_g.fits. has none; add it, or name x and y"
    ):
        convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    table, (x, y) = Table.read(images / "catalog.fits"), grid_positions()
    table["X_IMAGE"], table["Y_IMAGE"] = x + 1.0, y + 1.0
    table["X_IMAGE"][102:105] = 1e30, -1e30, np.inf  # which stand for nothing
    table.write(images / "catalog.fits", overwrite=True)
    edit('ra = "RA"\ndec = "DEC"\n', 'x = "X_IMAGE"\ny = "Y_IMAGE"\npixel_origin = 1\n')(images)
    convert.main(arguments(images, tmp_path / "out", "--size", str(SIZE)))
    dataset = jaxz.open_dataset(tmp_path / "out")
    assert "ra" not in dataset.manifest.columns
    assert np.isin(np.arange(1100, 1107), dataset.column("object_id")).tolist() == [True] * 2 + [False] * 3 + [True] * 2
    for row in range(0, len(dataset), 7):
        assert dataset.cutout(row)["image"][0].argmax() == SIZE // 2 * SIZE + SIZE // 2


def test_command_line_ends_with_2_and_one_sentence(folder, tmp_path):
    command = [sys.executable, "-m", "data_tools.convert", *arguments(folder, tmp_path / "out", "--size", "15")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.strip() == "error: size: 15 must be even and at least 2; the centre is pixel size / 2"
    ended = subprocess.run([*command[:-2], "--dry_runs"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr


def test_a_match_file_lies_beside_the_survey_file(tmp_path, monkeypatch, capsys):
    """Also where the survey file is named from another folder; numbers that are no redshifts are told."""
    images = write_survey(tmp_path / "field")
    table = Table.read(images / "catalog.fits")
    Table({"ra": table["RA"][:9], "dec": table["DEC"][:9], "z_spec": np.full(9, 0.5)}).write(images / "specz.csv")
    text = (images / "survey.toml").read_text()
    catalog = '\n[match.catalog]\nra = "ra"\ndec = "dec"\nz_spec = "z_spec"\n'
    (images / "survey.toml").write_text(f'{text}\n[match]\nfile = "specz.csv"\n{catalog}')
    monkeypatch.chdir(tmp_path)
    argv = ["--images", "field", "--out", "out", "--size", str(SIZE), "--workers", "1", "--survey", "field/survey.toml"]
    convert.main([*argv, "--dry_run", "--catalog", "field/catalog.fits"])
    told = capsys.readouterr()
    assert json.loads(told.out)["invalid"]["z_spec"] == np.count_nonzero(table["ZSPEC"] < -1)
    assert "numbers are no redshifts, -0.01 to 20, and count as missing; a velocity is to be divided" in told.err
    with pytest.raises(InputError, match=r"match: 'field/specz.csv' is matched to a catalogue's objects, and none is"):
        convert.main(argv)
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_was_stopped_says_so(tmp_path):
    (tmp_path / "writing.json").write_text("{}")
    with pytest.raises(InputError, match="is not complete; give the command that began it again"):
        jaxz.open_dataset(tmp_path)
