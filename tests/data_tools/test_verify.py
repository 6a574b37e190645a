"""Damage of every kind is found, and said where; a clean dataset passes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import checks, inspect, verify
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.helpers import blobs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("clean") / "dataset", samples=30, shards=3)


@pytest.fixture
def dataset(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "dataset")


def check(dataset: Path, capsys, *more: str) -> tuple[int, list[str]]:
    code = verify.main([str(dataset), *more]) or 0
    return code, capsys.readouterr().out.splitlines()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def change_index(path: Path, change) -> None:
    index = pq.read_table(path)
    pq.write_table(change(index).replace_schema_metadata(index.schema.metadata), path)


def test_clean_dataset(dataset, capsys):
    assert check(dataset, capsys) == (0, [])
    assert check(dataset, capsys, "--sizes") == (0, [])


def test_truncated_shard_says_where_and_how_many(dataset, capsys):
    path = dataset / "shards/00001.tar"
    offsets, sizes, _ = open_dataset(dataset).places(1, "image")
    full = path.stat().st_size
    size = int(offsets[4] + sizes[4] - 1)  # the fifth image lacks its last byte
    path.write_bytes(path.read_bytes()[:size])
    expected = f"shards/00001.tar: {size} bytes, dataset.json says {full}; cut at offset {size}: "
    expected += "6 of 10 samples lost, from 'blob000014' on"
    assert check(dataset, capsys, "--sizes") == (1, [expected])
    code, lines = check(dataset, capsys)
    assert code == 1 and lines[0] == expected
    first = f"shards/00001.tar: image: 6 of 10 samples .* 'blob000014' at offset {offsets[4]} to 'blob000019'"
    assert any(re.match(first, line) for line in lines) and all(line.startswith("shards/00001") for line in lines)


def test_flipped_byte_of_a_payload_names_the_sample(dataset, capsys):
    offsets, _, _ = open_dataset(dataset).places(2, "image")
    flip(dataset / "shards/00002.tar", int(offsets[7]) + 100)
    assert check(dataset, capsys, "--sizes") == (0, [])
    code, (digest, payload) = check(dataset, capsys)
    assert code == 1 and digest.startswith("shards/00002.tar: sha256 is")
    assert payload.startswith("shards/00002.tar: image: 1 of 10 samples")
    assert payload.endswith(f"'blob000027' at offset {offsets[7]}")


def test_flipped_bytes_outside_of_payloads(dataset, capsys):
    offsets, sizes, _ = open_dataset(dataset).places(0, "image")
    path = dataset / "shards/00000.tar"
    meta = path.read_bytes().index(b'"ebv"', int(offsets[3] + sizes[3]))  # the member after image is meta.json
    flip(path, meta + 1)
    _, lines = check(dataset, capsys)
    assert len(lines) == 2 and re.search(r"sample 3 of 10, 'blob000003', at offset \d+: meta.json is not a", lines[1])
    flip(path, meta + 1)
    assert check(dataset, capsys) == (0, [])
    name = path.read_bytes().index(b"blob000005.image.npy")
    flip(path, name + 5)  # a tar header no longer adds up
    _, lines = check(dataset, capsys)
    assert len(lines) == 2 and "members, the index says 20" in lines[1]


def test_missing_shard_and_missing_index(dataset, capsys):
    (dataset / "shards/00000.tar").unlink()
    (dataset / "index/00002.parquet").unlink()
    for more in ((), ("--sizes",)):
        code, lines = check(dataset, capsys, *more)
        assert code == 1 and len(lines) == 2
        assert lines[0] == "shards/00000.tar: No such file or directory; all 10 samples lost"
        assert lines[1].startswith("index/00002.parquet: cannot be read")


def test_a_folder_in_place_of_a_tar(dataset, capsys):
    (dataset / "shards/00000.tar").unlink()
    (dataset / "shards/00000.tar").mkdir()
    flip(dataset / "shards/00002.tar", 5000)
    code, lines = check(dataset, capsys)
    assert code == 1 and lines[0] == "shards/00000.tar: not a file; all 10 samples lost"
    assert all(line.startswith("shards/00002.tar") for line in lines[1:]) and len(lines) > 1
    assert check(dataset, capsys, "--sizes") == (1, lines[:1])


def failing(function, path: Path, change):
    """function, but at its first use on a file of this path, change() comes before."""
    changes = [change]

    def call(file, *more):
        if Path(file if isinstance(file, Path) else file.name) == path and changes:
            changes.pop()()
        return function(file, *more)

    return call


@pytest.mark.parametrize("function", ["sha256_of", "read", "walk"])
def test_a_tar_that_is_cut_while_it_is_checked(function, dataset, capsys, monkeypatch):
    path = dataset / "shards/00001.tar"
    cut = failing(getattr(checks, function), path, lambda: os.truncate(path, 8000))
    monkeypatch.setattr(checks, function, cut)
    code, lines = check(dataset, capsys)
    assert code == 1 and lines and all(line.startswith("shards/00001.tar: ") for line in lines)


@pytest.mark.parametrize("function", ["sha256_of", "read"])
def test_a_tar_that_cannot_be_read_stops_its_own_shard_alone(function, dataset, capsys, monkeypatch):
    def stop():
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    path, whole = dataset / "shards/00001.tar", getattr(checks, function)
    flip(dataset / "shards/00002.tar", int(open_dataset(dataset).places(2, "image")[0][7]) + 100)
    said = "shards/00001.tar: cannot be read (No such device or address); all 10 samples out of reach"
    monkeypatch.setattr(checks, function, failing(whole, path, stop))
    code, lines = check(dataset, capsys)
    assert code == 1 and lines[0] == said and len(lines) == 3
    monkeypatch.setattr(checks, function, failing(whole, path, stop))
    assert check(dataset, capsys, "--repair")[0] == 0
    assert json.loads((dataset / "quarantine.json").read_text())["shards"] == {"00001": "all", "00002": [7]}


def member(size: bytes, kind: bytes = b"0") -> bytes:
    """The header of a tar's member whose size is stored in these bytes."""
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "header",
    [
        member(b"\xff" * 10 + b"\xfe\x00"),  # -512: the next member is this one
        member(b"\xff" * 10 + b"\xf6\x00"),
        member(b"\x80" + b"\x7f" * 11),
        member(b"\x80" + b"\x7f" * 11, b"L"),
        member(b"\xff" * 10 + b"\xfe\x00", b"S"),
        member(b"%011o\0" % 512, b"L") * 3000,
    ],
    ids=["negative", "more negative", "huge", "huge name", "sparse", "names of names"],
)
def test_a_member_of_a_size_that_no_writer_writes_ends_the_walk(header, dataset, capsys):
    path = dataset / "shards/00001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:2560] + header + content[2560 + len(header) :] + bytes(10240))
    with open(path, "rb") as file:
        members, error = checks.walk(file)
    assert len(members) <= 2 and error
    code, lines = check(dataset, capsys)
    assert code == 1 and lines


