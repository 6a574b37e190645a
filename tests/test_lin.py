"""Steps 3 and 4 of Lin et al. 2022 as commands, one after the other."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import correct, lin, train
from jaxz.data.dataset import open_dataset
from jaxz.data.overlays import write_overlay
from jaxz.errors import InputError
from jaxz.inference import Model, load_run
from jaxz.photoz import calibration
from jaxz.photoz.pdf import PDF, read_qp
from jaxz.state import TrainState, start_from
from tests.helpers import blobs, small_config
from tests.test_correct import EDGES, HELD, SPLITS, Fake
from tests.test_photometry import make_dataset


def test_labels_are_shifted_away_from_what_draws_estimates(tmp_path, monkeypatch, capsys):
    dataset = make_dataset(tmp_path / "d", n=1000, change=SPLITS)
    run, opened = Fake(dataset), open_dataset(dataset)
    monkeypatch.setattr(lin, "load_run", {"RUN": run}.__getitem__)
    lin.main(["RUN", f"--dataset={dataset}", "--name=shifted", "--cap=3"])
    said = json.loads(capsys.readouterr().out)

    z_phot = PDF(EDGES, run.predict_dataset(opened, HELD, ("pdf",))[1]["pdf"]).median()
    z_spec, z = (
        opened.arrow(where, ["z"])["z"].to_numpy().astype(float) for where in (HELD, "split == 'train' and z > 0")
    )
    sigma = calibration.label_width(z_phot, z_spec, EDGES)
    scatter = calibration.scatter_profile(z_phot, z_spec, EDGES, sigma)
    z_cm = calibration.centre_of_mass(EDGES, np.histogram(z, EDGES)[0], 3, scatter)
    expected = 2 * z - np.interp(z, (EDGES[1:] + EDGES[:-1]) / 2, z_cm)
    table = open_dataset(dataset, overlays=["shifted"]).arrow("split == 'train' and z > -1", ["z", "z_err"])
    assert table["z"].to_numpy() == pytest.approx(expected, abs=1e-5) and np.abs(expected - z).max() > 0.003
    assert table["z_err"].to_numpy() == pytest.approx(sigma, rel=1e-5) and said["z_err"] == pytest.approx(sigma)
    assert (said["z_min"], said["z_max"]) == pytest.approx((-0.925, 3.0))  # half as far again as 2, if 1 + z > 0.05
    assert said["bins"] == round((3 + 0.925) / 0.025)
    with pytest.raises(InputError, match="--cap: 0 must be at least 1"):
        lin.main(["RUN", f"--dataset={dataset}", "--name=other", "--cap=0"])


def test_with_other_bins_the_last_layer_alone_begins_anew(redshift_run):
    _, run = redshift_run
    before = load_run(run)
    config = ConfigDict(before.config)
    config.redshift.bins, config.init.path = config.redshift.bins + 5, str(run)
    now = Model(config, before.normalisation)
    fresh = jax.jit(now.objective.init)(jax.random.key(1))[0]
    kept = train.pretrained_params(config, SimpleNamespace(params=now.abstract), None, None)
    found = start_from(TrainState(0, jax.device_put(fresh), {}, {}, {}), kept).params
    same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
    assert same(found["redshift"]["norm"], before.params["redshift"]["norm"])
    assert same(found["redshift"]["out"], fresh["redshift"]["out"])
    assert not same(found["redshift"]["norm"], fresh["redshift"]["norm"])
    assert all(same(found[name], before.params[name]) for name in ("encoder", "mae"))


@pytest.mark.long
def test_a_last_layer_learns_them_and_its_bias_is_subtracted(tmp_path, capsys):
    dataset = blobs(tmp_path / "d", samples=400)
    own = [small_config(tmp_path, dataset, depth=1, lin=1.0), "--config.lin.heads=2", "--config.lin.magnitude_min=22"]
    own += ["--config.lin.magnitude_max=24"]
    run = tmp_path / "second"
    assert train.main([*own, "--config.train.steps=30", "--config.optim.lr=3e-3", f"--workdir={run}"]) == 0
    opened = open_dataset(dataset)
    rows = opened.select("split == 'train' and z_kind == 'none'")  # which the run has not learned from: held out
    values = {"split": ["val"] * len(rows), "z_kind": ["spec"] * len(rows), "z": opened.column("true_z")[rows]}
    write_overlay(opened, "aside", rows, values, {name: opened.manifest.columns[name] for name in values}, {})
    lin.main([str(run), f"--dataset={dataset}", "--name=moved", "--cap=20", "--overlay=aside"])
    said = json.loads(capsys.readouterr().out)
    own += [f"--config.init.path={run}", "--config.train.steps=3"]
    own += ["--config.data.overlays=('aside', 'moved')", "--config.optim.frozen=^(?!lin/out/)"]
    own += [f"--config.lin.{name}={said[name]}" for name in ("z_min", "z_max", "bins")]
    assert train.main([*own, f"--workdir={tmp_path / 'third'}"]) == 0
    before, after = load_run(run), load_run(tmp_path / "third")
    assert after.edges[0] == said["z_min"] and len(after.edges) == said["bins"] + 1
    for what in (lambda params: params["encoder"], lambda params: params["lin"]["norm"]):  # the rest is frozen
        assert jax.tree.all(jax.tree.map(np.array_equal, what(after.params), what(before.params)))
    assert not (before.params["lin"]["norm"]["scale"] == 1).all()  # as a fresh one would be
    where = [f"--workdir={tmp_path / 'third'}", f"--dataset={dataset}", "--method=lin_z_phot"]
    correct.main([*where, f"--out={tmp_path / 'fourth'}"])
    assert len(read_qp(tmp_path / "fourth/pdf.hdf5")[0]) == len(opened.select("split == 'test'"))
