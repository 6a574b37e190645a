"""SimCLR, MoCo, VICReg, supervised contrast and alignment: against the papers' formulas in float64, loop by loop."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxz import train
from jaxz.data.dataset import open_dataset
from jaxz.inference import load_run
from jaxz.objectives.align import symmetric_info_nce
from jaxz.objectives.moco import enqueue, info_nce
from jaxz.objectives.simclr import nt_xent
from jaxz.objectives.supcon import supcon
from jaxz.objectives.vicreg import covariance, variance
from tests.helpers import on_devices, small_config
from tests.terms import batch_of, make

KEY = jax.random.key(3)
SMALL = dict(projector=(16, 8))
ALL = {
    "simclr": SMALL,
    "moco": {**SMALL, "queue": 10},
    "vicreg": SMALL,
    "supcon": SMALL,
    "align": dict(width=8, hidden=16),
    "autoencoder": dict(latent=4, hidden=8, beta=1.0),
    "rotation": {},
    "flip": {},
    "jigsaw": {},
}


def normals(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def entropy(similarities, own):
    """-log of the share of `own` in a list of similarities."""
    return -np.log(np.exp(similarities[own]) / np.exp(similarities).sum())


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_eq_1_of_chen_et_al(temperature):
    z = normals(5, 2, 7)
    flat, total, nearest = unit(z.reshape(10, 7)), 0.0, 0
    for i in range(10):
        others = [k for k in range(10) if k != i]
        similarities = np.array([flat[i] @ flat[k] / temperature for k in others])
        own = others.index(i + 1 if i % 2 == 0 else i - 1)
        total += entropy(similarities, own) / 10
        nearest += (similarities.argmax() == own) / 10
    loss, accuracy = nt_xent(jnp.asarray(z, jnp.float32), temperature)
    close(loss, total)
    close(accuracy, nearest)


def test_info_nce_is_eq_1_of_he_et_al():
    query, keys, queue = normals(4, 6), normals(5, 6)[:4], unit(normals(9, 6))
    pairs = [(unit(q), unit(k)) for q, k in zip(query, keys, strict=True)]
    expected = [entropy(np.array([q @ k, *(queue @ q)]) / 0.2, 0) for q, k in pairs]
    loss, accuracy = info_nce(*(jnp.asarray(x, jnp.float32) for x in (query, keys, queue)), 0.2)
    close(loss, np.mean(expected))
    close(accuracy, np.mean([q @ k > (queue @ q).max() for q, k in pairs]))


def test_the_queue_holds_the_newest_keys():
    queue = jnp.arange(5.0)[:, None]
    np.testing.assert_array_equal(enqueue(queue, jnp.array([[7.0], [8.0]]))[:, 0], [7, 8, 0, 1, 2])
    np.testing.assert_array_equal(enqueue(queue, jnp.arange(10.0, 18.0)[:, None])[:, 0], [10, 11, 12, 13, 14])


def test_vicreg_is_eqs_1_to_4_of_bardes_et_al():
    z = normals(6, 4) * np.array([0.1, 0.5, 1, 2])
    mean = z.mean(0)
    expected = [max(0, 1 - np.sqrt(sum((z[:, j] - mean[j]) ** 2) / 5 + 1e-4)) for j in range(4)]
    close(variance(jnp.asarray(z, jnp.float32)), np.mean(expected))
    matrix = sum(np.outer(row - mean, row - mean) for row in z) / 5
    close(
        covariance(jnp.asarray(z, jnp.float32)),
        sum(matrix[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4,
    )


def test_vicreg_weighs_its_terms():
    objective, params, extra = make(dict(vicreg=1.0), vicreg=SMALL)
    loss, aux = jax.jit(lambda p: objective.loss(p, {}, extra, batch_of(), KEY, 0))(params)
    found = {name.removeprefix("vicreg/"): float(value) for name, value in aux["metrics"].items()}
    close(loss, 25 * found["invariance"] + 25 * found["variance"] + found["covariance"])


def test_supcon_is_eq_2_of_khosla_et_al():
    z, bins, labelled = normals(6, 2, 5), np.array([1, 2, 1, 2, 3, 1]), np.array([1, 1, 1, 1, 1, 0], bool)
    flat, bins_of = unit(z[labelled].reshape(10, 5)), np.repeat(bins[labelled], 2)
    total = 0.0
    for i in range(10):
        others = [k for k in range(10) if k != i]
        similarities = np.array([flat[i] @ flat[k] / 0.1 for k in others])
        positive = [n for n, k in enumerate(others) if bins_of[k] == bins_of[i]]
        total += np.mean([entropy(similarities, n) for n in positive]) / 10
    arguments = jnp.asarray(z, jnp.float32), jnp.asarray(bins), jnp.asarray(labelled), 0.1
    close(supcon(*arguments), total)
    changed = arguments[0].at[5].set(9.0), arguments[1].at[5].set(2), *arguments[2:]
    assert supcon(*changed) == supcon(*arguments)  # a row without a label is neither drawn near nor pushed away


def test_supcon_bins_are_equal_in_ln_1_plus_z_and_unknown_redshifts_have_no_gradient():
    objective, params, extra = make(dict(supcon=1.0), supcon={**SMALL, "bin_width": 0.1})
    loss = jax.jit(jax.value_and_grad(lambda p, z: objective.loss(p, {}, extra, {**batch_of(), "z": z}, KEY, 0)[0]))
    edges = np.expm1(0.1 * np.arange(1, 4))
    together = loss(params, jnp.array([*(edges - 1e-3), *(edges - 2e-3)]))[0]
    assert together == loss(params, jnp.array([*(edges - 0.05), *(edges - 0.05)]))[0]
    assert together != loss(params, jnp.array([*(edges - 1e-3), *(edges + 1e-3)]))[0]
    value, gradients = loss(params, jnp.array([np.nan, np.nan, np.inf, -99, -1, np.nan]))
    assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(gradients))


def test_alignment_is_the_mean_of_both_directions_over_rows_with_fluxes():
    a, b, valid = normals(6, 4), normals(7, 4)[:6], np.array([1, 1, 0, 1, 1, 0], bool)
    similarities = 5.0 * unit(a[valid]) @ unit(b[valid]).T
    both = [entropy(matrix[i], i) for matrix in (similarities, similarities.T) for i in range(4)]
    arguments = [jnp.asarray(x, jnp.float32) for x in (a, b)] + [jnp.float32(5), jnp.asarray(valid)]
    loss, accuracy = symmetric_info_nce(*arguments)
    close(loss, np.mean(both))
    close(accuracy, (similarities.argmax(1) == np.arange(4)).mean())
    loss, _ = symmetric_info_nce(*arguments[:3], jnp.zeros(6, bool))
    assert loss == 0


@pytest.fixture(scope="module")
def aligned():
    objective, params, extra = make(dict(align=1.0), align=ALL["align"])
    return (
        params,
        jax.jit(lambda p, b: objective.predict(p, extra, b)),
        jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, {}, extra, b, KEY, 0)[0])),
    )


def test_a_missing_flux_is_not_a_flux_of_zero(aligned):
    params, predict, _ = aligned
    batch = batch_of()
    found = predict(params, batch)
    assert found["aligned_image"].shape == found["aligned_photometry"].shape == (6, 8)
    np.testing.assert_array_equal(np.isnan(found["aligned_photometry"]).all(1), [True] + 5 * [False])
    for name in ("flux_r", "fluxerr_r"):
        other = {**batch, name: batch[name].copy()}
        other[name][1] = 0.0 if name == "flux_r" else np.nan
        changed = np.abs(predict(params, other)["aligned_photometry"] - found["aligned_photometry"])[1:].max(1) > 1e-3
        np.testing.assert_array_equal(changed, [True] + 4 * [False])


def test_a_row_without_any_flux_has_no_weight(aligned):
    params, _, loss = aligned
    batch = batch_of()
    a, ga = loss(params, batch)
    batch["image"][0] = batch["fluxerr_g"][0] = 7.0
    b, gb = loss(params, batch)
    assert a == b
    jax.tree.map(np.testing.assert_array_equal, ga, gb)


def test_the_temperature_is_learned_without_weight_decay_and_stays_above_a_hundredth(aligned):
    params, _, loss = aligned
    _, gradients = loss(params, batch_of())
    assert gradients["align"]["scale"] != 0
    objective, _, extra = make(dict(align=1.0), align=ALL["align"])
    hot = {**params, "align": {**params["align"], "scale": jnp.float32(9.0)}}
    metrics = jax.jit(lambda p: objective.loss(p, {}, extra, batch_of(), KEY, 0)[1]["metrics"])(hot)
    np.testing.assert_allclose(metrics["align/temperature"], 0.01, rtol=1e-5)
    assert loss(hot, batch_of())[1]["align"]["scale"] > 0  # descent brings it back


@pytest.mark.parametrize("name", ALL)
def test_garbage_that_the_mask_hides_changes_no_loss_gradient_or_prediction(name):
    objective, params, extra = make({name: 1.0}, **{name: ALL[name]})
    batch = batch_of()
    spoil = lambda view: {**view, "image": np.where(view["mask"], view["image"], np.nan)}
    filled = {**spoil(batch), "views": [spoil(view) for view in batch["views"]]}
    both = jax.jit(
        lambda p, b: (
            jax.value_and_grad(lambda p: objective.loss(p, params, extra, b, KEY, 0)[0])(p),
            objective.predict(p, extra, b),
        )
    )
    (loss, gradients), predicted = both(params, batch)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, ((loss, gradients), predicted), both(params, filled))


def test_moco_learns_by_the_student_alone_and_keeps_the_teachers_keys():
    objective, params, extra = make(dict(moco=1.0), moco=ALL["moco"])
    teacher = jax.tree.map(lambda p: p + 0.1, params)
    batch = batch_of()
    step = jax.jit(jax.grad(lambda p, t: objective.loss(p, t, extra, batch, KEY, 0), argnums=(0, 1), has_aux=True))
    (of_student, of_teacher), aux = step(params, teacher)
    assert any(np.any(g) for g in jax.tree.leaves(of_student["encoder"]))
    assert not any(np.any(g) for g in jax.tree.leaves(of_teacher))
    keys = jax.jit(objective.terms["moco"].project, static_argnums=3)(teacher, batch["views"][1], batch, None)
    queue = aux["extra"]["moco"]["queue"]
    np.testing.assert_allclose(queue[:6], unit(np.asarray(keys)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(queue[6:], extra["moco"]["queue"][:4])


DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding
from jaxz.mesh import BATCH, make_mesh, shardings
from jaxz.inference import load_run
from tests.helpers import small_config
from tests.terms import batch_of, make
from tests.test_contrastive import ALL, KEY

names = ("simclr", "moco", "vicreg", "supcon", "align")
objective, params, extra = make({name: 1.0 for name in names}, **{name: ALL[name] for name in names})
found = []
for count in (1, 8):
    mesh = make_mesh(count, 1, jax.devices()[:count])
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch_of(24), NamedSharding(mesh, BATCH))
        p, t, e = (jax.device_put(x, shardings(x, mesh)) for x in (params, params, {"extra": extra}))
        step = jax.jit(
            jax.value_and_grad(lambda p, t, e, b: objective.loss(p, t, e["extra"], b, KEY, 0), has_aux=True)
        ).lower(p, t, e, batch).compile()
        found.append(jax.device_get(step(p, t, e, batch)))
        text = step.as_text()
same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
((loss, aux), gradients), ((loss8, aux8), gradients8) = found
np.testing.assert_allclose(loss, loss8, rtol=1e-5)
jax.tree.map(same, gradients, gradients8)
jax.tree.map(same, aux, aux8)
assert "f32[6,48]" in text and "f32[3,24]" in text  # a row of similarities for each of the device's own views
assert "[48,48]" not in text and "[24,24]" not in text
"""


