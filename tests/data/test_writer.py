"""Writing: what a crash leaves can be completed, and every payload lies where the index says."""

import tarfile

import numpy as np
import pytest
import webdataset

from jaxz.data import writer as module
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import Array, Column, Manifest
from jaxz.data.writer import DatasetWriter, tar_header
from jaxz.errors import InputError
from tests.helpers import blobs

LONGEST = "n" * 32  # of an array's name


def make(path, name=LONGEST, plan=None) -> DatasetWriter:
    manifest = Manifest({name: Array("vector", "int16", (5,))}, (), {"z": Column("float32")})
    return DatasetWriter(path, manifest, plan={"a": 1} if plan is None else plan)


def write(writer: DatasetWriter, n: int, keys: list[str]) -> np.ndarray:
    [name] = writer.manifest.arrays
    values = np.arange(5 * len(keys), dtype=np.int16).reshape(-1, 5) + 100 * n
    writer.write_shard(n, keys, {name: values}, {"z": np.zeros(len(keys))})
    return values


def test_the_longest_names_fit_into_the_header_of_a_tar(tmp_path):
    keys = [c * 63 for c in "abc"]
    writer = make(tmp_path / "d")
    values = write(writer, 0, keys)
    writer.finish(1, {})
    dataset = open_dataset(tmp_path / "d")
    for row, value in enumerate(values):
        np.testing.assert_array_equal(dataset.cutout(row)[LONGEST], value)
    with pytest.raises(ValueError, match="must match"):
        write(writer, 1, ["a" * 64])


def test_a_payload_of_an_array_that_is_not_compact_is_refused(tmp_path):
    writer = make(tmp_path / "d")
    with pytest.raises(ValueError, match=f"a.{LONGEST} is bytes, the manifest says int16"):
        writer.write_shard(0, ["a"], {LONGEST: [bytes(10)]}, {"z": np.zeros(1)})
    assert not writer.done(0)


@pytest.mark.parametrize(
    "values, z, message",
    [
        (np.ones((2, 4), "f4"), [1.0, np.inf], "column z is infinite, which JSON cannot say; store NaN"),
        (np.ones((2, 4), "f4"), [1.0], "z has 1 rows, there are 2 keys"),
        (np.ones((4, 2), "f4"), [1.0, 2.0], "v has 4 rows, there are 2 keys"),
        (np.ones((2, 3), "f4"), [1.0, 2.0], r"v has shape \(3,\), the manifest says \(2, 2\)"),
        (np.full((2, 4), np.nan, "f4"), [1.0, 2.0], "v holds NaN or inf; store a finite value"),
        (np.full((2, 4), 1e300), [1.0, 2.0], "v holds NaN or inf; store a finite value"),
    ],
)
def test_what_does_not_fit_the_index_is_refused(tmp_path, values, z, message):
    manifest = Manifest({"v": Array("vector", "float32", (2, 2), "index")}, (), {"z": Column("float32")})
    writer = DatasetWriter(tmp_path / "d", manifest, {})
    with pytest.raises(ValueError, match=message):
        writer.write_shard(0, ["a", "b"], {"v": values}, {"z": z})
    assert not writer.done(0) and not list(writer.path.glob("shards/*"))
    writer.write_shard(0, [], {"v": []}, {"z": []})


@pytest.mark.parametrize("value", [300, -1, 1.5, np.nan])
def test_an_integer_that_its_type_cannot_hold_is_refused(tmp_path, value):
    writer = DatasetWriter(tmp_path / "d", Manifest({"flags": Array("vector", "uint8", (2,), "index")}, (), {}), {})
    with pytest.raises(ValueError, match="flags holds a value that uint8 cannot"):
        writer.write_shard(0, ["a"], {"flags": np.array([[1, value]])}, {})
    assert not writer.done(0)
    writer.write_shard(0, ["a"], {"flags": np.array([[1, 255]])}, {})
    assert writer.done(0)


@pytest.mark.parametrize("encoding", ["raw", "compact"])
@pytest.mark.parametrize("samples", [1, 7, 20])
def test_a_tar_is_what_webdataset_writes_byte_for_byte(tmp_path, encoding, samples):
    path = blobs(tmp_path / "d", samples=samples, shards=1, encoding=encoding)
    with tarfile.open(path / "shards" / "00000.tar") as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]
    with webdataset.TarWriter(str(tmp_path / "peer.tar"), mtime=0, encoder=False) as peer:
        for n in range(samples):
            own = [(name.partition("."), content) for name, content in found[n * 2 : n * 2 + 2]]
            peer.write({"__key__": own[0][0][0], **{name[2]: content for name, content in own}})
    assert (path / "shards" / "00000.tar").read_bytes() == (tmp_path / "peer.tar").read_bytes()


