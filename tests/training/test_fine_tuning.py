"""A run that begins from another: what it takes, what it leaves alone, what must agree."""

import shutil

import jax
import numpy as np
import pytest

from jaxz import train
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.errors import InputError
from jaxz.inference import load_run
from tests.helpers import small_config
from tests.training.runs import digests, losses, run


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