@pytest.mark.long
def test_eight_devices_contrast_with_the_whole_batch_and_hold_their_own_rows_only():
    command, root = [sys.executable, "-c", DEVICES], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=on_devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_a_run_keeps_its_queue_and_predicts_where_images_and_fluxes_lie(blob_dataset, tmp_path):
    path = Path(small_config(tmp_path, blob_dataset, depth=1, moco=1.0, align=1.0).removeprefix("--config="))
    path.write_text(
        path.read_text().replace("    return", "    config.moco = dict(projector=(16, 8), queue=40)\n    return")
    )
    command = [f"--config={path}", f"--workdir={tmp_path / 'run'}", "--config.train.steps=3"]
    command += ["--config.train.ema_decay=0.9", "--config.checkpoint.every=1"]
    train.main(command)
    straight = (tmp_path / "run/metrics.jsonl").read_bytes()
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"run/checkpoints/{step}")
    train.main(command)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == straight
    model, dataset = load_run(tmp_path / "run"), open_dataset(blob_dataset)
    rows, found = model.predict_dataset(dataset, "split == 'test'", ("aligned_image", "aligned_photometry"))
    assert len(rows) and all(np.isfinite(values).all() for values in found.values())
    image = np.zeros((1, 3, 16, 16), np.float32)
    assert np.isnan(model.predict({"image": image, "ebv": np.zeros(1)})["aligned_photometry"]).all()
    one = model.predict({"image": image, "ebv": np.zeros(1), "flux_r": np.ones(1)})["aligned_photometry"]
    assert np.isfinite(one).all()
