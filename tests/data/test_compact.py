"""The compact encoding against its formulas, its documentation and damaged payloads; the way of its batches."""

import dataclasses
import json
import re
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from jaxz import errors, train
from jaxz.data import compact
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.prepare import Normalisation, Prepare, restore
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import with_images
from jaxz.errors import InputError
from jaxz.inference import load_run
from tests.helpers import blobs, small_config

SHAPE, STEPS = (3, 16, 16), (0.125, 0.25, 0.5)
SIGMAS = {"g": 1.0, "r": 2.0, "i": 0.5}
DOCS = Path(__file__).parents[2] / "docs" / "dataset_format.md"


def sky(seed: int = 0, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, SHAPE).astype(dtype)


def hashed(seed: int, pixel: int) -> int:
    """The dither's 32 bits in plain integers."""
    x = (pixel * 0x9E3779B9 + seed) % 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31, 2**32 - 1])
def test_the_dither_is_the_same_bits_on_host_and_device(seed):
    seeds, pixels = np.array([seed], np.uint32), np.arange(40_000, dtype=np.uint32)
    host = compact.dither(seeds[:, None], pixels[None])
    device = jax.jit(compact.dither)(jnp.asarray(seeds)[:, None], jnp.asarray(pixels)[None])
    np.testing.assert_array_equal(host.view(np.uint32), np.asarray(device).view(np.uint32))
    few = [*range(50), 39_999]
    assert host[0, few].tolist() == [(hashed(seed, p) >> 8) / 2**24 - 0.5 for p in few]


def test_the_dither_does_not_change_from_version_to_version():
    assert [hashed(7, p) for p in (0, 1)] == [0x18C9AEC4, 0x2316A329]
    assert compact.sample_seed(3, "blob000001") == 0x36682CAC


def test_the_dither_is_uniform_and_does_not_repeat_from_pixel_to_pixel_or_sample_to_sample():
    pixels = np.arange(200_000, dtype=np.uint32)
    seeds = [compact.sample_seed(0, f"{i:09d}") for i in range(2)]
    a, b = (compact.dither(np.uint32(seed), pixels).astype(float) for seed in seeds)
    assert a.min() >= -0.5 and a.max() < 0.5 and stats.kstest(a, stats.uniform(-0.5, 1).cdf).pvalue > 0.01
    limit = 4 / np.sqrt(len(a))  # of a correlation coefficient
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    for shift in (1, 64, 4096):  # along a row, a column, the bands
        assert abs(np.corrcoef(a[shift:], a[:-shift])[0, 1]) < limit


