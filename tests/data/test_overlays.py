"""Overlays against joins by hand: what they add, what they replace, and what they leave."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import relabel
from jaxz import photometry, redshifted, shift
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Column, Manifest
from jaxz.data.overlays import Overlay, write_overlay
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.test_photometry import make_dataset


@pytest.fixture
def copy(blob_dataset, tmp_path):
    """96 samples in 3 shards; object_id counts them."""
    path = shutil.copytree(blob_dataset, tmp_path / "copy")
    (path / "overlays").mkdir()
    return path


def write(path, name, **columns):
    pq.write_table(pa.table(columns), path / "overlays" / f"{name}.parquet")


def test_columns_are_added_and_replaced_by_object_id(copy):
    base, draw = open_dataset(copy), np.random.default_rng(0)
    ids = draw.permutation(96)[:40]
    weight, z = draw.random(40), draw.random(40).astype(np.float32)
    write(copy, "first", object_id=np.append(ids, 1000), weight=np.append(weight, 9.0), z=np.append(z, np.float32(9)))
    write(copy, "second", object_id=ids[:5], z=np.zeros(5, np.float32), field=[f"f{i}" for i in ids[:5]])
    wanted = base.column("z").copy()
    wanted[ids] = z
    first = open_dataset(copy, overlays=["first"])
    np.testing.assert_array_equal(first.column("z"), wanted)
    weights = np.full(96, np.nan)
    weights[ids] = weight
    np.testing.assert_array_equal(first.column("weight"), weights)
    assert set(first.select("weight > 0.5")) == set(ids[weight > 0.5])
    wanted[ids[:5]] = 0
    both = open_dataset(copy, overlays=["first", "second"])
    np.testing.assert_array_equal(both.column("z"), wanted)
    fields = both.arrow(columns=["key", "field"])["field"].to_pylist()
    assert fields == [f"f{i}" if i in ids[:5] else None for i in range(96)]
    np.testing.assert_equal(both.cutout(int(ids[0]))["z"], 0.0)
    np.testing.assert_array_equal(base.column("z"), open_dataset(copy).column("z"))


def test_a_stream_draws_by_an_overlay_and_notices_its_change(copy):
    write(copy, "mine", object_id=np.arange(96), share=np.repeat([0.0, 1.0], 48))
    make = lambda: Stream(Source(open_dataset(copy, overlays=["mine"]), ("image",), ("z",), weights="share"), 16)
    stream = make()
    assert min(next(stream)["row"].min() for _ in range(9)) >= 48
    state = stream.state()
    make().restore(state)
    write(copy, "mine", object_id=np.arange(96), share=np.repeat([1.0, 0.0], 48))
    with pytest.raises(InputError, match="the stream changed since the checkpoint \\(share: "):
        make().restore(state)


def test_values_keep_their_type_where_all_that_are_selected_are_there(copy):
    ids = np.arange(0, 96, 2)
    big = 2**53 + 1 + ids  # float64 holds every other one
    bad = ids % 4 == 0
    write(copy, "mine", object_id=ids, cls=(ids % 3).astype(np.int16), big=big, bad=bad)
    dataset, names = open_dataset(copy, overlays=["mine"]), ("cls", "big", "bad")
    source = Source(dataset, ("image",), names, where="not isnull(cls)", balance="cls")
    batch = next(Stream(source, 48))
    assert [batch[name].dtype.name for name in names] == ["int16", "int64", "bool"]
    np.testing.assert_array_equal(batch["big"], 2**53 + 1 + batch["row"])
    np.testing.assert_array_equal(batch["bad"], batch["row"] % 4 == 0)
    assert np.bincount(batch["cls"]).tolist() == [16] * 3
    scan = dataset.scan("bad == True or bad == False", ["big", "bad", "z"])
    np.testing.assert_array_equal(scan.rows, ids)
    assert sorted(scan.filled) == ["bad", "big"]
    np.testing.assert_array_equal(scan.filled["big"], np.arange(96) % 2 == 1)
    for name, values in (("cls", ids % 3), ("bad", bad)):  # without a filter, rows lack them
        wanted = np.full(96, np.nan)
        wanted[ids] = values
        found = dataset.column(name)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="balance: column 'bad' is missing for 48 rows"):
        Stream(Source(dataset, balance="bad"), 8)


@pytest.mark.parametrize("kind, big", [(pa.int64(), 2**60), (pa.string(), "None")])
def test_objects_without_an_id_get_nothing_and_near_ids_differ(tmp_path, kind, big):
    ids = [big + 1, None, big, big + 3] if kind == pa.int64() else ["a", None, "None", "a longer one"]
    column = Column("int64" if kind == pa.int64() else "string")
    writer = DatasetWriter(tmp_path / "d", Manifest({}, (), {"object_id": column}), {})
    writer.write_shard(0, list("wxyz"), {}, {"object_id": pa.array(ids, kind)})
    writer.finish(1, {})
    (tmp_path / "d/overlays").mkdir()
    write(tmp_path / "d", "mine", object_id=pa.array([big, ids[0]], kind), label=pa.array([1, 2], pa.int8()))
    nothing = 0 if kind == pa.int64() else ""
    write(tmp_path / "d", "zero", object_id=pa.array([nothing], kind), label=pa.array([9], pa.int8()))
    write(tmp_path / "d", "empty", object_id=pa.array([], kind), label=pa.array([], pa.int8()))
    label = lambda *names: open_dataset(tmp_path / "d", overlays=names).arrow(columns=["label"])["label"].to_pylist()
    assert label("mine") == label("zero", "mine", "empty") == [2, None, 1, None]
    assert label("zero") == label("empty") == [None] * 4


def test_a_shard_is_matched_once_for_all_columns(copy, monkeypatch):
    calls, match = [], Overlay.match
    monkeypatch.setattr(Overlay, "match", lambda self, ids: calls.append(len(ids)) or match(self, ids))
    write(copy, "mine", object_id=np.arange(96), a=np.arange(96), b=np.arange(96), c=np.arange(96))
    open_dataset(copy, overlays=["mine"]).scan("a > 3", ["a", "b", "c"])
    assert calls == [32] * 3


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"weight": [1.0]}, "has no column 'object_id'"),
        ({"object_id": [1, 1]}, "once for each object"),
        ({"object_id": [1, None]}, "once for each object"),
        ({"object_id": ["a"]}, "object_id is not int64"),
        ({"object_id": [1], "z": [1]}, "'z' holds int64, the dataset float32; cast it"),
        ({"object_id": [1], "image": [1.0]}, "'image' has a name that no column can have"),
        *[
            ({"object_id": [1], f"image_{place}": [1]}, f"'image_{place}' has a name that no column can have")
            for place in ("offset", "size", "crc32", "exceptions")
        ],
        ({"object_id": [1], "list": [[1.0]]}, "'list' holds list"),
    ],
)
def test_what_is_no_overlay_is_refused(copy, columns, message):
    write(copy, "mine", **columns)
    with pytest.raises(InputError, match=message):
        open_dataset(copy, overlays=["mine"])


def test_what_could_not_be_read_is_not_written(tmp_path):
    """Objects without an id, or with one that another row has, whether it is named or not."""
    writer = DatasetWriter(tmp_path / "d", Manifest({}, (), {"object_id": Column("int64")}), {})
    writer.write_shard(0, list("uvwxyz"), {}, {"object_id": pa.array([1, 2, 2, None, 0, 3])})
    writer.finish(1, {})
    dataset, column = open_dataset(tmp_path / "d"), {"weight": Column("float32")}
    laid = lambda name, rows: write_overlay(dataset, name, np.array(rows), {"weight": np.ones(len(rows))}, column, {})
    for rows, message in (
        ([0, 3], "is missing for 1 of 2 objects"),
        ([0, 1], "stands more than once for some objects"),
        ([1, 2], "stands more than once for some objects"),
        ([0, 0], "stands more than once for some objects"),
    ):
        with pytest.raises(InputError, match=f"dataset: object_id of .* {message}"):
            laid("bad", rows)
    assert not (tmp_path / "d/overlays").exists()
    laid("good", [5, 0, 4])
    assert open_dataset(tmp_path / "d", overlays=["good"]).arrow(columns=["weight"])["weight"].to_pylist() == [
        *[1, None, None, None, 1, 1]
    ]
    laid("none", np.array([], int))


@pytest.mark.parametrize("tool", [photometry, redshifted, relabel, shift])
def test_ids_are_looked_at_before_anything_is_fitted_or_written(tmp_path, tool):
    dataset = str(make_dataset(tmp_path / "d", n=12, change={"object_id": lambda values: values["object_id"] // 2}))
    train = "split == 'train'"
    arguments = {
        photometry: f"--dataset {dataset} --workdir {tmp_path}/run --model template --label new".split(),
        redshifted: [dataset, "--name", "new", "--where", train],
        relabel: [dataset, "--name", "new", "--near_balanced", "5"],
        shift: [dataset, "--name", "new", "--train", train, "--target", train, "--features", "flux"],
    }
    with pytest.raises(InputError, match="stands more than once"):
        tool.main(arguments[tool])
    assert not (tmp_path / "run").exists() and not (tmp_path / "d/overlays").exists()


def test_names_do_not_leave_the_dataset(copy):
    for name in ("../x", "a/b", "", "x.parquet"):
        with pytest.raises(InputError, match="must be a name"):
            open_dataset(copy, overlays=[name])
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(copy, overlays=["nothing"])
