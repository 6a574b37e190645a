"""Remote datasets against the local one: bit for bit, over lines that break, within the limit, each byte once."""

import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools import inspect, verify
from jaxz import train
from jaxz.data.cache import GIB, Cache
from jaxz.data.dataset import open_dataset
from jaxz.data.order import Order
from jaxz.data.sampling import Sampler
from jaxz.data.staging import Ahead
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError
from tests.data.batches import assert_same, batches
from tests.data.servers import SHARDS, serving
from tests.helpers import small_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("impatient")


def total(folder: Path, pattern: str = "**/*") -> int:
    """Bytes of the files there, which come and go."""
    size = 0
    for path in folder.glob(pattern):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return size


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 2},
        {"window": 0},
        {"window": 3, "weights": "object_id", "threads": 4},
        {"shuffle": False, "epochs": 1, "where": "z_kind == 'spec'"},
    ],
    ids=["window", "whole", "weights", "in order"],
)
def test_batches_are_those_of_the_local_dataset_over_a_line_that_breaks(origin, tmp_path, settings):
    with serving(origin, drop=0.6, busy=0.2) as server:
        remote = open_dataset(server.url, tmp_path)
        columns = remote.manifest.columns
        assert remote.fingerprint(columns) == open_dataset(origin).fingerprint(columns)
        assert_same(batches(remote, 20, **settings), batches(open_dataset(origin), 20, **settings))
        assert max(len(starts) for starts in server.asked.values()) > 2  # it did break
        size = total(origin)
        assert size * 0.99 < sum(server.sent.values()) <= size  # every byte once: resumed, never begun anew
        again = open_dataset(server.url, tmp_path)  # all is there
        before = sum(server.sent.values())
        batches(again, 20, **settings)
        assert sum(server.sent.values()) == before


def test_a_server_that_ignores_ranges_spoils_nothing(origin, tmp_path):
    with serving(origin, drop=0.5, whole=0.5) as server:
        remote = open_dataset(server.url, tmp_path)
        assert_same(batches(remote, 15), batches(open_dataset(origin), 15))
    for n in range(SHARDS):
        assert remote.shard_path(n).read_bytes() == open_dataset(origin).shard_path(n).read_bytes()


READ_ALL = """
import sys
from jaxz.data.dataset import open_dataset
from jaxz.data.stream import Source, Stream
stream = Stream(Source(open_dataset(sys.argv[1], sys.argv[2])), 16, epochs=1, seed=int(sys.argv[3]))
print(sum(int(batch["valid"].sum()) for batch in stream))
"""

READ_WINDOW = """
import sys
from jaxz.data.dataset import open_dataset
from jaxz.data.stream import Source, Stream
stream = Stream(Source(open_dataset(sys.argv[1], sys.argv[2], float(sys.argv[3])), window=1), 4, seed=3)
for _ in range(240):
    next(stream)
stream.close()
"""