@pytest.mark.parametrize("value", [0.003, 0.0625, 1.0, 117.3, 4000.0])
def test_the_error_is_uniform_whatever_the_value(value):
    """Closed form: uniform in +-step / 2, so of variance step^2 / 12 and mean 0, for every value."""
    shape, step = (1, 300, 300), 0.125
    error = compact.decode(compact.encode(np.full(shape, value, np.float32), (step,), 5), shape, (step,)) - value
    assert stats.kstest(error.ravel() / step, stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    count = error.size
    assert abs(error.mean()) < 4 * step / np.sqrt(12 * count)
    assert abs(error.var() / (step**2 / 12) - 1) < 4 * np.sqrt(0.8 / count)  # kurtosis 1.8: variance of the variance


def test_the_error_does_not_depend_on_the_image():
    shape, step = (1, 300, 300), 0.5
    image = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    error = compact.decode(compact.encode(image, (step,), 5), shape, (step,)) - image
    for other in (image, np.abs(image), np.mod(image, step), np.roll(image, 1, 2), np.roll(error, 1, 2)):
        assert abs(np.corrcoef(error.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(image.size)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_levels_cannot_hold_is_kept_exactly(dtype):
    image = sky(2, dtype)
    image[0, 0, :6] = [65504, -65504, np.nan, np.inf, -np.inf, 4094]
    image[2, 15, 15] = 2.0**15  # 65536 steps
    image[1, 4:8] = 0
    payload = compact.encode(image, STEPS, 77)
    found = compact.decode(payload, SHAPE, STEPS)
    assert found.dtype == np.float32 and len(compact.exceptions(payload)) == 6
    kept = ~np.isfinite(image) | (np.abs(image) > 5000) | (image == 0)
    np.testing.assert_array_equal(found[kept], image[kept].astype(np.float32))
    assert not np.signbit(found[1, 4:8]).any()
    off = (np.abs(np.where(kept, 0, found) - np.where(kept, 0, image)) / np.array(STEPS)[:, None, None]).max()
    assert 0.45 < off < 0.501


@pytest.mark.parametrize("make", [np.zeros, np.ones, lambda shape: np.random.default_rng(0).normal(0, 1e3, shape)])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (2, 3), (1, 4, 4), (9, 33, 35), (2, 256, 256)])
def test_any_shape_and_content_comes_back(shape, make):
    image = make(shape).astype(np.float32)
    steps = (0.125,) * shape[0]
    payload = compact.encode(image, steps, 1)
    least, most = compact.bounds(image.size)
    assert least <= len(payload) <= most
    assert np.abs(compact.decode(payload, shape, steps) - image).max() <= 0.0626


def test_exceptions_alone_are_the_largest_payload():
    noise = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    assert len(compact.encode(noise, (1e-30,) * 4, 0)) <= compact.bounds(20)[1]
    np.testing.assert_array_equal(compact.decode(compact.encode(noise, (1e-30,) * 4, 0), (4, 5), (1e-30,) * 4), noise)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_mutated_payloads_are_refused_or_decoded_but_never_crash():
    rng = np.random.default_rng(0)
    image = sky()
    image[0, 0, :3] = 6e4
    whole = compact.encode(image, STEPS, 9)
    refused = 0
    for turn in range(6000):
        content = bytearray(whole)
        heads = 16 + 3 * 8 + 48  # header, exceptions, the chunk's own header and the begin of its blocks
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(heads if turn % 2 else len(content))] = rng.choice(
                [0, 1, 127, 128, 255, rng.integers(256)]
            )
        if turn % 5 == 0:
            content = content[: rng.integers(len(content))]
        if turn % 7 == 0:
            content += bytes(rng.integers(0, 256, rng.integers(1, 100), np.uint8))
        try:
            assert compact.decode(bytes(content), SHAPE, STEPS).shape == SHAPE
        except ValueError as error:
            refused += 1
            assert "bytes" in str(error) or "its " in str(error)
    assert 3000 < refused < 6000  # what changes levels or values alone is for the checksum to find


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"JXC2", "no compact payload"),
        (8, struct.pack("<I", 2**32 - 1), "no compact payload of 4294967295 exceptions"),
        (12, struct.pack("<I", 31), "no compact payload of 2 exceptions and 31 bytes"),
        (16, struct.pack("<I", 768), "not in ascending order below 768"),
        (24, struct.pack("<I", 768), "not in ascending order below 768"),
        (32, b"\x06", "not of the kind that jaxz writes"),
        (36, struct.pack("<I", 2**30), "1073741824 decompressed where the shape takes 1536"),
        (36, struct.pack("<I", 1535), "1535 decompressed"),
        (40, struct.pack("<I", 0), "in blocks of 0"),
        (40, struct.pack("<I", 2**31), "in blocks of 2147483648"),
        (44, struct.pack("<I", 33), "says 33"),
        (48, b"\x03", "not of the kind"),
        (63, b"\x08", "not of the kind"),  # a lazy chunk: its bytes would lie in another file
        (64, b"\xff" * 4, "cannot be decompressed"),
    ],
)
def test_each_field_of_a_payload_is_checked(offset, value, message):
    image = sky()
    image[0, 0, :2] = 6e4
    content = bytearray(compact.encode(image, STEPS, 9))
    content[offset : offset + len(value)] = value
    with pytest.raises(ValueError, match=message):
        compact.decode(bytes(content), SHAPE, STEPS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(blobs(tmp_path_factory.mktemp("compact") / "d", fill=3e4, encoding="compact"))


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset.path, tmp_path / "copy")


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def test_a_damaged_payload_names_file_array_and_offset(copy):
    offset = int(open_dataset(copy).places(1, "image")[0][4])
    overwrite(copy / "shards" / "00001.tar", offset + 40, b"\x99\x99\x99")
    for read in (lambda d: list(Stream(Source(d), 8, epochs=1, check="crc")), lambda d: d.cutout(36)):
        with pytest.raises(DataError, match=rf"00001.tar: image at offset {offset} fails its checksum; restore"):
            read(open_dataset(copy))
    overwrite(copy / "shards" / "00001.tar", offset, b"JXC9")
    with pytest.raises(DataError, match=rf"00001.tar: image at offset {offset}: \d+ bytes are no compact payload"):
        list(Stream(Source(open_dataset(copy)), 8, epochs=1))


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("image_exceptions", 1, r"image at offset \d+: it has 256 exceptions, the index says 257"),
        ("image_size", -2800, r"image at offset \d+ has -?\d+ bytes, its shape takes 48 to 7728; rebuild the index"),
        ("image_size", 10_000, r"image at offset \d+ has \d+ bytes, its shape takes 48 to 7728; rebuild the index"),
        ("image_size", -1, r"image at offset \d+: \d+ bytes are no compact payload"),
    ],
)
def test_an_index_that_contradicts_the_payloads_is_told(copy, column, change, message):
    path = copy / "index" / "00000.parquet"
    table = pq.read_table(path)
    values = table[column].to_numpy() + np.eye(len(table), dtype=int)[0] * change
    field = table.schema.field(column)
    pq.write_table(table.set_column(table.column_names.index(column), field, pa.array(values, field.type)), path)
    with pytest.raises(DataError, match=message):
        list(Stream(Source(open_dataset(copy)), 8, shuffle=False, epochs=1))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("compact", None, "arrays.image.compact: must be there where encoding is 'compact', and only there"),
        ("compact", [0.1], "arrays.image.compact: .* must be an object of version, steps and seed"),
        ("encoding", "raw", "arrays.image.compact: .* only there; it is 'raw'"),
        ("dtype", "int16", "arrays.image.encoding: 'compact' is for float16 and float32 of fixed shape, not int16"),
        ("compact/version", 2, "arrays.image.compact.version: 2 must be 1; a newer jaxz may read it"),
        ("compact/steps", [0.1, 0.1], "arrays.image.compact.steps: 2 values must be 3, one a band"),
        ("compact/steps", [0.1, 0.1, 0], "arrays.image.compact.steps: .* must be positive numbers"),
        ("compact/steps", [0.1, 0.1, float("nan")], "arrays.image.compact.steps: .* must be positive numbers"),
        ("compact/steps", [0.1, 0.1, True], "arrays.image.compact.steps: .* must be positive numbers"),
        ("compact/steps", 0.1, "arrays.image.compact.steps: 0.1 must be positive numbers"),
        ("compact/seed", -1, "arrays.image.compact.seed: -1 must be an integer from 0 to 2"),
        ("compact/seed", 2**32, "arrays.image.compact.seed: 4294967296 must be"),
        ("compact/sed", 1, "arrays.image.compact.sed is not a known field. Did you mean 'seed'"),
        ("shape", [3, 8000, 8000], "arrays.image.shape: .* use at most"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(copy, place, value, message):
    raw = json.loads((copy / "dataset.json").read_text())
    node, *path = raw["arrays"]["image"], *place.split("/")
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    (copy / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message):
        Manifest.load(copy)


def test_a_manifest_from_before_compact_is_read(blob_dataset, tmp_path):
    raw = json.loads((blob_dataset / "dataset.json").read_text())
    assert raw["arrays"]["image"].pop("compact") is None
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    assert Manifest.load(tmp_path) == open_dataset(blob_dataset).manifest


def test_what_compact_needs_is_asked_for():
    arrays = {"image": Array("image", "float16", SHAPE)}
    with pytest.raises(InputError, match=r"compact.steps: 0 values must be 3, one a band"):
        with_images(Manifest(arrays, (), {}), "compact")
    with pytest.raises(InputError, match="no image of floats in the tars"):
        with_images(Manifest({"image": Array("image", "uint8", SHAPE)}, (), {}), "compact")
    bands = tuple(Band(name, 480.0, 100.0, 27.0, 0.2, 3.0, sigma, 0.8) for name, sigma in SIGMAS.items())
    steps = with_images(Manifest(arrays, bands, {}), "compact").arrays["image"].compact.steps
    assert steps == (0.125, 0.25, 0.0625)
    with pytest.raises(InputError, match="a compact array makes its own image_dither"):
        with_images(Manifest(arrays, bands, {"image_dither": Column("float32")}), "compact")
    blind = tuple(dataclasses.replace(band, sky_sigma=0) for band in bands)
    with pytest.raises(InputError, match=r"bands.g.sky_sigma: must be positive"):
        with_images(Manifest(arrays, blind, {}), "compact")


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_the_documented_recipe_reads_a_dataset_without_jaxz(dataset):
    recipe = re.search(r"(?m)^    import json, struct, blosc2.*?(?=^\S)", DOCS.read_text(), re.DOTALL).group()
    recipe = recipe.replace("DATASET", str(dataset.path)) + "        images.append(image)\n"
    space = {"images": []}
    exec("if True:\n" + recipe, space)
    assert len(space["images"]) == 96
    for row, image in enumerate(space["images"]):
        ours = dataset.cutout(row)["image"]
        assert image.dtype == ours.dtype
        np.testing.assert_array_equal(image, ours)


def test_batches_through_stream_and_prepare_are_the_decoded_cutouts(dataset):
    normalisation = Normalisation.create(dataset.manifest, (), 3.0, False)
    prepare = Prepare(dataset.manifest, normalisation)
    stream = Stream(Source(dataset, prepare.arrays, prepare.columns), 16, seed=3)
    steps = dataset.manifest.arrays["image"].compact.steps
    entries = [f"image{entry}" for entry in ("", "_dither", "_exception_at", "_exception_value")]
    for _ in range(8):
        batch = next(stream)
        assert [batch[name].dtype.name for name in entries] == ["int16", "uint32", "int32", "float32"]
        cutouts = np.stack([dataset.cutout(int(row))["image"] for row in batch["row"]])
        stored = jax.jit(lambda *a: restore(steps, *a))(*(batch[name] for name in entries))
        np.testing.assert_array_equal(stored, cutouts)
        ours = jax.jit(prepare)(batch, jax.random.key(0))
        theirs = jax.jit(prepare)({"image": cutouts, "bands_observed": batch["bands_observed"]}, jax.random.key(0))
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])
        np.testing.assert_allclose(ours["image"], theirs["image"], rtol=1e-6)
        assert not any(name in ours for name in entries[1:])


