"""CLAP, Lin's heads, CORAL, MMD and domain-adversarial training, against the papers' formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from jaxz.objectives import lin
from jaxz.objectives.clap import contrasted, disagreement
from jaxz.objectives.coral import coral
from jaxz.objectives.lin import magnitude_heads
from jaxz.objectives.mmd import WIDTHS, mmd
from tests.terms import Dense, batch_of, make

KEY = jax.random.key(3)
OWN = {
    "clap": dict(bins=12, latent=4, extended=6, hidden=8, decoder=8),
    "lin": dict(bins=12, heads=3, magnitude_min=20.0, magnitude_max=22.5),
    "coral": {},
    "mmd": {},
    "dann": dict(hidden=8, ramp_steps=10),
    "self_training": dict(bins=12, odds=0.0),
}


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def batch():
    """Labelled rows, and two that are not."""
    z = np.where(np.arange(6) == 4, np.nan, batch_of()["z"])
    return batch_of() | {
        "z": z.astype(np.float32),
        "coverage": np.ones(6, np.float32),
        "z_err": np.full(6, 0.01, np.float32),
        "mag_ref": np.float32([20.1, 20.8, 21.2, 22, 19, 23]),
    }


@pytest.mark.parametrize("name", OWN)
def test_what_is_not_observed_changes_nothing(name):
    objective, params, extra = make({name: 1.0}, **{name: OWN[name]})
    step = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, params, extra, b, KEY, 5)[0]))
    plain, filled = batch(), batch()
    for view in filled["views"]:
        view["image"] = np.where(view["mask"], view["image"], np.nan)
    filled["image"] = filled["views"][0]["image"]
    (loss, gradient), (same, _) = step(params, plain), step(params, filled)
    assert np.isfinite(loss) and loss == same
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["encoder"]["kernel"]).max() > 0


def test_clap_contrast_and_agreement():
    own, cycle, morph = np.random.default_rng(0).normal(size=(3, 6, 4))
    e = lambda a, b: np.exp(-np.mean([np.sqrt(np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True)]))
    alike = sum(e(own[h], other[h]) for h in (slice(3), slice(3, 6)) for other in (cycle, morph))
    expected = -np.log(alike / (alike + e(own[:3], own[3:])))
    assert jax.jit(contrasted)(*map(jnp.float32, (own, cycle, morph))) == pytest.approx(expected, rel=1e-5)
    p, q = softmax(own), softmax(cycle)
    crossed = -(p * np.log(q) + q * np.log(p)).sum(1).mean()
    assert jax.jit(disagreement)(jnp.float32(own), jnp.float32(cycle)) == pytest.approx(crossed, rel=1e-5)
    gradient = jax.jit(jax.grad(lambda a: contrasted(a, a, a)))(jnp.float32(own))
    assert np.isfinite(gradient).all()  # where an object and its cycle are the same


def test_clap_loss_by_hand():
    settings = OWN["clap"] | dict(reconstruction=2.0, label_sigma=0.0, z_max=1.0)
    objective, params, extra = make(dict(clap=1.0), clap=settings)
    apply, own = objective.terms["clap"].apply, batch()
    (first, second), z = own["views"], own["z"].astype(float)

    def latent(image, mask):
        cls = np.tanh(np.where(mask, image, 0).reshape(6, -1) @ params["encoder"]["kernel"])
        return cls @ params["clap"]["latent"]["kernel"] + params["clap"]["latent"]["bias"]

    pixels = lambda latent: np.asarray(decode(params, jnp.float32(latent))).reshape(6, 2, 2, 3, 8, 8)
    decode = jax.jit(lambda p, v: apply("decoder", p, v))
    p = lambda latent: softmax(np.asarray(apply("estimator", params, jnp.float32(latent[:, :4])), float))
    image = lambda latent: pixels(latent).transpose(0, 3, 1, 4, 2, 5).reshape(6, 3, 16, 16)
    crossed = lambda a, b: -(a * np.log(b) + b * np.log(a)).sum(1).mean()
    missed = lambda latent, view: ((image(latent) - view["image"])[view["mask"]] ** 2).mean()
    e = lambda a, b: np.exp(-np.sqrt(((a[:, :4] - b[:, :4]) ** 2).mean(1)).mean())

    x, morph = latent(first["image"], first["mask"]), latent(second["image"], second["mask"])
    cycle, known = latent(image(x), first["mask"]), np.isfinite(z)
    label = np.diff(stats.norm.cdf(np.linspace(0, 1, 13), z[known, None], 0.01)) + 1e-12
    label /= label.sum(1, keepdims=True)
    entropy = -(label * np.log(p(x)[known] * p(cycle)[known])).sum(1).mean()
    agreement = crossed(p(x), p(cycle)) + crossed(p(x), p(morph))
    alike = sum(e(x[half], other[half]) for half in (slice(3), slice(3, 6)) for other in (cycle, morph))
    contrast = -np.log(alike / (alike + e(x[:3], x[3:])))
    expected = entropy + 2 * (missed(x, first) + missed(cycle, first) + missed(morph, second)) + agreement + contrast
    found = jax.jit(lambda p, b: objective.loss(p, {}, extra, b, KEY, 0)[0])(params, own)
    assert found == pytest.approx(expected, rel=1e-4)


def test_clap_predicts_its_latent_and_a_density():
    objective, params, extra = make(dict(clap=1.0), clap=OWN["clap"])
    found = jax.jit(lambda p, b: objective.predict(p, extra, b))(params, batch())
    assert found["latent"].shape == (6, 4)
    assert np.asarray(found["pdf"]).sum(1) == pytest.approx(1)


def test_magnitude_heads_share_interlaced_rows():
    heads = jax.jit(lambda magnitude: magnitude_heads(magnitude, 12.5, 18.0, 6))
    rows = 12.5 + 0.5 * (np.arange(11) + 0.5)
    found = np.asarray(heads(np.array([*rows, 9.0, 30.0])))
    assert found[11:].argmax(1).tolist() == [0, 5]
    found = found[:11]
    assert (found.sum(1) == 1).all()
    assert [np.flatnonzero(found[:, k]).tolist() for k in (0, 1, 5)] == [[0, 1], [1, 2, 3], [9, 10]]
    assert found[1].tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_lin_teaches_each_head_its_magnitudes():
    term = lin.Objective(Dense(), ConfigDict(lin.SETTINGS | OWN["lin"] | dict(label_sigma=0.0)), None)
    read = 0.3 * np.random.default_rng(1).normal(size=(2, 3 * 12 + 3))
    heads, share = softmax(read[:, :36].reshape(2, 3, 12)), softmax(read[:, 36:])
    own = {"z_err": jnp.zeros(2), "mag_ref": jnp.float32([20.2, 20.7])}  # of head 0; shared by 0 and 1
    both = jax.jit(lambda read: (term.errors(read, jnp.float32([0.3, 1.3]), jnp.ones(2), own), term.mass(read)))
    found, mass = map(np.asarray, both(jnp.float32(read)))
    flat = -np.log(heads).mean(2)
    first = -np.log(heads[0, 0, 1]) + flat[0, 1] + flat[0, 2] - np.log(share[0, 0])
    second = -np.log(heads[1, :2, 5]).sum() + flat[1, 2] - np.log(share[1, :2]).mean()
    assert found == pytest.approx([first, second], rel=1e-4)
    assert mass == pytest.approx((heads * share[..., None]).sum(1), rel=1e-5)


def test_lin_leaves_out_what_has_no_magnitude():
    objective, params, extra = make(dict(lin=1.0), lin=OWN["lin"])
    loss = jax.jit(lambda b: objective.loss(params, {}, extra, b, KEY, 0)[0])
    lost = batch() | {"mag_ref": np.where(np.arange(6) == 3, np.nan, batch()["mag_ref"]).astype(np.float32)}
    unlabelled = batch() | {"z": np.where(np.arange(6) == 3, np.nan, batch()["z"]).astype(np.float32)}
    assert loss(lost) == loss(unlabelled) != loss(batch())


def test_coral_is_the_distance_of_covariances():
    x, labelled = np.random.default_rng(2).normal(size=(9, 3)), np.arange(9) < 4
    gap = np.cov(x[labelled].T) - np.cov(x[~labelled].T)
    found = jax.jit(coral)
    assert found(jnp.float32(x), labelled) == pytest.approx((gap**2).sum() / 36, rel=1e-4)
    assert found(jnp.float32(x), np.ones(9, bool)) == 0


def test_mmd_by_loops():
    x, labelled = np.random.default_rng(3).normal(size=(7, 3)), np.arange(7) % 3 == 0
    distance = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    kernel = np.mean([np.exp(-distance / (w * distance.mean())) for w in WIDTHS], axis=0)
    mean = lambda a, b: kernel[np.ix_(a, b)].mean()
    expected = mean(labelled, labelled) + mean(~labelled, ~labelled) - 2 * mean(labelled, ~labelled)
    found = jax.jit(mmd)
    assert found(jnp.float32(x), labelled) == pytest.approx(expected, rel=1e-4)
    assert found(jnp.float32(x), np.zeros(7, bool)) == 0


def test_dann_reverses_the_gradient_of_the_encoder_alone():
    objective, params, extra = make(dict(dann=1.0), dann=OWN["dann"])
    both = jax.jit(jax.value_and_grad(lambda p, step: objective.loss(p, {}, extra, batch(), KEY, step)[0]))
    (before, late), (_, early) = both(params, 1000), both(params, 0)
    assert np.abs(early["encoder"]["kernel"]).max() == 0  # the ramp begins at 0
    move = lambda part, sign: {**params, part: jax.tree.map(lambda p, g: p + sign * 1e-3 * g, params[part], late[part])}
    assert both(move("dann", -1), 1000)[0] < before  # descent teaches the classifier
    assert both(move("encoder", -1), 1000)[0] > before  # and unteaches the encoder


def test_self_training_teaches_sure_and_covered_rows_alone():
    objective, params, extra = make(dict(self_training=1.0), self_training={**OWN["self_training"], "odds": 0.3})
    [term] = objective.terms.values()
    centres = (term.edges[1:] + term.edges[:-1]) / 2
    mass = np.random.default_rng(5).dirichlet(np.full(12, 0.3), 6).astype(np.float32)
    modes = centres[mass.argmax(1)]
    expected = [m[np.abs(centres - z) <= 0.06 * (1 + z)].sum() for m, z in zip(mass, modes, strict=True)]
    assert np.asarray(jax.jit(term.odds)(mass)) == pytest.approx(expected, rel=1e-5)

    term.odds = lambda mass: jnp.ones(len(mass))
    part = jax.jit(lambda b: objective.loss(params, params, extra, b, KEY, 10**6)[1]["metrics"])
    everywhere, uncovered = part(batch()), part(batch() | {"coverage": np.float32([1, np.nan, 1, 1, 0, 1])})
    assert everywhere["self_training/sure"] == 1 and everywhere["self_training/pseudo"] > 0
    assert uncovered["self_training/pseudo"] == 0  # rows 1 and 4 are the unlabelled ones
    assert uncovered["self_training/entropy"] == everywhere["self_training/entropy"]
