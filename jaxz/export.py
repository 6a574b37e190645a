"""A run as one relocatable directory, without its optimizer, its dataset and the weights it began with.

    python -m jaxz.export RUN --out DIR [--item ema]

writes DIR/model.safetensors (the encoder), heads.safetensors, config.json (config, bands, normalisation), README.md
and, of a run that predicts redshifts, coverage.npz: its training objects as coverage_flag needs them.
`python -m jaxz.predict --model=DIR` reads it. Where the encoder is a DINOv2, transformers does too.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from jaxz import __version__, coverage, errors, runtime
from jaxz.config import resolved
from jaxz.files import replace
from jaxz.inference import COVERAGE, EXPORTED, HEADS, Model, load_run
from jaxz.mesh import path_name
from jaxz.models.published import image_settings
from jaxz.objectives import merged
from jaxz.predict import know_coverage
from jaxz.pretrained.families.dinov2 import hugging_face_config, hugging_face_tensors
from jaxz.pretrained.formats import write_safetensors


def export(model: Model, out: Path, origin: str) -> None:
    """Write a directory of `model`, which is to be empty or new; its low-rank factors are merged. origin: the run, for
    people.

    Raises InputError where `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.InputError(f"--out: {str(out)!r} holds something already; name a new directory")
    out.mkdir(parents=True, exist_ok=True)
    params, config = jax.jit(merged)(model.params), resolved(model.config)
    config["optim"]["lora_rank"] = 0
    config["data"]["cache"] = ""  # a place of the machine where it was trained
    described = hugging_face(model)
    if described:
        write_safetensors(out / EXPORTED, hugging_face_tensors(params["encoder"]))
    else:
        write_safetensors(out / EXPORTED, flat({"encoder": params["encoder"]}))
    heads = flat({name: tree for name, tree in params.items() if name != "encoder"})
    if heads:
        write_safetensors(out / HEADS, heads)
    if model.coverage is not None:
        coverage.save(out / COVERAGE, model.coverage, model.digest)
    own = {"version": __version__, "config": config, "normalisation": model.normalisation.to_json()}
    own["trained_on"] = model.trained_on
    described = (described or {"model_type": "jaxz"}) | {"jaxz": own}
    replace(out / "README.md", card(model, described, origin).encode())
    replace(out / "config.json", json.dumps(described, indent=1).encode())


def hugging_face(model: Model) -> dict | None:
    """The config of transformers for the encoder, None where that has no such model."""
    if model.config.model.name != "published" or model.members > 1:
        return None
    return hugging_face_config(image_settings(model.config.model, len(model.normalisation.bands)))


def flat(params: dict) -> dict[str, np.ndarray]:
    """{"encoder.blocks.up.kernel": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path).replace("/", "."): np.asarray(leaf) for path, leaf in leaves}


CARD = """# {title}

An encoder of multi-band sky cutouts with its heads ({losses}), written by jaxz {version} from the run `{origin}`.

    python -m jaxz.predict --model=DIRECTORY --dataset=DATASET --out=predictions.parquet
{transformers}
## Input

Cutouts of {size} x {size} pixels of {pixel_scale} arcsec. Each band is {stretch}(flux / scale) of the linear flux in
microjansky, {dereddened}corrected for Galactic reddening; what is not observed is masked, not zero.

| band | wavelength, nm | scale, microjansky |
|---|---|---|
{bands}

## Made by

Trained on `{data}` where {where}, {steps} steps of {batch} objects. It began with: {start}. Weights that came from a
published model keep that model's licence. All settings are in config.json, under "jaxz".
"""
TRANSFORMERS = """
`transformers.AutoModel.from_pretrained(DIRECTORY)` reads the encoder (model.safetensors and config.json): its
pixel_values are {numbers}{resized}. transformers resizes positions in its own way (here it is "{interpolation}"), so
that features are the same to rounding at {native} x {native} pixels alone.
"""


def card(model: Model, described: dict, origin: str) -> str:
    """README.md: what the model is, what it takes and where it comes from."""
    config, normalisation = model.config, model.normalisation
    known, settings = "", config.model
    if described["model_type"] != "jaxz":
        numbers = (
            "the numbers below" if settings.normalisation == "asinh" else f"made as model.{settings.normalisation}"
        )
        resized = f", resized to {settings.image_size} pixels" if settings.image_size else ""
        known = TRANSFORMERS.format(
            numbers=numbers,
            resized=resized,
            interpolation=settings.interpolation,
            native=settings.patch * settings.grid[0],
        )
    rows = zip(normalisation.bands, normalisation.scale_ujy, strict=True)
    return CARD.format(
        title=Path(origin).name,
        losses=", ".join(config.losses),
        version=__version__,
        origin=Path(origin).name,
        transformers=known,
        size=normalisation.size,
        pixel_scale=normalisation.pixel_scale_arcsec,
        stretch=normalisation.stretch,
        dereddened="" if normalisation.deredden else "not ",
        bands="\n".join(f"| {band.name} | {band.wavelength_nm:g} | {scale:.6g} |" for band, scale in rows),
        data=Path(config.data.path).name,
        where=config.data.where or "split is train",
        steps=config.train.steps,
        batch=config.train.batch_size,
        start=f"`{Path(config.init.path).name}`" if config.init.path else "random numbers",
    )


def main(argv: list[str]) -> None:
    """Export the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m jaxz.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("--out", required=True, type=Path, help="a new directory")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    options = parser.parse_args(argv)
    runtime.alone("jaxz.export")
    model = load_run(options.run, options.item)
    know_coverage(model, Path(options.run))
    export(model, options.out, options.run)
    print(f"{options.run} -> {options.out}")


if __name__ == "__main__":
    errors.run(main)
