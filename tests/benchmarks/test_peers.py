"""The comparison with other loaders: what it counts, what it refuses, what it leaves out."""

import argparse
import io
import itertools
import json
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from benchmarks import arms, loader, measure, peer_arms, peers, scale, storage
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError
from tests.helpers import blobs

OWN = [*peers.OURS, "webdataset, plain", "webdataset, best"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return blobs(tmp_path_factory.mktemp("peers") / "d", samples=600, size=8)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # arms are started by `python -m`


@pytest.mark.long
def test_own_arms_are_measured_and_absent_peers_skipped(dataset, tmp_path, capsys):
    report = tmp_path / "report.json"
    peers.main([str(dataset), "--rounds", "1", "--seconds", "0.1", "--venvs", str(tmp_path), "--json", str(report)])
    report, shown = json.loads(report.read_text()), capsys.readouterr().out
    images = [sample[peer_arms.ARRAY] for sample in stock(dataset)]
    truth = {"samples": 600, "crc32": sum(zlib.crc32(image.tobytes()) for image in images) % 2**32}
    assert set(report["rounds"]) == set(OWN)
    for name in (*peers.OURS, *peer_arms.ARMS):
        [line] = [line for line in shown.split("\n") if line.startswith(f"{name}  ")]
        check = report["checks"][name]
        if name in OWN:
            assert {key: check[key] for key in truth} == truth
            [result] = report["rounds"][name]
            assert result["wall_s"] >= 0.1 and min(result[key] for key in ("samples", "cpu_s", "peak_bytes")) > 0
            assert f"{result['samples'] / result['wall_s']:,.0f}" in line
        else:
            assert "skipped: no " in check["error"] and check["error"] in line


def stock(dataset: Path):
    return wds.WebDataset(sorted(map(str, dataset.glob("shards/*.tar"))), shardshuffle=False).decode()


def test_what_an_arm_delivers_is_checked_against_the_index(dataset, tmp_path):
    wanted = peers.expected(open_dataset(dataset))
    options = argparse.Namespace(dataset=dataset, scratch=tmp_path, venvs=tmp_path)
    command = peers.commands(options)["webdataset, best"]
    assert "error" not in peers.prepare("webdataset, best", command, options, wanted)
    other = {**wanted, "crc32": wanted["crc32"] ^ 1}
    assert f"not {other}" in peers.prepare("webdataset, best", command, options, other)["error"]


def test_checksums_do_not_depend_on_the_order_but_on_every_bit():
    images = np.random.default_rng(0).normal(size=(10, 2, 4, 4)).astype(np.float16)
    data = peer_arms.Data([], Path(), (2, 4, 4), images.dtype)
    found = peer_arms.check(iter([images[:6], images[6:]]), data)
    assert found == {"samples": 10, "crc32": sum(zlib.crc32(image.tobytes()) for image in images) % 2**32}
    assert peer_arms.check(iter([images[::-1].copy()]), data) == found
    flipped = images.copy()
    flipped.view(np.uint16)[3, 1, 2, 2] ^= 1
    assert peer_arms.check(iter([flipped]), data) != found
    for wrong in (images.astype(np.float32), images[:, :1], images[..., ::-1]):
        with pytest.raises(ValueError, match="a batch is"):
            peer_arms.check(iter([wrong]), data)


def test_a_sample_is_viewed_in_raw_bytes_and_in_npy_files():
    image = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float16)
    data, npy = peer_arms.Data([], Path(), image.shape, image.dtype), io.BytesIO()
    np.save(npy, image)
    for content in (image.tobytes(), npy.getvalue(), npy.getbuffer()):
        assert np.array_equal(data.view(content), image)


def test_the_first_batch_of_an_epoch_counts_neither_in_samples_nor_in_time():
    starts = itertools.count()

    def epoch():
        next(starts)
        time.sleep(0.2)
        yield np.zeros(1000)
        for _ in range(4):
            time.sleep(0.01)
            yield np.zeros(10)

    found = measure.measure(epoch, 0.1)  # each epoch counts 40 samples and at least 0.04 s
    assert next(starts) >= 2 and found["samples"] % 10 == 0
    assert found["first_batch_s"] >= 0.2 and found["wall_s"] >= 0.1 and found["samples"] <= found["wall_s"] * 1000
    with pytest.raises(ValueError, match="no second batch"):
        measure.measure(lambda: iter([np.zeros(3)]), 1)


