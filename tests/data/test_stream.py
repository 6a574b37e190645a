"""The stream against brute force: every sample once, exact to resume, elastic, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data.batches import assert_same, take
from tests.helpers import blobs


@pytest.fixture
def dataset(blob_dataset):
    return open_dataset(blob_dataset)


@pytest.mark.parametrize("window", [0, 1, 2])
def test_batches_hold_what_the_shards_hold(dataset, window):
    stream = Stream(Source(dataset, columns=("z",), window=window), 10, seed=2)
    for batch in take(stream, 12):  # past the end of the first epoch of 96
        for slot, row in enumerate(batch["row"]):
            sample = dataset.cutout(int(row))
            np.testing.assert_array_equal(batch["image"][slot], sample["image"])
            np.testing.assert_equal(batch["z"][slot], np.float32(np.nan if sample["z"] is None else sample["z"]))


def test_no_sample_is_lost_or_repeated_over_epochs(dataset):
    stream = Stream(Source(dataset), 10, seed=2)
    rows = np.concatenate([b["row"] for b in take(stream, 48)])  # 480 = 5 epochs of 96
    assert np.bincount(rows, minlength=96).tolist() == [5] * 96
    epochs, positions = np.divmod(np.arange(480), 96)
    np.testing.assert_array_equal(np.concatenate([b["epoch"] for b in take_again(dataset, 48)]), epochs)
    np.testing.assert_array_equal(np.concatenate([b["position"] for b in take_again(dataset, 48)]), positions)


def take_again(dataset, count):
    return take(Stream(Source(dataset), 10, seed=2), count)


@pytest.mark.parametrize("done", [0, 1, 9, 10, 23])
def test_resume_is_exact(dataset, done):
    straight = Stream(Source(dataset, columns=("z",)), 10, seed=4)
    before = take(straight, done)
    state = json.loads(json.dumps(straight.state()))
    resumed = Stream(Source(dataset, columns=("z",)), 10, seed=4)
    resumed.restore(state)
    for a, b in zip(take(straight, 5), take(resumed, 5), strict=True):
        assert_same(a, b)
    assert len(before) == done


def test_four_processes_read_the_batches_of_one(dataset):
    whole = take(Stream(Source(dataset, columns=("z",), window=1), 12, seed=1), 10)
    parts = [
        take(Stream(Source(dataset, columns=("z",), window=1), 12, seed=1, local=slice(3 * h, 3 * h + 3)), 10)
        for h in range(4)
    ]
    for step, batch in enumerate(whole):
        assert_same(batch, {name: np.concatenate([p[step][name] for p in parts]) for name in batch})


def test_a_process_count_may_change_at_a_resume(dataset):
    straight = take(Stream(Source(dataset), 12, seed=1), 10)
    first = Stream(Source(dataset), 12, seed=1, local=slice(0, 6))
    take(first, 4)
    resumed = Stream(Source(dataset), 12, seed=1)
    resumed.restore(first.state())
    assert_same(take(resumed, 1)[0], straight[4])


def test_evaluation_counts_every_row_once(dataset):
    stream = Stream(Source(dataset, where="z_kind == 'spec'"), 10, shuffle=False, epochs=1)
    batches = list(stream)
    assert len(batches) == stream.batches == 5
    rows = np.concatenate([b["row"][b["valid"]] for b in batches])
    np.testing.assert_array_equal(rows, dataset.select("z_kind == 'spec'"))
    assert all(len(b["row"]) == 10 for b in batches)


def test_kept_batches_are_not_overwritten(dataset):
    stream = Stream(Source(dataset), 8, seed=0)
    kept = [next(stream) for _ in range(30)]  # far more than are read ahead
    fresh = Stream(Source(dataset), 8, seed=0)
    for a, b in zip(kept, take(fresh, 30), strict=True):
        assert_same(a, b)


def test_buffers_are_page_aligned_and_used_again(dataset):
    stream = Stream(Source(dataset), 8, seed=0)
    places = set()
    for _ in range(200):
        place = next(stream)["image"].ctypes.data
        assert place % 4096 == 0
        places.add(place)
    assert len(places) < 20


def test_refuses_changed_rows_columns_and_settings(dataset, tmp_path):
    source = Source(dataset, columns=("z",), where="z > 0.2")
    state = Stream(source, 8, seed=0).state()
    with pytest.raises(InputError, match="rows"):
        Stream(Source(open_dataset(blobs(tmp_path / "a", seed=9)), columns=("z",), where="z > 0.2"), 8).restore(state)
    with pytest.raises(InputError, match="where"):
        Stream(Source(dataset, columns=("z",), where="z > 0.1"), 8).restore(state)
    with pytest.raises(InputError, match="seed"):
        Stream(source, 8, seed=1).restore(state)
    relabelled = tmp_path / "b"
    shutil.copytree(dataset.path, relabelled)
    path = relabelled / "index" / "00000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("z")
    pq.write_table(table.set_column(place, "z", pa.array(np.full(table.num_rows, 0.5, np.float32))), path)
    with pytest.raises(InputError, match="z: its values changed"):
        Stream(Source(open_dataset(relabelled), columns=("z",), where="z > 0.2"), 8).restore(state)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (dict(arrays=("imag",)), "Did you mean 'image'"),
        (dict(columns=("zz",)), "column 'zz'"),
        (dict(columns=("split",)), "holds text"),
        (dict(where="z > 99"), "selects none"),
    ],
)
def test_bad_sources_are_refused(dataset, source, message):
    with pytest.raises(InputError, match=message):
        Stream(Source(dataset, **source), 8)


def test_a_filter_that_selects_nothing_is_told_the_splits(tmp_path):
    own = open_dataset(blobs(tmp_path / "d"))
    own.manifest.splits["counts"] = {"train": 80, "test": 16}
    with pytest.raises(InputError, match=r"selects none of the 96 rows .* \(splits: train 80, test 16\)"):
        Stream(Source(own, where="split == 'trian'"), 8)


def test_stock_webdataset_reads_the_shards(dataset):
    urls = [str(dataset.path / "shards" / f"{shard.name}.tar") for shard in dataset.manifest.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == len(dataset) == 96
    for row, sample in enumerate(samples):
        ours = dataset.cutout(row)
        assert sample["__key__"] == ours["key"]
        np.testing.assert_array_equal(sample["image.npy"], ours["image"])
        assert sample["meta.json"]["object_id"] == ours["object_id"] == row


@pytest.fixture(scope="module")
def mixed_dataset(tmp_path_factory):
    """Table rows in the index, and time series of variable length in the tar."""
    path, rng = tmp_path_factory.mktemp("mixed") / "d", np.random.default_rng(0)
    arrays = {
        "features": Array("vector", "float32", (4,), encoding="index"),
        "frames": Array("frames", "float16", (None, 4, 6), max=5),
        "frames_band": Array("vector", "uint8", (None,), max=5),
    }
    writer = DatasetWriter(path, Manifest(arrays, (), {"target": Column("float32")}), plan={})
    weights = np.array([1.0, -2.0, 0.5, 3.0])
    for n in range(2):
        rows = rng.normal(size=(40, 4)).astype(np.float32)
        lengths = rng.integers(0, 6, 40)
        frames = [rng.normal(size=(t, 4, 6)).astype(np.float16) for t in lengths]
        bands = [np.arange(t, dtype=np.uint8) for t in lengths]
        keys = [f"s{n}_{i}" for i in range(40)]
        writer.write_shard(
            n, keys, {"features": rows, "frames": frames, "frames_band": bands}, {"target": rows @ weights}
        )
    writer.finish(2, {})
    return open_dataset(path)


def test_variable_arrays_are_padded_and_masked(mixed_dataset):
    for batch in take(Stream(Source(mixed_dataset), 7, seed=0), 14):
        assert batch["frames"].shape == (7, 5, 4, 6) and batch["frames_mask"].shape == (7, 5)
        for slot, row in enumerate(batch["row"]):
            frames = mixed_dataset.cutout(int(row))["frames"]
            assert batch["frames_mask"][slot].tolist() == [t < len(frames) for t in range(5)]
            np.testing.assert_array_equal(batch["frames"][slot, : len(frames)], frames)
            assert not batch["frames"][slot, len(frames) :].any()
            np.testing.assert_array_equal(batch["frames_band"][slot, : len(frames)], np.arange(len(frames)))


def test_a_regression_learns_from_table_rows(mixed_dataset):
    stream = Stream(Source(mixed_dataset, arrays=("features",), columns=("target",)), 16, seed=0)
    step = jax.jit(lambda w, x, y: w - 0.1 * jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(w))
    weights = jnp.zeros(4)
    for _ in range(150):
        batch = next(stream)
        weights = step(weights, batch["features"], batch["target"])
    np.testing.assert_allclose(weights, [1.0, -2.0, 0.5, 3.0], atol=1e-3)


@pytest.mark.parametrize("coalesce", [0, 4096, 1 << 20])
def test_near_payloads_read_together_are_the_same(mixed_dataset, dataset, coalesce):
    for opened in (mixed_dataset, dataset):
        pairs = (take(Stream(Source(opened), 16, coalesce=c), 8) for c in (coalesce, 512))
        for a, b in zip(*pairs, strict=True):
            assert_same(a, b)


def test_settings_out_of_range_are_refused(blob_dataset):
    dataset = open_dataset(blob_dataset)
    for name, value in (
        ("batch_size", 0), ("threads", 0), ("coalesce", -1), ("seed", 1.5), ("epochs", 0), ("check", "md5"),
        ("on_error", "skip"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}: {value!r} must be"):
            Stream(Source(dataset), **{"batch_size": 4, name: value})
    for name, value in (("window", -1), ("window", 1.5), ("bins", -3)):
        with pytest.raises(InputError, match=f"^{name}: {value!r} must be"):
            Source(dataset, **{name: value})
    with pytest.raises(InputError, match=r"^sources: .* must be jaxz\.Source objects"):
        Stream(dataset, 4)
    with pytest.raises(InputError, match=r"^stages: .* must be jaxz\.Stage objects"):
        Stream(Source(dataset), 4, stages=[{"ratios": (1,)}])
    with pytest.raises(InputError, match="^dataset: 'raw' is no dataset"):
        Source("raw")
    assert Source(dataset, arrays="image", columns="z") == Source(dataset, arrays=("image",), columns=("z",))


def test_fetch_takes_row_numbers_alone(blob_dataset):
    with Stream(Source(open_dataset(blob_dataset), columns=("z",)), 4) as stream:
        for rows in (np.array([True, False]), np.array([1.5]), np.array([[1]])):
            with pytest.raises(InputError, match="^rows: .* must be whole numbers"):
                stream.fetch(rows)
        for source in (-1, 1, 0.0):
            with pytest.raises(InputError, match=f"^source: {source} must be the number of a source, 0..0"):
                stream.fetch([1], source=source)
        assert stream.fetch([])["image"].shape == (0, *stream.fetch([1])["image"].shape[1:])


def test_a_state_of_another_order_is_refused(blob_dataset):
    source = Source(open_dataset(blob_dataset), columns=("z",))
    with Stream(source, 4) as shuffled, Stream(source, 4, shuffle=False) as ordered:
        next(shuffled)
        state = shuffled.state()
        with pytest.raises(InputError, match="shuffle: True -> False"):
            ordered.restore(state)
        for described in state["sources"]:
            del described["shuffle"]  # as states once were
        shuffled.restore(state)
    other = Stream(Source(source.dataset, columns=("ebv",)), 4)
    with other, pytest.raises(InputError, match="ebv: was not read, z: is no longer read"):
        other.restore(state)
