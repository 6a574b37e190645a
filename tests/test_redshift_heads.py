"""The heads that predict p(z), and the losses against imbalance, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from jaxz import errors as errors_of
from jaxz import train
from jaxz.config import default, fill
from jaxz.data.dataset import open_dataset
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError
from jaxz.models.functional import Functional
from jaxz.objectives import byol, redshift, redshift_mixture, redshift_regression
from jaxz.validate import validate
from tests.helpers import small_config
from tests.terms import Dense, batch_of, make

BINS, COUNT, KEY = 12, 6, jax.random.key(2)
EDGES = np.linspace(0, 3, BINS + 1)
Z = np.array([0.1, 0.4, 0.55, 1.3, 2.9, 0.4])
ERROR = np.array([1e-3, 0.05, np.nan, 0.2, 1e-3, 0.0])


def head(module, **own):
    """An objective of the module with 12 bins."""
    return module.Objective(Dense(), ConfigDict(module.SETTINGS | dict(bins=BINS) | own), None)


def errors(term, read, weight=None):
    """[B] of the labels Z, ERROR, all of weight 1 where none is given."""
    weight = np.ones(COUNT) if weight is None else weight
    batch = {"z_err": jnp.asarray(ERROR, jnp.float32)}
    return np.asarray(jax.jit(lambda r, z, w: term.errors(r, z, w, batch))(*map(jnp.float32, (read, Z, weight))))


def mass(term, read):
    return np.asarray(jax.jit(term.mass)(jnp.float32(read)))


def draw(outputs: int) -> np.ndarray:
    return 0.4 * np.random.default_rng(3).normal(size=(COUNT, outputs))


def soft(sigma):
    mass = np.diff(stats.norm.cdf(EDGES, Z[:, None], sigma[:, None]), axis=1)
    return mass / mass.sum(1, keepdims=True)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_bins_with_focal_loss_and_adjusted_logits(focal):
    term, logits = head(redshift, focal=focal, logit_adjust=0.7), draw(BINS)
    z = np.random.default_rng(4).exponential(0.6, 500)
    term.count_labels(np.append(z, np.nan), np.ones(501))
    counts = np.histogram(z, EDGES)[0]
    log_p = log_softmax(logits + 0.7 * np.log((counts + 1) / (counts.sum() + BINS)))
    target = soft(np.maximum(np.nan_to_num(ERROR), 0.01 * (1 + Z)))
    expected = -(target * (1 - np.exp(log_p)) ** focal * log_p).sum(1)
    np.testing.assert_allclose(errors(term, logits), expected, rtol=1e-4)
    np.testing.assert_allclose(mass(term, logits), np.exp(log_softmax(logits)), rtol=1e-5)  # not adjusted


def test_ordinal_bins_ask_on_which_side_of_each_edge():
    term, logits = head(redshift, loss="ordinal"), draw(BINS)
    p, target = np.exp(log_softmax(logits)), soft(np.maximum(np.nan_to_num(ERROR), 0.01 * (1 + Z)))
    below, said = (x.cumsum(1)[:, :-1] for x in (target, p))
    expected = -(below * np.log(said) + (1 - below) * np.log(1 - said)).mean(1)
    np.testing.assert_allclose(errors(term, logits), expected, rtol=1e-4)
    near, far = (errors(term, 9.0 * np.eye(BINS)[[0] * 5 + [b]])[5] for b in (2, 9))  # of z = 0.4, in bin 1
    assert near < far


def test_without_smoothing_a_label_is_its_bin():
    term, logits = head(redshift, label_sigma=0.0), draw(BINS)
    found, bins = errors(term, logits), np.searchsorted(EDGES, Z, side="right") - 1
    sure = [2, 5]  # those without an error of their own
    np.testing.assert_allclose(found[sure], -log_softmax(logits)[sure, bins[sure]], rtol=1e-5)


def test_a_label_counts_by_how_rare_its_redshift_is():
    term, read = head(redshift_mixture, balance="lds"), draw(15)
    term.count_labels(np.array([0.1] * 300 + [0.4] * 30 + [1.3]), np.ones(331))
    batch = {"z": np.float32([0.1, np.nan, np.nan, 1.3, 9.0, 0.4]), "z_err": np.float32(ERROR)}
    found, each = jax.jit(lambda r: (term.mean_error(r, batch), term.errors(r, jnp.float32(Z), None, batch)))(read)
    rows, bins = [0, 3, 5], [0, 5, 1]  # Z is of these
    np.testing.assert_allclose(found, (term.weights[bins] * each[np.array(rows)]).sum() / 3, rtol=1e-5)
    assert term.weights[5] > term.weights[1] > term.weights[0]


def test_the_mixture_is_a_likelihood_of_ln_1_plus_z():
    term, read = head(redshift_mixture, components=3), draw(9)
    weight, mean, sigma = np.split(read, 3, axis=1)
    weight, step = np.exp(log_softmax(weight)), np.log(4) / 3
    mean, sigma = mean + step * (np.arange(3) + 0.5), 1e-3 + step / 2 * np.log1p(np.exp(sigma)) / np.log(2)
    wide = np.hypot(sigma, (np.nan_to_num(ERROR) / (1 + Z))[:, None])
    expected = -np.log((weight * stats.norm.pdf(np.log1p(Z)[:, None], mean, wide)).sum(1))
    np.testing.assert_allclose(errors(term, read), expected, rtol=1e-4)
    cdf = (weight[..., None] * stats.norm.cdf(np.log1p(EDGES), mean[..., None], sigma[..., None])).sum(1)
    inside = np.diff(cdf, axis=1)
    np.testing.assert_allclose(mass(term, read), inside / inside.sum(1, keepdims=True), atol=1e-6)


def test_an_error_that_is_none_is_unknown_and_an_infinite_one_says_nothing():
    """Where the mixture squares it, and a row without weight would make the whole loss NaN."""
    found = np.asarray(redshift.label_error({"z_err": np.float32([np.nan, -99, -np.inf, 0.1, 1e30, np.inf])}))
    np.testing.assert_array_equal(found, np.float32([0, 0, 0, 0.1, 1e4, 1e4]))
    term, batch = head(redshift_mixture), {"z_err": np.float32([np.inf, -99])}
    wrong = term.errors(jnp.zeros((2, 15)), jnp.float32([0.5, 0.5]), jnp.ones(2), batch)
    assert 1 < wrong[1] + 5 < wrong[0] < 20  # the first is as far from all labels, the other has none of its own


def test_regression_is_a_huber_loss_and_a_likelihood_of_its_residuals():
    term, read = head(redshift_regression, delta=0.3), draw(2)
    point = np.log(4) / 2 + read[:, 0]
    spread = 1e-3 + 0.05 * np.log1p(np.exp(read[:, 1])) / np.log(2)
    residual = np.abs(point - np.log1p(Z)) / 0.3
    huber = np.where(residual < 1, residual**2 / 2, residual - 0.5)
    expected = huber - stats.logistic.logpdf(np.log1p(Z), point, spread)
    np.testing.assert_allclose(errors(term, read), expected, rtol=1e-4)
    inside = np.diff(stats.logistic.cdf(np.log1p(EDGES), point[:, None], spread[:, None]), axis=1)
    np.testing.assert_allclose(mass(term, read), inside / inside.sum(1, keepdims=True), atol=1e-6)
    moves = jax.jit(jax.grad(lambda r: term.errors(r, jnp.float32(Z), None, {}).sum()))(jnp.float32(read))[:, 0]
    signed = (point - np.log1p(Z)) / 0.3
    np.testing.assert_allclose(moves, np.clip(signed, -1, 1) / 0.3, rtol=1e-4)  # of the Huber loss alone


def test_what_says_how_far_a_point_errs_teaches_the_encoder_nothing():
    heads = Functional(lambda rngs: redshift_regression.Heads(8, False, rngs=rngs))
    both = lambda e: heads(heads.init(KEY), e).sum(0)
    point, spread = jax.jit(jax.jacobian(both))(np.float32(np.arange(24).reshape(3, 8) % 7))
    assert np.any(point) and not np.any(spread)


def test_balanced_mse_finds_each_target_in_the_batch():
    """Ren et al. 2022, eq. 10, over the rows that count; its noise moves by the cross-entropy."""
    term, read, weight = head(redshift_regression, loss="balanced_mse"), draw(3), np.array([1, 1, 0, 1, 1, 1.0])
    read[:, 2] = 5.0
    point, y = np.log(4) / 2 + read[:, 0], np.log1p(Z)
    rows = weight > 0
    variance = (1e-3 + 0.05 * np.log1p(np.exp(5.0)) / np.log(2)) ** 2

    def entropy(variance):
        logits = -((point[:, None] - y[rows]) ** 2) / (2 * variance)
        return np.log(np.exp(logits).sum(1)) + (point - y) ** 2 / (2 * variance)

    expected = variance / 0.15**2 * entropy(variance)
    spread = 1e-3 + 0.05 * np.log1p(np.exp(read[:, 1])) / np.log(2)
    expected -= stats.logistic.logpdf(y, point, spread)
    np.testing.assert_allclose(errors(term, read, weight)[rows], expected[rows], rtol=1e-4)
    of = lambda r: (term.errors(r, jnp.float32(Z), jnp.float32(weight), {}) * weight).sum()
    moves = jax.jit(jax.grad(of))(jnp.float32(read))[:, 2]
    step, slope = 1e-4 * variance, 0.05 / np.log(2) / (1 + np.exp(-5.0))  # of the noise, in what is read
    by_variance = (entropy(variance + step) - entropy(variance - step)) / (2 * step)
    wanted = variance / 0.15**2 * by_variance * 2 * variance**0.5 * slope
    np.testing.assert_allclose(moves[rows], wanted[rows], rtol=1e-3)
    heads = Functional(lambda rngs: redshift_regression.Heads(8, True, rngs=rngs))
    params = heads.init(KEY) | {"noise_scale": jnp.full(1, 0.7)}
    assert heads(params, jnp.ones((3, 8)))[:, 2].tolist() == pytest.approx([0.7] * 3)


def test_a_density_outside_of_the_range_is_flat_not_sure():
    found = redshift.masses(jnp.concatenate([jnp.zeros((1, BINS + 1)), jnp.ones((1, BINS + 1))]))
    np.testing.assert_allclose(found, 1 / BINS, rtol=1e-5)


def test_two_branches_agree_and_both_views_are_told_their_bin():
    own = dict(bins=BINS, hidden_width=16, width=8, band_mask=0.0)
    objective, params, extra = make(dict(two_branch=1.0), two_branch=own)
    batch = batch_of(COUNT) | {"z_err": np.full(COUNT, 1e-3, np.float32)}
    ema = jax.tree.map(lambda p: p + 0.05, params)
    of = lambda p, e, b: objective.loss(p, e, extra, b, KEY, 0)
    loss = jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))
    (total, aux), (grads, of_teacher) = loss(params, ema, batch)
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher))
    hole = lambda view: view | {"image": np.where(view["mask"], view["image"], np.nan).astype(np.float32)}
    filled = loss(params, ema, batch | {"views": [hole(view) for view in batch["views"]]})
    jax.tree.map(np.testing.assert_array_equal, filled, ((total, aux), (grads, of_teacher)))
    term, encoder = objective.terms["two_branch"], Dense()
    heads = Functional(lambda rngs: byol.Heads(term.settings, encoder, rngs=rngs))

    @jax.jit
    def parts(params, ema):
        seen = [[encoder(p["encoder"], v["image"], v["mask"]).cls for v in batch["views"]] for p in (params, ema)]
        predicted = [heads(params["two_branch"]["branch"], cls, predict=True) for cls in seen[0]]
        projected = [heads(ema["two_branch"]["branch"], cls, predict=False) for cls in seen[1]]
        return predicted, projected, [term.read(params, cls) for cls in seen[0]]

    predicted, projected, logits = parts(params, ema)
    agreement = entropy = 0
    rows = np.isfinite(batch["z"])
    for view in range(2):
        q, z = (np.asarray(x, np.float64) for x in (predicted[view], projected[1 - view]))
        cosine = (q * z).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
        agreement += (2 - 2 * cosine).mean()
        log_p = log_softmax(np.asarray(logits[view], np.float64))
        sigma = 0.01 * (1 + batch["z"])
        target = np.diff(stats.norm.cdf(EDGES, batch["z"][:, None], sigma[:, None]), axis=1)[rows]
        entropy -= (target / target.sum(1, keepdims=True) * log_p[rows]).sum(1).mean()
    np.testing.assert_allclose(aux["metrics"]["two_branch/agreement"], agreement, rtol=1e-4)
    np.testing.assert_allclose(aux["metrics"]["two_branch/entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(total, agreement + entropy, rtol=1e-4)


@pytest.mark.parametrize("name", ["redshift_mixture", "redshift_regression"])
def test_garbage_in_an_absent_band_changes_nothing(name):
    objective, params, extra = make({name: 1.0}, **{name: dict(bins=BINS)})
    batch = batch_of(COUNT) | {"z_err": np.full(COUNT, 1e-3, np.float32)}
    filled = batch | {"image": np.where(batch["mask"], batch["image"], np.nan).astype(np.float32)}

    @jax.jit
    def both(batch):
        loss, grads = jax.value_and_grad(lambda p: objective.loss(p, params, extra, batch, KEY, 0)[0])(params)
        return loss, grads, objective.predict(params, extra, batch)["pdf"]

    first, second = both(batch), both(filled)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(first))
    np.testing.assert_allclose(first[2].sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(objective.edges, EDGES)


def test_two_terms_that_predict_redshifts_are_refused():
    with pytest.raises(InputError, match="losses: redshift and redshift_mixture each predict p"):
        make(dict(redshift=1.0, redshift_mixture=1.0))


def test_settings_out_of_range_are_named():
    config = default()
    config.data.path, config.losses = "d", dict(redshift=1.0, redshift_regression=1.0, two_branch=1.0)
    config.redshift = dict(focal=0.5, loss="crps", balance="even", logit_adjust=-1.0, z_min=-1.0)
    config.redshift_regression = dict(delta=0.0, loss="mse")
    with pytest.raises(InputError) as refused:
        validate(fill(config))
    for text in (
        "redshift.focal: 0.5 must be 0, or at least 1", "redshift.loss: 'crps' must be 'ce' or 'ordinal'",
        "redshift.balance: 'even' must be '' or one of class_balanced, lds", "redshift.logit_adjust: -1.0 must be",
        "redshift.z_min: -1.0 must be above -1", "redshift_regression.delta: 0.0 must be above 0",
        "redshift_regression.loss: 'mse' must be", "train.ema_decay: 0.0, but two_branch needs",
    ):  # fmt: skip
        assert text in str(refused.value)


def test_labels_are_counted_as_often_as_they_are_drawn(blob_dataset):
    dataset = open_dataset(blob_dataset)
    source = lambda **own: Source(dataset, ("image",), ("z",), "z_kind == 'spec'", **own)
    rows = dataset.select("z_kind == 'spec'")
    z = dataset.column("z")[rows]
    with Stream(source(), 4) as stream:
        found, draws = stream.drawn("z")
    np.testing.assert_array_equal(found, z)
    assert (draws == 1).all()
    with Stream([source(), source(balance="z", bins=3)], 4) as stream:
        found, draws = stream.drawn("z")
    np.testing.assert_array_equal(found, np.tile(z, 2))
    counts = np.histogram(z, np.linspace(z.min(), z.max(), 4), weights=draws[len(rows) :])[0]
    np.testing.assert_allclose(counts, len(rows) / 3)


def test_training_counts_the_labels_of_its_own_rows(blob_dataset, tmp_path, monkeypatch):
    built, make_stream = [], train.make_stream
    noted = lambda config, dataset, objective, *rest: (
        built.append(objective) or make_stream(config, dataset, objective, *rest)
    )
    monkeypatch.setattr(train, "make_stream", noted)
    monkeypatch.setattr(train.dry_run, "describe", lambda *_: "")
    config = small_config(tmp_path, blob_dataset, depth=1, redshift_mixture=1.0)
    assert train.main([config, "--config.redshift_mixture.balance=lds", "--dry_run"]) == errors_of.OK
    dataset = open_dataset(blob_dataset)
    z = dataset.column("z")[dataset.select("split == 'train'")]
    term = built[0].terms["redshift_mixture"]
    np.testing.assert_array_equal(term.counts, np.histogram(z[np.isfinite(z)], term.edges)[0])
    assert np.ptp(term.weights) > 0