def test_workers_that_still_run_count_in_cpu_time_and_memory():
    code = "import time; x = bytearray(200_000_000); print(flush=True)\nwhile time.process_time() < 60: pass"
    cpu, memory = measure.cpu_seconds(), measure.peak_bytes()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert measure.peak_bytes() - memory > 200_000_000
        until = time.monotonic() + 30
        while measure.cpu_seconds() - cpu < 0.3 and time.monotonic() < until:
            time.sleep(0.05)
        own = time.process_time()
        child.kill()
    assert time.monotonic() < until and own < cpu + 0.3


def test_an_arm_that_fails_says_why_and_is_not_run_again(tmp_path):
    log = tmp_path / "log"
    good = f"open({str(log)!r}, 'a').write('good '); print('noise'); print('{{\"samples\": 6, \"wall_s\": 2}}')"
    bad = f"open({str(log)!r}, 'a').write('bad '); raise ValueError('no such option')"
    commands = {name: [sys.executable, "-c", code] for name, code in (("good", good), ("bad", bad))}
    seen = []
    found = arms.interleave(commands, 3, seen.append)
    assert log.read_text().split() == seen == ["good", "bad", "good", "good"]
    assert arms.failed(found["bad"]) == "ValueError: no such option" and arms.failed(found["good"]) is None
    assert arms.median_rate(found["good"], "wall_s") == 3


def test_an_arm_that_hangs_is_ended_with_its_workers(tmp_path):
    child = f"import time; time.sleep(1.5); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert arms.run([sys.executable, "-c", code], timeout=0.7) == {"error": "no end after 1 s"}
    time.sleep(1.5)
    assert not (tmp_path / "alive").exists()


def test_an_arm_without_json_failed():
    for code in ("pass", "print('done')", "print('{half')"):
        assert arms.run([sys.executable, "-c", code]) == {"error": "printed no JSON object"}


def test_a_conversion_is_done_when_its_folder_is_there(tmp_path):
    name = next(name for name, arm in peer_arms.ARMS.items() if arm.form)
    options = argparse.Namespace(dataset=tmp_path, scratch=tmp_path / "scratch")
    make = "import os, sys; os.makedirs(sys.argv[1]) if '--convert' in sys.argv else print('{\"samples\": 3}')"
    command = [sys.executable, "-c", make, str(peers.folder(name, options))]
    assert peers.prepare(name, command, options, {"samples": 3}) == {"samples": 3}
    options.scratch = tmp_path / "other"
    assert "error" in peers.prepare(name, [sys.executable, "-c", "pass"], options, {"samples": 3})


@pytest.mark.parametrize("benchmark", [loader, peers])
def test_images_that_the_arms_cannot_read_are_refused(benchmark, tmp_path):
    path = blobs(tmp_path / "compact", encoding="compact")
    with pytest.raises(InputError, match="DATASET: .* has no raw array 'image' of one shape; name another"):
        benchmark.main([str(path)])


def test_the_rounds_are_kept_whatever_fails(dataset, tmp_path, monkeypatch, capsys):
    rounds = {name: [{"samples": 600, "wall_s": 2.0, "cpu_s": 1.0}] for name in loader.LIMITS | loader.STREAMS}
    rounds |= {"memcpy": [{"error": "killed"}]}
    monkeypatch.setattr(arms, "interleave", lambda *_, **__: rounds)
    report = tmp_path / "report.json"
    loader.main([str(dataset), "--json", str(report)])
    lines = capsys.readouterr().out.split("\n")
    assert lines[1].split() == ["memcpy", "killed"]
    assert lines[2].split()[-5:] == ["300", "600", "-", "1.00", "1.00"]
    report.unlink()
    for benchmark in (loader, peers):
        monkeypatch.setattr(benchmark, "table", lambda *_: 1 / 0)
        monkeypatch.setattr(peers, "prepare", lambda *_: {})
        with pytest.raises(ZeroDivisionError):
            benchmark.main([str(dataset), "--json", str(report)])
        assert json.loads(report.read_text())["rounds"] == rounds
        report.unlink()


def test_an_index_of_the_survey_says_that_its_tar_is_there(tmp_path, monkeypatch):
    for folder in ("index", "shards"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(scale, "replace", lambda *_: 1 / 0)  # killed at the index
    with pytest.raises(ZeroDivisionError):
        scale.write_shard(tmp_path, 0)
    assert (tmp_path / "shards" / "00000.tar").stat().st_size == scale.manifest(1).shards[0].bytes


def test_decoding_is_timed_into_pages_that_are_there(monkeypatch):
    monkeypatch.setattr(storage, "SECONDS", 0.001)
    payloads, slots = [bytes(storage.RAW)] * 100, storage.slots_in_memory(100)  # 1800 pages
    copy = storage.storages()["float16"]
    storage.speed(copy, payloads[:1], storage.slots_in_memory(1), 1)  # what a thread needs
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    storage.speed(copy, payloads, slots, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 600
