"""The collapse monitor: its numbers against closed forms, and what it flags in runs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxz import errors, monitor, objectives, train
from tests.helpers import small_config


def test_feature_std_is_one_for_isotropic_and_zero_for_equal_embeddings():
    x = np.random.default_rng(0).normal(size=(4000, 64))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = monitor.feature_std(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, unit.std(0).mean() * 8, rtol=1e-5)
    np.testing.assert_allclose(found, 1, atol=0.01)
    assert monitor.feature_std(jnp.ones((10, 8)) * jnp.arange(1, 11.0)[:, None]) < 1e-6  # one direction


def test_rankme_counts_equal_singular_values():
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 12)))
    for rank in (1, 3, 12):
        np.testing.assert_allclose(
            monitor.rankme(jnp.asarray(q * (np.arange(12) < rank), jnp.float32)), rank, rtol=1e-4
        )
    x = np.random.default_rng(1).normal(size=(50, 12)) * np.geomspace(1, 0.01, 12)
    p = np.linalg.svd(x, compute_uv=False)
    p /= p.sum()
    np.testing.assert_allclose(monitor.rankme(jnp.asarray(x, jnp.float32)), np.exp(-(p * np.log(p)).sum()), rtol=1e-5)
    assert np.isfinite(monitor.rankme(jnp.zeros((5, 3))))


class Together:
    """Pulls all embeddings together."""

    columns = ()

    def __init__(self, encoder, settings, normalisation):
        self.encoder = encoder

    def init(self, key):
        return {}, {}

    def loss(self, params, ema, extra, batch, key, step):
        x = self.encoder(params["encoder"], batch["image"], batch["mask"]).cls
        return x.var(0).mean(), {"metrics": {}, "extra": extra}

    def predict(self, params, extra, batch):
        return {}


def monitored(workdir) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "monitor/collapsed" in line]


@pytest.mark.long
def test_a_forced_collapse_is_flagged_within_200_steps_and_a_healthy_run_is_not(blob_dataset, tmp_path, monkeypatch):
    healthy = small_config(tmp_path, blob_dataset, depth=1, mae=1.0)
    options = ["--config.train.steps=150", "--config.train.log_every=140", "--config.checkpoint.every=1000"]
    assert train.main([healthy, f"--workdir={tmp_path / 'healthy'}", *options]) == errors.OK
    lines = monitored(tmp_path / "healthy")
    assert [line["step"] for line in lines] == [50, 100, 150]
    assert not any(line["monitor/collapsed"] for line in lines)
    assert "embeddings collapse" not in (tmp_path / "healthy" / "log.txt").read_text()

    monkeypatch.setattr(objectives.mae, "Objective", Together)
    assert train.main([healthy, f"--workdir={tmp_path / 'forced'}", *options, "--config.optim.lr=0.01"]) == errors.OK
    last = monitored(tmp_path / "forced")[-1]
    assert last["monitor/collapsed"] == 1.0, last
    warnings = [
        line for line in (tmp_path / "forced" / "log.txt").read_text().splitlines() if "embeddings collapse" in line
    ]
    assert len(warnings) == 1 and "feature_std" in warnings[0] and "rankme" in warnings[0]
