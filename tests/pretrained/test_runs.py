"""Imported weights in runs: what they begin with, what moves, what their checkpoints need, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import jaxz
from jaxz import export, predict, train
from jaxz.config import parse
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from jaxz.models import build, published
from jaxz.optim import learning_rates
from jaxz.pretrained import adapt, describe, inspect_checkpoint, load_pretrained
from jaxz.pretrained.families.dinov2 import hugging_face_config, hugging_face_tensors
from jaxz.pretrained.formats import open_checkpoint
from jaxz.pretrained.runs import check_weights, encoder_params, same
from jaxz.validate import validate
from tests.helpers import blobs
from tests.pretrained.files import FIXTURES, dinov2, needs_fixtures, write_safetensors
from tests.pretrained.test_import import manifest_checkpoint

TINY = dict(width=16, depth=2, heads=2, hidden=64, patch=4, grid=(3, 3), image_size=16)
BANDS = tuple(Band(name, w, 100.0, 27.0, 0.2, 1.0, 1.0, 0.8) for name, w in (("g", 480.0), ("r", 620.0), ("i", 770.0)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("data") / "d", samples=96, size=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("weights") / "tiny.safetensors", dinov2())


def arguments(config: str, dataset, weights, **model) -> list[str]:
    """The command of configs/<config> in float32 for `weights` and 2 steps."""
    return [
        f"--config=configs/{config}",
        f"--config.data.path={dataset}",
        "--config.data.where=z_kind == 'spec'",
        f"--config.init.path={weights}",
        "--config.train.steps=2",
        "--config.train.batch_size=8",
        "--config.train.log_every=1",
        "--config.optim.warmup_steps=0",
        *(f"--config.model.{name}={value}" for name, value in (dict(dtype="float32") | model).items()),
    ]


def trained(workdir, config, dataset, weights, *more, **model):
    assert train.main([*arguments(config, dataset, weights, **model), f"--workdir={workdir}", *more]) == 0
    return jaxz.load_run(workdir)


def fixture(case: str, arch=None) -> tuple:
    """(the path of a fixture's weights, the settings that they are of, for images of 16 pixels)."""
    [path] = [p for p in (FIXTURES / case).iterdir() if p.suffix in (".pt", ".pth", ".safetensors")]
    model = inspect_checkpoint(path, arch=arch)["model"]
    return path, model | {"image_size": 4 * model["patch"]}


def beginning(model, weights) -> dict:
    return encoder_params(str(weights), model.config.model, model.normalisation.bands)


def still(model, weights) -> set[str]:
    """The parameters of a run's encoder that are those of the weights to the bit."""
    alike = jax.tree.map(np.array_equal, *jax.device_get((model.params["encoder"], beginning(model, weights))))
    leaves = jax.tree_util.tree_leaves_with_path(alike)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, same in leaves if same}


@pytest.fixture(scope="module")
def probe(dataset, weights, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe") / "run"
    trained(workdir, "published_probe.py", dataset, weights, **TINY)
    return workdir


def test_a_probe_leaves_the_encoder_alone_and_needs_the_weights_once(probe, dataset, weights, tmp_path):
    model = jaxz.load_run(probe)
    assert len(still(model, weights)) == len(jax.tree.leaves(model.params["encoder"]))
    said = json.loads((probe / "config.json").read_text())
    assert said["init"]["path"] == str(weights) and said["model"]["normalisation"] == "asinh"
    moved = weights.rename(tmp_path / "elsewhere")
    try:
        again = [*arguments("published_probe.py", dataset, weights, **TINY), f"--workdir={probe}"]
        assert train.main(again) == 0  # restored
        with pytest.raises(InputError, match="init.path: not run: weights absent: .*tiny.safetensors' is not there"):
            train.main([*again[:-1], f"--workdir={tmp_path / 'new'}"])
        assert not (tmp_path / "new").exists()
        with pytest.raises(InputError, match="--item: 'ema' is chosen when a run is exported"):
            predict.main([f"--model={probe}", "--item=ema", f"--dataset={dataset}", f"--out={tmp_path / 'x.fits'}"])
    finally:
        moved.rename(weights)


def test_an_exported_probe_is_the_run_bit_for_bit_and_a_dinov2_of_transformers(probe, dataset, tmp_path):
    export.main([str(probe), "--out", str(tmp_path / "first")])
    out = (tmp_path / "first").rename(tmp_path / "model")
    run, model = jaxz.load_run(probe), jaxz.load_run(out)
    found, wanted, encoder = jax.device_get((model.params, run.params, load_pretrained(out)[1]))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))
    assert jax.tree.all(jax.tree.map(np.array_equal, encoder, wanted["encoder"]))
    predict.main([f"--model={out}", f"--dataset={dataset}", f"--out={tmp_path / 'p.parquet'}"])
    assert (tmp_path / "p.hdf5").exists()
    card = (out / "README.md").read_text()
    assert "| g | 480 |" in card and "transformers" in card and str(tmp_path) not in card
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "dinov2" and config["image_size"] == 12 and config["num_channels"] == 3
    if FIXTURES.is_dir():
        wanted = open_checkpoint(FIXTURES / "dinov2_hf").tensors
        assert set(open_checkpoint(out).tensors) == set(wanted)
        told = json.loads((FIXTURES / "dinov2_hf/config.json").read_text())
        assert config.keys() - {"jaxz"} <= told.keys()
    with pytest.raises(InputError, match="--out: .*holds something already"):
        export.main([str(probe), "--out", str(out)])
    (out / "heads.safetensors").unlink()
    with pytest.raises(InputError, match="are not those of its config"):
        jaxz.load_run(out)


