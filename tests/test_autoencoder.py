"""The autoencoder and the beta-VAE: their losses by hand, and what beta does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxz.objectives.autoencoder import divergence
from tests.terms import batch_of, make

KEY = jax.random.key(3)


def test_the_divergence_is_that_of_two_gaussians():
    """By numerical integration of q ln(q / p) over each latent number."""
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    x = np.linspace(-30, 30, 60_001)
    sigma = np.exp(log_variance / 2)[..., None]
    log_q = -((x - mean[..., None]) ** 2) / (2 * sigma**2) - np.log(sigma)
    q = np.exp(log_q) / np.sqrt(2 * np.pi)
    expected = np.trapezoid(q * (log_q + x**2 / 2), x).sum(1)
    found = divergence(*(jnp.asarray(a, jnp.float32) for a in (mean, log_variance)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_autoencoder_has_the_error_of_observed_pixels_in_units_of_the_sky():
    objective, params, extra = make(dict(autoencoder=1.0), autoencoder=dict(latent=4, hidden=8))
    batch = batch_of()
    loss, aux = jax.jit(lambda p: objective.loss(p, {}, extra, batch, KEY, 0))(params)
    predicted = jax.jit(lambda p: objective.predict(p, extra, batch))(params)
    assert predicted["latent"].shape == (6, 4) and aux["metrics"]["autoencoder/kl"] == 0
    error = (np.asarray(predicted["reconstruction"], np.float64) - batch["image"]) / 0.5
    np.testing.assert_allclose(loss, (error[np.asarray(batch["mask"])] ** 2).mean(), rtol=1e-5)


def test_at_beta_1_the_loss_is_twice_the_negative_evidence_bound_a_pixel():
    """Estimated with the same draw of the latent: Gaussian log likelihoods of the observed pixels."""
    objective, params, extra = make(dict(autoencoder=1.0), autoencoder=dict(latent=4, hidden=8, beta=1.0))
    batch, term = batch_of(), objective.terms["autoencoder"]
    key = jax.random.fold_in(KEY, 0)  # of the first term
    loss, _ = objective.loss(params, {}, extra, batch, KEY, 0)
    mean, log_variance = (np.asarray(a, np.float64) for a in term.encode(params, batch))
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], mean.shape))
    latent = mean + np.exp(log_variance / 2) * noise
    pixels = term.decoder(params["autoencoder"]["decoder"], jnp.asarray(latent, jnp.float32))
    image, mask = (
        np.asarray(batch[n]).reshape(6, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5) for n in ("image", "mask")
    )
    error = (np.asarray(pixels, np.float64).reshape(image.shape) - image) / 0.5
    log_likelihood = (-(error**2) / 2)[mask].sum()  # up to the normalisation
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum()
    np.testing.assert_allclose(loss, 2 * (kl - log_likelihood) / mask.sum(), rtol=1e-5)


def trained_kl(beta: float) -> float:
    """The divergence in nats after training on images of one varying number."""
    objective, params, extra = make(dict(autoencoder=1.0), autoencoder=dict(latent=4, hidden=16, beta=beta))
    optimizer = optax.adam(3e-3)
    rng, profile = np.random.default_rng(0), np.exp(-((np.mgrid[:16, :16] - 7.5) ** 2).sum(0) / 20)
    images = rng.normal(0, 3, (200, 64, 1, 1, 1)) * profile + rng.normal(0, 0.5, (200, 64, 3, 16, 16))

    def step(state, data):
        image, key = data
        batch = {"image": image, "mask": jnp.ones(image.shape, bool), "sky": jnp.full((64, 3), 0.5)}
        gradients, aux = jax.grad(lambda p: objective.loss(p, {}, extra, batch, key, 0), has_aux=True)(state[0])
        updates, opt = optimizer.update(gradients, state[1])
        return (optax.apply_updates(state[0], updates), opt), aux["metrics"]["autoencoder/kl"]

    train = jax.jit(lambda *data: jax.lax.scan(step, (params, optimizer.init(params)), data)[1])
    return float(train(images.astype(np.float32), jax.random.split(KEY, 200))[-20:].mean())


def test_the_divergence_falls_with_beta():
    low, middle, high = (trained_kl(beta) for beta in (0.1, 1.0, 10.0))
    assert low > middle > high > 0


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_reconstruction_draws_nothing(beta):
    objective, params, extra = make(dict(autoencoder=1.0), autoencoder=dict(latent=4, hidden=8, beta=beta))
    batch = batch_of()
    losses = [float(objective.loss(params, {}, extra, batch, jax.random.key(n), 0)[0]) for n in range(2)]
    assert (losses[0] == losses[1]) == (beta == 0)
    first, again = (objective.predict(params, extra, batch) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
