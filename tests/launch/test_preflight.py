"""Wrong requests are refused with the field, the value and the fix, all at once, before anything is submitted."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from jaxz.config import parse, resolved
from jaxz.errors import InputError
from launch import preflight, slurm
from launch.profile import FOLDER, load_profile
from launch.request import make_request, parser
from tests.helpers import blobs, small_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("data") / "survey", samples=32)


@pytest.fixture
def site(tmp_path, dataset, monkeypatch):
    """A place like the login node of Jean Zay: HOME, WORK, SCRATCH with the dataset; H100's packages installed."""
    for name in ("HOME", "WORK", "SCRATCH", "STORE"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    shutil.copytree(dataset, tmp_path / "scratch" / "survey")
    small_config(tmp_path, tmp_path / "scratch" / "survey", depth=1, redshift=1.0)
    monkeypatch.setattr(preflight, "installed", lambda package: package == "jax-cuda12-plugin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*ours: str, train: tuple[str, ...] = (), **change: str) -> str:
    """What is said of the usual request with some changes; "" for nothing."""
    usual = {"profile": "jean_zay_h100", "account": "abc", "nodes": "2", "time": "20:00:00"} | change
    given = [text for name, value in usual.items() if value for text in (f"--{name}", value)]
    options = ["--config=config_redshift.py", "--workdir=scratch/run", *train]
    try:
        preflight.check(make_request(parser().parse_args([*given, *ours]), options))
    except InputError as error:
        return str(error)
    return ""


def test_nothing_speaks_against_a_right_request(site):
    assert refused() == "" and refused("--array", "seed=0,1") == ""
    assert not Path("scratch/run").exists()


REQUESTS = [
    (dict(account=""), "--account: is missing; give the project that pays, without '@h100'"),
    (dict(account="abc@h100"), "--account: 'abc@h100' has its suffix already; leave out '@h100', which is added"),
    (dict(time="30:00:00"), "--time: 30:00:00 is above the 20 h of qos_gpu_h100-t3; ask for less"),
    (dict(time="30:00:00"), "or for --qos qos_gpu_h100-t4"),
    (dict(qos="qos_gpu_h100-t5"), "--qos: 'qos_gpu_h100-t5' is none of jean_zay_h100; choose from qos_gpu_h100-dev"),
    (dict(nodes="16", qos="qos_gpu_h100-dev", time="1:00:00"), "--nodes: 64 GPUs are above the 32 of qos_gpu_h100-dev"),
    (dict(nodes="3"), "train.batch_size: 16 is not divisible by the 12 devices of 3 node(s); use 12"),
    (dict(nodes="1-3"), "train.batch_size: 16 is not divisible by the 12 devices of 3 node(s); use 12"),
]


@pytest.mark.parametrize(("change", "sentence"), REQUESTS)
def test_what_the_cluster_does_not_grant(site, change, sentence):
    assert sentence in refused(**change)


CONFIGS = [
    (["--config.train.accumulate=4"], "not divisible by the 8 devices of 2 node(s) x train.accumulate 4; use 32"),
    (["--config.mesh.fsdp=3"], "mesh: data -1 x fsdp 3 is not the 8 devices of 2 node(s); use mesh.data=-1"),
    (["--config.train.batchsize=8"], "Did you mean 'batch_size'?"),
    (["--config.train.steps=0"], "train.steps: 0 must be at least 1"),
    (["--config.data.path=https://sky.org/survey"], "jobs have no internet; copy it to $SCRATCH"),
    (["--config.data.path=survey"], "dataset"),
    (["--config.init.path=scratch/pretrained"], "init.path: 'scratch/pretrained' is no run directory with checkpoints"),
    (["--workdir=home/run"], "--workdir: "),
    (["--workdir=config_redshift.py/run"], "cannot be written to; name another"),
    (["--workdir=scratch/survey"], "holds files but no config.json; name an empty directory"),
    (["--config.model.patch=5"], "model.patch: 5 does not divide the cutouts' 16 pixels; choose a divisor"),
]


@pytest.mark.parametrize(("train", "sentence"), CONFIGS)
def test_what_the_training_would_stop_at(site, train, sentence):
    assert sentence in refused(train=tuple(train))


def test_home_is_named_as_what_it_is(site):
    assert "is in $HOME, which is small or unreadable in jobs; use $SCRATCH" in refused(train=("--workdir=home/run",))


def test_a_v100_has_no_bfloat16_and_no_cuda_13(site, monkeypatch):
    monkeypatch.setattr(preflight, "installed", lambda package: package == "jax-cuda13-plugin")
    said = refused(profile="jean_zay_v100", train=("--config.model.dtype=bfloat16",))
    assert "model.dtype: 'bfloat16' is not for V100; use --config.model.dtype=float32" in said
    assert "jax[cuda12]: is not installed, and jean_zay_v100 needs it; run launch/setup_env.sh jean_zay_v100" in said


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (Path.unlink, "00001.tar is missing; copy them again (rsync --partial)"),
        (lambda path: path.write_bytes(b"short"), "00001.tar has 5 of "),
    ],
)
def test_a_dataset_that_is_not_whole(site, damage, sentence):
    damage(site / "scratch/survey/shards/00001.tar")
    assert sentence in refused()