@needs_fixtures
@pytest.mark.parametrize("case", ["dinov2_hf", "dinov2_hf_swiglu", "dinov2_hf_registers_sharded"])
def test_what_is_read_from_transformers_is_written_for_it_bit_for_bit(case):
    checkpoint = open_checkpoint(FIXTURES / case)
    written = hugging_face_tensors(load_pretrained(FIXTURES / case)[1])
    assert written.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert written[name].shape == tensor.shape
        np.testing.assert_array_equal(written[name], tensor.read().astype(np.float32), err_msg=name)
    config = hugging_face_config(describe(checkpoint, "auto", None, "family")[0].settings)
    config.pop("dtype")  # of the file, which may be half as wide
    if "swiglu" in case:
        config.pop("hidden_act")  # which is not used
    assert config.items() <= (checkpoint.config | {"architectures": config["architectures"]}).items()


@needs_fixtures
@pytest.mark.long
def test_all_of_clip_is_fine_tuned(dataset, tmp_path):
    path, model = fixture("clip_openai", {"heads": 2, "text_heads": 1, "act": "quick_gelu"})
    run = trained(tmp_path / "run", "published_finetune.py:clip_vitb32", dataset, path, **model)
    assert still(run, path) == set()


@needs_fixtures
@pytest.mark.long
def test_low_rank_factors_of_mae_are_trained_and_merged(dataset, tmp_path):
    path, model = fixture("mae_pretrain", {"heads": 4})
    run = trained(tmp_path / "run", "published_lora.py:mae_vitb16", dataset, path, **model)
    assert len(still(run, path)) == len(jax.tree.leaves(run.params["encoder"]))
    export.main([str(tmp_path / "run"), "--out", str(tmp_path / "model")])
    whole, params = jax.device_get((jaxz.load_run(tmp_path / "model").params, run.params))
    for place in (("stem", "projection"), ("blocks", "attention", "query"), ("blocks", "mlp", "down")):
        at = lambda tree, place=place: functools.reduce(dict.get, place, tree)["kernel"]
        low, merged = at(params["lora"]), at(whole["encoder"])
        np.testing.assert_allclose(merged, at(params["encoder"]) + low["a"] @ low["b"], rtol=1e-5, atol=1e-6)
        assert (merged != at(params["encoder"])).any(), place


@pytest.mark.long
@needs_fixtures
def test_self_distillation_begins_with_the_weights_as_the_teacher(dataset, tmp_path):
    path, model = fixture("dinov2_official", {"heads": 4})
    small = ["--config.dino.prototypes=32", "--config.dino.hidden_width=16", "--config.dino.bottleneck=8"]
    small += ["--config.train.steps=1", "--config.dino.crops=1", "--config.dino.koleo_weight=0"]
    student = trained(tmp_path / "run", "published_dino.py", dataset, path, *small, **model)
    teacher = jaxz.load_run(tmp_path / "run", "ema").params["encoder"]
    start, moved = jax.device_get((beginning(student, path), student.params["encoder"]))
    assert still(student, path) <= {"mask_token"}  # the head's own one stands for what is hidden
    wanted = jax.tree.map(lambda a, b: 0.994 * a + 0.006 * b, start, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), teacher, wanted)
    probe = parse(arguments("published_probe.py", dataset, tmp_path / "run", **model))  # a beginning for others
    assert train.starting_normalisation(tmp_path / "probe", probe, None) == student.normalisation


