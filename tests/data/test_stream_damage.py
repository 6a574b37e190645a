"""The stream over shards that are cut, changed, gone or hard to read: told, tried again, or stood in for."""

import errno
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.reader import Reader
from jaxz.data.stream import Source, Stream
from tests.data.batches import assert_same, take
from tests.helpers import blobs


@pytest.fixture
def dataset(blob_dataset):
    return open_dataset(blob_dataset)


def test_a_cut_shard_names_file_offset_and_loss(blob_dataset, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(blob_dataset, copy)
    tar = copy / "shards" / "00001.tar"
    size = tar.stat().st_size
    with open(tar, "r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(
        DataError, match=rf"00001.tar is cut at offset {size // 2} of {size} bytes: 1\d of 32 samples lost"
    ):
        list(Stream(Source(open_dataset(copy)), 8, epochs=1))


def test_a_flipped_byte_fails_the_checksum(blob_dataset, tmp_path):
    copy = tmp_path / "flip"
    shutil.copytree(blob_dataset, copy)
    offset = int(open_dataset(copy).places(2, "image")[0][3])
    with open(copy / "shards" / "00002.tar", "r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(DataError, match=f"offset {offset} fails its checksum"):
        list(Stream(Source(open_dataset(copy)), 8, epochs=1, check="crc"))
    assert len(list(Stream(Source(open_dataset(copy)), 8, epochs=1, check="size"))) == 12


def flip(dataset, row: int) -> None:
    """Change one bit of a stored image."""
    shard, within = (int(x[0]) for x in dataset.locate(np.array([row])))
    offset = int(dataset.places(shard, "image")[0][within])
    with open(dataset.shard_path(shard), "r+b") as file:
        file.seek(offset + 33)
        byte = file.read(1)[0]
        file.seek(offset + 33)
        file.write(bytes([byte ^ 16]))


def test_reads_that_fail_or_come_short_are_tried_again(dataset, monkeypatch):
    whole = take(Stream(Source(dataset), 10, seed=5), 20)
    seen, preadv = set(), os.preadv

    def unreliable(fd, parts, offset):
        """Of the first reads at each place, a third fails and a third comes short."""
        first, kind = (fd, offset) not in seen, offset // 512 % 3
        seen.add((fd, offset))
        if first and kind == 1:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, [parts[0][: len(parts[0]) // 3 + 1]] if first and kind == 2 else parts, offset)

    monkeypatch.setattr("jaxz.data.reader.os.preadv", unreliable)
    monkeypatch.setattr("jaxz.data.tars.PAUSE", 1e-6)
    for a, b in zip(whole, take(Stream(Source(dataset), 10, seed=5), 20), strict=True):
        assert_same(a, b)
    monkeypatch.setattr("jaxz.data.reader.os.preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(DataError, match=r"00000.tar: \d+ bytes at offset \d+ cannot be read \(broken, 4 tries\)"):
        next(Stream(Source(dataset, where="object_id < 9"), 4))


def test_a_lost_sample_is_stood_in_for_alike_on_every_process(tmp_path, caplog):
    opened = open_dataset(blobs(tmp_path / "d", samples=3000, size=8))
    whole = take(Stream(Source(opened), 12, seed=1), 250)
    flip(opened, 1234)
    replacing = dict(seed=1, check="crc", on_error="replace")
    streams = [
        Stream(Source(opened), 12, **replacing, local=local) for local in (slice(None), slice(0, 6), slice(6, 12))
    ]
    alone, *parts = (take(stream, 250) for stream in streams)
    for step, batch in enumerate(alone):
        assert_same(batch, {name: np.concatenate([part[step][name] for part in parts]) for name in batch})
        lost = whole[step]["row"] == 1234
        np.testing.assert_array_equal(batch["image"][~lost], whole[step]["image"][~lost])
        for slot in np.flatnonzero(lost):
            assert batch["row"][slot] != 1234
            np.testing.assert_array_equal(batch["image"][slot], opened.cutout(int(batch["row"][slot]))["image"])
    assert [stream.replaced for stream in streams] in ([1, 1, 0], [1, 0, 1])
    assert sum("fails its checksum; restore the shard; other samples stand in" in text for text in caplog.messages) == 2


def test_above_a_thousandth_replacing_ends(blob_dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(blob_dataset, copy)
    flip(open_dataset(copy), 40)
    with pytest.raises(DataError, match=r"1 samples could not be read, above 0.1%"):
        list(Stream(Source(open_dataset(copy)), 8, epochs=1, check="crc", on_error="replace"))


def failing(function, error: int, times: int):
    """`function`, whose first `times` calls end with the system's error; and the list of what it was called with."""
    calls = []

    def unreliable(*args, **settings):
        calls.append(args)
        if len(calls) <= times:
            raise OSError(error, os.strerror(error), str(args[0]))
        return function(*args, **settings)

    return unreliable, calls


@pytest.mark.parametrize("what", ["jaxz.data.reader.os.open", "jaxz.data.index.pq.ParquetFile"])
def test_opening_a_tar_or_an_index_is_tried_again_where_storage_stumbles(what, dataset, monkeypatch):
    monkeypatch.setattr("jaxz.files.PAUSE", 1e-6)
    function = os.open if what.endswith("open") else pq.ParquetFile
    source = lambda: Source(open_dataset(dataset.path), columns=("z",))
    whole = take(Stream(source(), 10, seed=5), 10)
    for error in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            unreliable, calls = failing(function, error, 3)
            patch.setattr(what, unreliable)
            for a, b in zip(whole, take(Stream(source(), 10, seed=5), 10), strict=True):
                assert_same(a, b)
            assert len(calls) > 3
    for error, tries in ((errno.EIO, 4), (errno.EACCES, 1)):  # what passes, and what does not
        with monkeypatch.context() as patch:
            unreliable, calls = failing(function, error, 10**6)
            patch.setattr(what, unreliable)
            with pytest.raises(DataError, match=r"00000\.(tar|parquet) cannot be (opened|read) \("):
                Reader([open_dataset(dataset.path)], ("image",)).read(np.array([0]))
            assert len(calls) == tries


def test_samples_of_a_shard_that_is_gone_are_stood_in_for(tmp_path, caplog):
    opened = open_dataset(blobs(tmp_path / "d", samples=6000, size=8))
    where = "object_id < 4002"  # two samples of the last shard, of 2,000
    whole = take(Stream(Source(opened, where=where), 12, seed=1), 333)
    opened.shard_path(2).unlink()
    replacing = dict(seed=1, on_error="replace")
    first, again = (Stream(Source(open_dataset(opened.path), where=where), 12, **replacing) for _ in range(2))
    for then, a, b in zip(whole, take(first, 333), take(again, 333), strict=True):
        assert_same(a, b)
        lost = then["row"] >= 4000
        np.testing.assert_array_equal(a["image"][~lost], then["image"][~lost])
        assert (a["row"] < 4000).all()
    assert first.replaced == again.replaced == 2
    said = [text for text in caplog.messages if "00002.tar cannot be opened (ENOENT): 2000 samples lost" in text]
    assert len(said) == 2 == len(caplog.messages)  # once a stream
    with pytest.raises(DataError, match=r"above 0.1%"):
        take(Stream(Source(opened, where="object_id < 4020"), 12, **replacing), 333)
