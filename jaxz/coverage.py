"""Whether an object has neighbours among those that a run learned redshifts from, in two spaces: the run's embedding,
and the brightness of its bands, which no network has touched. Away from them p(z) is a guess, however narrow it is.
So it is below them: among objects of all brightnesses, one of noise alone has neighbours.

An object is covered where its distance to the eighth nearest training object is, in both spaces, at most that which
99 % of the training objects have to theirs (k-th neighbours of an embedding: Sun et al. 2022, ICML; a network may map
what it has never seen onto what it knows, hence the other space), and it is not fainter than 99.9 % of them.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxz.errors import InputError
from jaxz.files import replace

NEIGHBOURS, SHARE = 8, 0.99
FAINT = 0.001  # share of the training objects
FEWEST, MOST = 32, 4096  # training objects: with fewer nothing is said, of more some are drawn
UNKNOWN = -1  # of coverage_flag, where no training objects are at hand


Array = np.ndarray | jax.Array


class Coverage(NamedTuple):
    """Training objects: embedding [M,D]; brightness [M,2C] in units of `unit` [3,C] (see `alike`); and the limits [2]
    of the distances in the two spaces."""

    embedding: Array
    brightness: Array
    unit: Array
    limits: Array

    def flag(self, embedding: jax.Array, brightness: jax.Array) -> jax.Array:
        """int8 [B]: 1 where an object of embedding [B,D] and brightness [B,C] is covered, else 0."""
        shown = alike(brightness, self.unit)
        covered = near(embedding, self.embedding, self.limits[0])
        covered &= near(shown, self.brightness, self.limits[1])
        covered &= total(shown) >= jnp.quantile(total(self.brightness), FAINT)
        return covered.astype(jnp.int8)


def coverage_of(embedding: np.ndarray, brightness: np.ndarray) -> Coverage:
    """Of training objects [M,D] and [M,C]. Raises InputError for fewer than 32."""
    if len(embedding) < FEWEST:
        raise InputError(f"coverage: {len(embedding)} training objects with a redshift must be at least {FEWEST}")
    known = np.isfinite(brightness)
    count = known.sum(0)
    mean = np.where(known, brightness, 0).sum(0) / np.maximum(count, 1)
    spread = np.sqrt((np.where(known, brightness - mean, 0) ** 2).sum(0) / np.maximum(count, 1))
    share = (count + 1) / (len(brightness) + 2)  # never 0 or 1
    unit = np.stack([mean, np.maximum(spread, 1e-6), np.sqrt(share * (1 - share))]).astype(np.float32)
    spaces = embedding, np.asarray(alike(brightness, unit))
    eighth = [np.partition(squares(space, space), NEIGHBOURS, axis=1)[:, NEIGHBOURS] for space in spaces]  # 0 is itself
    limits = [np.quantile(np.sqrt(np.maximum(square, 0)), SHARE) for square in eighth]
    return Coverage(*spaces, unit, np.array(limits, np.float32))


def brightness(seen: Mapping[str, jax.Array]) -> jax.Array:
    """[B,C] of what a model sees: the mean, after the stretch, of the observed pixels in the middle half of each band;
    NaN where less than half of them are."""
    size = seen["image"].shape[-1]
    middle = slice(size // 4, size - size // 4)
    image, mask = (seen[name][:, :, middle, middle].astype(jnp.float32) for name in ("image", "mask"))
    share = mask.mean((2, 3))
    return jnp.where(share >= 0.5, (image * mask).mean((2, 3)) / jnp.maximum(share, 0.5), jnp.nan)


def alike(brightness: Array, unit: Array) -> jax.Array:
    """[B,2C] of brightness [B,C]: in units of the training objects' mean and standard deviation, 0 where it is not
    known; and whether it is known, in units of the standard deviation of that, so that a band that training objects
    always have, or never, tells others apart."""
    mean, spread, varies = unit
    known = jnp.isfinite(brightness)
    return jnp.concatenate([jnp.where(known, (brightness - mean) / spread, 0), known / varies], 1)


def total(shown: Array) -> jax.Array:
    """[B] of what `alike` gives [B,2C]: the mean brightness over the known bands, each in its own unit."""
    bright, known = jnp.split(shown, 2, axis=1)
    return bright.sum(1) / jnp.maximum((known > 0).sum(1), 1)


def near(wanted: Array, train: Array, limit: Array) -> jax.Array:
    """[B] bool: whether the eighth nearest of [M,D] to each of [B,D] is within the limit; counting needs no order."""
    return (squares(wanted, train) <= limit**2).sum(1) >= NEIGHBOURS


@jax.jit
def squares(wanted: Array, train: Array) -> jax.Array:
    """[B,M]: squared distances of [B,D] from [M,D]."""
    inner = jnp.matmul(wanted, train.T, precision=jax.lax.Precision.HIGHEST)
    return (wanted**2).sum(1)[:, None] + (train**2).sum(1) - 2 * inner


def save(path: Path, coverage: Coverage, of: str) -> None:
    """Write it to `path`. of: a digest of the parameters that embedded the objects."""
    sink = io.BytesIO()
    np.savez(sink, of=of, **coverage._asdict())
    replace(path, sink.getbuffer())


def load(path: Path, of: str | None = None) -> Coverage | None:
    """What was saved; None where nothing was, or of other parameters than `of`. Raises InputError for another file."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            found, own = Coverage(*(saved[name] for name in Coverage._fields)), str(saved["of"])
        (m, d), (_, c) = found.embedding.shape, found.unit.shape
        if [array.shape for array in found] != [(m, d), (m, 2 * c), (3, c), (2,)]:
            raise ValueError("the shapes of its arrays do not fit")
        if any(array.dtype != np.float32 for array in found):
            raise ValueError("its arrays are not all float32")
        return found if of in (None, own) else None
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: is no sample of training objects ({error}); delete it") from None
