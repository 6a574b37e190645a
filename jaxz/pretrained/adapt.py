"""A model of RGB photographs for cutouts of other sizes and any bands.

A stem's kernel [3,PP,D] becomes one of N bands; the responses of the bands add up, so that 3/N keeps their sum's size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxz.errors import InputError, suggest
from jaxz.models.functional import Params
from jaxz.models.resize import resize
from jaxz.models.tower import Image
from jaxz.models.two_towers import Pair
from jaxz.pretrained.family import Model

RGB = "RGB"


def mean(kernel: np.ndarray, bands: int) -> np.ndarray:
    """Every band as the mean of red, green and blue: no order of bands, no colour."""
    return np.repeat(kernel.mean(0, keepdims=True), bands, axis=0) * np.float32(3 / bands)


def repeat(kernel: np.ndarray, bands: int) -> np.ndarray:
    """Red, green, blue, red ... in the bands' order; one band alone as their sum."""
    if bands == 1:
        return kernel.sum(0, keepdims=True)
    return kernel[np.arange(bands) % 3] * np.float32(3 / bands)


def rgb_map(kernel: np.ndarray, roles: Sequence[str]) -> np.ndarray:
    """Each band as its role says: R, G or B, their "mean", or "zero", which changes no output until it is trained."""
    rows = {"R": kernel[0], "G": kernel[1], "B": kernel[2], "mean": kernel.mean(0), "zero": np.zeros_like(kernel[0])}
    return np.stack([rows[role] for role in roles])


def projection(bands: int) -> np.ndarray:
    """[N,3]: what a 1 x 1 projection in front of the stem begins with. Folded into the kernel it is `repeat`."""
    return repeat(np.eye(3, dtype=np.float32), bands)


Bands = Sequence[str] | Mapping[str, str]  # names in the order of the input's axis, or {name: role}


def roles_of(bands: Bands) -> list[str]:
    """What each band is for `rgb_map`: as a dict says, or R, G and B for the first three and "zero" for the others."""
    roles = list(bands.values()) if isinstance(bands, Mapping) else [*RGB, *["zero"] * len(bands)][: len(bands)]
    for role in roles:
        if role not in (*RGB, "mean", "zero"):
            raise InputError(f"bands: {role!r} is no role of a band; give 'R', 'G', 'B', 'mean' or 'zero'")
    if any(roles.count(letter) != 1 for letter in RGB):
        raise InputError(f"bands: rgb_map needs one band each for R, G and B, not the roles {roles}")
    return roles


def with_bands(model: Model, params: Params, bands: Bands, init: str) -> tuple[Model, Params, dict]:
    """The model for other bands, its parameters, and what is to be reported.

    bands: for "rgb_map" also with roles (see `roles_of`).
    init: "mean", "repeat", "rgb_map", "project" (a learnt 1 x 1 mix in front), "per_band" (a token per band and patch).
    Raises InputError for another init, names that repeat, or a stem that is not one of three bands.
    """
    names = list(bands)
    kinds = ("mean", "repeat", "rgb_map", "project", "per_band")
    if init not in kinds:
        raise InputError(f"band_init: {init!r} is no way to adapt bands.{suggest(init, kinds)}")
    if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise InputError(f"bands: {names!r} must be names, each once; give those of the images, in their order")
    image = image_of(model.settings)
    if image.bands != 3:
        raise InputError(f"bands: the checkpoint's stem has {image.bands} bands, not 3; leave bands out")
    stem = image_params(params, model.settings)["stem"]
    kernel, count = np.asarray(stem["kernel"]), len(names)
    changes: dict = {"bands": count}
    record: dict = {"bands": names, "init": init}
    if init == "project":
        changes["mixed"] = 3
        stem["projection"] = {"kernel": jnp.array(projection(count))}
    elif init == "per_band":
        changes["band_tokens"] = True  # of one band at a time: a grey image of it
        stem["kernel"] = jnp.array(mean(kernel, 1))
        stem["band_token"] = jnp.zeros((count, kernel.shape[-1]))
    elif init == "rgb_map":
        record["roles"] = roles_of(bands)
        stem["kernel"] = jnp.array(rgb_map(kernel, record["roles"]))
    else:
        stem["kernel"] = jnp.array({"mean": mean, "repeat": repeat}[init](kernel, count))
    return changed(model, **changes), params, record


def with_size(model: Model, params: Params, size: int | tuple[int, int]) -> tuple[Model, Params, dict]:
    """The model with its table of positions resized for images of `size` pixels: one side, or rows and columns.

    Raises InputError for a size that the patches do not divide.
    """
    image = image_of(model.settings)
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows % image.patch or columns % image.patch or rows < 1 or columns < 1:
        raise InputError(f"image_size: {rows} x {columns} is no multiple of the model's patches of {image.patch}")
    new = (rows // image.patch, columns // image.patch)
    if image.grid is None:
        return model, params, {}
    tower = image_params(params, model.settings)
    with jax.default_matmul_precision("highest"):
        tower["position"] = resize(tower["position"], image.grid, new, image.interpolation)
    record = {"from": list(image.grid), "to": list(new), "variant": image.interpolation}
    return changed(model, grid=new), params, record


def image_of(settings: Image | Pair) -> Image:
    """The image tower's part of settings."""
    return settings.image if isinstance(settings, Pair) else settings


def image_params(params: Params, settings: Image | Pair) -> Params:
    """The image tower's part of the parameters of a model with such settings."""
    return params["image"] if isinstance(settings, Pair) else params


def changed(model: Model, **changes: Any) -> Model:
    """The model with other settings of its image tower."""
    settings, image = model.settings, dataclasses.replace(image_of(model.settings), **changes)
    whole = dataclasses.replace(settings, image=image) if isinstance(settings, Pair) else image
    return dataclasses.replace(model, settings=whole)
