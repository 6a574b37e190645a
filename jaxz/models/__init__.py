"""Backbones, found by their module's name: models/<name>.py defines `Backbone(config, bands, size, *, rngs)`."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp

from jaxz.errors import InputError, suggest
from jaxz.models.functional import Functional


class Encoder(Functional):
    """encoder(params, image [B,C,H,W], mask [B,C,H,W], ...) -> Encoded(cls [B,width], tokens [B,N,width], observed).

    Attributes: bands, size in pixels, tokens (N, the number of patches), width, dtype (of the computation).
    """

    def __init__(self, config, bands, size: int):
        super().__init__(lambda rngs: backbone(config.name).Backbone(config, bands, size, rngs=rngs))
        image = jax.ShapeDtypeStruct((1, len(bands), size, size), jnp.float32)
        encoded = jax.eval_shape(self, jax.eval_shape(self.init, jax.random.key(0)), image, image)
        self.bands, self.size, self.dtype = bands, size, jnp.dtype(config.dtype)
        self.tokens, self.width = encoded.tokens.shape[1:]

    def views(self, params: dict, views: list[dict], hidden: jax.Array | None = None, **kwargs):
        """Encoded(cls [B,V,D], tokens [B,V,N,D]) of V views {image, mask} of each object, all of one size; hidden bool
        [B,V,N]. One batch in which an object's views lie together: on a mesh they stay on its device."""
        together = lambda arrays: jnp.stack(arrays, 1).reshape(-1, *arrays[0].shape[1:])
        image, mask = (together([view[name] for view in views]) for name in ("image", "mask"))
        if hidden is not None:
            kwargs["hidden"] = hidden.reshape(-1, hidden.shape[-1])
        encoded = self(params, image, mask, **kwargs)
        return jax.tree.map(lambda a: a.reshape(-1, len(views), *a.shape[1:]), encoded)


def build(config, bands, size: int) -> Encoder:
    """The encoder that the config's `model` group describes, for images of `size` pixels in `bands`.

    Raises InputError for an unknown backbone or a size that its patches do not divide.
    """
    return Encoder(config, bands, size)


def backbone(name: str):
    known = [m.name for m in pkgutil.iter_modules(__path__)]
    module = importlib.import_module(f"jaxz.models.{name}") if name in known else None
    if not hasattr(module, "Backbone"):
        backbones = [m for m in known if hasattr(importlib.import_module(f"jaxz.models.{m}"), "Backbone")]
        raise InputError(f"model.name: {name!r} is no backbone of jaxz/models.{suggest(name, backbones)}")
    return module
