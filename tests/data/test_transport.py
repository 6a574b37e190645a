"""What comes from elsewhere: every kind of address, and what is said of each that is broken, wrong or gone."""

import json
import logging
import os
import shutil
import sys
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxz.data import staging, transport
from jaxz.data.dataset import DataError, open_dataset
from jaxz.data.index import index_problem, index_types, read_index
from jaxz.errors import InputError
from tests.data.batches import assert_same, batches
from tests.data.servers import SHARDS, serving
from tests.helpers import blobs

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_shard_that_is_not_what_the_manifest_says_is_refused_by_name(origin, tmp_path):
    copy = shutil.copytree(origin, tmp_path / "copy")
    tar = copy / "shards/00003.tar"
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    with serving(copy) as server:
        remote = open_dataset(server.url, tmp_path / "cache")
        with pytest.raises(DataError, match=rf"{server.url}/shards/00003.tar: sha256 is \w+, .*30 samples lost"):
            batches(remote, 15)
        assert server.asked["shards/00003.tar"] == [0, 0]  # fetched once more before it was refused
        assert not list((tmp_path / "cache").glob("*/shards/00003*"))
        with pytest.raises(DataError, match=r"00003.tar.*above 0.1%"):  # under the stream's policy
            batches(remote, 15, on_error="replace")


@pytest.mark.parametrize("length", [-700, 700])
def test_a_shard_of_another_length_is_refused(origin, tmp_path, length):
    copy = shutil.copytree(origin, tmp_path / "copy")
    content = (copy / "shards/00000.tar").read_bytes()
    (copy / "shards/00000.tar").write_bytes(content[:length] if length < 0 else content + bytes(length))
    with serving(copy) as server, pytest.raises(DataError, match=r"00000.tar: \d+ of \d+ bytes came, then: .*there"):
        open_dataset(server.url, tmp_path / "cache").open_shard(0)


def test_the_index_must_be_that_of_the_shards(origin, tmp_path):
    copy = shutil.copytree(origin, tmp_path / "copy")
    other = blobs(tmp_path / "other", samples=240, shards=SHARDS, seed=1)
    shutil.copy(other / "index/00002.parquet", copy / "index/00002.parquet")
    with (
        serving(copy) as server,
        pytest.raises(DataError, match="index/00002.parquet was written for a tar of another"),
    ):
        open_dataset(server.url, tmp_path / "cache")
    (copy / "index/00002.parquet").write_bytes(b"PAR1")
    with serving(copy) as server, pytest.raises(DataError, match="index/00002.parquet cannot be read"):
        open_dataset(server.url, tmp_path / "cache")


