"""The whole road on real pixels, by the commands that a user gives: two parts of a nine-band tile, a catalogue of its
sources, shards raw and compact, a pretraining that is killed, probes, a fine-tuning, an exported model, a catalogue of
the other part, a report."""

import csv
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
from tests.helpers import OPTIMISED

ROOT = Path(__file__).parents[1]
TILE = ROOT / "../shared/data/profound_kids_viking_9band"
CUT = 1800  # columns of the tile: what lies left of it is the first part
SMALL = [f"--config.{field}" for field in ("model.width=32", "model.depth=1", "model.heads=2", "train.batch_size=64")]
SMALL += ["--config.train.log_every=1", "--config.checkpoint.every=5", "--config.model.patch=16"]

pytestmark = pytest.mark.long


def start(folder: Path, module: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | OPTIMISED | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(folder: Path, module: str, *arguments) -> str:
    process = start(folder, module, *arguments)
    out, err = (stream.decode() for stream in process.communicate())
    assert process.returncode == 0, f"{module} {arguments}\n{err[-3000:]}"
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both parts of the tile, and the survey's file: that of the repository, with a catalogue."""
    if not TILE.is_dir():
        pytest.skip("needs ../shared/data/profound_kids_viking_9band")
    path = tmp_path_factory.mktemp("journey")
    for part, columns in (("west", slice(None, CUT)), ("east", slice(CUT, None))):
        (path / part).mkdir()
        for file in sorted(TILE.glob("*.fits")):
            pixels = fits.ImageHDU(fits.getdata(file, 1)[:, columns])
            fits.HDUList([fits.PrimaryHDU(), pixels]).writeto(path / part / file.name)
    text = (ROOT / "data_tools/surveys/kids_viking_tile.toml").read_text()
    catalog = (
        '[catalog]\nobject_id = "ID"\nx = "X"\ny = "Y"\npixel_origin = 1\nz_spec = "Z"\nz_quality = "Q"\n\n[photometry]'
    )
    (path / "own.toml").write_text(text.replace("[photometry]", catalog))
    (path / "configs").symlink_to(ROOT / "configs")
    return path


def test_from_a_tile_to_a_catalogue_of_redshifts(folder):
    # ---- a catalogue: the sources of the first part, some with a number that stands for a redshift -------------------
    call(folder, "data_tools.convert", "--survey", "kids_viking_tile", "--images", "west", "--out", "found")
    found = jaxz.open_dataset(folder / "found")
    x, y, r, red = (found.column(name).astype(float) for name in ("x", "y", "flux_r", "flux_Z"))
    z = 0.1 + 0.3 * np.clip(
        np.nan_to_num(red / np.maximum(r, 1e-3)), 0, 5
    )  # the real ones are not known: a function of a colour
    known = np.arange(len(z)) % 2 == 0
    table = Table(
        {"ID": np.arange(len(z)), "X": x + 1, "Y": y + 1, "Z": np.where(known, z, -99.0), "Q": np.full(len(z), 4)}
    )
    table.write(folder / "sources.fits")

    # ---- shards, raw and compact -------------------------------------------------------------------------------------
    named = ["--survey", "own.toml", "--catalog", "sources.fits", "--images", "west", "--samples_per_shard", 400]
    call(folder, "data_tools.convert", *named, "--out", "raw")
    call(folder, "data_tools.convert", *named, "--out", "compact", "--encoding", "compact")
    for name in ("raw", "compact"):
        call(folder, "data_tools.verify", name)
    raw, compact = (jaxz.open_dataset(folder / name) for name in ("raw", "compact"))
    assert len(raw) == len(compact) == len(found) > 1000
    sigma = np.array([band.sky_sigma for band in raw.manifest.bands])[:, None, None]
    for row in range(0, len(raw), 97):
        one, other = raw.cutout(row), compact.cutout(row)
        assert one["key"] == other["key"]
        assert (np.abs(one["image"] - other["image"]) <= sigma / 16 * 1.01 + np.abs(one["image"]) * 2**-10).all()
    assert (raw.column("z_kind") == "spec").sum() == known.sum()
    call(folder, "data_tools.inspect", "compact", "--html", "look.html")
    assert (folder / "look.html").stat().st_size > 100_000

    # ---- a pretraining, killed and begun again, is the unbroken one --------------------------------------------------
    pretrain = ["--config=configs/pretrain_mae.py", "--config.data.path=compact", *SMALL, "--config.train.steps=30"]
    killed = start(folder, "jaxz.train", *pretrain, "--workdir=mae")
    while not (folder / "mae/checkpoints/5").exists():
        assert killed.poll() is None, killed.stderr.read().decode()[-2000:]
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "mae/checkpoints/30").exists()
    call(folder, "jaxz.train", *pretrain, "--workdir=mae")
    call(folder, "jaxz.train", *pretrain, "--workdir=unbroken")
    metrics = [(folder / name / "metrics.jsonl").read_bytes() for name in ("mae", "unbroken")]
    assert metrics[0] == metrics[1] and metrics[0].count(b"\n") == 30

    # ---- what it knows, and what it can be taught --------------------------------------------------------------------
    call(folder, "jaxz.probe", "--workdir=mae", "--dataset=compact")
    probed = json.loads((folder / "mae/probe.json").read_text())
    assert {"run", "random_init"} <= probed.keys()
    tune = ["--config=configs/redshift_finetune.py", "--config.data.path=compact", *SMALL, "--config.train.steps=40"]
    call(folder, "jaxz.train", *tune, "--config.init.path=mae", "--workdir=tuned")
    call(folder, "jaxz.train", *tune, "--workdir=direct")
    for name in ("mae", "tuned", "direct"):
        call(folder, "jaxz.evaluate", f"--workdir={name}", "--dataset=compact")

    # ---- an exported model, alone, on the part of the tile that nothing has seen -------------------------------------
    call(folder, "jaxz.export", "tuned", "--out", "model")
    shutil.move(folder / "tuned/checkpoints", folder / "gone")
    call(folder, "data_tools.convert", "--survey", "kids_viking_tile", "--images", "east", "--out", "other")
    call(folder, "jaxz.predict", "--model=model", "--dataset=other", "--out=predictions.fits")
    shutil.move(folder / "gone", folder / "tuned/checkpoints")
    catalog, other = Table.read(folder / "predictions.fits"), jaxz.open_dataset(folder / "other")
    assert len(catalog) == len(other) > 400
    assert {"z_best", "z_l68", "z_u68", "odds", "coverage_flag", "n_bands"} <= set(catalog.colnames)
    assert np.isfinite(catalog["z_best"]).all() and (catalog["z_l68"] <= catalog["z_u68"]).all()
    assert set(np.unique(catalog["coverage_flag"])) <= {0, 1}

    # ---- one page of all ---------------------------------------------------------------------------------------------
    call(folder, "jaxz.report", "tuned", "direct", "mae", "--out", "report.html")
    assert "tuned" in (folder / "report.html").read_text()
    with open(folder / "report.csv") as file:
        assert {row["arm"] for row in csv.DictReader(file)} == {"tuned", "direct"}
