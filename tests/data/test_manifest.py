"""What dataset.json may hold, and how the rest is refused."""

import json

import pytest

from jaxz.data.manifest import Array, Band, Column, Manifest, Shard
from jaxz.errors import InputError


def test_what_is_written_is_read(blob_dataset):
    manifest = Manifest.load(blob_dataset)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json()) == json.loads((blob_dataset / "dataset.json").read_text())


NAN = float("nan")
BAD = [
    ("shards/0/samples", "x", r"shards\[0\].samples: 'x' must be an integer from 0"),
    ("shards/0/samples", True, r"shards\[0\].samples: True must be an integer"),
    ("shards/0/samples", -1, r"shards\[0\].samples: -1 must be an integer"),
    ("shards/0/samples", 10**30, r"shards\[0\].samples: 1000.* must be an integer"),
    ("shards/0/samples", 10**6, r"shards.00000: 1000000 samples of at least 2560 bytes do not fit into its \d+ bytes"),
    ("shards/0/bytes", 1.5, r"shards\[0\].bytes: 1.5 must be an integer"),
    ("shards/0/sha256", "abc", r"shards\[0\].sha256: 'abc' must be 64"),
    ("shards/0/name", 3, r"shards\[0\].name: 3 must be at most 32"),
    ("shards/0/name", "../up", r"shards\[0\].name: '../up' must be"),
    ("shards/1/name", "00000", "shards: names .* must be unique"),
    ("shards/0", 3, r"shards\[0\] must be an object, not int"),
    ("shards", {}, "shards: must be a list"),
    ("shards", [], "has no shards"),
    ("bands/0/zero_point_ab", "27", r"bands\[0\].zero_point_ab: '27' must be a number"),
    ("bands/0/zero_point_ab", NAN, r"bands\[0\].zero_point_ab: nan must be a number"),
    ("bands/0/sky_sigma", "1", r"bands\[0\].sky_sigma: '1' must be a number"),
    ("bands/0/sky_sigma", -1, r"bands\[0\].sky_sigma: -1 must be a number"),
    ("bands/0/sky_sigma", float("inf"), r"bands\[0\].sky_sigma: inf must be a number"),
    ("bands/0/sky_sigma", True, r"bands\[0\].sky_sigma: True must be a number"),
    ("bands/0/pixel_scale_arcsec", 0, r"bands\[0\].pixel_scale_arcsec: 0 must be a number"),
    ("bands/0/wavelength_nm", 0, r"bands\[0\].wavelength_nm: 0 must be a number from 100 to 30000"),
    ("bands/0/wavelength_nm", 2.1e8, r"bands\[0\].wavelength_nm: 210000000.0 must be a number"),
    ("bands/0/width_nm", 0, r"bands\[0\].width_nm: 0 must be"),
    ("bands/0/name", "", r"bands\[0\].name: '' must be text"),
    ("bands/1/name", "g", "bands: names .* must be unique"),
    ("bands/0/wavelenth_nm", 1, r"bands\[0\].wavelenth_nm is not a known field. Did you mean 'wavelength_nm'"),
    ("bands", None, "bands: must be a list"),
    ("columns/z/dtype", "float33", "columns.z.dtype: 'float33' must be 'string' or"),
    ("columns/z/dtype", 3, "columns.z.dtype: 3 must be"),
    ("columns/z/unit", None, "columns.z.unit: None must be text"),
    ("columns", [], "columns: must be an object"),
    ("splits", [], "splits: .* must be an object"),
    ("provenance", 3, "provenance: 3 must be an object"),
    ("extra", 3, "dataset.json.extra is not a known field"),
    ("schema_version", 2, "schema_version 2 is not 1"),
    ("arrays", [], "arrays: must be an object"),
    ("arrays/image", 3, "arrays.image must be an object, not int"),
    ("arrays/image", {"kind": "image"}, "arrays.image is incomplete .*dtype"),
    ("arrays/image/kind", 3, "arrays.image.kind: 3 must be text"),
    ("arrays/image/dtype", "object", "arrays.image.dtype: 'object' must be a numpy dtype"),
    ("arrays/image/dtype", None, "arrays.image.dtype: None must be a numpy dtype"),
    ("arrays/image/encoding", "zip", "arrays.image.encoding: 'zip' must be 'raw', 'compact' or 'index'"),
    ("arrays/image/encoding", "index", "arrays.image.encoding: 'index' is for fixed shapes"),
    ("arrays/image/bits", {"bad": "1"}, "arrays.image.bits: .* must be names with positive integers"),
    ("arrays/image/max", 3, "arrays.image.max: 3 must be .* where the shape has a null, and only there"),
    ("arrays/image/shape", 3, "arrays.image.shape: 3 must be at most 8 positive integers"),
    ("arrays/image/shape", [3, -1, 16], "arrays.image.shape: .* must be at most 8"),
    ("arrays/image/shape", [3, 16.0, 16], "arrays.image.shape: .* must be at most 8"),
    ("arrays/image/shape", [3, True, 16], "arrays.image.shape: .* must be at most 8"),
    ("arrays/image/shape", [3, None, None], "arrays.image.shape: .* must be at most 8 .* one may be null"),
    ("arrays/image/shape", [3, None, 16], "arrays.image.max: None must be a positive integer"),
    ("arrays/image/shape", [3, 10**6, 10**6], "arrays.image.shape: .* is 6000000000000 bytes; use at most"),
    ("arrays/image/shape", [3, 8000, 8000], "shards.00000: 32 samples of at least 384001024 bytes do not fit"),
    ("arrays/image/shape", [4, 12, 16], r"arrays.image.shape: \(4, 12, 16\) must begin with the number of bands, 3"),
    ("arrays/image/shape", [16, 16], r"arrays.image.shape: \(16, 16\) of an image must be \(bands, height, width\)"),
    ("arrays/image_mask", {"kind": "mask", "dtype": "uint8", "shape": [2, 4, 4]}, "image_mask.shape: .* bands, 3"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=[f"{place}={value!r:.20}" for place, value, _ in BAD])
def test_a_value_that_does_not_fit_is_named(blob_dataset, tmp_path, place, value, message):
    raw = node = json.loads((blob_dataset / "dataset.json").read_text())
    *path, last = [int(step) if step.isdigit() else step for step in place.split("/")]
    for step in path:
        node = node[step]
    node[last] = value
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as refusal:
        Manifest.load(tmp_path)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"3", b"null", b'{"schema_version": 1}']
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match="dataset.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [{}, {"row": Array("vector", "float32", (4,), "index")}, {"frames": Array("frames", "float16", (None, 4), max=5)}],
)
@pytest.mark.parametrize("samples", [10**9, 2**40, 2**62, 2**63 - 1])
def test_as_many_samples_as_the_bytes_can_hold(tmp_path, arrays, samples):
    """Arrays that take no bytes of a tar, or none at least, bound nothing; the members' headers do."""
    members = 1 + ("frames" in arrays)
    Manifest(arrays, (), {}, (Shard("00000", 20, 512 * members * 20, "0" * 64),))
    for held, size in ((21, 512 * members * 21 - 1), (samples, 10**6)):
        with pytest.raises(InputError, match=f"{held} samples .* do not fit into its {size} bytes|must be at most"):
            Manifest(arrays, (), {}, (Shard("00000", held, size, "0" * 64),))
    if samples > 2**40:
        with pytest.raises(InputError, match="shards: .* samples in all must be at most 1099511627776"):
            Manifest(arrays, (), {}, tuple(Shard(f"{n}", samples // 4, 2**63 - 1, "0" * 64) for n in range(4)))


def test_parts_are_checked_where_they_are_made():
    with pytest.raises(InputError, match="zero_point_ab: nan must be a number from -100 to 100"):
        Band("g", 480.0, 100.0, NAN, 0.2, 3.0, 1.0, 0.8)
    with pytest.raises(InputError, match="max: None must be a positive integer"):
        Array("frames", "float16", (None, 4, 6))
    with pytest.raises(InputError, match="a variable array makes its own frames_mask"):
        Manifest({n: Array("x", "uint8", (None,), max=2) for n in ("frames", "frames_mask")}, (), {})
    with pytest.raises(InputError, match="use only letters"):
        Manifest({"a.b": Array("x", "uint8", (2,))}, (), {})


def test_a_dataset_needs_neither_bands_nor_images():
    arrays = {"image": Array("image", "float16", (4, 8, 8)), "row": Array("vector", "float32", (4,), "index")}
    assert Manifest(arrays, (), {"target": Column("float32")}).samples == 0
