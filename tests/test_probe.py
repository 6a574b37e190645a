"""Probes: each finds what is there; the command line scores a run beside an untrained encoder."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge

from jaxz import errors, probe, train
from jaxz.errors import InputError
from tests.helpers import blobs, small_config


def parts(rule, counts=(400, 100, 150), width=6, tokens=4):
    """Splits whose target is rule(tokens)."""
    draw = np.random.default_rng(0)
    found = {}
    for split, count in zip(probe.SPLITS, counts, strict=True):
        x = draw.normal(size=(count, tokens, width)) * np.array([1, 1, 1, 1, 1, 0])[:width] + 3
        features = np.concatenate([x.mean(1)] * 2, axis=1).astype(np.float32)
        target = rule(x - 3) + 0.02 * draw.normal(size=count)
        found[split] = probe.Part(features, x.astype(np.float16), np.ones(x.shape[:2], bool), target)
    return probe.standardised(found)


def r2(predicted, part):
    return 1 - np.mean((predicted - part.target) ** 2) / np.var(part.target)


def linear(x):
    return x.mean(1) @ np.array([1, -0.5, 0.3, 0, 0, 0])


def test_standardised_features_are_those_of_train():
    split = parts(linear)
    train = split["train"]
    np.testing.assert_allclose(train.features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.features.std(0), [1, 1, 1, 1, 1, 0] * 2, atol=1e-5)
    np.testing.assert_allclose(train.tokens.std((0, 1), dtype=float), [1, 1, 1, 1, 1, 0], atol=2e-3)
    assert abs(split["test"].features.mean(0)).max() > 0.01


def test_ridge_is_that_of_scikit_learn_with_the_strength_that_serves_val_best():
    split = parts(linear)
    train, val, test = (split[name] for name in probe.SPLITS)
    fits = [Ridge(alpha=alpha).fit(train.features.astype(float), train.target) for alpha in probe.ALPHAS]
    chosen = min(fits, key=lambda fit: np.mean((fit.predict(val.features) - val.target) ** 2))
    np.testing.assert_allclose(probe.ridge(split), chosen.predict(test.features), rtol=1e-4, atol=1e-4)
    assert r2(probe.ridge(split), test) > 0.98


def test_neighbours_are_the_mean_of_the_nearest():
    split = parts(linear)
    train, val, test = (split[name] for name in probe.SPLITS)

    def brute(part, k):
        distance = ((part.features[:, None] - train.features) ** 2).sum(2)
        return train.target[np.argsort(distance, axis=1)[:, :k]].mean(1)

    chosen = min(probe.NEIGHBOURS, key=lambda k: np.mean((brute(val, k) - val.target) ** 2))
    np.testing.assert_allclose(probe.neighbours(split), brute(test, chosen), rtol=1e-5)
    assert chosen > 1


def test_logistic_regression_expects_what_the_bins_hold():
    split = parts(linear, counts=(800, 100, 150))
    assert r2(probe.logistic(split), split["test"]) > 0.9
    bins, centres = probe.binned(split["train"].target)
    assert len(centres) == probe.BINS and np.ptp(np.bincount(bins)) <= 2
    np.testing.assert_allclose(centres[bins].mean(), split["train"].target.mean())
    assert len(probe.binned(np.repeat([0.1, 0.5], [60, 20]))[1]) == 2  # ties make fewer bins


def test_the_attentive_probe_finds_what_only_one_token_says():
    draw, split = np.random.default_rng(0), {}
    turned = np.linalg.qr(draw.normal(size=(32, 32)))[0]
    for name, count in zip(probe.SPLITS, (3000, 200, 300), strict=True):
        x, rows, which = 0.5 * draw.normal(size=(count, 4, 32)), np.arange(count), draw.integers(0, 4, count)
        x[..., 0] *= 3
        x[rows, which, 1] += 4  # the mark of the token whose first number is the target
        target = 0.1 * x[rows, which, 0]
        x = (x @ turned).astype(np.float32)
        x = np.concatenate([x, np.full((count, 2, 32), 1e4, np.float32)], axis=1)  # what is not observed says nothing
        observed = np.arange(6) < np.full((count, 1), 4)
        split[name] = probe.Part(np.concatenate([x[:, :4].mean(1)] * 2, axis=1), x.astype(np.float16), observed, target)
    split = probe.standardised(split)
    assert r2(probe.attentive(split), split["test"]) > 0.8
    assert r2(probe.ridge(split), split["test"]) < 0.3


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Blobs with a val split, which an overlay makes of a part of train."""
    path = blobs(tmp_path_factory.mktemp("probe") / "blobs", samples=240)
    ids = np.arange(240)
    split = np.where(ids // 2 % 4 == 3, "test", np.where(ids // 2 % 4 == 2, "val", "train"))
    (path / "overlays").mkdir()
    pq.write_table(pa.table({"object_id": ids, "split": split}), path / "overlays" / "parted.parquet")
    return path


@pytest.fixture(scope="module")
def run(survey, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe") / "run"
    config = small_config(workdir.parent, survey, depth=1, redshift=1.0)
    options = ["--config.data.overlays=('parted',)", "--config.train.steps=2"]
    assert train.main([config, f"--workdir={workdir}", *options]) == errors.OK
    return workdir


def test_a_run_is_scored_beside_an_untrained_encoder(survey, run, capsys, monkeypatch):
    monkeypatch.setattr(probe, "EPOCHS", 2)
    probe.main([f"--workdir={run}", f"--dataset={survey}"])
    said = capsys.readouterr().out
    assert "spectroscopic labels" in said and all(name in said for name in probe.PROBES)
    found = json.loads((run / "probe.json").read_text())
    assert found["label"] == "z" and found["run"]["objects"] == {"train": 60, "val": 30, "test": 30}
    for arm in ("run", "random_init"):
        for name in probe.PROBES:
            assert {"r2_ln", "sigma_mad", "eta_15"} == found[arm][name].keys()
            assert all(np.isfinite([m["value"], m["error"]]).all() for m in found[arm][name].values())
    assert found["run"]["ridge"] != found["random_init"]["ridge"]

    probe.main([f"--workdir={run}", f"--dataset={survey}", "--truth", "--most=50", "--step=2"])
    assert "the simulation's truth of all objects" in capsys.readouterr().out
    found = json.loads((run / "probe_2.json").read_text())
    assert found["label"] == "true_z" and found["run"]["objects"] == {"train": 50, "val": 50, "test": 50}


def test_what_cannot_be_probed_is_refused(blob_dataset, run):
    with pytest.raises(InputError, match="has no row with split == 'val'"):
        probe.main([f"--workdir={run}", f"--dataset={blob_dataset}"])
    with pytest.raises(InputError, match="--most: 1 must be at least 2"):
        probe.main([f"--workdir={run}", f"--dataset={blob_dataset}", "--most=1"])
    with pytest.raises(InputError, match=r"--step: 1 is not one of .*, \[2\]"):
        probe.main([f"--workdir={run}", f"--dataset={blob_dataset}", "--step=1"])
    for member in (-1, 1):
        with pytest.raises(InputError, match=f"--member: {member} is none of the run's 1, which count from 0"):
            probe.main([f"--workdir={run}", f"--dataset={blob_dataset}", f"--member={member}"])
