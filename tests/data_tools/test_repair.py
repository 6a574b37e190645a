"""What --repair rebuilds is what the writer wrote, byte for byte; what it cannot rebuild it lists, and no more."""

import hashlib
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools import verify
from jaxz.data.dataset import open_dataset
from jaxz.data.index import read_index, shard_of, to_parquet
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.stream import Source, Stream
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from tests.data_tools.test_verify import flip
from tests.helpers import blobs


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("clean") / "dataset", samples=30, shards=3)


@pytest.fixture
def dataset(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "dataset")


def run(dataset: Path, capsys, *more: str) -> tuple[int, list[str], str]:
    """Exit code, the lines of stdout and the last line of stderr."""
    code = verify.main([str(dataset), *more]) or 0
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()[-1].removeprefix(f"{dataset}: ")


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}


def listed(dataset: Path) -> dict:
    return json.loads((dataset / "quarantine.json").read_text())["shards"]


def change_column(path: Path, name: str, change) -> None:
    """A value of the index that its checksums do not contradict."""
    index = read_index(path)
    values = pa.array(change(index[name].to_pylist()), index[name].type)
    path.write_bytes(to_parquet(index.set_column(index.column_names.index(name), name, values), shard_of(index)))


INDEX_DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": lambda path: flip(path, 60),
    "offset": lambda path: change_column(path, "image_offset", lambda v: [v[0] + 4, *v[1:]]),
    "label": lambda path: change_column(path, "z", lambda v: [0.5, *v[1:]]),
    "key": lambda path: change_column(path, "key", lambda v: [v[1], *v[1:]]),
    "of another shard": lambda path: shutil.copy(path.with_name("00002.parquet"), path),
}


@pytest.mark.parametrize("case", INDEX_DAMAGE)
def test_an_index_is_rebuilt_from_its_tar_byte_for_byte(case, dataset, clean, capsys):
    path = dataset / "index/00001.parquet"
    INDEX_DAMAGE[case](path)
    before = files(dataset)
    assert run(dataset, capsys)[0] == 1 and files(dataset) == before  # without --repair nothing is written
    code, lines, summary = run(dataset, capsys, "--repair")
    assert code == 0 and len(lines) == 1 and lines[0].startswith("rebuilt: index/00001.parquet, from its tar")
    assert summary == "30 samples in 3 shards: 1 file rebuilt, no problem found"
    kept = [value for name, value in files(dataset).items() if name.endswith(".bak")]
    assert kept == [before[name] for name in ["index/00001.parquet"] if name in before]
    assert {name: value for name, value in files(dataset).items() if not name.endswith(".bak")} == files(clean)
    assert run(dataset, capsys) == (0, [], "30 samples in 3 shards: no problem found")


def tar_damage(tar: Path, dataset: Path) -> dict:
    """{name: a change of the tar that leaves every payload whole}"""
    offset = int(open_dataset(dataset).places(1, "image")[0][4])
    return {
        "header": lambda: flip(tar, offset - 600),
        "header of the array": lambda: flip(tar, offset - 100),
        "copy of the scalars": lambda: flip(tar, tar.read_bytes().index(b'"ebv"', offset) + 1),
        "garbage": lambda: tar.write_bytes(tar.read_bytes() + b"x" * 700),
        "end of the archive": lambda: tar.write_bytes(tar.read_bytes()[:-1024]),
    }


@pytest.mark.parametrize(
    "case", ["header", "header of the array", "copy of the scalars", "garbage", "end of the archive"]
)
def test_a_tar_with_whole_payloads_is_rebuilt_byte_for_byte(case, dataset, clean, capsys):
    tar_damage(dataset / "shards/00001.tar", dataset)[case]()
    assert run(dataset, capsys)[0] == 1
    code, lines, _ = run(dataset, capsys, "--repair")
    assert code == 0 and len(lines) == 1 and lines[0].startswith("rebuilt: shards/00001.tar, from its index and paylo")
    assert files(dataset) == files(clean)


