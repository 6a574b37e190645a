"""Losses against hand-computed values, and what must not reach them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxz import models, objectives
from jaxz.config import default, fill
from jaxz.data.augment import hide_bands
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError
from jaxz.models.stems import patchify, unpatchify
from jaxz.objectives.redshift import soft_labels
from tests.terms import drawn

KEY = jax.random.key(3)


def build(blob_dataset, model: dict | None = None, **losses):
    config = default()
    config.model.update(dict(width=32, depth=1, heads=2, patch=4) | (model or {}))
    config.losses = losses
    config.mae = dict(band_mask=0.3, decoder_width=16, decoder_depth=1, decoder_heads=2)
    fill(config)
    normalisation = Normalisation.create(open_dataset(blob_dataset).manifest, (), 3.0, False)
    return objectives.Objective(models.build(config.model, normalisation.bands, 16), config, normalisation)


def make(blob_dataset, **losses):
    """(objective, params, look); look(params, batch) -> ((loss, aux), gradients), predictions."""
    objective = build(blob_dataset, **losses)
    params, extra = drawn(objective)

    @jax.jit
    def look(params, batch):
        loss = lambda p: objective.loss(p, {}, extra, batch, KEY, 0)
        return jax.value_and_grad(loss, has_aux=True)(params), objective.predict(params, extra, batch)

    return objective, params, look


@pytest.fixture(scope="module")
def mae(blob_dataset):
    """look(batch) -> loss, what is reconstructed and hidden in training, and the same in use."""
    objective, params, _ = make(blob_dataset, mae=1.0)
    term = objective.terms["mae"]

    def look(batch):
        loss, _ = term.loss(params, {}, {}, batch, KEY, 0)
        return loss, term.reconstruct(params, batch, KEY, training=True), term.reconstruct(params, batch, KEY)

    return jax.jit(look)


@pytest.fixture(scope="module")
def redshift(blob_dataset):
    """(params, look) of p(z) from one view."""
    objective, params, look = make(blob_dataset, redshift=1.0)
    objective.terms["redshift"].settings.views = 1
    return params, look


def batch_of(count=6):
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.normal(size=(count, 3, 16, 16)), jnp.float32)}
    batch["mask"] = jnp.ones((count, 3, 16, 16), bool).at[0, 1].set(False).at[1, 2, 3, 3].set(False)
    batch["sky"] = jnp.array([0.5, 0.25, 1.0]) * jnp.linspace(1, 2, count)[:, None]
    batch |= {f"flux_{b}": jnp.asarray(rng.uniform(0.1, 3, count), jnp.float32) for b in "gri"}
    batch["flux_r"] = batch["flux_r"].at[0].set(jnp.nan)
    batch["z"] = jnp.array([0.2, 0.5, np.nan, 1.0, 9.0, 0.7])
    batch["z_err"] = jnp.array([1e-3, np.nan, np.nan, 0.1, 1e-3, 1e-3])
    return batch


def test_a_scheduled_weight_lies_on_straight_lines_between_its_steps(blob_dataset):
    objective = build(blob_dataset, redshift=((10, 2.0), (20, 0.0), (40, 0.5)), fluxes=0.5)
    params, extra = drawn(objective)
    look = jax.jit(lambda step: objective.loss(params, {}, extra, batch_of(), KEY, step))
    for step, weight in ((0, 2.0), (10, 2.0), (15, 1.0), (20, 0.0), (30, 0.25), (1000, 0.5)):
        total, aux = look(step)
        found = aux["metrics"]
        assert float(found["redshift/weight"]) == weight and "fluxes/weight" not in found
        assert float(total) == pytest.approx(
            float(weight * found["redshift/loss"] + 0.5 * found["fluxes/loss"]), rel=1e-6
        )


def test_mae_is_the_error_of_hidden_observed_pixels_in_units_of_the_sky(mae):
    batch = batch_of()
    loss, (predicted, hidden), _ = jax.tree.map(np.asarray, mae(batch))
    target, observed = (np.asarray(patchify(batch[name], 4)) for name in ("image", "mask"))
    assert not (hidden & ~observed).any()
    sky = np.array([0.5, 0.25, 1.0])[None] * np.linspace(1, 2, 6)[:, None]
    error = ((predicted - target) / sky[:, None, :, None]) ** 2
    np.testing.assert_allclose(loss, error[hidden].mean(), rtol=1e-5)
    per_patch = hidden.any((2, 3)).sum(1)
    assert (per_patch >= 12).all()  # 3/4 of 16 patches, more where bands are hidden too


def test_mae_sees_nothing_of_what_it_must_predict(mae):
    batch = batch_of()
    for which in (1, 2):  # in training, in use
        predicted, hidden = mae(batch)[which]
        changed = {**batch, "image": jnp.where(unpatchify(hidden, 4), 77.0, batch["image"])}
        np.testing.assert_array_equal(mae(changed)[which][0], predicted)


def test_hidden_bands_have_the_stated_frequency_and_leave_one():
    mask = jnp.ones((4000, 3, 2, 2), bool).at[:2000, 0].set(False)
    hidden = np.asarray(jax.jit(lambda mask: hide_bands(mask, 0.3, KEY))(mask))
    assert not hidden[:2000, 0].any()
    assert not hidden.all(1).any() and not hidden[:2000, 1:].all(1).any()
    # each of three with 0.3, but for one in the 0.3^3 of cases in which all would go
    assert abs(hidden[2000:].mean() - (0.3 - 0.3**3 / 3)) < 0.02


@pytest.mark.parametrize("name", ["mae", "fluxes", "redshift"])
def test_garbage_in_an_absent_band_changes_no_loss_gradient_or_prediction(blob_dataset, name):
    _, params, look = make(blob_dataset, **{name: 1.0})
    batch = batch_of()
    filled = {**batch, "image": jnp.where(batch["mask"], batch["image"], 1e5)}
    found = look(params, batch)
    jax.tree.map(np.testing.assert_array_equal, found, look(params, filled))
    ((loss, _), gradients), _ = found
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_fluxes_is_a_huber_loss_over_measured_bands(blob_dataset):
    objective, params, look = make(blob_dataset, fluxes=1.0)
    objective.terms["fluxes"].settings.band_mask = 0.0
    batch = batch_of()
    ((loss, _), _), found = look(params, batch)
    predicted = np.asarray(found["flux"])
    scale = objective.terms["fluxes"].scale
    flux = np.stack([batch[f"flux_{b}"] for b in "gri"], 1)
    error = np.abs(np.arcsinh(predicted / scale) - np.arcsinh(flux / scale))[np.isfinite(flux)]
    np.testing.assert_allclose(loss, np.where(error < 1, error**2 / 2, error - 0.5).mean(), rtol=1e-4)


def test_soft_labels_hold_the_gaussian_mass_of_each_bin():
    edges = np.linspace(0, 2, 41)
    labels = np.asarray(jax.jit(lambda *a: soft_labels(*a, edges))(jnp.array([0.5, 1.999]), jnp.array([0.03, 0.2])))
    np.testing.assert_allclose(labels[0], np.diff(stats.norm.cdf(edges, 0.5, 0.03)), atol=1e-5)
    cut = np.diff(stats.norm.cdf(edges, 1.999, 0.2))
    np.testing.assert_allclose(labels[1], cut / cut.sum(), atol=1e-5)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)


def test_redshift_is_the_mean_cross_entropy_of_labelled_rows(redshift):
    params, look = redshift
    batch = batch_of()
    ((loss, aux), _), found = look(params, batch)
    p, edges, total = np.asarray(found["pdf"], np.float64), np.linspace(0, 3, 151), 0
    for row in (0, 1, 3, 5):  # row 2 has no redshift, row 4 lies outside of the range
        z = float(batch["z"][row])
        sigma = max(np.nan_to_num(float(batch["z_err"][row])), 0.01 * (1 + z))
        mass = np.diff(stats.norm.cdf(edges, z, sigma))
        total -= (mass / mass.sum() * np.log(p[row])).sum()
    np.testing.assert_allclose(loss, total / 4, rtol=1e-4)
    np.testing.assert_allclose(aux["metrics"]["redshift/labelled"], 4 / 6)


def test_a_batch_without_labels_has_no_gradient(redshift):
    params, look = redshift
    ((loss, _), grads), _ = look(params, batch_of() | {"z": jnp.full(6, jnp.nan)})
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(grads))


def test_a_redshift_is_the_mean_over_the_symmetries_of_the_square(blob_dataset, redshift):
    (_, of_all), (params, look), batch = make(blob_dataset, redshift=1.0)[1:], redshift, batch_of()
    averaged = of_all(params, batch)[1]["pdf"]
    turned = lambda flip, k: {name: jnp.rot90(flip(batch[name]), k, (2, 3)) for name in ("image", "mask")}
    seen = [
        look(params, {**batch, **turned(flip, k)})[1]["pdf"]
        for k in range(4)
        for flip in (lambda x: x, lambda x: x[..., ::-1])
    ]
    assert np.ptp(seen, axis=0).max() > 1e-4
    np.testing.assert_allclose(averaged, np.mean(seen, axis=0), rtol=1e-5, atol=1e-8)


def test_terms_add_with_their_weights(blob_dataset):
    _, params, look = make(blob_dataset, mae=0.5, redshift=2.0)
    ((loss, aux), _), _ = look(params, batch_of())
    metrics = aux["metrics"]
    np.testing.assert_allclose(loss, 0.5 * metrics["mae/loss"] + 2 * metrics["redshift/loss"], rtol=1e-6)
    assert set(params) == {"encoder", "mae", "redshift"}


def test_an_unknown_objective_is_refused(blob_dataset):
    with pytest.raises(InputError, match="losses: 'mea' is no objective.*Did you mean 'mae'"):
        build(blob_dataset, mea=1.0)


def test_a_summary_that_no_term_trains_is_refused(blob_dataset):
    own = dict(summary="cls")
    with pytest.raises(InputError, match="model.summary: 'cls' is trained by none of losses mae, masked_bands; use"):
        build(blob_dataset, own, mae=1.0, masked_bands=1.0)
    build(blob_dataset, own, mae=1.0, redshift=1.0)
