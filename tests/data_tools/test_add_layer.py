"""Layers against joins by hand: bit for bit what the source holds, for the right object, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data_tools import add_layer, reencode, verify
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter, with_images
from jaxz.errors import InputError
from tests.helpers import blobs

DRAW = np.random.default_rng(3)
EMBEDDING = DRAW.normal(size=(96, 40)).astype(np.float32)


@pytest.fixture
def base(blob_dataset, tmp_path):
    """96 samples in 3 shards; object_id counts them."""
    return shutil.copytree(blob_dataset, tmp_path / "base")


def add(base, source, name="extra", *rest):
    return add_layer.main([str(base), "--name", name, "--from", str(source), *rest])


def infrared(path, ids, encoding="raw", shards=2):
    """Two bands at other positions of the same objects, with masks, a spectrum of variable length and an index array.
    The values say whose they are: ids + channel."""
    bands = tuple(Band(name, w, 100.0, 25.0, 0.2, 0.3, 0.5, 0.9) for name, w in (("J", 1250.0), ("K", 2150.0)))
    arrays = {
        "image": Array("image", "float16", (2, 6, 6)),
        "image_mask": Array("mask", "uint8", (2, 6, 6), bits={"bad": 1, "nodata": 4}),
        "spectrum": Array("spectrum", "float32", (None,), max=9),
        "thumb": Array("vector", "int16", (3,), "index"),
    }
    manifest = with_images(Manifest(arrays, bands, {"object_id": Column("int64")}), encoding)
    writer = DatasetWriter(path, manifest, {})
    for n, rows in enumerate(np.array_split(np.arange(len(ids)), shards)):
        mine = np.asarray(ids)[rows]
        image = (mine[:, None, None, None] + DRAW.normal(size=(len(mine), 2, 6, 6))).astype(np.float16)
        values = {
            "image": image,
            "image_mask": (mine[:, None, None, None] % 2 * np.ones((1, 2, 6, 6))).astype(np.uint8),
            "spectrum": [np.full(i % 10, i, np.float32) for i in mine],
            "thumb": np.stack([mine, mine + 1, mine + 2], 1).astype(np.int16),
        }
        writer.write_shard(n, [f"ir{i}" for i in mine], values, {"object_id": mine})
    writer.finish(shards, {})
    return path


IR = "ir=image,lines=spectrum,thumb"


@pytest.mark.parametrize("encoding", ["raw", "compact"])
def test_another_dataset_is_joined_bit_for_bit_and_the_base_stays(base, tmp_path, encoding, capsys):
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    ids = DRAW.permutation(np.arange(-7, 103))
    other = open_dataset(infrared(tmp_path / "ir", ids, encoding))
    assert add(base, other.path, "vista", "--arrays", IR) is None
    summary = json.loads(capsys.readouterr().out)
    assert (summary["samples"], summary["missing"], summary["on"]) == (96, 0, "object_id")
    assert summary["bands"] == ["J", "K"]
    joined = open_dataset(base, layers=["vista"])
    assert {path: path.read_bytes() for path in before} == before
    assert [band.name for band in joined.layers["vista"].manifest.bands] == ["J", "K"]
    place = {object_id: row for row, object_id in enumerate(other.column("object_id").tolist())}
    for row in range(96):
        mine, theirs = joined.cutout(row), other.cutout(place[row])
        for new, old in (("ir", "image"), ("ir_mask", "image_mask"), ("lines", "spectrum"), ("thumb", "thumb")):
            assert mine[new].dtype == theirs[old].dtype
            np.testing.assert_array_equal(mine[new], theirs[old])
        np.testing.assert_array_equal(mine["image"], open_dataset(base).cutout(row)["image"])
    assert verify.main([str(base)]) is None


def test_objects_that_the_source_lacks_are_refused_or_masked(base, tmp_path):
    have = np.setdiff1d(np.arange(96), [0, 40, 41, 95])
    other = infrared(tmp_path / "ir", DRAW.permutation(have), "compact")
    with pytest.raises(InputError, match="lacks 4 of 96 objects by object_id, first that of sample 'blob000000'"):
        add(base, other, "vista", "--arrays", IR)
    assert not (base / "layers").exists()
    assert add(base, other, "vista", "--arrays", IR, "--missing", "mask") is None
    joined = open_dataset(base, layers=["vista"])
    assert joined.arrays["ir_mask"].bits == {"bad": 1, "nodata": 4}
    assert joined.arrays["thumb_mask"].bits == {"absent": 1}
    for row in range(96):
        sample, there = joined.cutout(row), row in have
        assert sample["thumb_mask"].tolist() == [not there]
        assert (sample["ir_mask"] == (row % 2 if there else 4)).all()
        assert len(sample["lines"]) == (row % 10 if there else 0)
        if not there:
            assert not sample["ir"].any() and not sample["thumb"].any()
    assert verify.main([str(base)]) is None


def test_an_image_without_a_mask_gets_one_value_a_band(base, tmp_path):
    other = blobs(tmp_path / "other", samples=60)  # objects 0..59
    add(base, other, "deep", "--arrays", "deep=image", "--missing", "mask")
    joined = open_dataset(base, layers=["deep"])
    masks = np.stack([joined.cutout(row)["deep_mask"] for row in range(96)])
    assert masks.shape == (96, 3, 1, 1)
    lacking = np.repeat(np.arange(96) >= 60, 3).reshape(96, 3)
    lacking[:60:10, 0] = True  # band g of every tenth object is not observed, which only bands_observed says
    np.testing.assert_array_equal(masks[:, :, 0, 0], lacking)
    whole = open_dataset(blobs(tmp_path / "whole")).path
    add(base, whole, "whole", "--arrays", "w=image")
    sample = open_dataset(base, layers=["whole"]).cutout(10)
    assert sample["w_mask"].ravel().tolist() == [1, 0, 0] and sample["w_mask"].shape == (3, 1, 1)


def table_files(folder, ids):
    keys = np.array([f"blob{i:06d}" for i in ids])
    np.savez(folder / "by_id.npz", object_id=ids, embedding=EMBEDDING[ids], note=np.arange(len(ids)))
    np.savez(folder / "by_key.npz", key=keys.astype("S"), embedding=EMBEDDING[ids].astype(">f4"))
    np.save(folder / "alone.npy", EMBEDDING[ids])
    np.save(folder / "ids.npy", ids.astype(">i8"))
    flat = pa.array(EMBEDDING[ids].ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, 40)
    pq.write_table(pa.table({"object_id": ids, "embedding": lists, "z": ids * 1.0}), folder / "fixed.parquet")
    pq.write_table(pa.table({"key": keys, "embedding": list(EMBEDDING[ids])}), folder / "lists.parquet")


@pytest.mark.parametrize("file", ["by_id.npz", "by_key.npz", "alone.npy", "fixed.parquet", "lists.parquet"])
def test_embeddings_of_files_go_to_their_objects(base, tmp_path, file):
    table_files(tmp_path, DRAW.permutation(96))
    add(base, tmp_path / file, "embedding", *(["--ids", str(tmp_path / "ids.npy")] if file == "alone.npy" else []))
    joined = open_dataset(base, layers=["embedding"])
    batch = next(Stream(Source(joined, ("image", "embedding"), ("object_id",)), 96, check="crc"))
    np.testing.assert_array_equal(batch["embedding"], EMBEDDING[batch["object_id"]])
    assert batch["embedding"].dtype == np.float32
    assert verify.main([str(base)]) is None


def test_stock_webdataset_reads_a_layer(base, tmp_path):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz")
    urls = [str(base / f"layers/extra/shards/{n:05d}.tar") for n in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"blob{i:06d}" for i in range(96)]
    np.testing.assert_array_equal([sample["embedding.npy"] for sample in samples], EMBEDDING)


def test_an_interrupted_layer_goes_on_and_the_bytes_are_those_of_an_unbroken_one(base, tmp_path, monkeypatch):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz", "whole")
    write, calls = DatasetWriter.write_shard, []

    def broken(self, n, *rest):
        if n == 2:
            raise KeyboardInterrupt
        write(self, n, *rest)

    monkeypatch.setattr(DatasetWriter, "write_shard", broken)
    with pytest.raises(KeyboardInterrupt):
        add(base, tmp_path / "by_id.npz", "extra", "--workers", "1")
    with pytest.raises(InputError, match="has no dataset.json; write it with `python -m data_tools.add_layer`"):
        open_dataset(base, layers=["extra"])
    monkeypatch.setattr(DatasetWriter, "write_shard", lambda self, n, *rest: (calls.append(n), write(self, n, *rest)))
    assert add(base, tmp_path / "by_id.npz") is None
    assert calls == [2]
    for part in ("shards/00000.tar", "shards/00002.tar", "index/00001.parquet"):
        assert (base / "layers/extra" / part).read_bytes() == (base / "layers/whole" / part).read_bytes()
    assert add(base, tmp_path / "by_id.npz") is None and calls == [2]  # complete already


def test_a_layer_of_a_base_that_was_rewritten_is_refused(base, tmp_path):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz")
    again = tmp_path / "again"  # other pixels and other bytes, but the same keys in the same shards
    assert reencode.main([str(base), "--out", str(again), "--encoding", "compact", "--workers", "1"]) is None
    shutil.copytree(base / "layers", again / "layers")
    np.testing.assert_array_equal(open_dataset(again, layers=["extra"]).cutout(7)["embedding"], EMBEDDING[7])
    other = blobs(tmp_path / "other", samples=96, seed=5)  # the same keys once more
    shutil.copytree(base / "layers", other / "layers")
    assert "embedding" in open_dataset(other, layers=["extra"]).arrays
    for shards, samples in (([30, 60], 96), (3, 93)):
        wrong = blobs(tmp_path / f"wrong{samples}", samples=samples, shards=shards)
        shutil.copytree(base / "layers", wrong / "layers")
        with pytest.raises(InputError, match="was written for other rows"):
            open_dataset(wrong, layers=["extra"])
    turned = tmp_path / "turned"  # the same keys in another order
    manifest = dataclasses.replace(open_dataset(base).manifest, shards=(), columns={}, arrays={})
    writer = DatasetWriter(turned, manifest, {})
    for n in range(3):
        writer.write_shard(n, [f"blob{i:06d}" for i in range(32 * n + 31, 32 * n - 1, -1)], {}, {})
    writer.finish(3, {})
    shutil.copytree(base / "layers", turned / "layers")
    with pytest.raises(InputError, match="was written for other rows"):
        open_dataset(turned, layers=["extra"])


@pytest.mark.parametrize(
    "rest, message",
    [
        (["by_id.npz", "a/b"], "layers: 'a/b' must be a name"),
        (["by_id.npz", "extra", "--arrays", "embeding"], "arrays: 'embeding' is not in the source. Did you mean"),
        (["by_id.npz", "extra", "--arrays", "image=embedding"], "arrays: 'image' is in .* already; rename it"),
        (["by_id.npz", "extra", "--on", "key"], "on: key is not in both"),
        (["twice.npz", "extra"], "object_id stands more than once in the source"),
        (["text.npz", "extra"], "object_id is int64 in the dataset and string in the source"),
        (["strange.npz", "extra", "--missing", "mask"], "lacks 96 of 96 objects"),
        (["nan.npz", "extra"], r"blob0000\d\d.embedding holds NaN or inf"),
        (["pickled.npz", "extra"], "cannot be read as NumPy arrays"),
        (["damaged.npz", "extra"], "cannot be read as NumPy arrays of numbers .Error -3 while decompressing"),
        (["single.npz", "extra"], "it holds a memmap, not a NpzFile"),
        (["many.npy", "extra", "--ids", "ids.npy"], "it holds a NpzFile, not a ndarray"),
        (["alone.npy", "extra"], "ids: goes with a .npy file"),
        (["ragged.parquet", "extra"], "must hold lists of numbers of one length"),
        (["empty.parquet", "extra"], r"shape: \(0,\) must be"),
        (["complex.npz", "extra"], "has no arrays of plain numbers beside the ids"),
        (["nothing", "extra"], "has no readable dataset.json"),
        (["by_id.npz", "extra", "--workers", "0"], "workers: 0 must be at least 1"),
    ],
)
def test_what_cannot_be_a_layer_is_refused(base, tmp_path, rest, message):
    ids = np.arange(96)
    table_files(tmp_path, ids)
    np.savez(tmp_path / "twice.npz", object_id=ids // 2, embedding=EMBEDDING)
    np.savez(tmp_path / "text.npz", object_id=ids.astype(str), embedding=EMBEDDING)
    np.savez(tmp_path / "strange.npz", object_id=ids + 1000, embedding=EMBEDDING)
    np.savez(tmp_path / "nan.npz", object_id=ids, embedding=np.full((96, 2), np.nan))
    np.savez(tmp_path / "pickled.npz", object_id=ids, embedding=np.full((96, 2), {}))
    pq.write_table(pa.table({"object_id": [1, 2], "embedding": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(
        pa.table({"object_id": ids[:0], "embedding": pa.array([], pa.list_(pa.float32()))}), tmp_path / "empty.parquet"
    )
    np.savez(tmp_path / "complex.npz", object_id=ids, embedding=EMBEDDING + 0j)
    np.savez_compressed(tmp_path / "damaged.npz", object_id=ids)
    content = (tmp_path / "damaged.npz").read_bytes()
    (tmp_path / "damaged.npz").write_bytes(content[:70] + bytes(4 * [255]) + content[74:])
    shutil.copy(tmp_path / "alone.npy", tmp_path / "single.npz")
    shutil.copy(tmp_path / "by_id.npz", tmp_path / "many.npy")
    rest = [str(tmp_path / word) if word == "ids.npy" else word for word in rest]
    with pytest.raises(InputError, match=message):
        add(base, tmp_path / rest[0], *rest[1:])
    assert not list(base.glob("layers/*"))


def test_a_layer_that_was_begun_from_another_source_is_refused(base, tmp_path):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz")
    np.savez(tmp_path / "other.npz", object_id=np.arange(96), embedding=EMBEDDING + 1)
    with pytest.raises(InputError, match="its content is not that with which"):
        add(base, tmp_path / "other.npz")


def test_damage_of_a_layer_is_told_quarantined_and_streamed_around(base, tmp_path, capsys):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz")
    layer = open_dataset(base / "layers/extra")
    offset = int(layer.places(1, "embedding")[0][5])  # of row 37
    tar = base / "layers/extra/shards/00001.tar"
    content = bytearray(tar.read_bytes())
    content[offset] ^= 1
    tar.write_bytes(content)
    make = lambda **how: Stream(Source(open_dataset(base, layers=["extra"]), ("image", "embedding")), 96, **how)
    with pytest.raises(DataError, match="layers/extra/shards/00001.tar: embedding at offset"):
        next(make(check="crc"))
    capsys.readouterr()
    assert verify.main([str(base)]) == 1
    told = capsys.readouterr().out
    assert "layers/extra: shards/00001.tar: embedding: 1 of 32 samples do not have the checksum" in told
    assert verify.main([str(base), "--repair"]) is None
    assert (base / "layers/extra/quarantine.json").exists() and not (base / "quarantine.json").exists()
    joined = open_dataset(base, layers=["extra"])
    assert joined.quarantined.tolist() == [37]
    assert joined.select(None).tolist() == [row for row in range(96) if row != 37]
    assert 37 not in next(make(check="crc"))["row"][:95]
    assert len(open_dataset(base).quarantined) == 0


def test_verify_holds_the_rows_of_a_layer_against_the_base(base, tmp_path, capsys):
    table_files(tmp_path, np.arange(96))
    add(base, tmp_path / "by_id.npz")
    index = base / "layers/extra/index/00001.parquet"
    shutil.copy(base / "layers/extra/index/00000.parquet", index)
    assert verify.main([str(base)]) == 1
    shutil.rmtree(base / "layers")
    wrong = blobs(tmp_path / "wrong", shards=[30, 60])
    add(wrong, tmp_path / "by_id.npz")
    shutil.copytree(wrong / "layers", base / "layers")
    capsys.readouterr()
    assert verify.main([str(base)]) == 1
    assert "layers/extra: layers: " in (told := capsys.readouterr().out) and "was written for other rows" in told


def test_verify_tells_overlays_that_cannot_be_read(base, capsys):
    (base / "overlays").mkdir()
    pq.write_table(pa.table({"object_id": [1, 2], "weight": [0.5, 2.0]}), base / "overlays/good.parquet")
    assert verify.main([str(base)]) is None
    pq.write_table(pa.table({"object_id": [1, 1], "weight": [0.5, 2.0]}), base / "overlays/twice.parquet")
    capsys.readouterr()
    assert verify.main([str(base)]) == 1
    assert "overlays/twice.parquet: object_id must be there, and once for each object" in capsys.readouterr().out