@pytest.mark.parametrize("left", [None, 0, 10_000])
def test_a_tar_that_a_crash_of_the_system_lost_is_written_again(tmp_path, left):
    writer = make(tmp_path / "d")
    write(writer, 0, ["a", "b"])
    tar = tmp_path / "d" / "shards" / "00000.tar"
    whole = tar.read_bytes()
    assert writer.done(0)
    tar.unlink() if left is None else tar.write_bytes(whole[:left])
    assert not writer.done(0)
    with pytest.raises(InputError, match=r"shards/00000.tar: is not the tar .* give the same command again"):
        writer.finish(1, {})
    write(writer, 0, ["a", "b"])
    assert tar.read_bytes() == whole and writer.done(0)
    writer.finish(1, {})


@pytest.mark.parametrize("left", [(), (".writing.json.123.tmp",)])
def test_a_writing_killed_before_its_marker_is_begun_again(tmp_path, monkeypatch, left):
    with monkeypatch.context() as patch:
        patch.setattr(module, "replace", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "d")
    for name in left:
        (tmp_path / "d" / name).touch()
    write(make(tmp_path / "d"), 0, ["a"])


def test_a_kill_at_the_very_end_leaves_nothing_of_an_empty_shard(tmp_path, monkeypatch):
    writer, real = make(tmp_path / "d"), module.replace
    for n, keys in enumerate((["a"], [], ["b"])):
        write(writer, n, keys)
    (tmp_path / "d" / "shards" / ".00002.tar.99.tmp").touch()  # of an earlier kill, in the middle of a shard

    def killed(path, content):
        real(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.finish(3, {})
    assert writer.complete
    assert sorted(path.stem for path in (tmp_path / "d").glob("*/*")) == ["00000", "00000", "00002", "00002"]


def test_a_writing_killed_after_its_marker_goes_on(tmp_path):
    make(tmp_path / "d")
    for folder in ("shards", "index"):
        (tmp_path / "d" / folder).rmdir()
    write(make(tmp_path / "d"), 0, ["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "writing.json: the plan of a dataset being written is not JSON"),
        (b"[1]", "writing.json: the plan of a dataset being written is not a JSON object"),
        (b'{"a": 2}', "a: 1, but .* was begun with 2"),
        (b'{"a": 1, "b": 2}', "b: nothing, but .* was begun with 2"),
    ],
)
def test_another_or_a_damaged_plan_is_one_sentence(tmp_path, content, message):
    make(tmp_path / "d")
    (tmp_path / "d" / "writing.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        make(tmp_path / "d")


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="is not a dataset being written"):
            make(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("hashes", [module.hash_keys, lambda keys: np.zeros(len(keys), np.int64)], ids=["own", "equal"])
def test_a_key_in_two_shards_is_named_whatever_the_hashes(tmp_path, monkeypatch, hashes):
    monkeypatch.setattr(module, "hash_keys", hashes)
    writer = make(tmp_path / "d")
    for n, keys in enumerate((["a", "b"], ["c", "d"], ["e", "f"])):
        write(writer, n, keys)
    assert writer.finish(3, {}).samples == 6
    writer = make(tmp_path / "twice")
    for n, keys in enumerate((["a", "b"], ["c", "d"], ["e", "b"])):
        write(writer, n, keys)
    with pytest.raises(InputError, match="key 'b' of shard 00002 stands in an earlier shard"):
        writer.finish(3, {})
    assert not (tmp_path / "twice" / "dataset.json").exists()


@pytest.mark.parametrize("name", ["a.npy", "é/b.json", "n" * 100, "folder/" + "n" * 100, "x\udcff"])
@pytest.mark.parametrize("size", [0, 73_856, 8**11 - 1])
def test_a_header_is_that_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_what_no_header_holds_is_refused():
    for name, size in (("n" * 101, 1), ("a", 8**11)):
        with pytest.raises(ValueError, match="too long|overflow"):
            tar_header(name, size)


def test_refused_input_takes_away_what_the_writer_began_and_nothing_else(tmp_path):
    def refused(path, first=lambda writer: None):
        writer = DatasetWriter(path, Manifest({}, (), {}), {})
        with pytest.raises(InputError, match="no"), writer.alone():
            first(writer)
            raise InputError("no")

    refused(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    refused(tmp_path / "link")
    assert not list((tmp_path / "mine").iterdir())
    DatasetWriter(tmp_path / "begun", Manifest({}, (), {}), {})
    refused(tmp_path / "begun")
    assert (tmp_path / "begun" / "writing.json").exists()
    refused(tmp_path / "done", lambda writer: writer.write_shard(0, ["a"], {}, {}))
    assert DatasetWriter(tmp_path / "done", Manifest({}, (), {}), {}).done(0)