def test_stale_index(dataset, capsys, tmp_path):
    """Shards written again with other content, one index left from before."""
    other = blobs(tmp_path / "other", samples=30, shards=3, seed=1)
    shutil.copy(other / "index/00001.parquet", dataset / "index/00001.parquet")
    code, lines = check(dataset, capsys)
    assert code == 1 and all("/00001." in line for line in lines)
    assert lines[0].startswith("index/00001.parquet: stale")
    assert any("10 of 10 samples do not have the checksum" in line for line in lines)


def test_index_with_a_row_or_a_column_less(dataset, capsys):
    change_index(dataset / "index/00000.parquet", lambda index: index.slice(0, 9))
    change_index(dataset / "index/00001.parquet", lambda index: index.drop_columns(["ebv"]))
    code, lines = check(dataset, capsys)
    assert code == 1
    assert "index/00000.parquet: 9 rows, dataset.json says 10" in lines
    assert "shards/00000.tar: 20 members, the index says 18" in lines
    assert any("index/00001.parquet: column 'ebv' is missing" in line for line in lines)
    assert check(dataset, capsys, "--sizes") == (1, ["index/00000.parquet: 9 rows, dataset.json says 10"])


def test_index_that_differs_from_the_tar(dataset, capsys):
    def rename(index):
        keys = index["key"].to_pylist()
        keys[2] = "blob000003"
        return index.set_column(0, "key", pa.array(keys))

    change_index(dataset / "index/00000.parquet", rename)
    _, lines = check(dataset, capsys)
    assert "the tar holds 'blob000002.image.npy', the index says blob000003.image.npy" in lines[0]
    assert lines[1].startswith("index/00000.parquet: 1 of 10 samples have keys that stand before them in the dataset; ")
    assert lines[1].endswith("first: 'blob000003' of sample 3, which shard 00000 has")


def test_an_offset_that_points_into_the_header(dataset, capsys):
    def move(index):
        offsets = index["image_offset"].to_pylist()
        offsets[6] -= 512
        return index.set_column(index.column_names.index("image_offset"), "image_offset", pa.array(offsets))

    change_index(dataset / "index/00001.parquet", move)
    _, lines = check(dataset, capsys)
    assert len(lines) == 2 and "image: 1 of 10 samples" in lines[0]
    assert "sample 6 of 10, 'blob000016'" in lines[1] and "outside of its member" in lines[1]


def replace_column(name: str, change):
    """A change of an index: column `name` becomes change(its values as a list)."""

    def apply(index):
        return index.set_column(index.column_names.index(name), name, pa.array(change(index[name].to_pylist())))

    return apply


