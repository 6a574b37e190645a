"""The cache of remote shards: downloads that fail, stop, or are left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxz.data.cache import Cache
from jaxz.errors import DataError

pytestmark = pytest.mark.usefixtures("impatient")


def claimed(cache: Cache, size: int) -> tuple[Path, Path]:
    """A file to fetch, and the empty one that its download begins with."""
    target = cache.root / "0123456789abcdef/shards/a.tar"
    target.parent.mkdir(parents=True)
    (target.parents[1] / "url").touch()
    part = target.with_name(f"a.tar.{size}.part")
    part.touch()
    return target, part


def written(file) -> bool:
    file.write(b"x" * 100)
    file.flush()
    return True


def test_a_download_that_misses_a_file_fails_once(tmp_path):
    calls = []

    def fill(_):
        calls.append(1)
        assert len(calls) == 1
        raise FileNotFoundError("no usable temporary directory")

    cache = Cache(tmp_path)
    with pytest.raises(FileNotFoundError):
        cache.fetch(claimed(cache, 100)[0], 100, fill, lambda part: "")


def test_a_download_that_another_process_has_stopped_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jaxz.data.cache.PATIENCE", 0.1)
    monkeypatch.setattr("jaxz.data.cache.STALLED", 0.4)
    cache = Cache(tmp_path)
    target, part = claimed(cache, 100)
    began = time.monotonic()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, part], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(DataError, match=r"a.tar.100.part: another process holds it, and no byte .* for 0.4 s"):
            cache.fetch(target, 100, written, lambda part: "", lambda: time.monotonic() - began < 20)
        assert caplog.text.count("is being fetched already") == 1
    finally:
        holder.kill()
        holder.wait()
    assert cache.fetch(target, 100, written, lambda part: "")


def test_what_is_left_of_a_download_heeds_a_lowered_limit(tmp_path):
    cache = Cache(tmp_path, 250)
    target, part = claimed(cache, 100)
    older = target.with_name("older.tar")
    older.write_bytes(bytes(200))
    os.utime(older, (1, 1))
    assert cache.fetch(target, 100, written, lambda part: "")
    assert target.exists() and not older.exists()  # made room
    target.unlink()
    part.touch()
    with pytest.raises(DataError, match="find no room below"):
        Cache(tmp_path, 99).fetch(target, 100, written, lambda part: "", patience=0.1)
    assert not part.exists()
