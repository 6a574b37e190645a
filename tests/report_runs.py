"""Run directories for the report to read, made up."""

import json

import numpy as np
import pyarrow as pa
from scipy import stats

from jaxz.photoz.pdf import PDF
from jaxz.report_data import read_run
from jaxz.results import write_results

ARMS = {  # scatter, bias and outliers of the fake arms; the last entry is where they started
    "direct_vit": (0.030, 0.002, 0.03, ""),
    "mae_finetune": (0.022, 0.001, 0.015, "mae_pretrain"),
    "frozen_probe": (0.038, -0.004, 0.05, "mae_pretrain"),
    "photometry_gbt": (0.031, 0.000, 0.03, ""),
}


def fake_run(root, name, n=1200, seed=1):
    """A run directory with everything that evaluate and train leave."""
    sigma, bias, outliers, start = ARMS[name]
    sky, draw = np.random.default_rng(0), np.random.default_rng([seed, *name.encode()])
    z_true = np.clip(sky.gamma(3, 0.28, n), 0.02, 2.9)
    magnitude = np.clip(19 + 3.2 * z_true**0.6 + sky.normal(0, 0.9, n), 17, 25)
    labelled = magnitude < 22.5
    spread = sigma * (1 + np.clip(magnitude - 21.5, 0, None)) * (1 + z_true)
    z_phot = z_true + bias * (1 + z_true) - 0.05 * np.clip(z_true - 1.5, 0, None) + spread * draw.normal(size=n)
    lost = draw.uniform(size=n) < outliers * np.where(labelled, 0.5, 2)
    z_phot = np.clip(np.where(lost, draw.uniform(0.05, 2.8, n), z_phot), 0.01, 2.95)
    edges = np.linspace(0, 3, 151)
    mass = np.diff(stats.norm.cdf(edges, z_phot[:, None], 0.9 * spread[:, None]), axis=1) + 2e-4
    pdf = PDF(edges, (mass / mass.sum(axis=1, keepdims=True)).astype(np.float32))
    catalog = pa.table({
        "key": [f"obj{i:05d}" for i in range(n)], "object_id": np.arange(n), "ra": sky.uniform(149, 151, n),
        "dec": sky.uniform(1, 3, n), "n_bands": np.full(n, 9), "mag_ref": magnitude.astype(np.float32),
        "coverage_flag": (draw.uniform(size=n) < 0.9).astype(np.int8),
    })  # fmt: skip
    run = base_run(root, name, start, steps=4000, seconds=1500.0)
    truths = {"spec_like": np.where(labelled, z_true, np.nan), "full": z_true}
    write_results(run, name, catalog, pdf, truths)
    return run


def base_run(root, name, start="", steps=20000, seconds=9000.0):
    """A run directory that has been trained but not evaluated."""
    run = root / name
    run.mkdir()
    config = {"train": {"steps": steps, "batch_size": 128}, "init": {"path": str(root / start) if start else ""}}
    (run / "config.json").write_text(json.dumps(config | {"data": {"path": str(root / "dataset")}}))
    cost = {"steps": steps, "batch_size": 128, "images": 128 * steps, "seconds": seconds}
    (run / "compute.json").write_text(json.dumps(cost | {"parameters": 5_500_000, "devices": "1 cpu"}))
    draw = np.random.default_rng(list(name.encode()))
    lines = [{"step": s, "loss": 0.5 + 3 * np.exp(-s / 900) + 0.1 * draw.normal()} for s in range(10, steps + 1, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def fake_reconstructions(run, n=3, c=5, size=32):
    """Round galaxies, half of their patches hidden, the third band of the first absent."""
    draw, (y, x) = np.random.default_rng(3), np.mgrid[:size, :size] - size / 2
    width = draw.uniform(2, 5, (n, 1, 1, 1))
    truth = 3 * draw.uniform(0.3, 1, (n, c, 1, 1)) * np.exp(-(x**2 + y**2) / (2 * width**2))
    hidden = np.repeat(np.repeat(draw.uniform(size=(n, c, size // 8, size // 8)) < 0.6, 8, axis=2), 8, axis=3)
    observed = np.ones((n, c), bool)
    observed[0, 2] = False
    image = (truth + 0.15 * draw.normal(size=truth.shape)).astype(np.float32)
    np.savez(run / "reconstructions.npz", image=image, reconstruction=truth.astype(np.float32), hidden=hidden,
             observed=observed, bands=np.array(list("ugriz"[:c])))  # fmt: skip


def arm(tmp_path, name, scores, **files):
    (tmp_path / name).mkdir()
    for file, content in {"config": {}, "report": {name: scores}, **files}.items():
        (tmp_path / name / f"{file}.json").write_text(json.dumps(content))
    return read_run(tmp_path / name)


def scores(value, error, test_set="full", metric="sigma_mad"):
    return {test_set: {metric: {"value": value, "error": error}}}