def test_exceptions_that_are_not_finite_are_masked(dataset):
    batch = next(Stream(Source(dataset, columns=("bands_observed",)), 8, seed=1))
    batch["image_exception_at"][0, 0], batch["image_exception_value"][0, 0] = 300, np.nan
    prepared = Prepare(dataset.manifest, Normalisation.create(dataset.manifest, (), 3.0, False))(
        batch, jax.random.key(0)
    )
    assert not prepared["mask"][0].reshape(-1)[300] and np.isfinite(prepared["image"]).all()


def test_processes_have_room_for_the_exceptions_of_the_whole_batch(dataset):
    """Every tenth row has 256 exceptions, the others none: the parts without any have the same shapes."""
    whole = Stream(Source(dataset), 12, seed=1)
    parts = [Stream(Source(dataset), 12, seed=1, local=slice(3 * h, 3 * h + 3)) for h in range(4)]
    rooms = set()
    for _ in range(16):
        batch, pieces = next(whole), [next(part) for part in parts]
        for name, values in batch.items():
            np.testing.assert_array_equal(values, np.concatenate([piece[name] for piece in pieces]))
        rooms.add(batch["image_exception_at"].shape[1])
        assert rooms <= {8, 512} and (batch["image_exception_at"].shape[1] == 512) == any(batch["row"] % 10 == 0)
    assert rooms == {8, 512}