def process(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_download_goes_on_from_where_it_was(origin, tmp_path):
    with serving(origin) as server:
        remote = open_dataset(server.url, tmp_path)
        server.pause = 0.05
        killed = process(READ_ALL, server.url, tmp_path, 0)
        deadline = time.monotonic() + 60
        while not total(tmp_path, "*/shards/*.part") and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        time.sleep(0.2)  # the server notices
        parts = {path.name.split("-")[0]: path.stat().st_size for path in tmp_path.glob("*/shards/*.part")}
        begun = {name: size for name, size in parts.items() if size}
        assert begun
        server.asked.clear()
        server.pause = 0
        assert_same(batches(remote, 15), batches(open_dataset(origin), 15))
        for name, size in begun.items():
            assert server.asked[f"shards/{name}.tar"] == [size]
        assert not list(tmp_path.glob("*/shards/*.part"))


def test_processes_that_share_a_cache_fetch_each_shard_once(origin, tmp_path):
    with serving(origin, drop=0.3, pause=0.002) as server:
        processes = [process(READ_ALL, server.url, tmp_path, seed) for seed in range(2)]
        assert [each.communicate(timeout=60)[0].strip() for each in processes] == ["240", "240"]
        sizes = {shard.name: shard.bytes for shard in open_dataset(origin).manifest.shards}
        assert server.sent_shards() == sizes


class Watch(threading.Thread):
    """The most bytes that a directory held, looked at all the time."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.done = folder, 0, False

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done = True
        self.join()

    def run(self):
        while not self.done:
            names = set(self.folder.rglob("*"))
            size = total(self.folder)
            if names == set(self.folder.rglob("*")):  # else some came and went while they were counted
                self.most = max(self.most, size)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_limit_holds_at_every_moment(origin, tmp_path, processes):
    manifest = open_dataset(origin).manifest
    shard = max(shard.bytes for shard in manifest.shards)
    with serving(origin, drop=0.2) as server:
        remote = open_dataset(server.url, tmp_path)
        fixed = total(tmp_path)
        limit = fixed + 2 * shard * processes  # two windows each, and no byte more
        with Watch(tmp_path) as watch:
            others = [process(READ_WINDOW, server.url, tmp_path, limit / GIB) for _ in range(processes - 1)]
            remote = open_dataset(server.url, tmp_path, limit / GIB)
            found = batches(remote, 240, window=1, size=4)  # 4 epochs
            for other in others:
                assert other.wait(timeout=60) == 0
        assert_same(found, batches(open_dataset(origin), 240, window=1, size=4))
        assert fixed + 1.9 * shard < watch.most <= limit
        assert sum(server.sent_shards().values()) > 1.5 * sum(s.bytes for s in manifest.shards)  # had to come again


def test_a_limit_below_what_a_stream_needs_is_refused_with_what_would_do(origin, tmp_path):
    with serving(origin) as server:
        manifest = open_dataset(server.url, tmp_path).manifest
        sizes = sorted((shard.bytes for shard in manifest.shards), reverse=True)
        limit = total(tmp_path) + 2 * sum(sizes[:2])  # two windows of two shards
        remote = open_dataset(server.url, tmp_path, limit / GIB)
        for window in (3, 0):
            with pytest.raises(
                InputError, match="^data.cache_gib: .*; set data.window=2, or data.cache_gib="
            ) as refused:
                Stream(Source(remote, window=window), 8)
            enough = float(str(refused.value).rsplit("=", 1)[1])
            Stream(Source(open_dataset(server.url, tmp_path, enough), window=window), 8).close()
        Stream(Source(remote, window=2), 8).close()
        with pytest.raises(InputError, match="; set data.window=1, or"):  # the batches in flight lie in three windows
            Stream(Source(remote, window=2), 16)
        tiny = open_dataset(server.url, tmp_path, (limit - 4 * sizes[0]) / GIB)
        with pytest.raises(InputError, match="GiB of indices; set data.cache_gib="):
            Stream(Source(tiny, window=1), 8)
        assert not server.sent_shards()  # before anything was fetched


def test_a_shard_that_is_read_is_not_deleted_and_one_that_is_not_is(origin, tmp_path):
    with serving(origin) as server:
        remote = open_dataset(server.url, tmp_path)
        held, free = remote.open_shard(0), remote.open_shard(1)
        os.close(free)
        cache = Cache(tmp_path, limit=1)
        assert not cache.trim()
        assert remote.shard_path(0).exists() and not remote.shard_path(1).exists()
        os.close(held)
        cache.trim()
        assert not remote.shard_path(0).exists()


def test_nothing_but_what_was_fetched_is_ever_deleted(origin, tmp_path):
    mine = shutil.copytree(origin, tmp_path / "mine")
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    with serving(origin) as server:
        os.close(open_dataset(server.url, tmp_path).open_shard(0))
        Cache(tmp_path, limit=1).trim()
    assert not list(tmp_path.glob("*/shards/*-*.tar"))
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("shuffle, window", [(True, 0), (True, 1), (True, 3), (False, 2)])
def test_what_comes_next_by_brute_force(origin, shuffle, window):
    sampler = Sampler(Source(open_dataset(origin), where="z_kind == 'spec' and z > 0.6", window=window), 4, shuffle)
    count = len(sampler)
    shard_of = lambda at: int(sampler.dataset.locate(sampler(np.array([at])))[0][0])
    shards = [shard_of(at) for at in range(4 * count)]
    layout = [Order(tuple(np.diff(sampler.last, prepend=0)), 4, window, shuffle)._layout(epoch) for epoch in range(4)]
    bounds = sorted({e * count + int(b) for e in range(4) for b in layout[e][2]})
    for start, span in itertools.product(range(0, 2 * count, 13), (1, 30, count)):
        stop = start + span
        last = next(n for n, bound in enumerate(bounds) if bound >= stop)
        first = max(bound for bound in bounds if bound <= start)
        found, leaves, enters = sampler.ahead(start, stop)
        assert set(found) == set(shards[first : bounds[last + 1]])
        assert (leaves, enters) == (min(b for b in bounds if b > start), bounds[last])
    found, _, enters = sampler.ahead(count - 5, count, count)
    assert set(found) == set(shards[max(b for b in bounds if b <= count - 5) : count]) and enters == count
    assert sampler.ahead(0, 5, math.inf)[0]


def test_a_stream_asks_for_each_window_before_its_first_batch(origin, monkeypatch):
    dataset, told = open_dataset(origin), []
    stream = Stream(Source(dataset, window=2), 8, seed=1)
    monkeypatch.setattr(stream.reader, "ahead", told.append)
    for n in range(75):
        rows = next(stream)["row"]
        known = set(told[-1])
        assert set(dataset.locate(rows)[0]) <= known
        coming = stream.samplers[0](np.arange((n + 1) * 8, (n + 2 + stream.threads) * 8))
        assert set(dataset.locate(coming)[0]) <= known
    assert 4 * 2.5 <= len(told) <= 2 * 4 * 2.5 + 1  # once a window entered, once a window left


@pytest.mark.parametrize("windows", [0, 3])
def test_the_next_window_is_there_before_it_is_read(origin, tmp_path, windows, monkeypatch):
    wanted, want = [], Ahead.want

    def noted(self, shards):
        wanted[:] = shards
        want(self, shards)

    monkeypatch.setattr(Ahead, "want", noted)
    with serving(origin, drop=0.3) as server:
        shard = open_dataset(server.url, tmp_path).manifest.shards[0].bytes
        limit = (total(tmp_path) + windows * 2 * shard) / GIB if windows else 0
        remote = open_dataset(server.url, tmp_path, limit)
        stream = Stream(Source(remote, window=2), 8, seed=1)
        next(stream)
        missed = []
        fetch = lambda shard, *going: missed.append(shard.name) if not going else original(shard, *going)
        original, remote.store._fetch_shard = remote.store._fetch_shard, fetch
        for _ in range(90):  # three epochs, by a trainer that takes as long as the network does
            deadline = time.monotonic() + 20
            while not all(remote.store.shard_path(s).exists() for s in wanted) and time.monotonic() < deadline:
                time.sleep(0.002)
            next(stream)
        stream.close()
    assert wanted and not missed


def test_nothing_goes_on_in_the_background_after_close(origin, tmp_path):
    others = set(threading.enumerate())
    mine = lambda: [t for t in threading.enumerate() if t.name == "jaxz-stage" and t not in others]
    with serving(origin, pause=0.01) as server:
        stream = Stream(Source(open_dataset(server.url, tmp_path)), 8, seed=1)
        next(stream)
        assert mine()
        stream.close()
        deadline = time.monotonic() + 20
        while mine() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not mine()


def test_commands_take_a_url_or_say_why_not(origin, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXZ_CACHE", str(tmp_path / "cache"))
    with serving(origin, drop=0.2) as server:
        inspect.main([server.url])
        assert server.url in capsys.readouterr().out
        assert not server.sent_shards()
        with pytest.raises(InputError, match="is remote"):
            verify.main([server.url])
        config = small_config(tmp_path, server.url, depth=1, redshift=1.0)
        settings = ["--config.data.window=2", f"--config.data.cache={tmp_path / 'other'}"]
        train.main([config, *settings, f"--workdir={tmp_path / 'run'}"])
    assert list((tmp_path / "other").glob("*/shards/*.tar"))
    assert f"{server.url} is staged in {tmp_path / 'other'}" in (tmp_path / "run/log.txt").read_text()


def test_a_remote_quarantine_list_is_honoured_and_forgotten_with_its_file(origin, tmp_path):
    here = shutil.copytree(origin, tmp_path / "copy")
    with serving(here) as server:
        count = len(open_dataset(server.url, tmp_path / "cache").select(None))
        (here / "quarantine.json").write_text('{"version": 1, "shards": {"00001": [0, 2]}}')
        remote = open_dataset(server.url, tmp_path / "cache")
        out = (remote.starts[1] + np.array([0, 2])).tolist()
        assert remote.quarantined.tolist() == out and len(remote.select(None)) == count - 2
        assert open_dataset(f"pipe:cat {here}/{{}}", tmp_path / "cache").quarantined.tolist() == out
        (here / "quarantine.json").unlink()
        assert len(open_dataset(server.url, tmp_path / "cache").select(None)) == count


def test_what_a_repair_left_of_damaged_tars_streams_from_afar_too(origin, tmp_path, capsys):
    """A flipped byte and a tar that breaks off: their lost samples are listed, the tars are not mended."""
    here = tmp_path / "dataset"
    shutil.copytree(origin, here)
    flipped, cut = (here / "shards" / f"0000{n}.tar" for n in (0, 2))
    content = bytearray(flipped.read_bytes())
    content[2000] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-16_000])
    verify.main([str(here), "--repair"])
    capsys.readouterr()
    local = open_dataset(here)
    assert 1 < len(local.quarantined) < 20
    with serving(here) as server:
        remote = open_dataset(server.url, tmp_path / "cache")
        assert_same(batches(remote, 30, check="crc"), batches(local, 30, check="crc"))
        assert remote.shard_path(0).read_bytes() == flipped.read_bytes()


@pytest.mark.parametrize("failure", ["command", 403, 503])
def test_a_remote_quarantine_list_that_cannot_be_read_is_kept(origin, tmp_path, failure, caplog):
    here, cache = shutil.copytree(origin, tmp_path / "copy"), tmp_path / "cache"
    with serving(here) as server:
        flag = tmp_path / "down"
        get = f"test ! -e {flag} || case {{}} in q*) exit 255;; esac; cat {here}/{{}}"
        address = f"pipe:{get}" if failure == "command" else server.url

        def damage():
            flag.touch()
            server.status["quarantine.json"] = failure

        damage()
        assert not len(open_dataset(address, cache).quarantined)  # none was ever seen
        assert ("no sample is left out" in caplog.text) == (failure != "command")
        flag.unlink()
        server.status.clear()
        (here / "quarantine.json").write_text('{"version": 1, "shards": {"00001": [0, 2]}}')
        out = open_dataset(address, cache).quarantined.tolist()
        assert len(out) == 2
        damage()
        for _ in range(2):
            caplog.clear()
            assert open_dataset(address, cache).quarantined.tolist() == out
            assert "quarantine.json of last time; delete it" in caplog.text


def test_the_index_of_a_shard_that_is_out_as_a_whole_is_not_asked_for(origin, tmp_path):
    here = shutil.copytree(origin, tmp_path / "copy")
    (here / "quarantine.json").write_text('{"version": 1, "shards": {"00001": "all"}}')
    (here / "index/00001.parquet").unlink()
    with serving(here) as server:
        np.testing.assert_array_equal(
            open_dataset(server.url, tmp_path / "cache").select(None), open_dataset(here).select(None)
        )