def test_a_dataset_that_will_be_purged(site):
    old = time.time() - 27 * 86400
    os.utime(site / "scratch/survey/shards/00001.tar", (old, old))
    assert "files not read for 27 days, and $SCRATCH is purged after 30" in refused()
    os.utime(site / "scratch/survey/shards/00001.tar", (time.time(), old))  # read, though old
    assert refused() == ""


@pytest.mark.parametrize(
    ("free", "sentence"),
    [(dict(f_bavail=1), "GB left, and checkpoints need 0.0; make room"), (dict(f_favail=9), "9 inodes left")],
)
def test_a_full_disk(site, monkeypatch, free, sentence):
    class Full:
        f_bavail, f_frsize, f_files, f_favail = 2**40, 4096, 2**30, 2**30

    for name, value in free.items():
        monkeypatch.setattr(Full, name, value)
    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    assert sentence in refused()


def test_another_config_for_a_run_that_has_begun(site):
    run = site / "scratch" / "run"
    run.mkdir()
    begun = resolved(parse(["--config=config_redshift.py", "--config.seed=1"]))
    (run / "config.json").write_text(json.dumps(begun))
    assert refused() == ""  # no step was made with it
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert "was begun with another config" in refused() and "seed: 1 -> 0" in refused()


def test_what_the_jobs_before_make_need_not_be_there(site):
    shutil.rmtree(site / "scratch" / "survey")
    assert "has no readable dataset.json" in refused()
    assert refused("--convert", f"--survey=a.toml --images=tiles --out {site}/scratch/survey") == ""
    assert refused("--stage", "store/survey", "scratch/survey") == ""
    assert "has no readable dataset.json" in refused("--stage", "store/survey", "scratch/other")
    weights = refused("--stage", "store/survey", "scratch/survey", train=("--config.init.path=scratch/weights",))
    assert weights == "init.path: 'scratch/weights' is not there; fetch it, which jobs cannot do"


def test_all_is_said_at_once_and_nothing_submitted(site, monkeypatch, capsys):
    monkeypatch.setattr("launch.queue.submit", lambda *_: pytest.fail("submitted"))
    arguments = [
        "--profile",
        "jean_zay_v100",
        "--nodes",
        "3",
        "--time",
        "200:00:00",
        "--",
        "--config=config_redshift.py",
    ]
    with pytest.raises(InputError) as refusal:
        slurm.main(["submit", *arguments, "--workdir=home/run", "--config.model.dtype=bfloat16"])
    said = str(refusal.value).splitlines()
    assert [line.split(":")[0].strip() for line in said] == [
        "--account", "--time", "model.dtype", "train.batch_size", "--workdir",
    ]  # fmt: skip


def test_every_profile_has_what_preflight_asks_for():
    for path in FOLDER.glob("*.toml"):
        profile = load_profile(path.stem)
        assert not profile.files.purge_days or profile.files.scratch
