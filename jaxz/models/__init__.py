"""Backbones, found by their module's name: models/<name>.py defines `Backbone(config, bands, size, *, rngs)`, and
`columns(bands)` where it reads numbers of the catalogue beside images. A Backbone with parts = False encodes whole
images only, neither some of their patches nor crops."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.errors import InputError, suggest
from jaxz.models.functional import Functional, Params


class Band(Protocol):
    """What a model reads of a filter, such as of jaxz.data.manifest.Band."""

    @property
    def name(self) -> str: ...
    @property
    def wavelength_nm(self) -> float: ...
    @property
    def sky_sigma(self) -> float: ...
    @property
    def ujy_per_unit(self) -> float: ...


class Encoded(NamedTuple):
    """What an encoder makes of images, in float32."""

    cls: jax.Array  # [B,D] the whole image
    tokens: jax.Array  # [B,N,D] one per patch (those kept); of several the mean, 0 where none is observed
    observed: jax.Array  # bool [B,N]: which patches hold an observation; the fused stem counts all


class Encoder(Functional):
    """encoder(params, image [B,C,H,W], mask [B,C,H,W], columns=batch, ...) -> Encoded(cls [B,width],
    tokens [B,N,width], observed).

    Attributes: bands, size in pixels, tokens (N, the number of patches), side (of them), patch (pixels of
    one's side), width and token_width, dtype (of the
    computation), columns (those of the catalogue, [B] each, that it reads of a batch beside the image).
    """

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int):
        module = backbone(config.name)
        super().__init__(lambda rngs: module.Backbone(config, bands, size, rngs=rngs))
        self.bands, self.size, self.dtype = bands, size, jnp.dtype(config.dtype)
        self.columns = module.columns(bands) if hasattr(module, "columns") else ()
        image = jax.ShapeDtypeStruct((1, len(bands), size, size), jnp.float32)
        columns = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in self.columns}
        params = jax.eval_shape(self.init, jax.random.key(0))
        encoded = jax.eval_shape(self, params, image, image, columns=columns)
        self.width, (self.tokens, self.token_width) = encoded.cls.shape[1], encoded.tokens.shape[1:]
        self.side = int(self.tokens**0.5)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side. Raises InputError where the patches do not divide the images, which is a matter for
        what cuts these into them alone."""
        if self.size % self.side:
            raise InputError(
                f"losses: to predict pixels the model's {self.side} x {self.side} places must divide the cutouts' "
                f"{self.size}; convert with another --size, or choose another model.name"
            )
        return self.size // self.side

    def __call__(
        self, params: Params, image: jax.Array, mask: jax.Array, *parts: Any, columns: Mapping = {}, **kwargs: Any
    ) -> Encoded:
        if self.columns:
            kwargs["columns"] = {name: columns[name].astype(jnp.float32) for name in self.columns}
        return super().__call__(params, image, mask, *parts, **kwargs)

    def views(
        self,
        params: Params,
        views: Sequence[Mapping[str, jax.Array]],
        hidden: jax.Array | None = None,
        columns: Mapping = {},
        **kwargs: Any,
    ) -> Encoded:
        """Encoded(cls [B,V,D], tokens [B,V,N,D]) of V views {image, mask} of each object, all of one size; hidden bool
        [B,V,N]. One batch in which an object's views lie together: on a mesh they stay on its device."""
        together = lambda arrays: jnp.stack(arrays, 1).reshape(-1, *arrays[0].shape[1:])
        image, mask = (together([view[name] for view in views]) for name in ("image", "mask"))
        if hidden is not None:
            kwargs["hidden"] = hidden.reshape(-1, hidden.shape[-1])
        repeated = {name: jnp.repeat(columns[name], len(views)) for name in self.columns}
        encoded = self(params, image, mask, columns=repeated, **kwargs)
        return jax.tree.map(lambda a: a.reshape(-1, len(views), *a.shape[1:]), encoded)


def build(config: ConfigDict, bands: Sequence[Band], size: int) -> Encoder:
    """The encoder that the config's `model` group describes, for images of `size` pixels in `bands`.

    Raises InputError for an unknown backbone or images that its layers do not fit.
    """
    return Encoder(config, bands, size)


def backbone(name: str) -> ModuleType:
    """The module of a backbone. Raises InputError for a name that is none."""
    known = [m.name for m in pkgutil.iter_modules(__path__)]
    module = importlib.import_module(f"jaxz.models.{name}") if name in known else None
    if module is None or not hasattr(module, "Backbone"):
        backbones = [m for m in known if hasattr(importlib.import_module(f"jaxz.models.{m}"), "Backbone")]
        raise InputError(f"model.name: {name!r} is no backbone of jaxz/models.{suggest(name, backbones)}")
    return module