def test_a_compact_dataset_is_mended_as_a_raw_one_is(tmp_path, capsys):
    whole = blobs(tmp_path / "whole", samples=30, shards=3, fill=3e4, encoding="compact")
    assert run(whole, capsys)[0] == 0
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "index/00000.parquet").unlink()
    tar_damage(copy / "shards/00001.tar", copy)["copy of the scalars"]()
    code, lines, _ = run(copy, capsys, "--repair")
    assert code == 0 and [line.split(",")[0] for line in lines] == [
        "rebuilt: index/00000.parquet",
        "rebuilt: shards/00001.tar",
    ]
    assert files(copy) == files(whole)
    change_column(copy / "index/00002.parquet", "image_exceptions", lambda v: [v[0] + 1, *v[1:]])
    _, lines, _ = run(copy, capsys)
    assert any("1 of 10 samples cannot be decoded as the index says: 'blob000020'" in line for line in lines)
    assert run(copy, capsys, "--repair")[0] == 0
    assert {name: value for name, value in files(copy).items() if not name.endswith(".bak")} == files(whole)
    flip_payload(copy)
    (offset, *_), (size, *_), _ = open_dataset(copy).places(0, "image")
    content = bytearray((copy / "shards/00000.tar").read_bytes())
    content[offset + 8 : offset + 12] = b"\xff" * 4  # exceptions without end, with the checksum that they then have
    (copy / "shards/00000.tar").write_bytes(content)
    crc = zlib.crc32(content[offset : offset + size])
    change_column(copy / "index/00000.parquet", "image_crc32", lambda v: [crc, *v[1:]])
    code, lines, _ = run(copy, capsys, "--repair")
    assert code == 0 and any("cannot be decoded as the index says: 'blob000000'" in line for line in lines)
    assert listed(copy) == {"00000": [0], "00001": [3]}


def test_a_tar_that_cannot_be_proved_right_is_kept_as_it_is(dataset, capsys):
    """Two damages in one shard: the payload is lost, so that no sha256 can vouch for the copy of the scalars."""
    tar = dataset / "shards/00001.tar"
    offset = int(open_dataset(dataset).places(1, "image")[0][4])
    flip(tar, offset)
    flip(tar, tar.read_bytes().index(b'"ebv"', int(open_dataset(dataset).places(1, "image")[0][7])) + 1)
    before = tar.read_bytes()
    code, lines, _ = run(dataset, capsys, "--repair")
    assert code == 0 and len(lines) == 1 and lines[0].startswith("quarantined: shard 00001: 2 of 10 samples")
    assert listed(dataset) == {"00001": [4, 7]} and tar.read_bytes() == before


def cut(dataset: Path) -> list[int]:
    tar, offset = dataset / "shards/00001.tar", int(open_dataset(dataset).places(1, "image")[0][6])
    tar.write_bytes(tar.read_bytes()[: offset - 640])  # where the member begins
    return [6, 7, 8, 9]


def flip_payload(dataset: Path) -> list[int]:
    flip(dataset / "shards/00001.tar", int(open_dataset(dataset).places(1, "image")[0][3]) + 50)
    return [3]


def put_nan(dataset: Path) -> list[int]:
    """With the checksum that it has then."""
    tar, index = dataset / "shards/00001.tar", dataset / "index/00001.parquet"
    offset, content = int(open_dataset(dataset).places(1, "image")[0][8]), bytearray(tar.read_bytes())
    content[offset + 20 : offset + 22] = np.float16(np.nan).tobytes()
    tar.write_bytes(content)
    crc = zlib.crc32(content[offset : offset + 3 * 16 * 16 * 2])
    change_column(index, "image_crc32", lambda v: [*v[:8], crc, v[9]])
    return [8]


def swap(dataset: Path) -> list[int]:
    tar, places = dataset / "shards/00001.tar", open_dataset(dataset).places(1, "image")
    content, (a, b) = bytearray(tar.read_bytes()), (slice(int(places[0][n]), int(places[0][n]) + 1536) for n in (2, 5))
    content[a], content[b] = content[b], content[a]
    tar.write_bytes(content)
    return [2, 5]


def empty(dataset: Path) -> str:
    (dataset / "shards/00001.tar").write_bytes(b"")
    return "all"


def remove(dataset: Path) -> str:
    (dataset / "shards/00001.tar").unlink()
    return "all"


def lose_both(dataset: Path) -> str:
    flip_payload(dataset)
    (dataset / "index/00001.parquet").unlink()
    return "all"


