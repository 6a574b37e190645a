"""Self-supervised losses against NumPy in float64 written from the papers, and who may see and teach what."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxz import errors, models, objectives, train
from jaxz.config import default, fill
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError
from jaxz.models.stems import patchify, unpatchify
from jaxz.objectives import byol, dino, masked_bands
from tests.helpers import small_config

KEY = jax.random.key(3)
SMALL = {
    "mae": dict(band_mask=0.3, decoder_width=16, decoder_depth=1, decoder_heads=2),
    "masked_bands": dict(head_width=16),
    "byol": dict(hidden_width=16, width=8),
    "dino": dict(prototypes=12, hidden_width=16, bottleneck=8, crops=2, crop_scale=0.5, frozen_steps=5),
}


def make(blob_dataset, name, dtype="float32", **settings):
    """(the loss as a function of params, ema, extra, batch, step; params; extra; the objective's term)."""
    config = default()
    config.model.update(dict(width=32, depth=1, heads=2, patch=4))
    config.model.dtype = dtype
    config.losses = {name: 1.0}
    config[name] = {**SMALL[name], **settings}
    fill(config)
    normalisation = Normalisation.create(open_dataset(blob_dataset).manifest, (), 3.0, False)
    objective = objectives.Objective(models.build(config.model, normalisation.bands, 16), config, normalisation)
    shapes, extra = jax.eval_shape(objective.init, KEY)
    draw = np.random.default_rng(1)  # no zeros that hide a fault
    scale = lambda path: 1 if "scale" in path[-1].key or "last" in path[-2].key else 0.2
    fresh = lambda path, p: np.float32(draw.normal(size=p.shape) * scale(path))
    params = jax.tree_util.tree_map_with_path(fresh, shapes)
    extra = jax.tree.map(lambda c: np.zeros(c.shape, np.float32), extra)
    loss = lambda params, ema, extra, batch, step=0: objective.loss(params, ema, extra, batch, KEY, step)
    return loss, params, extra, objective.terms[name]


def view(seed, size=16, count=6):
    mask = np.ones((count, 3, size, size), bool)
    mask[0, 1] = mask[1, 2, 3, 3] = False
    image = np.random.default_rng(seed).normal(size=mask.shape).astype(np.float32)
    sky = np.array([0.5, 0.25, 1.0], np.float32) * np.linspace(1, 2, count, dtype=np.float32)[:, None]
    return {"image": np.where(mask, image, np.float32("nan")), "mask": mask, "sky": sky}


def batch_of():
    views = [view(0), view(1)]
    return {**views[0], "views": views, "crops": [view(2, 8), view(3, 8)]}


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def normed(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draws(*shape, scale=1.0):
    return scale * np.random.default_rng(5).normal(size=shape)


def sinkhorn(logits):
    """Alternately: each prototype a K-th of the mass, each sample a B-th (Caron et al. 2020, appendix A)."""
    q = np.exp(logits).T
    count, samples = q.shape
    for _ in range(3):
        q /= count * q.sum(1, keepdims=True)
        q /= samples * q.sum(0, keepdims=True)
    return samples * q.T


def test_sinkhorn_is_that_of_the_paper_over_the_rows_that_count():
    logits, weight = draws(9, 5, scale=4.0), np.array([1, 1, 0, 1, 1, 1, 0, 1, 1])
    balance = jax.jit(dino.sinkhorn)
    found = np.asarray(balance(jnp.asarray(logits, jnp.float32), jnp.asarray(weight)))
    np.testing.assert_allclose(found[weight > 0], sinkhorn(logits[weight > 0]), rtol=1e-5, atol=1e-7)
    assert not found[weight == 0].any()
    assert not np.any(balance(jnp.ones((9, 5)), np.zeros_like(weight)))  # where nothing counts


def test_distillation_compares_each_teachers_view_with_every_other_view():
    target, logits = np.exp(log_softmax(draws(4, 2, 7))), draws(4, 5, 7, scale=3.0)
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    entropies = [-(target[b, t] * log_softmax(logits[b, s])).sum() for t, s in pairs for b in range(4)]
    both = jax.jit(jax.value_and_grad(dino.distillation))
    found, slope = both(jnp.asarray(target, jnp.float32), jnp.asarray(logits))
    np.testing.assert_allclose(found, np.mean(entropies), rtol=1e-5)
    same = jax.jit(jax.jacobian(lambda t, s: jax.grad(dino.distillation, 1)(t, s)[0, 0]))(target, jnp.asarray(logits))
    assert not same[:, 0, 0].any() and same[:, 0, 1].any()  # what the student's first view learns, and from which
    assert np.isfinite(slope).all()


def test_masked_distillation_weighs_images_alike():
    target, logits = np.exp(log_softmax(draws(4, 6, 7))), draws(4, 6, 7, scale=3.0)
    weight = np.arange(6) < np.array([1, 5, 0, 2])[:, None]
    entropies = -(target * log_softmax(logits)).sum(2)
    images = [entropies[b][weight[b]].mean() for b in (0, 1, 3)]
    found = jax.jit(dino.masked_distillation)(np.float32(target), np.float32(logits), weight)
    np.testing.assert_allclose(found, np.mean(images), rtol=1e-5)


def test_koleo_is_the_log_distance_to_the_nearest_neighbour():
    x = draws(8, 5)
    apart = np.linalg.norm(normed(x)[:, None] - normed(x), axis=2) + np.diag(np.full(8, np.inf))
    both = jax.jit(jax.value_and_grad(dino.koleo))
    found, slope = both(np.float32(x))
    np.testing.assert_allclose(found, -np.log(apart.min(1)).mean(), rtol=1e-5)
    assert np.isfinite(both(np.ones_like(slope))[1]).all()  # where all are alike
    assert both(np.float32(x) - 0.1 * slope)[0] < found


def test_byol_is_twice_one_minus_the_cosine_of_each_view():
    predicted, projected = draws(6, 2, 5), draws(6, 2, 5)[::-1]
    cosine = (normed(predicted) * normed(projected)).sum(2)
    found = jax.jit(byol.regression)(np.float32(predicted), np.float32(projected))
    np.testing.assert_allclose(found, (2 - 2 * cosine).sum(1).mean(), rtol=1e-5)


def test_byol_predicts_the_target_of_the_other_view(blob_dataset):
    loss, params, extra, term = make(blob_dataset, "byol")
    ema, batch = jax.tree.map(lambda p: 1.1 * p + 0.01, params), batch_of()

    @jax.jit
    def look(params, ema, v):
        seen = [term.encoder(p["encoder"], v["image"], v["mask"]).cls for p in (params, ema)]
        return term.heads(params["byol"], seen[0], predict=True), term.heads(ema["byol"], seen[1], predict=False)

    online, target = zip(*(look(params, ema, v) for v in batch["views"]), strict=True)
    cosines = [(normed(float64(q)) * normed(float64(z))).sum(1) for q, z in zip(online, target[::-1], strict=True)]
    np.testing.assert_allclose(jax.jit(loss)(params, ema, extra, batch)[0], 4 - 2 * np.mean(sum(cosines)), rtol=1e-5)


@pytest.mark.parametrize("centering", ["sinkhorn", "mean"])
def test_dino_is_the_sum_of_its_terms_from_what_student_and_teacher_saw(blob_dataset, centering, monkeypatch):
    loss, params, extra, term = make(blob_dataset, "dino", centering=centering, koleo_weight=0.3, patch_weight=0.7)
    ema, batch, calls = jax.tree.map(lambda p: 1.1 * p + 0.01, params), batch_of(), []
    own = term.encoder.views

    def recorded(params, views, hidden=None, **rest):
        encoded = own(params, views, hidden, **rest)
        calls.append((encoded, hidden, params["position"][0, 0]))
        return encoded

    monkeypatch.setattr(term.encoder, "views", recorded)
    extra = jax.tree.map(lambda c: 0.01 * jnp.arange(12.0), extra)

    def traced(params, ema, extra, batch):
        calls.clear()
        found = loss(params, ema, extra, batch, 500)
        heads = [
            [term.head(p["dino"], x) for x in call[0][:2]] for p, call in zip((params, ema, params), calls, strict=True)
        ]
        return found, list(calls), heads

    (found, aux), seen, heads = jax.jit(traced)(params, ema, extra, batch)
    (whole, hidden, place), (_, none, teachers_place), _ = seen
    assert none is None  # the teacher sees all
    assert place == params["encoder"]["position"][0, 0] and teachers_place == ema["encoder"]["position"][0, 0]
    (whole_cls, whole_tokens), (teacher_cls, teacher_tokens), (small_cls, _) = float64(heads)
    hidden = np.asarray(hidden)
    assert (hidden.any(2).sum(1) == 1).all()
    temperature, centre = (0.04 + 0.07) / 2, 0.01 * np.arange(12.0)
    if centering == "sinkhorn":
        images = sinkhorn(teacher_cls.reshape(12, 12) / temperature).reshape(6, 2, 12)
        patches = sinkhorn(teacher_tokens[hidden] / temperature)
    else:
        images = np.exp(log_softmax((teacher_cls - centre) / temperature))
        patches = np.exp(log_softmax((teacher_tokens[hidden] - centre) / temperature))
        kept = aux["extra"]["dino"]
        np.testing.assert_allclose(kept["images"], 0.9 * centre + 0.1 * teacher_cls.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(kept["patches"], 0.9 * centre + 0.1 * teacher_tokens[hidden].mean(0), rtol=1e-5)
    student = log_softmax(np.concatenate([whole_cls, small_cls], 1) / 0.1)
    pairs = [(t, s) for t in range(2) for s in range(4) if t != s]
    image_loss = np.mean([-(images[:, t] * student[:, s]).sum(1).mean() for t, s in pairs])
    entropy = -(patches * log_softmax(whole_tokens[hidden] / 0.1)).sum(1)
    owner = np.nonzero(hidden)[0]
    patch_loss = np.mean([entropy[owner == b].mean() for b in range(6)])
    x = normed(float64(whole.cls))
    apart = [np.linalg.norm(x[:, v, None] - x[None, :, v], axis=2) + np.diag(np.full(6, np.inf)) for v in range(2)]
    spread = np.mean([-np.log(a.min(1)).mean() for a in apart])
    np.testing.assert_allclose(found, image_loss + 0.7 * patch_loss + 0.3 * spread, rtol=1e-5)
    np.testing.assert_allclose(aux["metrics"]["dino/patches"], patch_loss, rtol=1e-5)


def test_the_teacher_warms(blob_dataset):
    term = make(blob_dataset, "dino", warmup_steps=100)[3]
    for step, temperature in ((0, 0.04), (50, 0.055), (100, 0.07), (900, 0.07)):
        np.testing.assert_allclose(term.temperature(step), temperature, rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_not_observed_changes_nothing_and_all_of_the_encoder_learns(blob_dataset, name):
    loss, params, extra, _ = make(blob_dataset, name)
    ema = jax.tree.map(lambda p: 1.1 * p, params)
    slopes = jax.jit(jax.value_and_grad(lambda p, e, b, step: loss(p, e, extra, b, step)[0], argnums=(0, 1)))
    batch = batch_of()  # NaN where not observed
    fill = lambda v: {**v, "image": np.where(v["mask"], v["image"], np.float32(1e5))}
    filled = {**fill(batch), **{name: [fill(v) for v in batch[name]] for name in ("views", "crops")}}
    (a, (student, teacher)), (b, others) = slopes(params, ema, batch, 5), slopes(params, ema, filled, 5)
    assert a == b and np.isfinite(a)
    jax.tree.map(np.testing.assert_array_equal, (student, teacher), others)
    assert not any(np.any(g) for g in jax.tree.leaves(teacher))
    for path, slope in jax.tree_util.tree_leaves_with_path(student["encoder"]):
        assert np.isfinite(slope).all() and np.any(slope), path
    if name == "dino":  # the prototypes rest at first
        early = slopes(params, ema, batch, 4)[1][0]
        assert not np.any(early["dino"]["last"]["kernel"]) and np.any(student["dino"]["last"]["kernel"])


@pytest.mark.parametrize("name", SMALL)
def test_losses_are_float32_in_a_bfloat16_run(blob_dataset, name):
    loss, params, extra, _ = make(blob_dataset, name, "bfloat16")
    program = jax.make_jaxpr(lambda p: loss(p, p, extra, batch_of())[0])(params)
    assert program.out_avals[0].dtype == jnp.float32
    assert "bf16" in str(program)


def test_the_maes_decoder_computes_in_the_encoders_dtype(blob_dataset):
    _, params, _, term = make(blob_dataset, "mae", "bfloat16")
    tokens, place = np.ones((2, 4, 32), np.float32), np.tile(np.arange(16), (2, 1))
    program = str(jax.make_jaxpr(term.decoder)(params["mae"], tokens, place))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert sum("bf16" in line for line in products) >= 5 and len(products) <= 9  # all but the last, to pixels


def test_masked_bands_is_the_error_of_hidden_bands_in_units_of_the_sky(blob_dataset):
    loss, params, extra, term = make(blob_dataset, "masked_bands")
    batch, key = batch_of(), jax.random.fold_in(KEY, 0)  # of the first term
    look = jax.jit(lambda b: (loss(params, {}, extra, b)[0], *term.reconstruct(params, b, key)))
    found, predicted, hidden = map(np.asarray, look(batch))
    target, observed = (np.asarray(patchify(jnp.asarray(batch[name]), 4)) for name in ("image", "mask"))
    np.testing.assert_array_equal(hidden, hidden.any((1, 3), keepdims=True) & observed)  # whole bands
    error = ((predicted.astype(float) - target) / batch["sky"][:, None, :, None]) ** 2
    np.testing.assert_allclose(found, error[hidden].mean(), rtol=1e-5)
    changed = {**batch, "image": np.where(unpatchify(jnp.asarray(hidden), 4), np.float32(77), batch["image"])}
    np.testing.assert_array_equal(look(changed)[1], predicted)


@pytest.mark.parametrize("name", ["mae", "masked_bands"])
def test_a_reconstruction_does_not_depend_on_the_place_in_the_batch(blob_dataset, name):
    _, params, extra, term = make(blob_dataset, name)
    look, batch, order = jax.jit(lambda b: term.predict(params, extra, b)), batch_of(), np.array([3, 0, 5, 1, 4, 2])
    found, moved = look(batch), look({part: batch[part][order] for part in ("image", "mask")})
    np.testing.assert_array_equal(moved["hidden"], found["hidden"][order])
    np.testing.assert_allclose(moved["reconstruction"], found["reconstruction"][order], rtol=1e-5, atol=1e-5)
    assert 0 < found["hidden"].mean() < 1


def test_every_number_of_hidden_bands_is_equally_frequent():
    mask = jnp.ones((6000, 4, 2, 2), bool).at[:2000, 0].set(False).at[:500, 1:3].set(False)
    hidden = np.asarray(jax.jit(masked_bands.draw_bands)(mask, KEY))
    assert not hidden[:500].any()  # one band: nothing to predict it from
    assert not hidden[500:2000, 0].any()
    for rows, observed in ((slice(500, 2000), 3), (slice(2000, None), 4)):
        count = hidden[rows].sum(1)
        shares = np.bincount(count, minlength=observed + 1) / len(count)
        np.testing.assert_allclose(shares, [0, *[1 / (observed - 1)] * (observed - 1), 0], atol=0.05)
    np.testing.assert_allclose(hidden[2000:].mean(0), 0.5, atol=0.03)  # each band as often as any other


def test_hidden_patches_are_blocks_of_the_stated_share():
    hidden = np.asarray(jax.jit(lambda key: dino.hide_blocks(key, 2000, 8, (0.1, 0.5)))(KEY)).reshape(-1, 8, 8)
    share = hidden.mean((1, 2))
    np.testing.assert_allclose((share.min(), share.mean(), share.max()), (0.1, 0.3, 0.5), atol=0.015)
    often = hidden.mean(0)
    assert often.min() > 0.04 and often.max() < 0.6  # nowhere never, nowhere always
    np.testing.assert_allclose(often, often[::-1, ::-1].T, atol=0.06)
    together = (hidden[:, 1:] & hidden[:, :-1]).sum() / hidden[:, 1:].sum()  # of hidden ones: the neighbour is, too
    assert together > 0.6
    least = jax.jit(lambda key: dino.hide_blocks(key, 50, 2, (0.1, 0.1)))(KEY)
    assert (least.sum(1) == 1).all()


def test_views_are_encoded_as_if_alone(blob_dataset):
    _, params, _, term = make(blob_dataset, "byol")
    views = batch_of()["views"]
    both = jax.jit(term.encoder.views)(params["encoder"], views)
    alone = jax.jit(lambda v: term.encoder(params["encoder"], v["image"], v["mask"]))
    for n, one in enumerate(views):
        np.testing.assert_allclose(both.cls[:, n], alone(one).cls, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(both.tokens[:, n], alone(one).tokens, rtol=1e-5, atol=1e-6)


def test_crops_are_whole_patches_or_refused(blob_dataset):
    assert make(blob_dataset, "dino", crop_scale=0.7)[3].crops == (2, 8)
    with pytest.raises(InputError, match="dino.crop_scale: 0.2 of 16 pixels is less than a patch of 4"):
        make(blob_dataset, "dino", crop_scale=0.2)


@pytest.mark.long
def test_a_run_with_teacher_and_centres_goes_on_bit_for_bit(blob_dataset, tmp_path):
    config = small_config(tmp_path, blob_dataset, depth=1, dino=1.0)
    settings = dict(prototypes=16, hidden_width=16, bottleneck=8, crops=1, centering="mean", frozen_steps=2)
    options = [f"--config.dino.{name}={value}" for name, value in settings.items()]
    options += ["--config.train.ema_decay=0.9", "--config.train.ema_final=1.0", "--config.checkpoint.every=3"]

    def run(name, *more):
        assert train.main([config, f"--workdir={tmp_path / name}", *options, *more]) == errors.OK
        return (tmp_path / name / "metrics.jsonl").read_text()

    straight = run("straight", "--config.train.steps=6")
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "log.txt"):
        (tmp_path / "broken" / name).write_bytes((tmp_path / "straight" / name).read_bytes())
    shutil.copytree(tmp_path / "straight" / "checkpoints" / "3", tmp_path / "broken" / "checkpoints" / "3")
    first = straight.splitlines(keepends=True)[:3]
    (tmp_path / "broken" / "metrics.jsonl").write_text("".join(first))
    assert run("broken", "--config.train.steps=6") == straight
