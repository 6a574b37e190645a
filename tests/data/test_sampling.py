"""Weighted and balanced drawing against counting."""

import numpy as np
import pytest

from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.sampling import Sampler, Source
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
    kinds = np.array(dataset.table(["kind"])["kind"].to_pylist())
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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (dict(weights="bad"), "weights: column 'bad' has values that are missing, negative or all zero"),
        (dict(weights="none"), "column 'none' is not in"),
        (dict(balance="bad", bins=3), "balance: column 'bad' is missing for 1 rows"),
        (dict(balance="z"), "balance: column 'z' holds real numbers; say how many bins"),
        (dict(balance="kind", bins=3), "balance: column 'kind' holds no numbers; set bins=0"),
    ],
)
def test_what_cannot_weigh_is_refused(dataset, source, message):
    with pytest.raises(InputError, match=message):
        Stream(Source(dataset, **source), 8)
