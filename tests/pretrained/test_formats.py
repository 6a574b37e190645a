"""Files are read to the bit or refused in a sentence; nothing in them runs."""

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest

from jaxz.errors import InputError
from jaxz.pretrained.formats import open_checkpoint
from tests.pretrained.files import FIXTURES, dinov2, needs_fixtures, write_safetensors

PTH = FIXTURES / "pth_formats"
GOOD = ("good_zip", "good_legacy_nonzip", "good_nested_with_namespace", "good_with_metadata")
BAD = ("bad_reduce_legacy", "bad_reduce_zip", "bad_short_storage", "bad_truncated", "bad_whole_module")


def expected(metadata: bool) -> dict[str, np.ndarray]:
    with np.load(PTH / "expected.npz") as file:
        return {k.removeprefix("metadata/"): file[k] for k in file.files if k.startswith("metadata/") == metadata}


def values(path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name]) for name in wanted
    )


@needs_fixtures
@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_pth_is_read_to_the_bit(name):
    assert same(values(PTH / f"{name}.pth"), expected(name == "good_with_metadata"))


@needs_fixtures
@pytest.mark.parametrize("name", [*(f"{name}.pth" for name in BAD), "bad_index_traversal"])
def test_bad_files_are_refused_and_run_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        values(PTH / name)
    assert not list(tmp_path.iterdir())  # the bad ones would make a directory


def mutations(content: bytes, rng, count: int, end: int | None = None):
    """`content` with one to three bytes changed, one in ten cut short."""
    for n in range(count):
        changed = bytearray(content)
        for at in rng.integers(0, end or len(content), rng.integers(1, 4)):
            changed[at] ^= int(rng.integers(1, 256))
        yield bytes(changed[: rng.integers(0, len(content))] if n % 10 == 0 else changed)


@needs_fixtures
def test_mutated_zip_files_load_equal_or_are_refused(tmp_path):
    wanted, refused = expected(False), 0
    path = tmp_path / "mutated.pth"
    for content in mutations((PTH / "good_zip.pth").read_bytes(), np.random.default_rng(0), 250):
        path.write_bytes(content)
        try:
            assert same(values(path), wanted)
        except InputError:
            refused += 1
    assert 100 < refused < 250


def test_safetensors_with_mutated_headers_load_equal_or_are_refused(tmp_path):
    """The format has no checksum of its data. What is renamed or retyped is refused where it would be used."""
    wanted = {name: array for name, array in dinov2(depth=1).items() if array.ndim == 1}
    path = write_safetensors(tmp_path / "whole.safetensors", wanted)
    content, refused = path.read_bytes(), 0
    header = 8 + int.from_bytes(content[:8], "little")
    for changed in mutations(content, np.random.default_rng(1), 250, header):
        path.write_bytes(changed)
        try:
            tensors = open_checkpoint(path).tensors
        except InputError:
            refused += 1
            continue
        kept = {name: tensor for name, tensor in tensors.items() if name in wanted and tensor.dtype == "F32"}
        assert all(np.array_equal(tensor.read(), wanted[name]) for name, tensor in kept.items())
    assert refused > 150


@needs_fixtures
def test_mutated_legacy_files_never_reach_past_a_storage(tmp_path):
    path = tmp_path / "mutated.pth"
    for content in mutations((PTH / "good_legacy_nonzip.pth").read_bytes(), np.random.default_rng(2), 100):
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            assert sum(array.nbytes for array in values(path).values()) <= 2 * len(content)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, 1 << 40]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"w": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}},
        {
            "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        [],
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(header, tmp_path):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(InputError):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="header"):
        open_checkpoint(tmp_path)


def pth(path, pickle: bytes, **storages: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickle, **{f"data/{k}": v for k, v in storages.items()}}.items():
            archive.writestr(f"m/{name}", content)
    return path


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"