def test_layers_and_heads_have_their_rates():
    config = parse(["--config=configs/published_finetune.py:siglip_vitb16", "--config.data.path=d"])
    encoder = build(config.model, BANDS, 64)
    params = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0)), "redshift": {"bias": jnp.zeros(1)}}
    rates = learning_rates(config.optim, params)
    assert rates["encoder/position"] == rates["encoder/stem/kernel"] == 0.75**13
    assert rates["encoder/probe/mlp/up/kernel"] == rates["encoder/norm/scale"] == rates["redshift/bias"] == 1
    np.testing.assert_allclose(rates["encoder/blocks/mlp/up/kernel"].ravel(), 0.75 ** np.arange(12, 0, -1.0), rtol=1e-6)


NAMES = {"clip_ViT-B-32": "clip_vitb32", "clip_ViT-B-16": "clip_vitb16", "clip_ViT-L-14": "clip_vitl14"}
NAMES |= {"siglip_b16_224_vision": "siglip_vitb16"}


@needs_fixtures
def test_published_settings_are_those_of_the_published_tensors():
    for path in (FIXTURES / "manifests").glob("*.json"):
        name = path.stem.rsplit("_", 1)[0]
        checkpoint = manifest_checkpoint(path.stem)
        model, _ = describe(checkpoint, "auto", {"act": "quick_gelu"} if "clip" in name else None, "family")
        found = published.settings_of(adapt.image_of(model.settings))
        wanted = published.SETTINGS | published.MODELS[NAMES.get(name, name)]
        assert [n for n in published.ARCHITECTURE if not same(found[n], wanted[n])] == [], name


def settings(**changes) -> ConfigDict:
    own = published.SETTINGS | published.MODELS["dinov2_vitb14"] | TINY | dict(normalisation="asinh") | changes
    return ConfigDict(own | {"name": "published"})


def encoded(config, weights, image, mask):
    encoder = build(config, BANDS, 12)
    return jax.jit(encoder)(encoder_params(str(weights), config, BANDS), image, mask)


def test_the_backbone_is_the_imported_model(weights):
    image = jax.random.normal(jax.random.key(0), (2, 3, 12, 12))
    mask = jnp.ones(image.shape, bool).at[0, 1].set(False)
    graphdef, params, _ = load_pretrained(weights, arch={"heads": 2}, bands=("g", "r", "i"), band_init="mean")
    wanted = jax.jit(nnx.merge(graphdef, params))(image, mask)
    found = encoded(settings(image_size=0, band_init="mean"), weights, image, mask)
    np.testing.assert_allclose(found.tokens, wanted.tokens, rtol=1e-6, atol=1e-6)
    half = encoded(settings(image_size=0, band_init="mean", dtype="bfloat16"), weights, image, mask)
    assert half.tokens.dtype == jnp.float32 and 0 < abs(half.tokens - wanted.tokens).max() < 0.1
    twice = jnp.concatenate([image, jnp.where(mask, image, jnp.nan)]), jnp.concatenate([mask, mask])
    larger = encoded(settings(band_init="mean", image_size=24), weights, *twice)
    assert larger.tokens.shape == (4, 36, 16)
    np.testing.assert_array_equal(larger.tokens[:2], larger.tokens[2:])


@pytest.mark.parametrize("hides", ["keep", "hidden"])
def test_what_is_hidden_shows_in_no_enlarged_pixel(weights, hides):
    config, image = settings(band_init="mean", image_size=24), jax.random.normal(jax.random.key(0), (1, 3, 12, 12))
    encoder, shown = build(config, BANDS, 12), jnp.zeros(36, bool).at[jnp.array([0, 7, 8, 20, 35])].set(True)
    parts = {"keep": jnp.flatnonzero(shown)[None], "hidden": ~shown[None]}
    seen = shown.reshape(6, 6).repeat(2, 0).repeat(2, 1)
    params, token = encoder_params(str(weights), config, BANDS), jnp.zeros(16)
    run = lambda x: encoder(params, x, jnp.ones(x.shape, bool), **{hides: parts[hides]}, mask_token=token).tokens
    np.testing.assert_array_equal(run(image), run(jnp.where(seen, image, 9.0)))
    assert not np.array_equal(run(image), run(jnp.where(seen, 9.0, image)))


