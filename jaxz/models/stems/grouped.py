"""A token per patch and group of bands that are neighbours in wavelength."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.errors import InputError
from jaxz.models import Band
from jaxz.models.stems import Tokens, fused, patchify


class Stem(fused.Stem):
    """The fused stem applied to each of model.groups groups, as equal in number of bands as can be; their parameters
    are shared, since a band's part in them is told by its wavelength.

    Raises InputError for more groups than bands.
    """

    def __init__(self, bands: Sequence[Band], config: ConfigDict, dtype: DTypeLike, *, rngs: nnx.Rngs):
        super().__init__(bands, config, dtype, rngs=rngs)
        if config.groups > len(bands):
            raise InputError(f"model.groups: {config.groups} is above the number of bands, {len(bands)}; lower it")
        order = np.argsort([band.wavelength_nm for band in bands], kind="stable")
        self.groups = tuple(tuple(map(int, group)) for group in np.array_split(order, config.groups))

    def __call__(self, image: jax.Array, mask: jax.Array, key: jax.Array | None) -> Tokens:
        kernel, presence = self.kernel(), self.presence()
        groups = [np.array(group) for group in self.groups]
        tokens = [self.fuse(image[:, group], mask[:, group], kernel[group], presence[group]) for group in groups]
        observed = [patchify(mask[:, group], self.patch).any((2, 3)) for group in groups]
        return jnp.stack(tokens, 1), jnp.stack(observed, 1)
