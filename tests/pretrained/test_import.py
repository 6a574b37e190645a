"""Imported models compute what their own code does; every tensor is accounted for; what is ambiguous is asked."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxz.errors import InputError
from jaxz.mesh import make_mesh, shardings
from jaxz.pretrained import FAMILIES, describe, image_tower, inspect_checkpoint, load_pretrained, plan_of
from jaxz.pretrained.__main__ import main
from jaxz.pretrained.check import check
from jaxz.pretrained.formats import Checkpoint, open_checkpoint
from jaxz.pretrained.tensors import Tensor
from tests.pretrained.files import FIXTURES, dinov2, needs_fixtures, write_safetensors

SCRIPTED = {"heads": 2, "text_heads": 2, "act": "quick_gelu"}  # its meta.json has no arch
CASES = (
    "dinov2_official",
    "dinov2_official_giant_swiglu",
    "dinov2_official_reg",
    "dinov2_hf",
    "dinov2_hf_swiglu",
    "dinov2_hf_registers_sharded",
    "clip_openai",
    "clip_openai_jit",
    "open_clip_laion_gelu",
    "clip_hf_quickgelu",
    "clip_hf_gelu",
    "dino_v1",
    "mae_pretrain",
    "mae_finetuned_fc_norm",
    "dinov3_hf",
    "dinov3_hf_gated",
    "dinov3_official",
    "siglip_hf",
)


@needs_fixtures
@pytest.mark.parametrize("case", CASES)
def test_every_output_of_every_fixture_is_within_1e_5(case, capsys):
    good = check(FIXTURES / case, None, False, SCRIPTED if case == "clip_openai_jit" else None)
    assert good, capsys.readouterr().out


@needs_fixtures
@pytest.mark.parametrize("case", ["dinov2_official_giant_swiglu", "mae_finetuned_fc_norm"])
def test_in_float64_only_rounding_is_left(case, capsys):
    with jax.enable_x64(True):
        assert check(FIXTURES / case, None, True, None), capsys.readouterr().out


@needs_fixtures
def test_check_saves_its_outputs_and_tells_a_wrong_model(tmp_path, capsys):
    folder, save = FIXTURES / "mae_finetuned_fc_norm", tmp_path / "out.npz"
    assert main(["check", str(folder), "--save", str(save)]) == 0
    with np.load(save) as found, np.load(folder / "io.npz") as wanted:
        assert set(found.files) == {name for name in wanted.files if "/out/" in name}
        np.testing.assert_allclose(found["native/out/logits"], wanted["native/out/logits"], rtol=0, atol=1e-4)
    assert main(["check", str(folder), "--arch", '{"heads": 4, "act": "gelu_tanh"}']) == 1
    assert "ABOVE" in capsys.readouterr().out


def manifest_checkpoint(name: str) -> Checkpoint:
    keys = json.loads((FIXTURES / f"manifests/{name}.json").read_text())["keys"]
    tensors = {key: Tensor("F32", tuple(shape), lambda: None) for key, shape in keys.items()}
    return Checkpoint(tensors, (Path(f"{name}.safetensors"),), {}, "model" if name.startswith("mae") else "")


@needs_fixtures
@pytest.mark.parametrize("path", sorted((FIXTURES / "manifests").glob("*.json")), ids=lambda path: path.stem)
def test_every_tensor_of_every_published_model_is_used_or_left_out_with_a_reason(path):
    manifest, checkpoint = json.loads(path.read_text()), manifest_checkpoint(path.stem)
    arch = {"act": "quick_gelu"} if "clip" in path.stem else None
    model, report = describe(checkpoint, "auto", arch, "family")
    plan = plan_of(checkpoint, model, strict=True)
    assert set(plan.fed) | set(plan.ignored) == set(manifest["keys"]) and not set(plan.fed) & set(plan.ignored)
    left_out = sum(int(np.prod(manifest["keys"][name])) for name in plan.ignored)
    assert sum(int(np.prod(shape)) for shape in plan.shapes.values()) == manifest["n_params"] - left_out
    assert report["arch"]["heads"] == manifest.get("heads", report["arch"]["heads"])
    assert set(plan.ignored) <= {
        "vision_model.embeddings.position_ids",
        "text_model.embeddings.position_ids",
        "input_resolution",
        "context_length",
        "vocab_size",
    }


@pytest.fixture
def tiny(tmp_path):
    return write_safetensors(tmp_path / "tiny.safetensors", dinov2())


def test_an_imported_model_is_an_ordinary_encoder(tiny):
    graphdef, params, report = load_pretrained(tiny, arch={"heads": 2})
    assert report["family"] == "dinov2" and json.loads(json.dumps(report))["missing"] == []
    assert type(params["blocks"]["attention"]["query"]) is dict
    for leaf, placed in zip(jax.tree.leaves(params), jax.tree.leaves(shardings(params, make_mesh(1, 1))), strict=True):
        assert leaf.dtype == jnp.float32 and placed is not None
    encoder = jax.jit(lambda *args, **kwargs: nnx.merge(graphdef, params)(*args, **kwargs))
    image = jax.random.normal(jax.random.key(0), (2, 3, 12, 12))
    mask = jnp.ones(image.shape, bool).at[0, 1].set(False)
    encoded = encoder(image, mask)
    assert encoded.cls.shape == (2, 16) and encoded.tokens.shape == (2, 9, 16)
    garbage = encoder(jnp.where(mask, image, jnp.nan), mask)
    np.testing.assert_array_equal(encoded.tokens, garbage.tokens)
    order = jnp.array([[3, 1, 0, 2, 4, 8, 7, 6, 5]] * 2)
    kept = encoder(image, mask, keep=order)
    np.testing.assert_allclose(kept.tokens, encoded.tokens[:, order[0]], atol=1e-5)
    with pytest.raises(InputError, match="13 x 12"):
        encoder(jnp.zeros((1, 3, 13, 12)), True)


def test_another_size_is_resized_at_once_as_it_is_when_called(tiny):
    image = jax.random.normal(jax.random.key(0), (1, 3, 16, 20))
    results = []
    for size in (None, (16, 20)):
        graphdef, params, report = load_pretrained(tiny, arch={"heads": 2}, image_size=size)
        results.append(jax.jit(nnx.merge(graphdef, params))(image, jnp.ones(image.shape, bool)).cls)
    np.testing.assert_allclose(*results, rtol=1e-5)
    assert report["resized"] == {"from": [3, 3], "to": [4, 5], "variant": "offset0.1"}
    with pytest.raises(InputError, match="image_size: 18 x 18"):
        load_pretrained(tiny, arch={"heads": 2}, image_size=18)


def altered(tiny, change) -> None:
    arrays = dinov2()
    change(arrays)
    write_safetensors(tiny, arrays)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda a: a.update(extra=a["norm.bias"]), "'extra'"),
        (lambda a: a.pop("blocks.1.norm2.bias"), "'blocks.1.norm2.bias'"),
        (lambda a: a.update({"blocks.0.mlp.fc1.bias": a["norm.bias"]}), "'blocks.0.mlp.fc1.bias' has the shape"),
        (lambda a: a.update({"norm.bias": a["norm.bias"].astype(np.int64)}), "'norm.bias' holds I64"),
        (lambda a: a["norm.bias"].fill(np.nan), "'norm.bias' holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_named(tiny, change, named):
    altered(tiny, change)
    with pytest.raises(InputError, match=named):
        load_pretrained(tiny, arch={"heads": 2})


def test_not_strict_fills_and_leaves_out_and_says_so(tiny):
    altered(tiny, lambda a: a.update(extra=a.pop("blocks.1.norm2.bias")))
    _, params, report = load_pretrained(tiny, arch={"heads": 2}, strict=False)
    assert report["missing"] == ["blocks.1.norm2.bias"] and report["unexpected"] == ["extra"]
    stacked = np.asarray(params["blocks"]["norm2"]["bias"])
    np.testing.assert_array_equal(stacked[0], dinov2()["blocks.0.norm2.bias"])
    np.testing.assert_array_equal(stacked[1], 0)


def test_a_file_that_two_families_take_for_theirs_is_asked_for(tiny, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mae", SimpleNamespace(recognises=lambda checkpoint: True))
    with pytest.raises(InputError, match="^family: tensors such as .* are of dinov2 and mae; say which it is"):
        load_pretrained(tiny, arch={"heads": 2})
    assert load_pretrained(tiny, family="dinov2", arch={"heads": 2})[2]["family"] == "dinov2"


def test_what_no_tensor_says_is_asked(tiny):
    with pytest.raises(InputError, match="'heads' is not in the file"):
        load_pretrained(tiny)
    assert "'heads' is not in the file" in inspect_checkpoint(tiny)["asks"]
    assert "asks" not in inspect_checkpoint(tiny, arch={"heads": 2})
    for arch, why in (
        ({"head": 2}, "Did you mean 'heads'"),
        ({"heads": 3}, "divide"),
        ({"heads": 2, "depth": 3}, "depth"),
    ):
        with pytest.raises(InputError, match=why):
            load_pretrained(tiny, arch=arch)
    with pytest.raises(InputError, match="family: 'dinov'"):
        load_pretrained(tiny, family="dinov")


@pytest.mark.parametrize(
    "arch", [{"vision": 3}, {"layernorm_eps": "x"}, {"layernorm_eps": 0}, {"act": [1]}, {"pos_grid": 3}]
)
def test_an_arch_of_another_kind_is_refused(tiny, arch):
    with pytest.raises(InputError, match="arch"):
        load_pretrained(tiny, arch={"heads": 2} | arch)


@pytest.mark.parametrize("config", [{"hidden_act": ["gelu"]}, {"layer_norm_eps": None}, {"layer_norm_eps": -1.0}])
def test_a_config_that_says_what_cannot_be_is_refused(tmp_path, config):
    write_safetensors(tmp_path / "model.safetensors", dinov2())
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2} | config))
    assert "arch" in inspect_checkpoint(tmp_path)["asks"]
    with pytest.raises(InputError, match="arch"):
        load_pretrained(tmp_path)


@needs_fixtures
@pytest.mark.parametrize("periods", [np.zeros(0), np.float32(1), np.full(4, np.nan), np.zeros(4)])
def test_rotary_periods_that_cannot_be_are_refused(periods):
    whole = open_checkpoint(FIXTURES / "dinov3_official/weights.pth")
    odd = Tensor("F32", np.shape(periods), lambda: np.asarray(periods, np.float32))
    with pytest.raises(InputError, match="a model of dinov3"):
        describe(replace(whole, tensors=whole.tensors | {"rope_embed.periods": odd}), "auto", None, "family")


@needs_fixtures
def test_the_activation_of_clip_is_asked_and_its_image_tower_stands_alone():
    path = FIXTURES / "clip_openai/weights.pt"
    with pytest.raises(InputError, match="'act' is not in the file.*gelu.*quick_gelu"):
        load_pretrained(path, arch={"heads": 2, "text_heads": 1})
    graphdef, params, report = load_pretrained(path, arch={"heads": 2, "text_heads": 1, "act": "quick_gelu"})
    assert load_pretrained(path, arch=report["arch"])[2]["settings"] == report["settings"]
    alone, own = image_tower(graphdef, params)
    image = jax.random.normal(jax.random.key(0), (1, 3, 24, 24))
    both = [jax.jit(nnx.merge(g, p))(image, jnp.ones(image.shape, bool)) for g, p in ((graphdef, params), (alone, own))]
    np.testing.assert_array_equal(both[0].cls, both[1].cls)
    assert "text" not in own