DAMAGE = {
    "null": ("image_offset", lambda v: [None, *v[1:]], "'image_offset' lacks 1 values"),
    "text": ("image_size", lambda v: [str(x) for x in v], "'image_size' holds string, dataset.json says int64"),
    "floats": ("image_crc32", lambda v: [float(x) for x in v], "'image_crc32' holds double, dataset.json says uint32"),
    "keys": ("key", lambda v: [None, None, *v[2:]], "'key' lacks 2 values"),
    "scalars": ("ebv", lambda v: [[x] for x in v], "'ebv' holds list<.*, dataset.json says float"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_index_columns_of_another_kind_are_one_sentence_each(case, dataset, capsys):
    name, change, said = DAMAGE[case]
    change_index(dataset / "index/00001.parquet", replace_column(name, change))
    code, lines = check(dataset, capsys)
    assert code == 1 and len(lines) == 1 and re.match(f"index/00001.parquet: column {said}", lines[0])
    shard = dataset / "shards/00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])  # whatever the index holds, the tar is looked at
    code, lines = check(dataset, capsys)
    assert code == 1 and any("sha256 is" in line for line in lines)
    assert check(dataset, capsys, "--sizes")[0] == 1


def test_scalars_and_sizes_that_no_writer_writes(dataset, capsys):
    infinite = replace_column("ebv", lambda v: pa.array([float("inf"), *v[1:]], pa.float32()))
    change_index(dataset / "index/00000.parquet", infinite)
    change_index(dataset / "index/00002.parquet", replace_column("image_size", lambda v: [*v[:-1], v[-1] - 1]))
    _, (scalars, sizes, *_) = check(dataset, capsys)
    assert "sample 0 of 10" in scalars and "meta.json is not a copy" in scalars
    assert re.match(r"shards/00002.tar: image: the index says 1535 bytes where shape \(3, 16, 16\)", sizes)


@pytest.fixture
def with_vectors(tmp_path):
    """A dataset with an array of two floats, and one of two whole numbers, that live in its index."""
    arrays = {
        "times": Array("vector", "float32", (2,), encoding="index"),
        "bits": Array("vector", "int16", (1, 2), encoding="index"),
    }
    writer = DatasetWriter(tmp_path / "vectors", Manifest(arrays, (), {"n": Column("int64")}), plan={})
    content = {"times": np.arange(6, dtype=np.float32).reshape(3, 2), "bits": np.ones((3, 1, 2), np.int16)}
    writer.write_shard(0, ["a", "b", "c"], content, {"n": np.arange(3)})
    writer.finish(1, {})
    return tmp_path / "vectors"


LISTS = {
    "short": ([[0.0], [1.0], [2.0]], 1, "column 'times' holds fixed_size_list<.*>\\[1\\], dataset.json says .*\\[2\\]"),
    "no value": ([[0.0, 1.0], None, [4.0, 5.0]], 2, "column 'times' lacks 1 values"),
    "NaN": ([[0.0, 1.0], [2.0, float("nan")], [4.0, 5.0]], 2, "times: 1 of 3 samples hold NaN, .* first: 'b'"),
    "half": ([[0.0, 1.0], [2.0, 3.0], [None, 5.0]], 2, "times: 1 of 3 samples hold NaN, .* first: 'c'"),
}


@pytest.mark.parametrize("case", LISTS)
def test_arrays_of_the_index(case, with_vectors, capsys):
    assert check(with_vectors, capsys) == (0, [])
    values, length, said = LISTS[case]
    change = replace_column("times", lambda _: pa.array(values, pa.list_(pa.float32(), length)))
    change_index(with_vectors / "index/00000.parquet", change)
    code, lines = check(with_vectors, capsys)
    assert code == 1 and len(lines) == 1 and re.match(f"index/00000.parquet: {said}", lines[0])


def test_a_dataset_without_shards_is_refused_by_verify_and_inspect(clean, tmp_path):
    manifest = json.loads((clean / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "shards": []}))
    for tool in (verify, inspect):
        with pytest.raises(InputError, match=r"dataset '.*' has no shards; convert it again"):
            tool.main([str(tmp_path)])


def test_shards_that_the_manifest_does_not_know(dataset, capsys):
    shutil.copy(dataset / "shards/00000.tar", dataset / "shards/00003.tar")
    assert check(dataset, capsys) == (1, ["shards/00003.tar: not in dataset.json"])


def test_what_is_no_dataset_ends_with_2(dataset, tmp_path):
    with pytest.raises(InputError, match=r"has no readable dataset\.json"):
        verify.main([str(tmp_path / "nowhere")])
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    command = [sys.executable, "-m", "data_tools.verify", str(dataset)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "schema_version 99" in ended.stderr and "Traceback" not in ended.stderr
