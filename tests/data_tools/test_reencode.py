"""A dataset stored anew holds what the old one held; interrupted or not."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import reencode, verify
from jaxz.data import writer as writer_module
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Array, Band, Column, Compact, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.helpers import blobs

ROOT = Path(__file__).parents[2]


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "data_tools.reencode", str(source), "--out", str(out), *more]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("reencode") / "raw", samples=1200, shards=12, fill=3e4)


@pytest.fixture(scope="module")
def compact(raw):
    out = raw.with_name("compact")
    assert reencode.main([str(raw), "--out", str(out), "--encoding", "compact"]) is None
    return out


def test_rows_scalars_splits_and_provenance_stay(raw, compact):
    before, after = open_dataset(raw), open_dataset(compact)
    columns = ["key", *before.manifest.columns]
    assert after.scan(columns=columns).digests == before.scan(columns=columns).digests
    assert after.manifest.splits == before.manifest.splits and after.manifest.bands == before.manifest.bands
    [entry] = after.manifest.provenance["reencoded"]
    assert entry["plan"] == before.manifest.provenance["plan"]
    assert entry["rows"] == before.fingerprint()["rows"] and entry["step_sigma"] == 0.125
    assert after.manifest.arrays["image"].dtype == "float16" and after.manifest.arrays["image"].encoding == "compact"
    assert verify.main([str(compact)]) is None
    for row in (0, 10, 599, 1199):
        a, b = (dataset.cutout(row)["image"].astype(float) for dataset in (before, after))
        assert np.abs(a - b).max() <= 0.0626 and np.array_equal(a[0] == 3e4, b[0] == 3e4)


def test_raw_again_is_the_decoded_image_in_the_original_dtype(compact, tmp_path):
    assert reencode.main([str(compact), "--out", str(tmp_path / "raw"), "--encoding", "raw"]) is None
    decoded, again = open_dataset(compact), open_dataset(tmp_path / "raw")
    assert again.manifest.arrays["image"] == Array("image", "float16", (3, 16, 16))
    assert len(again.manifest.provenance["reencoded"]) == 2
    for row in (0, 7, 1199):
        image = again.cutout(row)["image"]
        assert image.dtype == np.float16
        np.testing.assert_array_equal(image, decoded.cutout(row)["image"].astype(np.float16))


def test_interrupted_and_with_more_workers_it_is_the_same_dataset(raw, compact, tmp_path):
    path = tmp_path / "again"
    arguments = ("--encoding", "compact", "--workers", "2")
    first = subprocess.Popen(
        command(raw, path, *arguments),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list(path.glob("index/*.parquet")) and first.poll() is None:
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGINT)
    _, stderr = first.communicate(timeout=60)
    assert first.returncode == 75 and "Traceback" not in stderr, stderr
    assert 0 < len(list(path.glob("index/*.parquet"))) < 12 and not (path / "dataset.json").exists()
    assert reencode.main([str(raw), "--out", str(path), *arguments]) is None
    assert open_dataset(path).manifest == open_dataset(compact).manifest  # which holds every shard's sha256
    for index in compact.glob("index/*.parquet"):
        assert (path / "index" / index.name).read_bytes() == index.read_bytes()
    assert reencode.main([str(raw), "--out", str(path), *arguments]) is None  # nothing to do
    with pytest.raises(InputError, match=r"step_sigma: 0.25, but .* was begun with 0.125"):
        reencode.main([str(raw), "--out", str(path), *arguments, "--step-sigma", "0.25"])


def test_every_other_array_stays_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "features": Array("vector", "float32", (4,), encoding="index"),
        "frames": Array("frames", "float16", (None, 4), max=5),
        "image": Array("image", "float32", (1, 8, 8)),
        "image_mask": Array("mask", "uint8", (1, 8, 8), bits={"bad": 1}),
    }
    band = Band("r", 620.0, 100.0, 27.0, 0.2, 2.3, 2.0, 0.8)
    columns = {"z": Column("float32"), "name": Column("string")}
    writer = DatasetWriter(tmp_path / "old", Manifest(arrays, (band,), columns), plan={})
    values = {
        "features": rng.normal(size=(6, 4)).astype(np.float32),
        "frames": [rng.normal(size=(n, 4)).astype(np.float16) for n in range(6)],
        "image": rng.normal(0, 2, (6, 1, 8, 8)).astype(np.float32),
        "image_mask": rng.integers(0, 2, (6, 1, 8, 8), np.uint8),
    }
    names = ["a", None, "c", "", "é", "f"]
    writer.write_shard(0, [f"k{i}" for i in range(6)], values, {"z": np.array([1, np.nan, 3, 4, 5, 6]), "name": names})
    writer.finish(1, {"counts": {"train": 6}})
    assert reencode.main([str(tmp_path / "old"), "--out", str(tmp_path / "new"), "--encoding", "compact"]) is None
    new = open_dataset(tmp_path / "new")
    assert new.manifest.arrays["image"].compact.steps == (0.25,) and new.manifest.splits == {"counts": {"train": 6}}
    for row in range(6):
        sample = new.cutout(row)
        assert sample["name"] == names[row]
        for array in ("features", "frames", "image_mask"):
            np.testing.assert_array_equal(sample[array], values[array][row])
        assert np.abs(sample["image"] - values["image"][row]).max() <= 0.1251
    assert verify.main([str(tmp_path / "new")]) is None


BAND = Band("r", 620.0, 100.0, 27.0, 0.2, 2.3, 2.0, 0.8)


def write(path: Path, arrays: dict[str, Array], values: dict, count: int = 4) -> Path:
    writer = DatasetWriter(path, Manifest(arrays, (BAND,), {"n": Column("int64")}), plan={})
    writer.write_shard(0, [f"k{i}" for i in range(count)], values, {"n": np.arange(count)})
    writer.finish(1, {})
    return path


def test_only_images_of_another_encoding_are_stored_anew(tmp_path):
    """A compact image beside a raw one keeps its payloads, its steps and its seed; one in the index stays there."""
    draw = np.random.default_rng(0)
    kept = Array("image", "float16", (1, 8, 8), encoding="compact", compact=Compact(1, (0.7,), seed=5))
    thumb = Array("image", "float32", (1, 4, 4), encoding="index")
    arrays = {"deep": kept, "image": Array("image", "float16", (1, 8, 8)), "thumb": thumb}
    values = {name: draw.normal(0, 2, (4, *array.shape)).astype(array.dtype) for name, array in arrays.items()}
    values["deep"][0, 0, 3] = 6e4  # exceptions
    old = open_dataset(write(tmp_path / "old", arrays, values))
    assert reencode.main([str(old.path), "--out", str(tmp_path / "new"), "--encoding", "compact"]) is None
    new = open_dataset(tmp_path / "new")
    assert new.manifest.arrays == arrays | {"image": new.manifest.arrays["image"]}
    assert new.manifest.arrays["image"].compact == Compact(1, (0.25,), seed=0)
    for before, after in zip(old.places(0, "deep")[1:], new.places(0, "deep")[1:], strict=True):
        np.testing.assert_array_equal(before, after)  # sizes and checksums of the payloads
    for row in range(4):
        a, b = old.cutout(row), new.cutout(row)
        np.testing.assert_array_equal(a["deep"], b["deep"])
        np.testing.assert_array_equal(a["thumb"], b["thumb"])
        assert 0 < np.abs(a["image"].astype(float) - b["image"]).max() <= 0.1251
    assert verify.main([str(tmp_path / "new")]) is None
    with pytest.raises(InputError, match="encoding: the images are compact already"):
        reencode.main([str(new.path), "--out", str(tmp_path / "third"), "--encoding", "compact"])


def test_images_in_the_index_alone_are_refused(tmp_path):
    arrays = {"thumb": Array("image", "float32", (1, 4, 4), encoding="index")}
    old = write(tmp_path / "old", arrays, {"thumb": np.zeros((4, 1, 4, 4), np.float32)})
    with pytest.raises(InputError, match="encoding: there is no image of floats in the tars"):
        reencode.main([str(old), "--out", str(tmp_path / "new"), "--encoding", "compact"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_is_named(tmp_path, monkeypatch, value):
    values = np.zeros((4, 1, 8, 8), np.float16)
    values[2, 0, 3, 3] = value
    monkeypatch.setattr(writer_module.np, "isfinite", lambda image: np.ones(image.shape, bool))  # no writer here does
    old = write(tmp_path / "old", {"image": Array("image", "float16", (1, 8, 8))}, {"image": values})
    monkeypatch.undo()
    done = subprocess.run(
        command(old, tmp_path / "new", "--encoding", "compact"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "shards/00000.tar: k2.image holds NaN or inf; store a finite value" in done.stderr
    assert not (tmp_path / "new" / "dataset.json").exists()


def test_overlays_are_taken_along(tmp_path):
    arrays = {"image": Array("image", "float16", (1, 8, 8))}
    old = tmp_path / "old"
    manifest = Manifest(arrays, (BAND,), {"object_id": Column("int64")})
    writer = DatasetWriter(old, manifest, plan={})
    writer.write_shard(0, ["a", "b"], {"image": np.ones((2, 1, 8, 8), np.float16)}, {"object_id": [7, 9]})
    writer.finish(1, {})
    (old / "overlays").mkdir()
    pq.write_table(pa.table({"object_id": [9], "weight": [2.5]}), old / "overlays" / "mine.parquet")
    assert reencode.main([str(old), "--out", str(tmp_path / "new"), "--encoding", "compact"]) is None
    new = open_dataset(tmp_path / "new", overlays=["mine"])
    np.testing.assert_array_equal(new.column("weight"), [np.nan, 2.5])
    assert (tmp_path / "new/overlays/mine.parquet").read_bytes() == (old / "overlays/mine.parquet").read_bytes()


@pytest.mark.parametrize("url", ["http://host/d", "s3://bucket/d", "pipe:cat /d/{}"])
def test_urls_are_refused(raw, tmp_path, url):
    for arguments, field in (([url, "--out", str(tmp_path / "out")], "dataset"), ([str(raw), "--out", url], "out")):
        with pytest.raises(InputError, match=f"{field}: {re.escape(repr(url))} is remote; "):
            reencode.main([*arguments, "--encoding", "compact"])
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_is_not_carried_on(raw, tmp_path):
    source = shutil.copytree(raw, tmp_path / "damaged")
    offset = int(open_dataset(source).places(3, "image")[0][8])
    with open(source / "shards" / "00003.tar", "r+b") as file:
        file.seek(offset + 100)
        file.write(b"\x55\xaa")
    with pytest.raises(DataError, match=rf"00003.tar: image at offset {offset} fails its checksum"):
        reencode.main([str(source), "--out", str(tmp_path / "out"), "--encoding", "compact"])
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoding", "raw"), "encoding: the images are raw already"),
        (("--encoding", "compact", "--step-sigma", "2"), "step-sigma: 2.0 must lie in 0.001 .. 1"),
        (("--encoding", "compact", "--workers", "0"), "workers: 0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(raw, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        reencode.main([str(raw), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
