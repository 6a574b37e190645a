"""Streams with layers: the base's samples bit for bit, the layers' beside them, exact to resume, elastic, remote."""

import contextlib
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from jaxz import objectives, train
from jaxz.config import parse
from jaxz.data import compact
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Array, Band, Column, Compact, Manifest
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stage, Stream
from jaxz.data.writer import DatasetWriter, LayerWriter
from jaxz.errors import InputError
from jaxz.mesh import make_mesh
from jaxz.models import build
from tests.data.batches import assert_same, take
from tests.data.servers import serving
from tests.helpers import blobs, small_config

K = Band("K", 2150.0, 300.0, 25.0, 0.3, 0.3, 0.5, 0.9)
ARRAYS = {
    "deep": Array("image", "float32", (1, 6, 6), "compact", compact=Compact(1, (0.1,), seed=3)),
    "spectrum": Array("spectrum", "float32", (None,), max=7),
    "embedding": Array("vector", "float32", (300,)),
    "tag": Array("vector", "int16", (3,), "index"),
}
NAMES = ("image", *ARRAYS)


def values_of(count, seed=0):
    draw = np.random.default_rng(seed)
    deep = draw.normal(size=(count, 1, 6, 6)).astype(np.float32)
    deep[::7, 0, 2, 3] = 1e6  # exceptions
    return {
        "deep": deep,
        "spectrum": [draw.normal(size=n % 8).astype(np.float32) for n in range(count)],
        "embedding": draw.normal(size=(count, 300)).astype(np.float32),
        "tag": draw.integers(-9, 9, (count, 3)).astype(np.int16),
    }


def add_layer(path, seed=0, arrays=ARRAYS, name="more"):
    base = open_dataset(path)
    found = values_of(len(base), seed)
    writer = LayerWriter(base, name, arrays, {"seed": seed}, (K,))
    for n in range(writer.shards):
        rows = slice(*base.starts[n : n + 2])
        writer.write_shard(n, {name: found[name][rows] for name in arrays})
    writer.finish()
    return found


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    path = blobs(tmp_path_factory.mktemp("layered") / "d", shards=[20, 70])
    return path, add_layer(path)


def decoded(batch):
    image = compact.restore(batch["deep"], batch["deep_dither"], ARRAYS["deep"].compact.steps)
    for sample, at, value in zip(image, batch["deep_exception_at"], batch["deep_exception_value"], strict=True):
        inside = at < sample.size
        sample.reshape(-1)[at[inside]] = value[inside]
    return image


@pytest.mark.parametrize("check, coalesce, window", [("size", 4096, 0), ("crc", 1 << 20, 1)])
def test_batches_hold_what_was_written_beside_the_base_as_it_is(layered, check, coalesce, window):
    path, found = layered
    joined = open_dataset(path, layers=["more"])
    how = {"batch_size": 10, "seed": 2, "check": check, "coalesce": coalesce}
    stream = Stream(Source(joined, NAMES, ("z",), window=window), **how)
    alone = Stream(Source(open_dataset(path), ("image",), ("z",), window=window), **how)
    for batch, base in zip(take(stream, 20), take(alone, 20), strict=True):
        for name in base:
            np.testing.assert_array_equal(batch[name], base[name])
        image = decoded(batch)
        for slot, row in enumerate(batch["row"].tolist()):
            assert np.abs(image[slot] - found["deep"][row]).max() <= 0.0501
            np.testing.assert_array_equal(batch["embedding"][slot], found["embedding"][row])
            np.testing.assert_array_equal(batch["tag"][slot], found["tag"][row])
            spectrum = found["spectrum"][row]
            np.testing.assert_array_equal(batch["spectrum"][slot, : len(spectrum)], spectrum)
            assert batch["spectrum_mask"][slot].tolist() == [k < len(spectrum) for k in range(7)]
            sample = joined.cutout(row)
            np.testing.assert_array_equal(sample["deep"], image[slot])
            np.testing.assert_array_equal(sample["spectrum"], spectrum)


