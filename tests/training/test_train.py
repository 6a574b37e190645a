"""The trainer end to end on a tiny dataset: what it learns from, what it begins from, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxz import errors, objectives, train
from jaxz.checkpoint import Checkpoints
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.errors import InputError
from jaxz.inference import load_run
from jaxz.mesh import make_mesh
from jaxz.models import build
from tests.helpers import blobs, small_config
from tests.training.runs import digests, losses, run

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_each_seed_is_another_run(tiny, tmp_path):
    for seed in (0, 1):
        run(tiny, f"--workdir={tmp_path / str(seed)}", f"--config.seed={seed}", "--config.train.steps=2")
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_training_learns_and_its_average_follows(straight):
    assert np.mean(losses(straight)[-3:]) < 0.9 * np.mean(losses(straight)[:3])
    params, ema = load_run(straight).params, load_run(straight, "ema").params
    gaps = [float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(ema), strict=True)]
    assert 0 < max(gaps) < 1


@pytest.mark.long
def test_a_float16_run_follows_a_float32_one(tiny, tmp_path):
    for kind in ("float32", "float16"):
        run(tiny, f"--workdir={tmp_path / kind}", f"--config.model.dtype={kind}")
    np.testing.assert_allclose(losses(tmp_path / "float16"), losses(tmp_path / "float32"), rtol=5e-3)
    last = json.loads((tmp_path / "float16" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["optim/loss_scale"] == 2**15 and last["optim/skipped"] == 0


def test_a_run_is_loaded_at_a_step(straight):
    newest, last, first = (load_run(straight, step=step).params["redshift"]["out"]["kernel"] for step in (None, 20, 7))
    np.testing.assert_array_equal(last, newest)
    assert not np.array_equal(first, newest)
    with pytest.raises(InputError, match=r"--step: 8 is not one of '.*straight''s checkpoints, \[7, 14, 20\]"):
        load_run(straight, step=8)


def test_labels_outside_of_the_bins_are_said_and_only_they_refused(monkeypatch):
    edges, z, said = np.linspace(0, 1, 5), np.array([np.nan, -0.1, 0.0, 0.99, 1.0, np.nan]), []
    monkeypatch.setattr(train.log, "warning", lambda text, *values: said.append(text % values))
    train.check_labels(z[:4], edges)
    train.check_labels(z, edges)
    train.check_labels(z[2:4], edges)
    assert said == [f"{n} of {m} labels lie outside of z_min 0 to z_max 1: unused" for n, m in ((1, 3), (2, 4))]
    with pytest.raises(InputError, match="losses: none of the 2 labels lies in z_min 0 to z_max 1; set them, or data."):
        train.check_labels(z[[0, 1, 4]], edges)


def test_only_the_train_split_is_trained_on(tiny, blob_dataset):
    """Unless the config says transductive."""
    dataset = open_dataset(blob_dataset)
    normalisation = Normalisation.create(dataset.manifest, (), 3.0, True)
    for transductive, where, splits in (
        (False, "", {"train"}),
        (False, "split == 'test' or z > 0.3", {"train"}),
        (True, "", {"train", "test"}),
    ):
        config = parse([tiny, f"--config.data.transductive={transductive}", f"--config.data.where={where}"])
        encoder = build(config.model, normalisation.bands, normalisation.size)
        objective = objectives.Objective(encoder, config, normalisation)
        stream = train.make_stream(
            config, dataset, objective, Prepare(dataset.manifest, normalisation), make_mesh(1, 1)
        )
        rows = np.concatenate([next(stream)["row"] for _ in range(12)])
        assert set(dataset.column("split")[rows]) == splits
        stream.close()


@pytest.mark.long
def test_labelled_and_unlabelled_sources_share_a_batch_in_stages(blob_dataset, tmp_path):
    """And the run resumes in the middle of them."""
    path = Path(small_config(tmp_path, blob_dataset, depth=1, redshift=1.0, fluxes=1.0).removeprefix("--config="))
    mixed = """
    config.data.sources = (
        dict(name="labelled", where="z_kind == 'spec'", balance="z", balance_bins=3),
        dict(name="all", window=1),
    )
    config.data.stages = (dict(ratios=(0, 1), steps=5), dict(ratios=(1, 3)))
    return config"""
    path.write_text(path.read_text().replace("\n    return config", mixed))
    run(f"--config={path}", "--config.train.steps=12", f"--workdir={tmp_path / 'run'}")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    run(f"--config={path}", "--config.train.steps=12", f"--workdir={tmp_path / 'run'}")  # from step 7
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_finished_run_says_so_and_stays(tiny, tmp_path, capsys):
    command = tiny, f"--workdir={tmp_path / 'run'}", "--config.train.steps=2"
    run(*command)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    capsys.readouterr()
    run(*command)
    assert "run: done, 2 steps\n" in capsys.readouterr().err
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_garbage_in_absent_bands_does_not_change_training(config, straight, tmp_path):
    other = blobs(tmp_path / "garbage", fill=3e4)
    run(config, f"--workdir={tmp_path / 'run'}", "--config.train.ema_decay=0.9", f"--config.data.path={other}")
    assert losses(tmp_path / "run") == losses(straight)


def test_pixels_that_are_not_finite_are_masked_and_logged(tiny, blob_dataset, tmp_path):
    """One of the 256 pixels of band r, in every image: of all three bands, or of two where g was not observed."""
    other, share = shutil.copytree(blob_dataset, tmp_path / "nan"), []
    opened = open_dataset(other)
    for n in range(3):
        content = bytearray(opened.shard_path(n).read_bytes())
        for offset in opened.places(n, "image")[0]:
            content[offset + 512 : offset + 514] = np.float16(np.nan).tobytes()
        opened.shard_path(n).write_bytes(content)
    run(tiny, f"--workdir={tmp_path / 'run'}", f"--config.data.path={other}", "--config.train.steps=3")
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        share.append(json.loads(line)["data/nonfinite"])
    assert all(1 / 768 <= value <= 1 / 512 for value in share) and len(share) == 3
    assert np.isfinite(losses(tmp_path / "run")).all()


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    """And its parameters never become a checkpoint, also where no loss is looked at between two saves."""
    workdir = tmp_path / "nan"
    arguments = [tiny, f"--workdir={workdir}", "--config.optim.lr=1e38", "--config.optim.clip_norm=1e38"]
    with pytest.raises(FloatingPointError, match=r"(loss|grad_norm) is .* at step \d+; lower optim.lr"):
        train.main([*arguments, "--config.train.log_every=20", "--config.checkpoint.every=2"])
    checkpoints = Checkpoints(workdir)
    assert all(step < 4 for step in checkpoints.steps())
    checkpoints.close()


def test_help_shows_the_fields_of_a_config(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--config=configs/redshift_finetune.py", "--config.train.steps=7", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert {"  --config.train.steps=7", "  --config.redshift.z_max=3.0", "  --config.losses.redshift=1.0"} <= set(lines)


def test_dry_run_without_a_workdir_looks_at_no_run(tiny, short, monkeypatch, capsys):
    """Also where the folder in which it is started is one."""
    monkeypatch.chdir(short)
    run(tiny, "--dry_run", "--config.data.softening=5.0")
    assert capsys.readouterr().out


def test_dry_run_writes_nothing(tiny, tmp_path, capsys):
    run(tiny, f"--workdir={tmp_path / 'dry'}", "--dry_run")
    said = capsys.readouterr().out
    assert "parameters" in said and "GFLOP" in said and not (tmp_path / "dry").exists()


BAD = [
    (["--config.train.stepz=3"], r"--config: .*stepz.*Did you mean \"?'?steps"),
    (["--config.train.steps=many"], "--config: .*steps"),
    (["--config.train.steps=0"], "train.steps: 0 must be at least 1"),
    (["--config.data.path=nowhere"], "dataset 'nowhere' has no readable dataset.json .*make one with"),
    (["--config.data.bands=('g','k')"], "data.bands: 'k' is not a band of the dataset"),
    (["--config.data.where=zz > 1"], "^data.where: column 'zz' is not in"),
    (["--config.data.balance=zz"], "^data.balance: column 'zz' is not in"),
    (["--config.data.where=z > 99"], r"^data.where: .* selects none of the 96 rows"),
    (["--config.data.weights=z"], "^data.weights: column 'z' has values that are missing"),
    (["--config.data.balance=z"], "^data.balance: column 'z' is missing for \\d+ rows"),
    (["--config.data.overlays=('none',)"], "^data.overlays: "),
    (["--config.data.sources=({'where': 'z >'},)"], r"^data.sources\[0\].where: .* is not an expression"),
    (["--config.data.sources=({}, {'weights': 'z'})"], "^data.sources.weights: column 'z' has values"),
    (
        ["--config.data.sources=({}, {})", "--config.data.stages=({'ratios': (0, 0)},)"],
        r"^data.stages.ratios: \(0, 0\) m",
    ),
    (["--config.data.where=z >"], "^data.where: .* is not an expression"),
    (["--config.data.where=z > 0) or (z <= 0"], "where: .* is not an expression"),
    (["--config.data.where=true_z < 1"], "^data.where: .* reads 'true_z'"),
    (["--config.data.balance=true_z"], "data.balance: 'true_z' is the truth of a simulation"),
    (["--config.model.heads=5"], "model.heads: 5 must be a divisor of model.width"),
    (["--config.model.patch=7"], "model.patch: 7 does not divide the cutouts' 16 pixels"),
    (["--config.model.name=resnet"], "model.name: 'resnet' is no backbone"),
    (["--config.model.name=pasquet2019"], "model.name: 'pasquet2019' has the settings .*subsets.*; name it in a conf"),
    (["--config.init.path=nowhere"], "init.path: 'nowhere' is no run directory"),
    (["--config.optim.frozen=^nothing/"], "optim.frozen: '\\^nothing/' matches no parameter"),
    (["--config.optim.lr_rules=('.', 1.0)"], "optim.lr_rules: .* must be pairs"),
    (["--config.optim.decay_rules=()"], "optim.decay_rules: .* must be pairs"),
    (["--config.optim.lr_rules=(('^encoder/', 0.5),)"], "optim.lr_rules: no rule covers '(mae|fluxes|redshift)/"),
    (
        ["--config.optim.lora_rank=2", "--config.optim.lora_kernels=norm"],
        "optim.lora_kernels: 'norm' finds .*no matrix",
    ),
    (["--config.train.accumulate=3"], "train.accumulate: 3 does not divide train.batch_size 16"),
    (["--config.train.members=2", f"--config.seed={2**63 - 1}"], "seed: .* pass 64 bits"),
    (["--config.optim.frozen=("], "optim.frozen: '\\(' is no regular expression"),
    (["--config.redshift.z_min=2.0"], r"losses: none of the \d+ labels lies in z_min 2 to z_max 3; set them"),
    (["--config.mesh.fsdp=3"], "mesh.fsdp: 3 does not divide"),
    (["--config.train.steps=0", "--config.optim.lr=-1.0"], "train.steps: 0 .*; optim.lr: -1.0"),
    (["--stpes=3"], "argument '--stpes=3' is not known"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tiny, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        train.main([tiny, f"--workdir={tmp_path / 'bad'}", *arguments])
    assert not (tmp_path / "bad").exists()


def test_the_command_line_exits_2_without_a_traceback(config, tmp_path):
    command = [sys.executable, "-m", "jaxz.train", config, f"--workdir={tmp_path / 'bad'}", "--config.train.stepz=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == errors.BAD_INPUT
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def test_a_probe_starts_from_the_pretrained_encoder_and_leaves_it_alone(straight, blob_dataset, tmp_path):
    workdir = tmp_path / "probe"
    config = small_config(tmp_path, blob_dataset, redshift=1.0)
    run(config, f"--workdir={workdir}", f"--config.init.path={straight}", "--config.optim.frozen=^encoder/")
    before, after = load_run(straight).params, load_run(workdir).params
    jax.tree.map(np.testing.assert_array_equal, before["encoder"], after["encoder"])
    assert not np.array_equal(before["redshift"]["out"]["kernel"], after["redshift"]["out"]["kernel"])
    assert not any("encoder" in name for name in digests(workdir)["opt"])  # no optimizer state for what is frozen
    assert load_run(workdir).normalisation == load_run(straight).normalisation
    count = lambda params: sum(a.size for a in jax.tree.leaves(params))
    said = f"{count(after['redshift'])} of {count(after)} parameters are trained, on"
    assert said in (workdir / "log.txt").read_text()


@pytest.mark.long
def test_low_rank_factors_are_trained_of_a_pretrained_encoder_that_stays(straight, blob_dataset, tmp_path):
    workdir, arguments = (
        tmp_path / "lora",
        [small_config(tmp_path, blob_dataset, redshift=1.0), "--config.train.steps=3"],
    )
    run(*arguments, f"--workdir={workdir}", f"--config.init.path={straight}", "--config.optim.lora_rank=2")
    before, after = load_run(straight), load_run(workdir)
    jax.tree.map(np.testing.assert_array_equal, before.params["encoder"], after.params["encoder"])
    up = after.params["lora"]["blocks"]["up"]["kernel"]
    assert np.abs(up["b"]).max() > 0 and not any("encoder" in name for name in digests(workdir)["opt"])

    run(*arguments, f"--workdir={tmp_path / 'on'}", f"--config.init.path={workdir}", "--config.optim.frozen=^encoder/")
    merged = load_run(tmp_path / "on").params["encoder"]["blocks"]["up"]["kernel"]
    np.testing.assert_allclose(
        merged, before.params["encoder"]["blocks"]["up"]["kernel"] + up["a"] @ up["b"], rtol=1e-5
    )


def test_a_fine_tuning_goes_on_without_the_run_it_started_from(straight, blob_dataset, tmp_path):
    pretrained, workdir = tmp_path / "pretrained", tmp_path / "tuned"
    shutil.copytree(straight, pretrained)
    arguments = [small_config(tmp_path, blob_dataset, redshift=1.0), f"--workdir={workdir}"]
    run(*arguments, f"--config.init.path={pretrained}", "--config.train.steps=2")
    shutil.rmtree(pretrained)
    run(*arguments, f"--config.init.path={pretrained}", "--config.train.steps=3", "--allow_config_change")
    assert len(losses(workdir)) == 3


def test_starting_from_an_average_takes_the_average(straight, blob_dataset, tmp_path):
    workdir = tmp_path / "from_ema"
    arguments = [f"--config.init.path={straight}", "--config.init.item=ema", "--config.optim.frozen=^encoder/"]
    run(
        small_config(tmp_path, blob_dataset, redshift=1.0), f"--workdir={workdir}", "--config.train.steps=1", *arguments
    )
    jax.tree.map(
        np.testing.assert_array_equal, load_run(straight, "ema").params["encoder"], load_run(workdir).params["encoder"]
    )


def test_an_average_that_was_not_kept_is_refused_and_leaves_nothing(tiny, short, tmp_path):
    with pytest.raises(InputError, match="init.item: 'ema' was not kept by '.*short'; use 'params'"):
        train.main([tiny, f"--workdir={tmp_path / 'x'}", f"--config.init.path={short}", "--config.init.item=ema"])
    assert not (tmp_path / "x").exists()


def test_a_fine_tuning_may_compute_otherwise(tiny, short, blob_dataset, tmp_path):
    """In another precision or order, with branches dropped: none changes what the parameters are."""
    otherwise = dict(dtype="bfloat16", attention="xla", remat="block", drop_path=0.1)
    config = parse([tiny, f"--config.init.path={short}", *(f"--config.model.{n}={v}" for n, v in otherwise.items())])
    assert all(config.model[name] == value != parse([tiny]).model[name] for name, value in otherwise.items())
    found = train.starting_normalisation(tmp_path / "x", config, open_dataset(blob_dataset))
    assert found == load_run(short).normalisation


@pytest.mark.parametrize(
    ("field", "value"), [("bands", "('r','g')"), ("softening", 9.0), ("deredden", False), ("stretch", "log")]
)
def test_a_fine_tuning_keeps_the_inputs_of_its_model(straight, blob_dataset, tmp_path, field, value):
    config = small_config(tmp_path, blob_dataset, redshift=1.0)
    with pytest.raises(
        InputError, match=rf"data.{field}: .* is not what init.path .* was trained with; set data.{field}="
    ):
        train.main(
            [config, f"--workdir={tmp_path / 'x'}", f"--config.init.path={straight}", f"--config.data.{field}={value}"]
        )
    assert not (tmp_path / "x").exists()


def test_mismatched_encoders_are_refused(straight, blob_dataset, tmp_path):
    with pytest.raises(
        InputError, match=r"init.path: .* has another model \(depth: 2 -> 3\); use the same: --config.model.depth=2"
    ):
        train.main(
            [
                small_config(tmp_path, blob_dataset, redshift=1.0),
                f"--workdir={tmp_path / 'x'}",
                f"--config.init.path={straight}",
                "--config.model.depth=3",
            ]
        )
    assert not (tmp_path / "x").exists()