def test_no_flipped_byte_of_an_index_is_cached(origin, tmp_path):
    copy = shutil.copytree(origin, tmp_path / "copy")
    index = copy / "index/00002.parquet"
    content = index.read_bytes()
    column = pq.read_metadata(index).row_group(0).column(0)
    last = column.data_page_offset + column.total_compressed_size - 1  # byte of a page
    for at, what in ((last, "cannot be read"), (content.index(b"z_kind"), "has no column")):
        index.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with serving(copy) as server, pytest.raises(DataError, match=f"index/00002.parquet {what}"):
            open_dataset(server.url, tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*/index/00002*"))
    path, manifest = tmp_path / "any.parquet", open_dataset(origin).manifest
    table, types = read_index(origin / "index/00002.parquet"), index_types(manifest)
    for at in range(0, len(content), 13):  # others change nothing that is read
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        if not index_problem(path, manifest.shards[2], types):
            assert repr(read_index(path).to_pydict()) == repr(table.to_pydict())


@pytest.mark.parametrize("endless", ["dataset.json", "index/00001.parquet", "overlays/more.parquet", "quarantine.json"])
def test_an_answer_without_an_end_is_refused(origin, tmp_path, endless, monkeypatch, caplog):
    for name in ("LIST_MOST", "INDEX_MOST", "OVERLAY_MOST"):
        monkeypatch.setattr(staging, name, 4 << 20)
    get = tmp_path / "get"
    get.write_text(f'#!/bin/sh\ncase "$1" in {endless}) exec cat /dev/zero;; esac\ncat "{origin}/$1"\n')
    get.chmod(0o755)
    address, cache = f"pipe:{get} {{}}", tmp_path / "cache"
    if endless == "quarantine.json":
        open_dataset(address, cache)
        assert "quarantine.json cannot be read (it is longer than 4 MiB" in caplog.text
    else:
        with pytest.raises((InputError, DataError), match=f"{endless}.* longer than 4 MiB"):
            open_dataset(address, cache, overlays=["more"])
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1 << 20


def test_an_overlay_is_read_as_it_was_where_nothing_answers(origin, tmp_path, caplog):
    here = shutil.copytree(origin, tmp_path / "copy")
    (here / "overlays").mkdir()
    ids = read_index(origin / "index/00000.parquet", ["object_id"])["object_id"]
    pq.write_table(
        pa.table({"object_id": ids, "z": pa.array([7.0] * len(ids), pa.float32())}), here / "overlays/z.parquet"
    )
    with serving(here) as server:
        first = open_dataset(server.url, tmp_path / "cache", overlays=["z"]).column("z")
        (here / "overlays/z.parquet").rename(here / "gone.parquet")
        with pytest.raises(InputError, match="overlays/z.parquet cannot be read .*404.*; check the name"):
            open_dataset(server.url, tmp_path / "cache", overlays=["z"])
    again = open_dataset(server.url, tmp_path / "cache", overlays=["z"])
    np.testing.assert_array_equal(again.column("z"), first)
    assert "overlays/z.parquet does not come" in caplog.text and (first[: len(ids)] == 7).all()


def test_a_changed_dataset_is_noticed_and_one_that_does_not_answer_is_read_as_it_was(origin, tmp_path, caplog):
    changing = shutil.copytree(origin, tmp_path / "changing")
    with serving(changing) as server:
        first = open_dataset(server.url, tmp_path / "cache")
        samples = [first.cutout(row) for row in range(0, 240, 30)]
        shutil.rmtree(changing)
        blobs(changing, samples=240, shards=SHARDS, seed=5)
        second = open_dataset(server.url, tmp_path / "cache")
        for row in range(0, 240, 30):
            np.testing.assert_array_equal(second.cutout(row)["image"], open_dataset(changing).cutout(row)["image"])
            assert not np.array_equal(second.cutout(row)["image"], samples[row // 30]["image"])
    with caplog.at_level(logging.WARNING, "jaxz"):  # a node without a network
        third = open_dataset(server.url, tmp_path / "cache")
    assert "does not answer" in caplog.text
    np.testing.assert_array_equal(third.cutout(0)["image"], second.cutout(0)["image"])
    with pytest.raises(InputError, match=r"has no readable dataset.json \(.*refused.*; 8 tries\); check the address"):
        open_dataset(server.url, tmp_path / "elsewhere")


def test_a_line_that_stays_dead_is_told_with_what_came(origin, tmp_path):
    with serving(origin) as server:
        remote = open_dataset(server.url, tmp_path)
        server.busy = 1.0
        with pytest.raises(
            DataError, match=rf"^{server.url}/shards/00000.tar: 0 of \d+ bytes came, then: HTTP 503 .*8 t"
        ):
            remote.open_shard(0)
        asked = len(server.asked["shards/00000.tar"])
        with pytest.raises(DataError, match="HTTP 503"):
            remote.cutout(0)
        assert len(server.asked["shards/00000.tar"]) == asked == 8  # for a while, it is not asked again
        server.busy = 0.0
        remote.cutout(30)
        with pytest.raises(
            InputError, match=r"nowhere' has no readable dataset.json \(HTTP 404 .*\); check the address"
        ):
            open_dataset(f"{server.url}/nowhere", tmp_path)


def test_names_that_leave_the_dataset_are_refused(origin, tmp_path):
    copy = shutil.copytree(origin, tmp_path / "copy")
    manifest = json.loads((copy / "dataset.json").read_text())
    for name in ("../00000", "a;rm -rf x", "/etc/passwd"):
        manifest["shards"][0]["name"] = name
        (copy / "dataset.json").write_text(json.dumps(manifest))
        with serving(copy) as server, pytest.raises(InputError, match=r"shards\[0\].name"):
            open_dataset(server.url, tmp_path / "cache")
        assert set(server.asked) == {"dataset.json"}


def test_a_command_brings_the_files(origin, tmp_path):
    remote = open_dataset(f"pipe:cat {origin}/{{}}", tmp_path)
    assert_same(batches(remote, 15), batches(open_dataset(origin), 15))


def test_a_command_that_fails_is_told_with_what_it_said(origin, tmp_path):
    broken = tmp_path / "get"
    broken.write_text(
        f'#!/bin/sh\ncase "$1" in *.tar) head -c 900 "{origin}/$1"; echo no such tape >&2; exit 3;; esac\n'
        f'cat "{origin}/$1"\n'
    )
    broken.chmod(0o755)
    remote = open_dataset(f"pipe:{broken} {{}}", tmp_path / "cache")
    sentence = r"get shards/00000.tar: 900 of \d+ bytes came, then: .* ended with 3: no such tape; 8 tries"
    with pytest.raises(DataError, match=sentence):
        remote.open_shard(0)
    with pytest.raises(InputError, match=r"has no \{\}"):
        open_dataset("pipe:cat x", tmp_path)


def test_a_command_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "TIMEOUT", 0.1)
    read = transport.opener("pipe:echo {}; sleep 100")
    began = time.monotonic()
    with pytest.raises(transport.Broken, match="wrote nothing for 0.1 s"):
        list(read("name", 0))
    assert time.monotonic() - began < 10


def test_an_object_store_by_fsspec(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "BLOCK", 5000)
    store = fsspec.filesystem("memory")
    store.put(str(origin), "/bucket/survey", recursive=True)
    try:
        remote = open_dataset("memory://bucket/survey", tmp_path)
        assert_same(batches(remote, 15, window=2), batches(open_dataset(origin), 15, window=2))
        store.rm("/bucket/survey/shards/00001.tar")
        remote.shard_path(1).unlink()
        with pytest.raises(DataError, match="memory://bucket/survey/shards/00001.tar: 0 of .*FileNotFoundError"):
            remote.open_shard(1)
    finally:
        store.rm("/bucket", recursive=True)


def test_addresses_that_cannot_be_read_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"s3:// needs a package .*: pip install 'jaxz\[remote\]'$"):
        open_dataset("s3://bucket/survey", tmp_path)
    with pytest.raises(InputError, match="nosuch.*; use s3://, https://, pipe: or a directory"):
        open_dataset("nosuch://bucket/survey", tmp_path)
    for url in ("https://user:secret@host/d", "https://host/d?token=1", "https:///d"):
        with pytest.raises(InputError, match="use pipe:curl"):
            open_dataset(url, tmp_path)


@pytest.mark.parametrize(
    "url, reason",
    [
        ("http://[::1/x", "Invalid IPv6"),
        ("http://host:no/x", "Port"),
        ("http://host:70000/x", "Port"),
        ("http://a..b/x", "label"),
        ("http://host/a b", r"%XX in a URL: http://host/a%20b$"),
        ("http://host/r\u00f8d/50%25", r"%XX in a URL: http://host/r%C3%B8d/50%25$"),
    ],
)
def test_an_address_that_is_no_url_is_refused_at_once(tmp_path, url, reason):
    with pytest.raises(InputError, match=reason):
        open_dataset(url, tmp_path)


def test_a_file_url_is_a_directory(origin):
    assert open_dataset(f"file://{origin}").path == origin


def test_failed_shards_are_asked_for_again_later(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "FAILED_FOR", 0.0)
    with serving(origin, busy=1.0) as server:
        server.busy = 0.0
        remote = open_dataset(server.url, tmp_path)
        server.busy = 1.0
        with pytest.raises(DataError):
            remote.open_shard(0)
        server.busy = 0.0
        os.close(remote.open_shard(0))