def test_a_layer_says_what_rows_it_is_of_as_the_format_says(layered):
    path, _ = layered
    base, said = open_dataset(path), open_dataset(path / "layers/more").manifest.provenance["layer_of"]
    shards = repr([(shard.name, shard.samples, shard.sha256) for shard in base.manifest.shards])
    assert said["shards"] == hashlib.sha256(shards.encode()).hexdigest()[:16]
    parts = b""
    for first, last in ((0, 20), (20, 70), (70, 96)):
        keys = [f"blob{i:06d}".encode() for i in range(first, last)]
        ends = np.cumsum([0, *map(len, keys)]).astype("<i4").tobytes()
        parts += hashlib.sha256(b"string" + bytes(-(-len(keys) // 8)) + ends + b"".join(keys)).digest()
    assert said["keys"] == hashlib.sha256(parts).hexdigest()[:16]


@pytest.mark.parametrize("names", [("embedding",), ("tag",), ("deep", "tag"), ("spectrum", "image")])
def test_any_of_the_arrays_can_be_read_alone(layered, names):
    joined = open_dataset(layered[0], layers=["more"])
    whole = take(Stream(Source(joined, NAMES), 16, seed=1), 8)
    for some, all_of_it in zip(take(Stream(Source(joined, names), 16, seed=1), 8), whole, strict=True):
        for name in some:
            np.testing.assert_array_equal(some[name], all_of_it[name])


@pytest.mark.parametrize("done", [0, 1, 9, 23])
def test_resume_is_exact_and_elastic(layered, done):
    make = lambda **more: Stream(Source(open_dataset(layered[0], layers=["more"]), NAMES, ("z",)), 10, seed=4, **more)
    straight = take(make(), done + 5)
    parts = [make(local=part) for part in (slice(0, 3), slice(3, 10))]
    before = [take(part, done) for part in parts]
    assert len(before[0]) == done
    resumed = make()
    resumed.restore(json.loads(json.dumps(parts[0].state())))
    for a, b in zip(take(resumed, 5), straight[done:], strict=True):
        assert_same(a, b)
    for step in range(done):
        whole = {name: np.concatenate([part[step][name] for part in before]) for name in straight[step]}
        assert_same(whole, straight[step])


def test_a_stream_notices_a_layer_that_changed(layered, tmp_path):
    path = shutil.copytree(layered[0], tmp_path / "d")
    make = lambda *names: Stream(Source(open_dataset(path, layers=["more"]), names), 8)
    states = {names: make(*names).state() for names in (("image",), ("image", "embedding"), ("image", "tag"))}
    assert states["image",] == Stream(Source(open_dataset(path), ("image",)), 8).state()
    shutil.rmtree(path / "layers")
    add_layer(path, seed=1)
    make("image").restore(states["image",])  # reads nothing of it
    for name in ("embedding", "tag"):
        with pytest.raises(InputError, match=f"the stream changed since the checkpoint \\({name}: "):
            make("image", name).restore(states["image", name])


def test_an_array_may_be_of_a_layer_here_and_of_the_dataset_there(layered, tmp_path):
    path, found = layered
    draw = np.random.default_rng(8)
    arrays = {"image": Array("image", "float16", (3, 16, 16)), "embedding": ARRAYS["embedding"]}
    base = open_dataset(path)
    writer = DatasetWriter(tmp_path / "own", Manifest(arrays, base.manifest.bands, {"object_id": Column("int64")}), {})
    own = draw.normal(size=(30, 300)).astype(np.float32)
    image = draw.normal(size=(30, 3, 16, 16)).astype(np.float16)
    writer.write_shard(0, [f"k{i}" for i in range(30)], {"image": image, "embedding": own}, {"object_id": range(30)})
    writer.finish(1, {})
    names = ("image", "embedding")
    sources = (
        Source(open_dataset(tmp_path / "own"), names, name="a"),
        Source(open_dataset(path, layers=["more"]), names, name="b"),
    )
    for batch in take(Stream(sources, 12, stages=[Stage((1, 2))], check="crc"), 9):
        for slot, row in enumerate(batch["row"].tolist()):
            truth = (own, found["embedding"])[batch["source"][slot]]
            np.testing.assert_array_equal(batch["embedding"][slot], truth[row])
            pixels = image[row] if batch["source"][slot] == 0 else base.cutout(row)["image"]
            np.testing.assert_array_equal(batch["image"][slot], pixels)


def test_a_damaged_layer_is_told_by_its_file(layered, tmp_path):
    path = shutil.copytree(layered[0], tmp_path / "d")
    tar = path / "layers/more/shards/00001.tar"
    tar.write_bytes(tar.read_bytes()[:-40000])
    joined = open_dataset(path, layers=["more"])
    with pytest.raises(DataError, match=r"layers/more/shards/00001.tar is cut at offset \d+ of"):
        take(Stream(Source(joined, ("image", "embedding")), 8), 12)
    (path / "layers/more/shards/00001.tar").unlink()
    with pytest.raises(DataError, match="layers/more/shards/00001.tar cannot be opened"):
        take(Stream(Source(joined, ("image", "embedding")), 8), 12)
    take(Stream(Source(joined, ("image", "tag")), 8), 12)  # its tars are not needed


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"image": Array("image", "float16", (1, 4, 4))}, "has 'image', and so has"),
        ({"z": Array("vector", "float32", (4,))}, "has 'z', and so has"),
        ({"deep_dither": Array("vector", "float32", (4,))}, "has 'deep_dither', and so has"),
        ({"spectrum_mask": Array("vector", "float32", (4,))}, "has 'spectrum_mask', and so has"),
    ],
)
def test_names_that_are_taken_are_refused(layered, tmp_path, arrays, message):
    path = shutil.copytree(layered[0], tmp_path / "d")
    [(name, array)] = arrays.items()
    base = open_dataset(path)
    writer = LayerWriter(base, "again", arrays, {}, (K,))
    for n in range(3):
        count = int(base.starts[n + 1] - base.starts[n])
        writer.write_shard(n, {name: np.zeros((count, *array.shape), array.dtype)})
    writer.finish()
    with pytest.raises(InputError, match=message):
        open_dataset(path, layers=["more", "again"])


