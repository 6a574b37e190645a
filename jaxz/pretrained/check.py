"""An imported model against outputs of its own code: a directory with weights, io.npz and meta.json."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxz.errors import InputError
from jaxz.files import read_json, replacing
from jaxz.models.functional import Params
from jaxz.models.tower import Block, Embedded
from jaxz.models.two_towers import TwoTowers, normalised
from jaxz.pretrained import load_pretrained
from jaxz.pretrained.formats import WEIGHTS

BAR = 1e-5  # relative error of float32 on CPU
BAR_X64 = {"dinov3": 1e-6}  # its reference computes rotary angles in float32; of float64 at the positions' own grid
DEFAULT_BAR_X64 = 1e-7


def states(blocks: Block, embedded: Embedded) -> jax.Array:
    """[depth+1,B,N,D]: what is in front of the stacked blocks and behind each of them."""

    def body(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
        y = block(x, embedded.angles, embedded.observed)
        return y, y

    return jnp.concatenate([embedded.x[None], jax.lax.scan(body, embedded.x, blocks)[1]])


@functools.partial(jax.jit, static_argnums=0)
def image_outputs(graphdef: nnx.GraphDef, params: Params, image: jax.Array, hidden: jax.Array | None = None) -> dict:
    """Everything that references call an output of images alone."""
    module = nnx.merge(graphdef, params)
    tower = module.image if isinstance(module, TwoTowers) else module
    each = states(tower.blocks, tower.embed(image, jnp.ones(image.shape, bool), hidden=hidden))
    x = each[-1]
    encoded, normed = tower.summarise(x), tower.norm(x)
    if isinstance(module, TwoTowers):
        embeds = module.embed_image(encoded.cls)
        return {
            "image_embeds_unnormalised": embeds,
            "image_embeds": normalised(embeds),
            "vision_pooler_output": embeds,
            "vision_tokens_pre_ln_post": x,
            "vision_tokens_ln_post": normed,
            "vision_last_hidden_state": x if tower.probe is None else normed,
        }
    logits = {} if tower.classifier is None else {"logits": tower.classifier(encoded.cls)}
    return logits | {
        "hidden_states_item0": each[:, 0],
        "x_norm": normed,
        "last_hidden_state": normed,
        "pooler_output": encoded.cls,
        "pooled": encoded.cls,
    }


@functools.partial(jax.jit, static_argnums=0)
def text_outputs(graphdef: nnx.GraphDef, params: Params, ids: jax.Array) -> dict:
    """Everything that references call an output of texts alone."""
    pair = nnx.merge(graphdef, params)
    summary, tokens = pair.text(ids)[:2]
    embeds = pair.embed_text(summary)
    return {
        "text_embeds_unnormalised": embeds,
        "text_embeds": normalised(embeds),
        "text_pooler_output": embeds,
        "text_tokens_ln_final": tokens,
        "text_last_hidden_state": tokens,
    }


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef: nnx.GraphDef, params: Params, images: jax.Array, texts: jax.Array) -> jax.Array:
    """[B,T] of embeddings of images and of texts in the common space."""
    return nnx.merge(graphdef, params).logits(images, texts)


def outputs(graphdef: nnx.GraphDef, params: Params, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that references call an output, of images and, where ids of texts are given, of these too."""
    found = image_outputs(graphdef, params, inputs["image"], inputs.get("bool_masked_pos"))
    if "input_ids" in inputs:
        found |= text_outputs(graphdef, params, inputs["input_ids"])
        embeds = found["image_embeds_unnormalised"], found["text_embeds_unnormalised"]
        found["logits_per_image"] = logits(graphdef, params, *embeds)
    return jax.device_get(found)


def run_model(graphdef: nnx.GraphDef, params: Params, io: Mapping[str, np.ndarray], x64: bool) -> dict[str, np.ndarray]:
    """What the model makes of every input, by the names that io.npz has for the outputs."""
    kind, dtype = ("out64", np.float64) if x64 else ("out", np.float32)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    found = {}
    for tag in sorted({name.split("/")[0] for name in io}):
        inputs = {name.split("/")[2]: io[name] for name in io if name.startswith(f"{tag}/in/")}
        made = outputs(graphdef, params, inputs | {"image": inputs["image"].astype(dtype)})
        for name in io:
            if name.startswith(f"{tag}/{kind}/"):
                output = name.split("/")[2]
                if output not in made:
                    raise InputError(f"io.npz: {name!r} is no output of this model; known are {sorted(made)}")
                found[name] = made[output]
    return found


def sources(folder: Path, meta: dict) -> list[Path]:
    """What of a directory can be loaded: itself, where it is one of Hugging Face or open_clip, and other files."""
    whole = [folder] if any((folder / name).is_file() for name in ("config.json", "open_clip_config.json")) else []
    return whole + [folder / name for name in meta["weights"] if name not in WEIGHTS and "-of-" not in name]


def check(folder: Path, save: Path | None, x64: bool, arch: dict | None) -> bool:
    """Print the relative error of every output, max |a - b| / max |b|; True where all are below the bar.

    arch: where meta.json has none. Raises InputError for a directory without io.npz or meta.json.
    """
    meta = read_json(folder / "meta.json", "what describes the reference")
    reference = folder.parent / meta.get("same_outputs_as", folder.name) / "io.npz"
    if not reference.is_file():
        raise InputError(f"{reference}: is missing; it holds the inputs and outputs of the reference")
    with np.load(reference) as file:
        io = dict(file)
    arch, good = arch or meta.get("arch"), True
    bar = BAR_X64.get(meta["family"], DEFAULT_BAR_X64) if x64 else BAR
    for n, source in enumerate(sources(folder, meta)):
        graphdef, params, report = load_pretrained(source, family=meta["family"], arch=arch)
        arch = report["arch"]  # for files beside it that say less
        print(f"{source}: {report['family']}, {report['layout']}, {len(report['consumed'])} tensors used")
        print(f"  arch {json.dumps(arch)}; left out: {sorted(report['ignored']) or 'nothing'}")
        found = run_model(graphdef, params, io, x64)
        for name, made in found.items():
            error = np.abs(made - io[name]).max() / np.abs(io[name]).max()
            judged = not x64 or name.startswith("native/")
            good &= bool(error < bar) or not judged
            verdict = ("ok" if error < bar else f"ABOVE {bar:g}") if judged else "no bar"
            print(f"  {name:<50} {error:.1e} {verdict}")
        if save is not None and n == 0:
            with replacing(save) as file:
                np.savez(file, **found)  # type: ignore[arg-type]  # NumPy's types take names for its own option
    return good