def test_enlarged_patches_are_whole_to_their_corners():
    """Where those around a corner are hidden, hardly a quarter of its pixel is made of what is shown."""
    tower = nnx.eval_shape(lambda: published.Backbone(settings(image_size=42, patch=14), BANDS, 12, rngs=nnx.Rngs(0)))
    image, keep = jnp.full((1, 3, 12, 12), 2.0), jnp.array([[4]])  # the middle one of 3 x 3
    found, mask = tower.input(image, jnp.ones(image.shape, bool), keep)
    np.testing.assert_allclose(found[0, :, 14:28, 14:28], 2, rtol=1e-6)
    assert mask.all()


def test_fluxes_become_the_input_that_was_chosen():
    flux = np.random.default_rng(0).normal(2, 3, (2, 3, 12, 12)).astype(np.float32)
    rgb = dict(image_size=0, band_init="rgb_map", rgb=("i", "r", "g"))
    numbers = dict(mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0))
    mean, std = (np.reshape(numbers[name], (3, 1, 1)) for name in ("mean", "std"))

    def seen(kind):
        config = settings(**rgb, normalisation=kind, **numbers)
        backbone = nnx.eval_shape(lambda: published.Backbone(config, BANDS, 12, rngs=nnx.Rngs(0)))
        return backbone.input(np.arcsinh(flux), True)[0]

    np.testing.assert_allclose(seen("affine"), (flux - mean) / std, rtol=1e-4, atol=1e-4)
    red = np.maximum(flux[:, ::-1].astype(np.float64), 0)
    total = red.mean(1, keepdims=True)  # Lupton et al. 2004, eq. 2
    picture = red * np.arcsinh(8.0 * total / 5.0) * 0.1 / np.arcsinh(0.8) / np.maximum(total, 1e-30)
    picture = picture / np.maximum(picture.max(1, keepdims=True), 1)
    np.testing.assert_allclose(seen("lupton"), (picture - mean) / std, rtol=1e-4, atol=1e-4)


WRONG = [
    (dict(normalisation=""), "model.normalisation: '' must be 'asinh', 'affine' or 'lupton'"),
    (dict(band_init="rgb_map"), "model.rgb: .* must be three names"),
    (dict(normalisation="lupton", mean=(1, 1, 1), std=(1, 1, 1)), "model.band_init"),
    (dict(normalisation="affine"), "model.mean: .* must be given"),
    (dict(grid=("a", "b")), "model.grid: .* must be .rows, columns"),
    (dict(rope=("a",)), "model.rope: .* must be periods above 0"),
    (dict(image_size=30), "model.image_size: 30 must be a multiple"),
]


@pytest.mark.parametrize(("model", "message"), WRONG)
def test_settings_that_do_not_fit_are_refused(model, message):
    config = parse(["--config=configs/published_probe.py", "--config.data.path=d"])
    config.model.update(model)
    with pytest.raises(InputError, match=message):
        validate(config)
    config = parse(["--config=configs/published_probe.py", "--config.data.path=d", "--config.init.path="])
    config.data.stretch = "log"
    with pytest.raises(InputError) as error:
        validate(config)
    assert "init.path: '' is not set, but the model 'published' begins with trained" in str(error.value)
    assert "data.stretch: 'log', but the model 'published' takes asinh; set it to 'asinh'" in str(error.value)


def test_bands_and_sizes_that_do_not_fit_are_refused(weights):
    with pytest.raises(InputError, match="model.rgb: 'z' is no band of the run"):
        build(settings(band_init="rgb_map", rgb=("z", "r", "g")), BANDS, 16)
    with pytest.raises(InputError, match="model.image_size: 16 pixels in patches of 4 do not fit cutouts of 18"):
        build(settings(), BANDS, 18)
    with pytest.raises(InputError, match="model.image_size: 0 pixels in patches of 4 do not fit cutouts of 3"):
        build(settings(image_size=0), BANDS, 3)
    with pytest.raises(
        InputError, match=r"another architecture .*width: 8 -> 16.*; use its own: --config.model.width=16"
    ):
        check_weights(str(weights), settings(width=8))
    with pytest.raises(InputError, match="'--config.model.grid=\\(3, 3\\)'"):
        check_weights(str(weights), settings(grid=(4, 4)))