@pytest.mark.parametrize("damage", [cut, flip_payload, put_nan, swap, empty, remove, lose_both])
def test_what_cannot_be_rebuilt_is_listed_and_no_more(damage, dataset, clean, capsys):
    rows = damage(dataset)
    code, problems, _ = run(dataset, capsys)
    assert code == 1 and any(re.match(r"shards/00001.tar: ", line) for line in problems)
    code, lines, summary = run(dataset, capsys, "--repair")
    count = 10 if rows == "all" else len(rows)
    said = f"30 samples in 3 shards: {count} sample{'s' * (count != 1)} of 1 shard quarantined, no other problem found"
    assert code == 0 and summary == said and listed(dataset) == {"00001": rows}
    assert len(lines) == 1 and lines[0].startswith(f"quarantined: shard 00001: {count} of 10 samples: ")
    after = files(dataset)
    assert run(dataset, capsys, "--repair") == (0, lines, said) and files(dataset) == after  # a second time: nothing
    assert run(dataset, capsys) == (0, lines, said)
    assert run(dataset, capsys, "--sizes") == (0, lines, said)
    opened, truth = open_dataset(dataset), open_dataset(clean)
    out = list(range(10, 20)) if rows == "all" else [10 + row for row in rows]
    batches = list(Stream(Source(opened), 30 - len(out), epochs=1, check="crc"))
    assert sorted(row for batch in batches for row in batch["row"]) == sorted({*range(30)} - {*out})
    for batch in batches:
        for row, image in zip(batch["row"], batch["image"], strict=True):
            np.testing.assert_array_equal(image, truth.cutout(int(row))["image"])
    for folder in ("shards", "index"):  # the shard comes back
        shutil.copytree(clean / folder, dataset / folder, dirs_exist_ok=True)
    code, lines, _ = run(dataset, capsys)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("quarantine.json: the files of shard 00001 are not")
    assert run(dataset, capsys, "--repair") == (0, [], "30 samples in 3 shards: no problem found")
    assert not (dataset / "quarantine.json").exists() and files(dataset) == files(clean)


def test_new_damage_beside_what_is_listed_is_a_problem(dataset, capsys):
    flip_payload(dataset)
    run(dataset, capsys, "--repair")
    flip(dataset / "shards/00002.tar", int(open_dataset(dataset).places(2, "image")[0][0]))
    code, lines, _ = run(dataset, capsys)
    assert code == 1 and lines[0].startswith("quarantined: shard 00001: 1 of 10")
    assert len(lines) == 3 and all(line.startswith("shards/00002.tar") for line in lines[1:])
    tar = dataset / "shards/00001.tar"
    tar.write_bytes(tar.read_bytes()[:-5000])
    assert any(line.startswith("quarantine.json: the files of shard 00001") for line in run(dataset, capsys)[1])
    assert run(dataset, capsys, "--sizes")[0] == 1


def test_a_key_is_lost_where_it_comes_again(tmp_path, capsys):
    """Within a shard and across shards; written by something that does not look."""
    path, manifest = tmp_path / "d", Manifest({"a": Array("v", "int8", (2,))}, (), {"n": Column("int64")})
    writer = DatasetWriter(path, manifest, plan={})
    for n, keys in enumerate((["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6", "k7", "k8"])):
        writer.write_shard(n, keys, {"a": np.zeros((3, 2), np.int8)}, {"n": np.arange(3)})
    writer.finish(3, {})
    raw = json.loads((path / "dataset.json").read_text())
    for n, again in ((0, {"k2": "k0"}), (2, {"k7": "k4", "k8": "k0"})):
        tar = path / f"shards/{n:05d}.tar"
        content = tar.read_bytes()
        for old, new in again.items():
            for member in ("a.npy", "meta.json"):
                content = rename(content, f"{old}.{member}", f"{new}.{member}")
        tar.write_bytes(content)
        raw["shards"][n]["sha256"] = hashlib.sha256(content).hexdigest()
        (path / f"index/{n:05d}.parquet").unlink()
    (path / "dataset.json").write_text(json.dumps(raw))
    code, lines, summary = run(path, capsys, "--repair")
    assert code == 0 and summary.startswith("9 samples in 3 shards: 2 files rebuilt, 3 samples of 2 shards quarantined")
    assert listed(path) == {"00000": [2], "00002": [1, 2]}
    assert any(
        "1 of 3 samples have keys that stand before them" in line and "'k0' of sample 2" in line for line in lines
    )
    assert any("2 of 3 samples" in line and "'k4' of sample 1, which shard 00001 has" in line for line in lines)


def rename(content: bytes, old: str, new: str) -> bytes:
    """The tar with another name of the same length in a member's header, whose sum of bytes is mended."""
    at = content.index(old.encode() + b"\0")
    header = bytearray(content[at : at + 512])
    header[: len(new)] = new.encode()
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


