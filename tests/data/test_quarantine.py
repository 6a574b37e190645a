"""What quarantine.json names is out, everywhere alike, and nothing else is."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError


@pytest.fixture
def copy(blob_dataset, tmp_path):
    """96 samples in 3 shards."""
    return shutil.copytree(blob_dataset, tmp_path / "copy")


def quarantine(path, shards, **evidence):
    (path / "quarantine.json").write_text(json.dumps({"version": 1, "shards": shards, "evidence": evidence}))
    return open_dataset(path)


def rows_of(stream):
    return np.concatenate([batch["row"] for batch in stream])


def test_listed_rows_are_never_drawn_and_numbers_stay(copy, blob_dataset, caplog):
    whole, dataset = open_dataset(blob_dataset), quarantine(copy, {"00001": [0, 5], "00002": [31], "00000": []})
    assert dataset.quarantined.tolist() == [32, 37, 95]
    left = np.delete(np.arange(96), [32, 37, 95])
    np.testing.assert_array_equal(dataset.select(None), left)
    chosen = whole.select("z_kind == 'spec'")
    np.testing.assert_array_equal(dataset.select("z_kind == 'spec'"), np.setdiff1d(chosen, [32, 37, 95]))
    np.testing.assert_array_equal(dataset.column("z"), whole.column("z"))
    assert [text.endswith("quarantine.json leaves out 3 of 96 samples") for text in caplog.messages] == [True]
    drawn = rows_of(next(stream) for stream in [Stream(Source(dataset), 31, seed=1)] for _ in range(6))
    assert np.bincount(drawn, minlength=96)[left].tolist() == [2] * 93 and len(drawn) == 186


def test_processes_read_the_same_batches(copy):
    dataset = quarantine(copy, {"00001": [0, 5], "00002": "all"})
    whole = Stream(Source(dataset), 12, seed=1)
    parts = [Stream(Source(dataset), 12, seed=1, local=slice(6 * h, 6 * h + 6)) for h in range(2)]
    for _ in range(12):
        batch, halves = next(whole), [next(part) for part in parts]
        for name, values in batch.items():
            np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))


def test_a_shard_that_is_out_as_a_whole_is_not_opened(copy, blob_dataset):
    (copy / "shards/00001.tar").unlink()
    (copy / "index/00001.parquet").unlink()
    whole, dataset = open_dataset(blob_dataset), quarantine(copy, {"00001": "all"})
    out = np.arange(32, 64)
    for name, spec in whole.manifest.columns.items():
        then, now = whole.column(name), dataset.column(name)
        assert now.dtype == then.dtype, name
        np.testing.assert_array_equal(np.delete(now, out), np.delete(then, out))
        nothing = [None] if spec.dtype == "string" else [np.nan] if spec.dtype.startswith("f") else [0]
        np.testing.assert_array_equal(now[out], nothing * 32)
    assert dataset.arrow()["object_id"].slice(32, 32).null_count == dataset.arrow()["object_id"].null_count == 32
    batches = list(Stream(Source(dataset, columns=("z", "object_id")), 8, epochs=1, check="crc"))
    np.testing.assert_array_equal(np.sort(rows_of(batches)), np.setdiff1d(np.arange(96), out))
    for batch in batches:
        np.testing.assert_array_equal(batch["object_id"], batch["row"])
    with pytest.raises(DataError, match=r"00001.tar is quarantined as a whole"):
        dataset.cutout(40)
    for places in (dataset.places, dataset.exceptions):
        with pytest.raises(DataError, match=r"00001.tar is quarantined as a whole"):
            places(1, "image")


def test_arrays_of_the_index_keep_their_shape(tmp_path):
    arrays = {
        "times": Array("vector", "float32", (2,), encoding="index"),
        "bits": Array("vector", "int16", (1, 3), encoding="index"),
    }
    writer = DatasetWriter(tmp_path / "d", Manifest(arrays, (), {"n": Column("int64")}), plan={})
    for n in range(2):
        content = {"times": np.full((4, 2), n + 1, np.float32), "bits": np.full((4, 1, 3), n + 1, np.int16)}
        writer.write_shard(n, [f"s{n}{i}" for i in range(4)], content, {"n": np.arange(4)})
    writer.finish(2, {})
    (tmp_path / "d/index/00000.parquet").unlink()
    dataset = quarantine(tmp_path / "d", {"00000": "all"})
    np.testing.assert_array_equal(dataset.column("times"), np.repeat([[np.nan] * 2, [2] * 2], 4, axis=0))
    bits = dataset.column("bits")
    assert bits.dtype == np.int16
    np.testing.assert_array_equal(bits, np.repeat([[[0] * 3], [[2] * 3]], 4, axis=0))
    [batch] = Stream(Source(dataset), 4, epochs=1)
    assert (batch["times"] == 2).all() and sorted(batch["row"]) == [4, 5, 6, 7]


def test_what_is_left_of_a_cut_tar_streams(copy, blob_dataset):
    offsets, sizes, _ = open_dataset(blob_dataset).places(1, "image")
    size, tar = int(offsets[20] + sizes[20]), copy / "shards/00001.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    shards = {"00001": list(range(21, 32))}
    for seen in ({}, {"00001": {"tar_bytes": size + 1}}):
        with pytest.raises(DataError, match=f"00001.tar is cut at offset {size}"):
            list(Stream(Source(quarantine(copy, shards, **seen)), 8, epochs=1))
    dataset, whole = quarantine(copy, shards, **{"00001": {"tar_bytes": size}}), open_dataset(blob_dataset)
    batches = list(Stream(Source(dataset), 17, epochs=1, check="crc"))
    assert sorted(rows_of(batches)) == [*range(53), *range(64, 96)]
    for batch in batches:
        for row, image in zip(batch["row"], batch["image"], strict=True):
            np.testing.assert_array_equal(image, whole.cutout(int(row))["image"])


def test_a_run_goes_on_with_the_list_it_began_with_only(copy):
    streams = [Stream(Source(open_dataset(copy)), 8)]
    for shards in ({"00001": [3]}, {"00001": [4]}):
        streams.append(Stream(Source(quarantine(copy, shards)), 8))
    states = [stream.state() for stream in streams]
    for now, stream in enumerate(streams):
        for then, state in enumerate(states):
            if now == then:
                stream.restore(state)
                continue
            said = rf"rows of '.*', of which quarantine.json leaves out {min(now, 1)} \(then {min(then, 1)}\), are not"
            with pytest.raises(InputError, match=said):
                stream.restore(state)
    quarantine(copy, {"00001": []})
    Stream(Source(open_dataset(copy)), 8).restore(states[0])  # nothing is out


MALFORMED = {
    "no JSON": ("{", "is not JSON"),
    "no object": ("[]", "is not a JSON object"),
    "version": ('{"version": 2, "shards": {}}', "version: 2 is not 1"),
    "shards": ('{"version": 1, "shards": []}', "shards and evidence must be objects"),
    "evidence": ('{"version": 1, "shards": {}, "evidence": 3}', "shards and evidence must be objects"),
    "unknown shard": ('{"version": 1, "shards": {"../x": [0]}}', "'../x' is not a shard"),
    "text": ('{"version": 1, "shards": {"00001": "some"}}', "'some' must be 'all' or rising row numbers, 0..31"),
    "too large": ('{"version": 1, "shards": {"00001": [32]}}', r"\[32\] must be"),
    "negative": ('{"version": 1, "shards": {"00001": [-1]}}', r"\[-1\] must be"),
    "bool": ('{"version": 1, "shards": {"00001": [true]}}', r"\[True\] must be"),
    "twice": ('{"version": 1, "shards": {"00001": [3, 3]}}', r"\[3, 3\] must be"),
    "bytes": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": {"tar_bytes": "1"}}}', "tar_bytes '1'"),
    "sha256": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": {"tar_sha256": "1"}}}', "64 hexa"),
    "reasons": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": {"reasons": [1]}}}', "list of text"),
    "field": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": {"who": 1}}}', "unexpected .* 'who'"),
    "rows": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": {"rows": [1]}}}', "'rows'"),
    "entry": ('{"version": 1, "shards": {"00001": [3]}, "evidence": {"00001": 1}}', "must be an object"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_list_is_one_sentence(case, copy):
    content, said = MALFORMED[case]
    (copy / "quarantine.json").write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        open_dataset(copy)
    assert str(copy / "quarantine.json") in str(caught.value) and "\n" not in str(caught.value)


def test_missing_numbers_stay_missing_beside_a_shard_that_is_out(tmp_path):
    writer = DatasetWriter(tmp_path / "d", Manifest({"a": Array("v", "int8", (1,))}, (), {"n": Column("int64")}), {})
    for n in range(2):
        content = {"a": np.zeros((2, 1), np.int8)}
        writer.write_shard(n, [f"s{n}{i}" for i in range(2)], content, {"n": pa.array([7, None], pa.int64())})
    writer.finish(2, {})
    np.testing.assert_array_equal(quarantine(tmp_path / "d", {"00000": "all"}).column("n"), [np.nan, np.nan, 7, np.nan])
