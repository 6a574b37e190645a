"""Weights in a file as the beginning of a run of the backbone jaxz.models.published."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxz.errors import InputError
from jaxz.models import Band
from jaxz.models.functional import Params
from jaxz.models.published import ARCHITECTURE, settings_of
from jaxz.pretrained import describe, load_pretrained, plan_of
from jaxz.pretrained.adapt import RGB, Bands, image_of
from jaxz.pretrained.family import Unsaid
from jaxz.pretrained.formats import open_checkpoint

log = logging.getLogger("jaxz")


def check_weights(path: str, config: ConfigDict) -> dict:
    """The arch with which load_pretrained reads the weights at `path` for a config's group `model`: the config speaks
    where neither the file nor the family does. No tensor is read.

    Raises InputError where the weights are absent, cannot be used or are of another architecture than the config says.
    """
    if not Path(path).exists():
        raise InputError(f"init.path: not run: weights absent: {path!r} is not there; fetch it, see docs/pretrained.md")
    checkpoint = open_checkpoint(path)
    said = {"act": config.activation, "heads": config.heads, "pos_grid": tuple(config.grid)}
    said |= {"text_heads": 1, "eos_token_id": 1}  # of texts, which are left out
    arch: dict = {}
    while True:
        try:
            model, report = describe(checkpoint, config.family, arch, "family")
            break
        except Unsaid as unsaid:
            if unsaid.name in arch or not said.get(unsaid.name):
                raise
            arch[unsaid.name] = said[unsaid.name]
    plan_of(checkpoint, model, strict=True)
    found = settings_of(image_of(model.settings))
    if changed := [name for name in ARCHITECTURE if not same(found[name], config[name])]:
        told = "; ".join(f"{name}: {config[name]!r} -> {found[name]!r}" for name in changed)
        use = " ".join(shlex.quote(f"--config.model.{name}={found[name]}") for name in changed)
        raise InputError(f"init.path: {path!r} is of another architecture than model.* ({told}); use its own: {use}")
    return report["arch"] | arch


def same(a: object, b: object) -> bool:
    """Whether two settings are, of which files may hold rounded numbers."""
    if isinstance(a, tuple) and isinstance(b, tuple | list):
        return len(a) == len(b) and np.allclose(a, b, rtol=1e-6)
    return a == b


def encoder_params(path: str, config: ConfigDict, bands: Sequence[Band]) -> Params:
    """The encoder's parameters, float32, of the weights at `path`, for the bands of a run (see `load_pretrained`). A
    classifier and what belongs to texts are left out.

    Raises InputError as `check_weights` and `load_pretrained` do.
    """
    arch, names = check_weights(path, config), [band.name for band in bands]
    adapted: Bands | None
    if config.normalisation == "lupton":
        adapted = None
    elif config.band_init == "rgb_map":
        adapted = dict.fromkeys(names, "zero") | dict(zip(config.rgb, RGB, strict=True))
    else:
        adapted = names
    _, params, report = load_pretrained(
        path, family=config.family, arch=arch, bands=adapted, band_init=config.band_init
    )
    params = {name: value for name, value in params.get("image", params).items() if name != "classifier"}
    log.info(
        "%s: %s, %s, %d tensors, %d left out; bands %s",
        path,
        report["family"],
        report["layout"],
        len(report["consumed"]),
        len(report["ignored"]),
        report["adapted"] or "red, green, blue",
    )
    return params