def test_a_layer_is_written_for_whole_shards_of_a_local_dataset(layered, tmp_path):
    path = shutil.copytree(layered[0], tmp_path / "d")
    writer = LayerWriter(open_dataset(path), "new", {"tag": ARRAYS["tag"]}, {})
    with pytest.raises(ValueError, match="tag has 19 rows, shard 0 has 20"):
        writer.write_shard(0, {"tag": np.zeros((19, 3), np.int16)})
    for name in ("../x", "a/b", "", "x.y"):
        with pytest.raises(InputError, match="must be a name"):
            LayerWriter(open_dataset(path), name, {}, {})
        with pytest.raises(InputError, match="must be a name"):
            open_dataset(path, layers=[name])
    with pytest.raises(InputError, match="nothing has no dataset.json"):
        open_dataset(path, layers=["nothing"])


def test_a_remote_layer_is_staged_beside_its_base_and_alone(layered, tmp_path, impatient):
    path, found = layered
    here = take(Stream(Source(open_dataset(path, layers=["more"]), NAMES, window=1), 16, seed=3), 12)
    with serving(path) as server:
        remote = lambda cache, **how: open_dataset(server.url, tmp_path / cache, layers=["more"], **how)
        there = take(Stream(Source(remote("a"), NAMES, window=1), 16, seed=3), 12)
        for a, b in zip(here, there, strict=True):
            assert_same(a, b)
        server.sent.clear()
        batch = take(Stream(Source(remote("b"), ("embedding",), window=1), 16), 1)[0]
        np.testing.assert_array_equal(batch["embedding"], found["embedding"][batch["row"]])
        tars = {name for name in server.sent if name.endswith(".tar")}
        assert tars and all(name.startswith("layers/more/shards/") for name in tars)
        sizes = [sum(s.bytes for s in open_dataset(d).manifest.shards) for d in (path, path / "layers/more")]
        small = (sizes[0] + sizes[1] // 2) / 2**30  # room for the base, not for both
        Stream(Source(remote("c", cache_gib=small + 1e-3), ("image",)), 16).close()
        with pytest.raises(InputError, match="do not hold what the stream reads at once"):
            Stream(Source(remote("d", cache_gib=small), NAMES), 16)
    pipe = open_dataset(f"pipe:cat {path}/{{}}", tmp_path / "e", layers=["more"])
    np.testing.assert_array_equal(pipe.cutout(50)["embedding"], found["embedding"][50])


def test_arrays_of_layers_reach_the_objectives(layered, tmp_path):
    """With the images as they are without."""
    path, found = layered
    flag, seen = small_config(tmp_path, path, depth=1, redshift=1.0), []
    for layers in ((), ("more",)):
        config = parse([flag, f"--config.data.layers={layers}"])
        dataset = open_dataset(path, layers=config.data.layers)
        normalisation = Normalisation.create(dataset.manifest, (), 3.0, True)
        objective = objectives.Objective(build(config.model, normalisation.bands, 16), config, normalisation)
        prepare = Prepare(dataset.manifest, normalisation)
        with contextlib.closing(train.make_stream(config, dataset, objective, prepare, make_mesh(1, 1))) as stream:
            seen.append(prepare(next(stream), jax.random.key(0)))
    without, joined = seen
    np.testing.assert_array_equal(joined["embedding"], found["embedding"][joined["row"]])
    for name in without:
        jax.tree.map(np.testing.assert_array_equal, without[name], joined[name])
    params, extra = jax.eval_shape(objective.init, jax.random.key(0))
    loss, _ = jax.eval_shape(objective.loss, params, {}, extra, joined, jax.random.key(0), 0)
    assert loss.shape == ()


def test_a_layer_may_be_streamed_by_any_name_but_not_trained_with(tmp_path):
    """`mask` would be lost behind the image's own, or stand for it."""
    path = blobs(tmp_path / "d", samples=40)
    base = open_dataset(path)
    writer = LayerWriter(base, "more", {"mask": Array("vector", "float32", (2,))}, {})
    for n in range(writer.shards):
        writer.write_shard(n, {"mask": np.ones((base.starts[n + 1] - base.starts[n], 2), np.float32)})
    writer.finish()
    dataset = open_dataset(path, layers=("more",))
    assert next(Stream(Source(dataset, arrays=("mask",)), 4))["mask"].shape == (4, 2)
    config = small_config(tmp_path, path, depth=1, redshift=1.0)
    with pytest.raises(InputError, match="data.layers: the array 'mask' has a name that training itself uses"):
        train.main([config, "--config.data.layers=('more',)", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
