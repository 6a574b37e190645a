"""An imported model against outputs of its own code: a directory with weights, io.npz and meta.json."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxz.errors import InputError
from jaxz.files import read_json, replacing
from jaxz.models.tower import ImageTower, TwoTowers, run, unit
from jaxz.pretrained import load_pretrained
from jaxz.pretrained.formats import WEIGHTS

BAR = 1e-5  # relative error of float32 on CPU
BAR_X64 = {"dinov3": 1e-6}  # its reference computes rotary angles in float32; of float64 at the positions' own grid
DEFAULT_BAR_X64 = 1e-7


def image_outputs(tower: ImageTower, image: jax.Array, hidden=None) -> dict:
    """Everything that references call an output of an image tower."""
    x, states = run(tower.blocks, *tower.embed(image, jnp.ones(image.shape, bool), hidden=hidden), states=True)
    encoded = tower.summarise(x)
    found = {"hidden_states_item0": states[:, 0], "before_norm": x, "pooler_output": encoded.cls, "pooled": encoded.cls}
    if tower.settings.summary != "mean":
        found["x_norm"] = found["last_hidden_state"] = tower.norm(x)
    if tower.classifier is not None:
        found["logits"] = tower.classifier(encoded.cls)
    return found


def pair_outputs(pair: TwoTowers, image: jax.Array, ids: jax.Array) -> dict:
    """Everything that references call an output of two towers."""
    seen = image_outputs(pair.image, image)
    summary, text = pair.text(ids)[:2]
    images, texts = pair.embed_image(seen["pooled"]), pair.embed_text(summary)
    probed = pair.image.probe is not None
    return {
        "image_embeds_unnormalised": images,
        "text_embeds_unnormalised": texts,
        "image_embeds": unit(images),
        "text_embeds": unit(texts),
        "logits_per_image": pair.logits(images, texts),
        "vision_tokens_pre_ln_post": seen["before_norm"],
        "vision_tokens_ln_post": seen["x_norm"],
        "text_tokens_ln_final": text,
        "vision_last_hidden_state": seen["x_norm"] if probed else seen["before_norm"],
        "vision_pooler_output": images,
        "text_last_hidden_state": text,
        "text_pooler_output": texts,
    }


def outputs(module, inputs: dict) -> dict:
    if isinstance(module, TwoTowers):
        return pair_outputs(module, inputs["image"], inputs["input_ids"])
    return image_outputs(module, inputs["image"], inputs.get("bool_masked_pos"))


def run_model(graphdef, params: dict, io: dict, x64: bool) -> dict[str, np.ndarray]:
    """What the model makes of every input, by the names that io.npz has for the outputs."""
    kind = "out64" if x64 else "out"
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64 if x64 else jnp.float32), params)
    function = jax.jit(lambda params, inputs: outputs(nnx.merge(graphdef, params), inputs))
    found = {}
    for tag in sorted({name.split("/")[0] for name in io}):
        inputs = {name.split("/")[2]: io[name] for name in io if name.startswith(f"{tag}/in/")}
        inputs["image"] = inputs["image"].astype(np.float64 if x64 else np.float32)
        made = jax.device_get(function(params, inputs))
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
                np.savez(file, **found)
    return good
