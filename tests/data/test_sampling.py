"""Weighted and balanced drawing against counting."""

import tracemalloc
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.sampling import Sampler, Source, balancing, rows_before
from jaxz.data.stream import Stream
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError

N = 1200


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Rows of the index alone: a skewed weight, a class that a tenth has, a skewed number."""
    path, draw = tmp_path_factory.mktemp("sampling") / "d", np.random.default_rng(0)
    kinds = {"weight": Column("float64"), "kind": Column("string"), "z": Column("float32"), "bad": Column("float32")}
    writer = DatasetWriter(path, Manifest({"tag": Array("vector", "int32", (1,), "index")}, (), kinds), plan={})
    ids = np.arange(N)
    columns = {
        "weight": np.where(ids % 7 == 0, 0, draw.pareto(1.5, N)),
        "kind": np.where(ids % 10 == 0, "rare", "common"),
        "z": draw.gamma(2, 0.3, N).astype(np.float32),
        "bad": np.where(ids == 5, np.nan, 1).astype(np.float32),
    }
    for n, rows in enumerate(np.array_split(ids, 4)):
        part = {name: values[rows] for name, values in columns.items()}
        writer.write_shard(n, [f"s{i}" for i in rows], {"tag": rows[:, None].astype(np.int32)}, part)
    writer.finish(4, {})
    return open_dataset(path)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_rows_come_in_proportion_to_their_weight(dataset, window):
    """In every epoch floor or ceil of the share, and over many epochs the share itself."""
    sampler = Sampler(Source(dataset, weights="weight", window=window), seed=3, shuffle=True)
    weights, epochs, n = dataset.column("weight"), 200, len(sampler)
    share = weights / weights.sum() * n
    counts = np.stack([np.bincount(sampler(e * n + np.arange(n)), minlength=N) for e in range(epochs)])
    assert (counts >= np.floor(share - 1e-6)).all() and (counts <= np.ceil(share + 1e-6)).all()
    assert n == (weights > 0).sum() and (counts[:, weights == 0] == 0).all()
    error = np.sqrt(0.25 / epochs)  # of a mean of floor or ceil
    assert np.abs(counts.mean(0) - share).max() < 5 * error


def test_a_window_reads_few_shards_at_a_time(dataset):
    sampler = Sampler(Source(dataset, weights="weight", window=1), seed=3, shuffle=True)
    shards = dataset.locate(sampler(np.arange(len(sampler))))[0]
    assert np.count_nonzero(np.diff(shards)) == 3  # each of the four is gone through once


def test_classes_and_bins_come_equally_often(dataset):
    rows = Sampler(Source(dataset, balance="kind"), 0, True)(np.arange(N))
    kinds = np.array(dataset.arrow(columns=["kind"])["kind"].to_pylist())
    assert abs((kinds[rows] == "rare").mean() - 0.5) < 0.01
    where = "z < 1.2"
    sampler = Sampler(Source(dataset, where=where, balance="z", bins=4), 0, True)
    z = dataset.column("z")[sampler(np.arange(len(sampler)))]
    chosen = dataset.column("z")[dataset.select(where)]
    filled = np.histogram(z, 4, (chosen.min(), chosen.max()))[0] / len(z)
    np.testing.assert_allclose(filled, 0.25, atol=0.01)
    both = Sampler(Source(dataset, balance="kind", weights="weight"), 0, True)
    assert (dataset.column("weight")[both(np.arange(len(both)))] > 0).all()


def test_weighted_streams_resume_and_split_exactly(dataset):
    source = Source(dataset, columns=("z",), weights="weight", balance="kind", window=2)
    straight = Stream(source, 32, seed=7)
    rows = [next(straight)["row"].copy() for _ in range(60)]  # past an epoch
    halves = [Stream(source, 32, seed=7, local=part) for part in (slice(0, 16), slice(16, 32))]
    for expected in rows:
        np.testing.assert_array_equal(np.concatenate([next(half)["row"] for half in halves]), expected)
    first = Stream(source, 32, seed=7)
    for _ in range(41):
        next(first)
    resumed = Stream(source, 32, seed=7)
    resumed.restore(first.state())
    for expected in rows[41:]:
        np.testing.assert_array_equal(next(resumed)["row"], expected)
    with pytest.raises(InputError, match="the stream changed since the checkpoint .*weight"):
        Stream(Source(dataset, columns=("z",), balance="kind", window=2), 32, seed=7).restore(first.state())


@pytest.mark.parametrize("kind, total", [(np.uint32, 2**32 - 1), (np.int64, 2**32), (np.int64, 2**40), (np.uint32, 9)])
def test_rows_of_shards_are_counted(kind, total):
    draw = np.random.default_rng(total % 97)
    starts = np.unique(np.append(draw.integers(0, total, 40), [0, total]))
    many = np.unique(np.append(draw.integers(0, total, 300), starts[:-1][::3]))
    for rows in (many, many[:1], many[-1:], many[(many < starts[2]) | (many >= starts[-2])]):
        expected = [sum(row < start for row in rows.tolist()) for start in starts[1:].tolist()]
        assert rows_before(rows.astype(kind), starts[1:]).tolist() == expected


def test_rows_of_shards_are_counted_without_a_copy_of_the_rows():
    rows = np.arange(10**6, dtype=np.uint32)
    tracemalloc.start()
    rows_before(rows, np.array([10, 10**6]))
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()


def test_text_is_counted_over_all_shards_and_where_selected(dataset):
    column = pa.chunked_array([["b", "a", None], [], ["a", "c", "a"]], pa.string())
    rows = np.array([0, 1, 3, 4, 5], np.uint32)
    source = Source(dataset, balance="kind")
    np.testing.assert_array_equal(balancing(source, column, rows), [1, 1 / 3, 1 / 3, 1, 1 / 3])
    with pytest.raises(InputError, match="'kind' is missing for 1 rows"):
        balancing(source, column, np.arange(6))
    bins = Source(dataset, balance="z", bins=2)
    with pytest.raises(InputError, match="'z' is missing for 2 rows, or infinite"):  # as an overlay may have it
        balancing(bins, np.array([0.5, np.inf, np.nan, 1.0]), np.arange(4))


def test_a_sampler_keeps_the_columns_of_its_source_alone(dataset):
    sampler = Sampler(Source(dataset, columns=("z",), weights="weight", balance="kind", where="bad > 0"), 0, True)
    assert list(sampler.columns) == ["z"]
    assert sorted(sampler.digests) == ["bad", "kind", "tag", "weight", "z"]


@pytest.mark.parametrize("arrays, noticed", [(None, True), (("tag",), True), ((), False)])
def test_changed_arrays_of_the_index_are_noticed(tmp_path, arrays, noticed):
    arrays_of = {"tag": Array("vector", "int32", (1,), "index")}
    writer = DatasetWriter(tmp_path / "d", Manifest(arrays_of, (), {"z": Column("float32")}), {})
    writer.write_shard(0, ["a", "b"], {"tag": np.ones((2, 1), np.int32)}, {"z": [1, 2]})
    writer.finish(1, {})
    make = lambda: Stream(Source(open_dataset(tmp_path / "d"), arrays), 2)
    state, index = make().state(), tmp_path / "d/index/00000.parquet"
    make().restore(state)
    table = pq.read_table(index)
    changed = pa.FixedSizeListArray.from_arrays(pa.array([1, 2], pa.int32()), 1)
    pq.write_table(table.set_column(table.column_names.index("tag"), table.schema.field("tag"), changed), index)
    with pytest.raises(InputError, match="changed since the checkpoint \\(tag: ") if noticed else nullcontext():
        make().restore(state)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (dict(weights="bad"), "weights: column 'bad' has values that are missing, negative or all zero"),
        (dict(weights="none"), "column 'none' is not in"),
        (dict(weights="kind"), "weights: column 'kind' holds text"),
        (dict(columns=("kind",)), "column 'kind' holds text"),
        (dict(columns=("key",)), "column 'key' holds text"),
        (dict(balance="bad", bins=3), "balance: column 'bad' is missing for 1 rows"),
        (dict(balance="z"), "balance: column 'z' holds real numbers; say how many bins"),
        (dict(balance="kind", bins=3), "balance: column 'kind' holds no numbers; set bins=0"),
    ],
)
def test_what_cannot_weigh_is_refused(dataset, source, message):
    with pytest.raises(InputError, match=message):
        Stream(Source(dataset, **source), 8)