def pickled(shape: bytes, stride: bytes) -> bytes:
    """{"w": tensor} of a storage "0" with one number, by hand."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00" + shape + stride + b"\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """One number can be expanded, with a stride of 0, to any size."""
    one = pth(tmp_path / "one.pth", pickled(b"K\x03\x85", b"K\x00\x85"), **{"0": np.float32(7).tobytes()})
    np.testing.assert_array_equal(values(one)["w"], [7, 7, 7])
    huge = pickled(b"J\x00\x00\x00\x40J\x00\x00\x00\x40\x86", b"K\x00K\x00\x86")
    with pytest.raises(InputError, match="larger than its file"):
        open_checkpoint(pth(tmp_path / "huge.pth", huge, **{"0": b"\0\0\0\0"}))


def test_a_storage_that_claims_more_than_the_file_has_is_refused_before_it_is_read(tmp_path):
    """Of a storage of 4 GB, as the archive's directory has it, the tensor is one number."""
    one = b"K\x01tQ"
    pickle = pickled(b"K\x01\x85", b"K\x01\x85").replace(one, b"J\xf8\xff\xff\x3ftQ")
    path = pth(tmp_path / "long.pth", pickle, **{"0": np.float32(7).tobytes()})
    content = bytearray(path.read_bytes())
    sizes = content.rfind(b"m/data/0") - 46 + 20  # in the directory's header
    content[sizes : sizes + 8] = (4 * 0x3FFFFFF8).to_bytes(4, "little") * 2
    path.write_bytes(content)
    [tensor] = open_checkpoint(path).tensors.values()
    with pytest.raises(InputError, match="longer than the file"):
        tensor.read()


def test_a_pickle_cannot_ask_for_memory(tmp_path):
    """CPython's unpickler makes room for 2^31 memo entries where a pickle names the last."""
    content = b"\x80\x02}r\xff\xff\xff\x7f."
    with pytest.raises(InputError, match="no state dict"):
        open_checkpoint(pth(tmp_path / "memo.pth", content))


def test_a_dict_that_holds_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="Recursion"):
        open_checkpoint(pth(tmp_path / "own.pth", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."))


@pytest.mark.parametrize(
    "shape, stride",
    [
        (b"K\x01\x85", b"\x8a\x08" + (1 << 60).to_bytes(8, "little") + b"\x85"),
        (b"K\x00\x8a\x08" + (1 << 60).to_bytes(8, "little") + b"\x86", b"K\x01K\x01\x86"),
        (b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x00" * 65 + b"t"),
    ],
)
def test_a_shape_that_numpy_cannot_have_is_refused(tmp_path, shape, stride):
    """Though no number of it lies outside of its storage."""
    with pytest.raises(InputError, match="shape"):
        open_checkpoint(pth(tmp_path / "odd.pth", pickled(shape, stride), **{"0": b"\0\0\0\0"}))


def test_shards_must_hold_what_the_index_says(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"v": np.ones(2, np.float32)})
    write_safetensors(tmp_path / "b.safetensors", {"w": np.zeros(3, np.float32)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}))
    assert same(values(tmp_path), {"v": np.ones(2, np.float32), "w": np.zeros(3, np.float32)})
    for wrong in (
        {"v": "a.safetensors"},
        {"v": "a.safetensors", "w": "a.safetensors"},
        {"v": "../a.safetensors"},
        {"v": "a.safetensors", "w": "c.safetensors"},
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        if len(wrong) == 1 and "a.safetensors" in wrong.values():
            assert same(values(tmp_path), {"v": np.ones(2, np.float32)})  # files that it does not name are no part
        else:
            with pytest.raises(InputError):
                open_checkpoint(tmp_path)


def test_compressed_archives_are_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}." + b"\0" * 100_000)
    (tmp_path / "m.pth").write_bytes(content.getvalue())
    with pytest.raises(InputError, match="compressed"):
        open_checkpoint(tmp_path / "m.pth")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match="not there"):
        open_checkpoint(tmp_path / "none.pth")
    with pytest.raises(InputError, match="has none of model.safetensors"):
        open_checkpoint(tmp_path)
