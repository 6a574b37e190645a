"""The perceptron over fluxes: its inputs by hand, and a catalogue of one-pixel cutouts trained and predicted."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.photometry import Catalog, from_magnitudes, write
from jaxz import load_run, models, train
from jaxz.data.dataset import open_dataset
from jaxz.models import photometry
from tests.models.drawn import parameters
from tests.models.test_inception import UGRIZ

CONFIG = """
from configs import baseline_photometry

def get_config():
    config = baseline_photometry.get_config()
    config.data.update(dict(path={path!r}, deredden=False))
    config.model.update(dict(width=8, depth=1))
    config.redshift.update(dict(z_max=1.0, bins=4))
    config.train.update(dict(steps=2, batch_size=16, members=2, log_every=1))
    return config
"""


def test_features_by_hand():
    flux = np.array([[1.0, 10.0, -0.5], [2.0, np.nan, 3.0], [np.nan] * 3], np.float32)
    error = np.array([[0.1, np.nan, 0.3], [np.inf, 0.2, 0.1], [np.nan] * 3], np.float32)
    bright = np.arcsinh(flux.astype(np.float64))
    mean = np.array([bright[0].mean(), (bright[1, 0] + bright[1, 2]) / 2, 0])
    colour = 3 * np.array([*(bright[0] - mean[0]), bright[1, 0] - mean[1], 0, bright[1, 2] - mean[1]])
    expected = [
        [mean[0], *colour[:3], np.arcsinh(0.1), 0, np.arcsinh(0.3), 1, 1, 1, 1, 0, 1],
        [mean[1], *colour[3:], 0, np.arcsinh(0.2), np.arcsinh(0.1), 1, 0, 1, 0, 1, 1],
        [0] * 13,
    ]
    np.testing.assert_allclose(photometry.features(flux, error), expected, rtol=1e-6, atol=1e-7)


def test_views_are_given_the_columns_of_their_own_object():
    encoder = models.build(ConfigDict({**photometry.SETTINGS, "name": "photometry", "width": 8, "depth": 1}), UGRIZ, 1)
    params, rng = parameters(encoder), np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.uniform(0, 0.5, 3), jnp.float32) for name in encoder.columns}
    view = {"image": jnp.zeros((3, 5, 1, 1)), "mask": jnp.ones((3, 5, 1, 1), bool)}
    garbage = {"image": jnp.full((3, 5, 1, 1), jnp.nan), "mask": ~view["mask"]}
    alone = jax.jit(lambda view: encoder(params, **view, columns=batch).cls)(view)
    both = jax.jit(lambda *views: encoder.views(params, list(views), columns=batch).cls)(view, garbage)
    assert len(np.unique(alone[:, 0])) == 3
    for n in range(2):
        np.testing.assert_allclose(both[:, n], alone, rtol=1e-6, atol=1e-6)  # of order 1


def test_magnitudes_become_fluxes_and_limits_their_errors():
    """AB: 23.9 mag are a microjansky; 2.5 mag a factor of 10; a small error of 1.0857 mag is all of the flux."""
    found = from_magnitudes(np.array([[21.4, 99.0]]), np.array([[0.010857, 26.4]]), np.array([0.5]))
    np.testing.assert_allclose(found.flux, [[10.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found.error, [[0.1, 0.1]], rtol=1e-4)


def test_a_catalogue_without_images_is_trained_and_predicted(tmp_path):
    rng = np.random.default_rng(0)
    make = lambda n: Catalog(rng.uniform(1, 9, (n, 5)), rng.uniform(0.1, 1, (n, 5)), rng.uniform(0.1, 0.9, n))
    write(tmp_path / "d", "boss", make(64), make(8))
    (tmp_path / "c.py").write_text(CONFIG.format(path=str(tmp_path / "d")))
    assert train.main([f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    model, dataset = load_run(tmp_path / "run"), open_dataset(tmp_path / "d")
    rows, found = model.predict_dataset(dataset, "split == 'test'", ("pdf", "n_bands"))
    assert found["n_bands"].tolist() == [5] * 8
    table = dataset.arrow().take(rows)
    batch = {name: table[name].to_numpy() for name in model.objective.encoder.columns}
    batch["image"] = np.zeros((8, 5, 1, 1), np.float32)
    with warnings.catch_warnings(action="error"):
        own = model.predict(batch)["pdf"]
        without = model.predict({"image": batch["image"]})["pdf"]
    assert found["pdf"].shape == (8, 2, 4) and len(np.unique(found["pdf"])) > 8
    np.testing.assert_allclose(own, found["pdf"], rtol=1e-5)
    assert np.ptp(without, axis=0).max() == 0  # nothing measured: all alike
