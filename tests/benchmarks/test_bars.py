"""The table of all bars, of made results as each benchmark writes them."""

import json
import types

import numpy as np
import pytest

from benchmarks import bars, loader, peer_arms, peers, photometry
from benchmarks.shift.arms import SIZES
from benchmarks.shift.tables import json_of
from jaxz import errors
from jaxz.errors import InputError
from jaxz.photoz.bootstrap import Estimate

RATES = {"pread 64 KiB": 120.0, "pread 32 KiB into batches": 110.0, "memcpy": 200.0}
PEERS = {"jaxz, 2 threads, window 4": 300.0, "jaxz, 2 threads, all shuffled": 600.0}


def rounds(rates: dict, names, other: float) -> dict:
    """Three rounds of each arm at its rate, or another."""
    return {name: [{"samples": 2 * rates.get(name, other), "wall_s": 2.0, "cpu_s": 1.0}] * 3 for name in names}


def shift_scores() -> dict:
    """What tables.json_of makes of arms whose metrics are all 0.1, errors 0.01, and 0.04 +- 0.01 below `matched`."""
    estimate = lambda value, error: Estimate(value, value + error * np.array([-1, 1]) / np.sqrt(2))
    arms, subsets = [arm.name for arm in SIZES["small"]().arms if arm.scored], ("spec_like", "full", "beyond")
    metrics = ("sigma_mad", "eta_15", "abs_bias")
    beside = types.SimpleNamespace(difference=estimate(-0.04, 0.01), closure=estimate(0.5, 0.1))
    above = types.SimpleNamespace(difference=estimate(0.05, 0.01), closure=None)
    compared = {(s, a, m): above if a == "photometry" else beside for s in subsets for a in arms for m in metrics}
    one = dict.fromkeys(metrics, estimate(0.1, 0.01))
    return json_of({subset: dict.fromkeys(arms, one) for subset in subsets}, compared)


def scored(sigma: float, bias: float) -> list[dict]:
    metrics = {"sigma_mad": sigma, "bias_median": bias, "eta_15": 0.01}
    return [{name: {"value": value + off, "error": 0.001} for name, value in metrics.items()} for off in (-1e-4, 1e-4)]


def made() -> dict:
    """{benchmark: its JSON}: all bars hold."""
    probe = {"run": {"value": 0.6, "error": 0.01}, "random_init": {"value": 0.2, "error": 0.01}}
    bins = [{"rms": 0.03, "bias": -0.001}, {"rms": 0.036, "bias": 0.002}]
    opened = {"open_s": 3.0, "open_cpu_s": 9.0, "open_bytes": 4e8, "first batch, window 4": 0.1, "peak_bytes": 1e9}
    seeds = {f"{survey} {arm}": scored(0.015, -0.01) for survey in photometry.SURVEYS for arm in ("knn", "gbt", "mlp")}
    killed = {"kills": 10, "good": 10, "moments": {}, "seconds": {}}
    kept = killed | {"same_metrics": True}
    return {
        "loader": {"rounds": rounds(RATES, loader.LIMITS | loader.STREAMS, 100.0 + 1e-6) | streams(130.0)},
        "peers": {"rounds": rounds(PEERS, [*peers.OURS, *peer_arms.ARMS], 20.0), "checks": {}, "sample_bytes": 1},
        "stall": {"stall": 0.01, "resident_bytes": [50, 100, *[101] * 8]},
        "storage": {"raw_bytes": 10, "rows": {"compact, of float32": {
            "bytes": 4.0, "speed": {"1": [[2e9, 1e9]] * 3, "2": [[4e9, 1e9]] * 3}, "aperture": bins}}},
        "scale": {"rounds": {"labelled": [opened] * 3, "all of a split": [opened | {"open_s": 4.0}] * 3}},
        "faults": [{"outcome": "refused"}, {"outcome": "harmless", "left_wrong": False}],
        "resume": {"arms": {"changing": killed | {"good": 50}, "1 process": kept, "2 processes": kept}},
        "convert": {"bare_s": [6.0, 6.0], "conversion": [{"seconds": 10.0, "bytes": size} for size in (1e9, 9e8)]},
        "overhead": {"compile_s": 6.0, "dispatch_s": 1e-3},
        "pretrained": [{"seconds": 4.0, "cpu": 5.0, "bytes": 100, "peak": 150, "before": 10}],
        "damage": {"refused": 480, "renamed": 20},
        "photometry": seeds | {"boss_cut mlp redshifted": scored(0.012, 0.002)},
        "probes": {arm: [probe] * 3 for arm in ("mae", "dino", "simclr", "byol")},
        "shift": {"arms": shift_scores(), "not_run": {}},
        "predict": {"ratio": 0.95, "ratio_of_cpu": 0.9},
    }  # fmt: skip


def streams(rate: float) -> dict:
    return rounds({}, loader.STREAMS, rate)


