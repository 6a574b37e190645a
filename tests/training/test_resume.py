"""A run that is killed, stopped, damaged or given another config: it goes on bit for bit, or says why not."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxz import errors, runtime, train
from jaxz.checkpoint import Checkpoints
from jaxz.errors import InputError
from jaxz.inference import load_run
from tests.training.runs import digests, losses, run

ROOT = Path(__file__).parents[2]


def start(config, workdir) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxz.train", config, f"--workdir={workdir}", "--config.train.ema_decay=0.9"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["within a save", "after a step"])
def test_kill_and_restart_equals_an_unbroken_run(config, straight, tmp_path, moment):
    workdir = tmp_path / "killed"
    process = start(config, workdir)
    checkpoints = workdir / "checkpoints"
    if moment == "within a save":  # of step 14: its directory has another name until it is complete
        wait_for(lambda: any(p.name.startswith("14.") for p in checkpoints.glob("*")), process)
    else:
        lines = workdir / "metrics.jsonl"
        wait_for(lambda: (checkpoints / "7").exists() and lines.exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (checkpoints / "20").exists()
    run(config, f"--workdir={workdir}", "--config.train.ema_decay=0.9")
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert digests(workdir) == digests(straight)


def test_a_signal_saves_and_asks_to_be_requeued(config, straight, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(config, workdir)
    wait_for(lambda: (workdir / "checkpoints" / "7").exists(), process)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    if process.returncode == errors.OK:
        pytest.skip("the run ended before the signal came")
    assert (
        process.returncode == errors.REQUEUE and "Traceback" not in message and "run the same command again" in message
    )
    run(config, f"--workdir={workdir}", "--config.train.ema_decay=0.9")
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert digests(workdir) == digests(straight)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(config, straight, tmp_path, damage, capsys):
    workdir = tmp_path / "damaged"
    shutil.copytree(straight, workdir)
    newest = workdir / "checkpoints" / "20"
    (newest / "files.json").unlink()  # so that the digests of the values alone must find it
    victim = max((p for p in (newest / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    run(config, f"--workdir={workdir}", "--config.train.ema_decay=0.9")
    said = capsys.readouterr().err
    assert "checkpoint 20 is damaged" in said and "going on from step 14" in said
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert digests(workdir) == digests(straight)


def test_any_changed_byte_is_noticed(straight, tmp_path):
    workdir, rng = tmp_path / "bytes", np.random.default_rng(0)
    shutil.copytree(straight, workdir)
    files = sorted(p for p in (workdir / "checkpoints" / "20").rglob("*") if p.is_file())
    for victim in files:
        content = victim.read_bytes()
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        victim.write_bytes(changed)
        checkpoints = Checkpoints(workdir)
        assert checkpoints.meta()["step"] == 14, victim
        checkpoints.close()
        victim.write_bytes(content)


def test_reading_leaves_a_save_under_way_alone(straight, tmp_path):
    workdir = tmp_path / "running"
    shutil.copytree(straight, workdir)
    under_way = workdir / "checkpoints" / "25.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", under_way)
    load_run(workdir)
    assert (under_way / "meta").is_dir()


def test_when_all_are_damaged_the_run_fails_and_says_so(config, straight, tmp_path):
    workdir = tmp_path / "all"
    shutil.copytree(straight, workdir)
    for meta in workdir.glob("checkpoints/*/meta/metadata"):
        meta.write_text("{}")
    with pytest.raises(Exception, match="all checkpoints .* are damaged"):
        train.main([config, f"--workdir={workdir}", "--config.train.ema_decay=0.9"])


def test_a_finished_run_run_again_does_nothing(config, straight):
    before = (straight / "metrics.jsonl").stat().st_mtime_ns, losses(straight)
    run(config, f"--workdir={straight}", "--config.train.ema_decay=0.9")
    assert losses(straight) == before[1] and len(before[1]) == 20


def test_a_workdir_of_another_config_is_refused_with_the_difference(config, straight, tmp_path):
    with pytest.raises(InputError, match=r"begun with another config \(optim.lr: 0.001 -> 0.01\)"):
        train.main([config, f"--workdir={straight}", "--config.train.ema_decay=0.9", "--config.optim.lr=0.01"])


def test_a_changed_config_goes_on_where_it_is_allowed(tiny, short, tmp_path):
    workdir, before = shutil.copytree(short, tmp_path / "run"), losses(short)
    run(tiny, f"--workdir={workdir}", "--config.train.steps=4", "--allow_config_change")
    assert losses(workdir)[:2] == before and len(losses(workdir)) == 4
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--config.model.width=64"], r"is float32\[.*\] in checkpoint 20 .*, not float32\["),
        (["--config.optim.frozen=^encoder/"], "opt/.* checkpoint 20"),
        (["--config.seed=5"], "seed: 0 -> 5"),
        (["--config.data.softening=9.0"], "data.softening: 9.0 is not what the checkpoint was trained with"),
    ],
)
def test_an_impossible_change_is_refused_and_spoils_nothing(config, straight, tmp_path, change, message):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    with pytest.raises(InputError, match=message):
        train.main([config, f"--workdir={workdir}", "--config.train.ema_decay=0.9", *change, "--allow_config_change"])
    assert (workdir / "config.json").read_bytes() == (straight / "config.json").read_bytes()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["14", "20", "7"]
    run(config, f"--workdir={workdir}", "--config.train.ema_decay=0.9")  # undone, it goes on


def test_a_failing_disk_is_no_damage(config, straight, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("jaxz.checkpoint.ocp.CheckpointManager.restore", fail)
        with pytest.raises(OSError, match="Input/output error"):
            train.main([config, f"--workdir={workdir}", "--config.train.ema_decay=0.9"])
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["14", "20", "7"]
    assert not (workdir / "damaged").exists()


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")
FULL_STORE = ValueError('RESOURCE_EXHAUSTED: Failed writing: "params": No space left on device [os_error_code=28]')


@pytest.mark.parametrize(
    ("method", "error"),
    [("save", FULL_DISK), ("wait_until_finished", FULL_DISK), ("wait_until_finished", FULL_STORE), (None, None)],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_done(tiny, tmp_path, monkeypatch, capsys, method, error):
    """Said by the save, while it goes on in the background, or by the disk before it (None)."""
    workdir = tmp_path / "run"
    arguments = [tiny, f"--workdir={workdir}", "--config.train.steps=1"]

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        if method:
            patch.setattr(f"jaxz.checkpoint.ocp.CheckpointManager.{method}", fail)
        else:
            patch.setattr("jaxz.checkpoint.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        assert train.fail_cleanly(arguments) == errors.FAILED
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(f"failed: no space left in {workdir}") and "Traceback" not in told
    assert "done" not in told + (workdir / "log.txt").read_text()
    assert not list(workdir.glob("checkpoints/*"))
    run(*arguments)
    assert "done, 1 steps" in (workdir / "log.txt").read_text()


def test_without_memory_it_names_what_to_lower_and_another_config_begins_anew(tiny, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    arguments = [tiny, f"--workdir={workdir}", "--config.train.steps=1"]

    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr("jaxz.loop.Meter.know", fail)
        assert train.fail_cleanly([*arguments, "--config.train.batch_size=32"]) == errors.FAILED
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("failed: not enough memory")
    assert all(name in told for name in ("train.batch_size", "train.accumulate", "model.remat"))
    run(*arguments)
    said = "begun anew, as no step was made with the config before (train.batch_size: 32 -> 16)"
    assert said in (workdir / "log.txt").read_text()
    assert json.loads((workdir / "config.json").read_text())["train"]["batch_size"] == 16


def test_the_directory_of_what_is_no_training_is_refused(tiny, tmp_path):
    """Such as a baseline's, whose config has other fields."""
    config = {"model": "gbt", "data": {"path": "dataset"}, "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="--workdir: .*config.json: was not written by a training; name the directory"):
        train.main([tiny, f"--workdir={tmp_path}", "--allow_config_change"])
    assert json.loads((tmp_path / "config.json").read_text()) == config


def test_a_logged_step_keeps_its_config(tiny, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    train.write_config(workdir, train.parse([tiny]))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(InputError, match="begun with another config"):
        train.main([tiny, f"--workdir={workdir}", "--config.optim.lr=0.5"])


def test_one_workdir_is_trained_in_by_one_process(tiny, tmp_path):
    workdir = tmp_path / "run"
    with runtime.Lock(workdir / ".lock"), pytest.raises(InputError, match="another process is training in"):
        train.main([tiny, f"--workdir={workdir}", "--config.train.steps=1"])
    (workdir / ".config.json.1.tmp").write_text("{")  # as a kill within the first write leaves it
    run(tiny, f"--workdir={workdir}", "--config.train.steps=1")