def replaced(old: bytes, new: bytes):
    """A change of a tar: the first such bytes become as many others."""
    assert len(old) == len(new)
    return lambda content: content.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (replaced(b'{"split', b'["split'), "blob000000.meta.json is no JSON"),
        (replaced(b'"ebv"', b'"evb"'), "blob000000.meta.json has other columns than dataset.json"),
        (replaced(b'"object_id": 0', b'"object_id":""'), "its meta.json do not hold int64"),
        (replaced(b"'<f2'", b"'<i2'"), "blob000000.image is not the array of dataset.json \\(int16 \\(3, 16, 16\\)"),
        (lambda tar: rename(tar, "blob000000.meta.json", "blob000000.beta.json"), "other members than .*'blob000000'"),
        (lambda tar: tar[: len(tar) // 2 // 512 * 512] + bytes(10240), "its tar has .* members, not 20"),
    ],
)
def test_an_index_is_not_made_of_a_tar_that_holds_something_else(change, why, dataset, capsys):
    """One that dataset.json was sealed over, by another writer."""
    tar, manifest = dataset / "shards/00000.tar", json.loads((dataset / "dataset.json").read_text())
    content = change(tar.read_bytes())
    assert content != tar.read_bytes()
    tar.write_bytes(content)
    manifest["shards"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (dataset / "dataset.json").write_text(json.dumps(manifest))
    (dataset / "index/00000.parquet").unlink()
    _, lines, _ = run(dataset, capsys, "--repair")
    assert any(re.search(f"shard 00000 cannot be rebuilt: .*{why}", line) for line in lines), lines
    assert listed(dataset) == {"00000": "all"} and not (dataset / "index/00000.parquet").exists()


def test_arrays_that_live_in_the_index_cannot_be_rebuilt(tmp_path, capsys):
    arrays = {"times": Array("vector", "float32", (2,), encoding="index"), "a": Array("vector", "int8", (3,))}
    writer = DatasetWriter(tmp_path / "d", Manifest(arrays, (), {"n": Column("int64")}), plan={})
    for n in range(2):
        content = {"times": np.zeros((3, 2), np.float32), "a": np.ones((3, 3), np.int8)}
        writer.write_shard(n, [f"s{n}{i}" for i in range(3)], content, {"n": np.arange(3)})
    writer.finish(2, {})
    change_column(tmp_path / "d/index/00001.parquet", "times", lambda v: [v[0], [0.0, float("nan")], v[2]])
    assert run(tmp_path / "d", capsys, "--repair")[0] == 0 and listed(tmp_path / "d") == {"00001": [1]}
    (tmp_path / "d/index/00000.parquet").unlink()
    code, lines, _ = run(tmp_path / "d", capsys, "--repair")
    assert code == 0 and listed(tmp_path / "d") == {"00000": "all", "00001": [1]}
    assert "shard 00000 cannot be rebuilt: array 'times' stands in the index alone" in lines[0]
    batches = Stream(Source(open_dataset(tmp_path / "d")), 2, epochs=1, shuffle=False)
    assert [batch["row"].tolist() for batch in batches] == [[3, 5]]


def test_values_of_every_kind_come_back(tmp_path, capsys):
    """Missing ones too: of floats NaN, of text and whole numbers null."""
    columns = {
        "f2": "float16",
        "f4": "float32",
        "f8": "float64",
        "i": "int64",
        "u": "uint8",
        "b": "bool",
        "t": "string",
    }
    arrays = {"v": Array("frames", "float32", (None, 2), max=4), "m": Array("mask", "bool", (2, 2))}
    manifest = Manifest(arrays, (), {name: Column(kind) for name, kind in columns.items()})
    writer = DatasetWriter(tmp_path / "d", manifest, plan={})
    values = {name: np.array([0.1, np.nan, 65504, -3e-7]).astype(kind) for name, kind in columns.items() if "f" in name}
    values |= {"i": pa.array([2**62 + 1, None, -1, 0]), "u": np.arange(4), "b": np.array([True, False, True, False])}
    values |= {"t": ["ä", None, "", '"x"\n']}
    content = {"v": [np.ones((k, 2), np.float32) for k in (0, 4, 1, 2)], "m": np.zeros((4, 2, 2), bool)}
    writer.write_shard(0, list("abcd"), content, values)
    writer.finish(1, {})
    before = files(tmp_path / "d")
    (tmp_path / "d/index/00000.parquet").unlink()
    assert run(tmp_path / "d", capsys, "--repair")[0] == 0 and files(tmp_path / "d") == before


def test_a_malformed_list_is_made_again_and_sizes_do_not_repair(dataset, capsys):
    flip_payload(dataset)
    (dataset / "quarantine.json").write_text("{")
    with pytest.raises(InputError, match=r"is not JSON"):
        run(dataset, capsys)
    assert run(dataset, capsys, "--repair")[0] == 0 and listed(dataset) == {"00001": [3]}
    with pytest.raises(InputError, match="leave out --sizes"):
        run(dataset, capsys, "--repair", "--sizes")


def test_strangers_stay_a_problem(dataset, capsys):
    shutil.copy(dataset / "shards/00000.tar", dataset / "shards/00003.tar")
    assert run(dataset, capsys, "--repair")[:2] == (1, ["shards/00003.tar: not in dataset.json"])