def table(scratch, found: dict) -> dict[str, list[str]]:
    """{figure: the other cells of its row}"""
    for name, content in found.items():
        (scratch / f"{name}.json").write_text(json.dumps(content))
        (scratch / f"{name}.of.json").write_text(json.dumps({"commit": "1234567-dirty", "date": "2026-01-02"}))
    rows = [line.strip("| ").split(" | ") for line in bars.table(scratch, bars.BARS)[2:]]
    return {figure: cells for figure, *cells in rows}


def test_every_bar_reads_what_its_benchmark_writes(tmp_path):
    found = made()
    assert found.keys() == bars.RUNS.keys()
    shown = table(tmp_path, found)
    assert len(shown) == len(bars.BARS) and {cells[2] for cells in shown.values()} == {"yes"}
    assert {cells[4] for cells in shown.values()} == {"1234567-dirty, 2026-01-02"}
    measured = {
        "stream, 1 thread, of sequential pread at its best chunk": "1.08",
        "times webdataset, at its best": "30.0",  # the better order
        "40 million rows opened with a filter, s": "4.0",  # the slower filter
        "kills of 50 after which all samples are those of the unbroken run": "50",
        "arms of an unchanged count (1, 2 processes) whose losses are so bit for bit": "2",
        "BOSS, perceptrons, sigma_mad": "0.0150",
        "BOSS chosen by colour: size of the median bias, corrected in uncorrected": "0.20",
        "R^2 of redshift over the untrained ViT's, dino": "0.400",
        "spec-like sigma_mad, images less photometry, in errors": "-5.0",
        "sigma_mad of all, `fluxes` less direct, in errors": "-4.0",
        "gap to the oracle beyond the labels closed by `tiered`, abs_bias": "0.50",
        "sigma_mad that `tiered` loses on spec-like": "0.0%",
        "jaxz.predict, of the rate of the bare forward pass": "0.95",
    }
    assert {figure: shown[figure][0] for figure in measured} == measured


def test_no_bar_holds_of_what_failed(tmp_path):
    found = made()
    failed = [{"error": "not installed"}]
    found["peers"]["rounds"] |= {"array_record, in bulk": failed, "jaxz, 2 threads, window 4": failed}
    del found["peers"]["rounds"]["webdataset, best"]  # skipped: it is not among the rounds
    found["loader"]["rounds"]["pread 32 KiB"] = failed
    found["scale"]["rounds"]["labelled"][2:] = failed
    found["pretrained"] = failed
    del found["shift"]["arms"]["tiered"]["beyond"]["abs_bias"]["closure"]  # no gap beyond its errors
    shown = table(tmp_path, found)
    no = {figure: cells[0] for figure, cells in shown.items() if cells[2] == "**no**"}
    assert no.keys() == {
        "times ArrayRecord, in bulk", "times webdataset, at its best", "40 million rows opened with a filter, s",
        "peak memory, GB", "first batch at any position, s", "import of a ViT-L, s", "its peak memory, of the file",
        "gap to the oracle beyond the labels closed by `tiered`, abs_bias",
    }  # fmt: skip
    assert set(no.values()) == {"nan"}


def test_what_broke_off_is_no_result_and_is_made_again(tmp_path, monkeypatch):
    asked = []

    def call(command, good=(errors.OK,)):
        """An installation that breaks off the first time; the benchmark writes its result the second time."""
        asked.append("--install" if "--install" in command else "benchmark")
        if asked == ["--install"]:
            (tmp_path / "venvs/torch").mkdir(parents=True)
            raise InputError("python -m benchmarks.peers --install ended with 1; see above")
        if "--install" in command:
            (tmp_path / "venvs/installed.json").write_text("{}")
        elif asked.count("benchmark") == 2:
            (tmp_path / "peers.part").write_text("{}")

    monkeypatch.setattr(bars, "call", call)
    with pytest.raises(InputError, match="--install ended with 1"):
        bars.measure(tmp_path, "peers", tmp_path)
    with pytest.raises(InputError, match="peers broke"):
        bars.measure(tmp_path, "peers", tmp_path)
    assert not (tmp_path / "peers.json").exists() and not (tmp_path / "peers.of.json").exists()
    bars.measure(tmp_path, "peers", tmp_path)
    assert (tmp_path / "peers.json").read_text() == "{}" and (tmp_path / "peers.of.json").exists()
    assert asked == ["--install", "--install", "benchmark", "benchmark"]


def test_environments_are_installed_once_all_of_them_are(tmp_path, monkeypatch):
    codes = iter([0, 1, 0, 0, *[0] * 4, 0, 1, 0, 0])
    monkeypatch.setattr(peers.venv, "create", lambda path, **_: path.mkdir(exist_ok=True))
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=next(codes)))
    ended = [(peers.install(tmp_path), (tmp_path / peers.INSTALLED).exists()) for _ in range(3)]
    assert ended == [(errors.FAILED, False), (errors.OK, True), (errors.FAILED, False)]
