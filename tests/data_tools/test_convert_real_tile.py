"""Conversion of the real nine-band tile, against the tile's own pixels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import webdataset
from astropy.io import fits
from astropy.stats import mad_std
from scipy.spatial import cKDTree

import jaxz
from data_tools import convert
from data_tools.tiles import MASK_BITS
from jaxz import train

ROOT = Path(__file__).parents[2]
TILE = ROOT / "../shared/data/profound_kids_viking_9band"


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
    planes = np.stack(
        [np.pad(p.astype(float) * factor, 64, constant_values=np.nan) for p, factor in kids_tiles.values()]
    )
    x, y = kids.column("x"), kids.column("y")
    for row in range(len(kids)):
        sample = kids.cutout(row)
        left, low = math.floor(x[row] + 0.5) + 32, math.floor(y[row] + 0.5) + 32
        truth = planes[:, low : low + 64, left : left + 64]
        assert (sample["image_mask"] == np.where(np.isnan(truth), MASK_BITS["nodata"], 0)).all()
        truth = np.nan_to_num(truth)
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


@pytest.mark.long
def test_real_tile_pretrains(kids, tmp_path):
    """200 steps of masked autoencoding on the train split: the loss on hidden pixels falls."""
    config = ["--config=configs/pretrain_mae.py", f"--config.data.path={kids.path}", f"--workdir={tmp_path / 'run'}"]
    small = [
        "--config.model.width=64",
        "--config.model.depth=2",
        "--config.model.heads=2",
        "--config.train.batch_size=16",
    ]
    assert train.main([*config, *small, "--config.mae.decoder_width=48", "--config.train.log_every=1"]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 200 and np.isfinite(losses).all()
    assert np.median(losses[-20:]) < 0.6 * np.median(losses[:20])