def test_no_row_is_no_sample(tmp_path):
    whole = open_dataset(blobs(tmp_path / "d", samples=4, shards=1, encoding="compact"))
    with Stream(Source(whole), 4) as stream:
        found, one = stream.fetch([]), stream.fetch([1])
    assert {name: values.shape for name, values in found.items()} == {n: (0, *v.shape[1:]) for n, v in one.items()}


def test_rooms_are_few():
    assert [compact.room(n, 36_864) for n in (0, 8, 9, 64, 65, 4097, 36_864)] == [8, 8, 64, 64, 512, 32_768, 36_864]
    assert compact.room(0, 3) == 3


def test_a_damaged_sample_is_stood_in_for_by_one_that_fits(tmp_path):
    opened = open_dataset(blobs(tmp_path / "d", samples=3000, size=8, fill=3e4, encoding="compact"))
    offsets = opened.places(0, "image")[0]
    lost = [row for row in range(301, 999, 100)][:2]
    for row in lost:
        overwrite(opened.shard_path(0), int(offsets[row]), b"gone")
    whole, half = (
        Stream(Source(opened), 4, seed=1, on_error="replace", local=local) for local in (slice(None), slice(2))
    )
    for _ in range(740):
        batch, part = next(whole), next(half)
        assert not np.isin(batch["row"], lost).any()
        for name, values in part.items():
            np.testing.assert_array_equal(values, batch[name][:2])
    assert whole.replaced >= 2


def test_the_codec_lets_other_threads_run():
    assert compact.blosc2().set_releasegil(True) is True


@pytest.mark.long
def test_a_run_trains_and_predicts_on_compact_images(dataset, tmp_path):
    config = small_config(tmp_path, dataset.path, depth=1, redshift=1.0)
    assert train.main([config, f"--workdir={tmp_path / 'run'}", "--config.train.steps=3"]) == errors.OK
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(np.isfinite(line["loss"]) for line in lines)
    model = load_run(tmp_path / "run")
    rows, found = model.predict_dataset(dataset, "split == 'test'", ("pdf",))
    batch = {"image": np.stack([dataset.cutout(int(row))["image"] for row in rows])}
    batch |= {name: dataset.column(name)[rows] for name in ("ebv", "bands_observed")}
    np.testing.assert_allclose(model.predict(batch, dataset.manifest)["pdf"], found["pdf"], atol=1e-6)
