"""Models of other sizes than the fixtures', in the layouts of DINOv2's and CLIP's own code, against NumPy in float64 as
the papers have them: Dosovitskiy et al. 2021, eq. 1-4; Touvron et al. 2021, eq. 2; Radford et al. 2021, sec. 2.4."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxz.pretrained import load_pretrained
from tests.pretrained.files import dinov2, write_safetensors

erf = np.vectorize(math.erf)
gelu = lambda x: x * (1 + erf(x / np.sqrt(2))) / 2
quick_gelu = lambda x: x / (1 + np.exp(-1.702 * x))


def norm(p, name, x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p[name + ".weight"] + p[
        name + ".bias"
    ]


def attention(q, k, v, heads, causal):
    """[N,D] each, of one image or text."""
    result = []
    for query, key, value in zip(*(np.split(a, heads, -1) for a in (q, k, v)), strict=True):
        logits = query @ key.T / np.sqrt(query.shape[-1])
        looks = np.exp(np.where(np.tri(len(query)), logits, -np.inf) if causal else logits)
        result.append(looks / looks.sum(-1, keepdims=True) @ value)
    return np.concatenate(result, -1)


def block(p, names, x, heads, act, eps, causal=False):
    """names: of norm1, qkv (weight and bias), out, norm2, up, down, and of the two LayerScales, or none."""
    dense = lambda name, y, dot=".": y @ p[f"{name}{dot}weight"].T + p[f"{name}{dot}bias"]
    norm1, qkv, out, norm2, up, down, *scales = names
    first, second = (p[name] for name in scales) if scales else (1, 1)
    q, k, v = np.split(dense(qkv, norm(p, norm1, x, eps), "_" if qkv.endswith("in_proj") else "."), 3, -1)
    x = x + first * dense(out, attention(q, k, v, heads, causal))
    return x + second * dense(down, act(dense(up, norm(p, norm2, x, eps))))


def patches(image, kernel):
    """[3,H,W] -> [N,D] by a convolution [D,3,P,P] of that stride, row by row."""
    side = kernel.shape[-1]
    cut = [
        image[:, y : y + side, x : x + side]
        for y in range(0, image.shape[1], side)
        for x in range(0, image.shape[2], side)
    ]
    return np.einsum("ncyx,dcyx->nd", cut, kernel)


def error(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def test_dinov2_of_another_size_with_a_table_that_is_no_square(tmp_path):
    arrays = dinov2(width=24, depth=3, patch=4, side=3, seed=3)
    arrays["pos_embed"] = arrays["pos_embed"][:, :9]  # cls, and 2 x 4
    path = write_safetensors(tmp_path / "w.safetensors", arrays)
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 16)).astype(np.float32)
    graphdef, params, _ = load_pretrained(path, arch={"heads": 3, "pos_grid": (2, 4)})
    found = jax.jit(lambda params, image: nnx.merge(graphdef, params)(image, True))(params, image)
    p = {name: array.astype(np.float64) for name, array in arrays.items()}
    for n in range(2):
        x = patches(image[n], p["patch_embed.proj.weight"]) + p["patch_embed.proj.bias"]
        x = np.concatenate([p["cls_token"][0], x]) + p["pos_embed"][0]
        for b in range(3):
            names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", "ls1.gamma", "ls2.gamma")
            x = block(p, [f"blocks.{b}.{name}" for name in names], x, 3, gelu, 1e-6)
        x = norm(p, "norm", x, 1e-6)
        assert error(found.cls[n], x[0]) < 1e-5 and error(found.tokens[n], x[1:]) < 1e-5


def clip(width, text, embed, rng) -> dict[str, np.ndarray]:
    """The tensors of a tiny CLIP in OpenAI's layout: 3 x 3 patches of 4 pixels, 7 tokens of 11."""
    shapes = {"visual.class_embedding": (width,), "visual.positional_embedding": (10, width)}
    shapes |= {"visual.conv1.weight": (width, 3, 4, 4), "visual.proj": (width, embed), "logit_scale": ()}
    shapes |= {
        "token_embedding.weight": (11, text),
        "positional_embedding": (7, text),
        "text_projection": (text, embed),
    }
    for tower, size, depth in (("visual.transformer", width, 1), ("transformer", text, 2)):
        for n in range(depth):
            b = f"{tower}.resblocks.{n}."
            shapes |= {b + "attn.in_proj_weight": (3 * size, size), b + "attn.in_proj_bias": (3 * size,)}
            for name, (out, given) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
                shapes |= {f"{b}{name}.weight": (out * size, given * size), f"{b}{name}.bias": (out * size,)}
            shapes |= {f"{b}{ln}.{kind}": (size,) for ln in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    for name, size in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text)):
        shapes |= {f"{name}.{kind}": (size,) for kind in ("weight", "bias")}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


RESIDUAL = ("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def test_clip_of_another_size(tmp_path):
    rng = np.random.default_rng(5)
    arrays = clip(20, 12, 8, rng)
    path = write_safetensors(tmp_path / "w.safetensors", arrays)
    image = rng.normal(size=(2, 3, 12, 12)).astype(np.float32)
    ids = np.array([[1, 4, 10, 0, 0, 0, 0], [2, 10, 0, 0, 0, 0, 0], [3, 5, 6, 7, 8, 9, 10]])
    graphdef, params, _ = load_pretrained(path, arch={"heads": 5, "text_heads": 3, "act": "quick_gelu"})

    @jax.jit
    def run(params, image, ids):
        pair = nnx.merge(graphdef, params)
        images, texts = (
            pair.embed_image(pair(image, jnp.ones(image.shape, bool)).cls),
            pair.embed_text(pair.text(ids).cls),
        )
        return images, texts, pair.logits(images, texts)

    found = run(params, image, ids)
    p = {name: array.astype(np.float64) for name, array in arrays.items()}
    images, texts = [], []
    for one in image:
        x = np.concatenate([p["visual.class_embedding"][None], patches(one, p["visual.conv1.weight"])])
        x = norm(p, "visual.ln_pre", x + p["visual.positional_embedding"], 1e-5)
        x = block(p, [f"visual.transformer.resblocks.0.{name}" for name in RESIDUAL], x, 5, quick_gelu, 1e-5)
        images.append(norm(p, "visual.ln_post", x[0], 1e-5) @ p["visual.proj"])
    for row in ids:
        x = p["token_embedding.weight"][row] + p["positional_embedding"]
        for b in range(2):
            names = [f"transformer.resblocks.{b}.{name}" for name in RESIDUAL]
            x = block(p, names, x, 3, quick_gelu, 1e-5, causal=True)
        texts.append(norm(p, "ln_final", x[row.argmax()], 1e-5) @ p["text_projection"])
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    logits = np.exp(p["logit_scale"]) * unit(np.array(images)) @ unit(np.array(texts)).T
    for a, b in zip(found, (np.array(images), np.array(texts), logits), strict=True):
        assert error(a, b) < 1e-5
