"""The compact encoding of float images: int16 levels under subtractive dither, in one blosc2 chunk a sample.

    level = round(value / step + dither),  value' = (level - dither) * step

The error is uniform in +-step / 2 whatever the value is (Schuchman 1964), so that sums over pixels are not biased. The
dither of a pixel is a hash of (the sample's seed, the pixel's number): drawing it costs a few integer operations, on
the host or on the device. What is exactly zero stays so, by a level of its own: bands and pixels that are not observed
hold zeros. Levels past int16 and values that are not finite are exceptions, kept exactly.
docs/dataset_format.md has the bytes of a payload.
"""

import functools
import hashlib
import math
import struct
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import jax

Numbers = TypeVar("Numbers", np.ndarray, "jax.Array")

VERSION = 1
ENTRIES = ("dither", "exception_at", "exception_value")  # what a batch carries of NAME beside its levels, as NAME_entry
LARGEST = 2**15 - 1  # of a level
ZERO = -(2**15)  # the level of an exact zero
FEWEST = 8  # exceptions for which a batch has room; eight times more where one of its samples needs it, and so on

MAGIC = b"JXC1"
HEADER = struct.Struct("<4sIII")  # magic, dither seed, exceptions, bytes of the chunk
EXCEPTION = np.dtype([("at", "<u4"), ("value", "<f4")])
CHUNK = struct.Struct("<IIII15sB")  # blosc2: version and flags, nbytes, blocksize, cbytes, filters, special values
# The only chunks that are decompressed: format 5, 2 bytes a number, LZ4 unsplit or (+ 2; 0x07 if tiny) copied.
CHUNK_KINDS = frozenset({0x02350105, 0x02370105, 0x02070105})
BITSHUFFLE = bytes([2, 0, 0, 0, 0, 0, 1, *[0] * 8])  # the filters, their arguments, no dictionary
SPECIAL = frozenset({0, 0x10})  # none, or all levels are zero; not lazy, whose bytes lie elsewhere
BLOCK = 1 << 17  # bytes, so that a block and its shuffled copy stay in a core's cache


@functools.cache
def blosc2() -> ModuleType:
    """Imported where it is first needed (0.3 s); other threads run while it works."""
    import blosc2

    blosc2.set_releasegil(True)
    return blosc2


def bounds(pixels: int) -> tuple[int, int]:
    """Bytes of the smallest and of the largest payload: all levels zero, and all pixels exceptions."""
    least = HEADER.size + CHUNK.size
    return least, least + pixels * (EXCEPTION.itemsize + 2)


def sample_seed(seed: int, key: str) -> int:
    """The dither seed of a sample: 32 bits of sha256 of the dataset's seed and the sample's key."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "little")


def dither(seed: Numbers, pixel: Numbers) -> Numbers:
    """float32 in [-0.5, 0.5), exact multiples of 2^-24, of uint32 seeds and pixel numbers; NumPy or JAX arrays that
    broadcast. The finaliser of MurmurHash3 (Appleby 2011) of a Weyl sequence. A contract: it is part of VERSION."""
    x = pixel * np.uint32(0x9E3779B9) + seed
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x = x ^ (x >> np.uint32(16))
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


def restore(levels: Numbers, seed: Numbers, steps: ArrayLike) -> Numbers:
    """float32 [B,C,...] of int16 levels [B,C,...], uint32 seeds [B] and steps [C]; NumPy or JAX arrays."""
    xp = levels.__array_namespace__()
    pixel = xp.arange(math.prod(levels.shape[1:]), dtype=np.uint32)
    drawn = dither(seed[:, None], pixel[None]).reshape(levels.shape)
    values = (levels.astype(np.float32) - drawn) * along_bands(steps, levels.ndim - 1)
    return xp.where(levels == ZERO, np.float32(0), values)


def along_bands(steps: ArrayLike, axes: int) -> np.ndarray:
    """float32 [C,1,...]: the steps of the first of `axes` axes."""
    return np.asarray(steps, np.float32).reshape(-1, *[1] * (axes - 1))


def encode(image: np.ndarray, steps: ArrayLike, seed: int) -> bytes:
    """The payload of float [C,...] with steps [C] in its unit; seed: the sample's."""
    drawn = dither(np.array([seed], np.uint32), np.arange(image.size, dtype=np.uint32)).reshape(image.shape)
    with np.errstate(invalid="ignore"):  # infinities
        levels = np.rint(image / along_bands(steps, image.ndim).astype(np.float64) + drawn)
        outside = ~(np.abs(levels) <= LARGEST)  # NaN too
    exceptions = np.empty(np.count_nonzero(outside), EXCEPTION)
    exceptions["at"], exceptions["value"] = np.flatnonzero(outside), image[outside]
    levels[outside], levels[image == 0] = 0, ZERO
    codec = blosc2()
    chunk = codec.compress2(
        levels.astype("<i2"),
        codec=codec.Codec.LZ4,
        clevel=9,
        typesize=2,
        blocksize=min(2 * image.size, BLOCK),  # else the library's choice, and so the bytes, may change
        splitmode=codec.SplitMode.NEVER_SPLIT,
        filters=[codec.Filter.BITSHUFFLE],
        filters_meta=[0],
        nthreads=1,
    )
    check_chunk(chunk, image.size)  # a blosc2 that writes another format would be found out too late by the reader
    return HEADER.pack(MAGIC, seed, len(exceptions), len(chunk)) + exceptions.tobytes() + chunk


def check_chunk(chunk: bytes | memoryview, pixels: int) -> None:
    """Raises ValueError for a chunk of another kind or size: blosc2 writes as many bytes as the chunk itself says."""
    kind, nbytes, block, cbytes, filters, special = CHUNK.unpack_from(chunk)
    if kind not in CHUNK_KINDS or filters != BITSHUFFLE or special not in SPECIAL:
        raise ValueError("its blosc2 chunk is not of the kind that jaxz writes")
    if nbytes != 2 * pixels or cbytes != len(chunk) or not 0 < block <= nbytes:
        raise ValueError(
            f"its blosc2 chunk of {len(chunk)} bytes says {cbytes}, in blocks of {block}, and {nbytes} decompressed "
            f"where the shape takes {2 * pixels}"
        )


def unpack(payload: bytes | memoryview, target: np.ndarray | memoryview) -> tuple[int, np.ndarray]:
    """Decompress the levels into `target` (int16, or its bytes; all of them): (dither seed, exceptions).

    Every size is checked before it is used. Raises ValueError for what is no whole payload of that many levels.
    """
    pixels = target.nbytes // 2
    if len(payload) < HEADER.size + CHUNK.size:
        raise ValueError(f"{len(payload)} bytes are too few for a compact payload")
    magic, seed, count, size = HEADER.unpack_from(payload)
    start = HEADER.size + EXCEPTION.itemsize * count
    if magic != MAGIC or size < CHUNK.size or start + size != len(payload):
        raise ValueError(
            f"{len(payload)} bytes are no compact payload of {count} exceptions and {size} bytes of levels"
        )
    exceptions = np.frombuffer(payload, EXCEPTION, count, HEADER.size)
    at = exceptions["at"]
    if count and (at[-1] >= pixels or (at[1:] <= at[:-1]).any()):
        raise ValueError(f"its exceptions are not in ascending order below {pixels}")
    chunk = memoryview(payload)[start:]
    check_chunk(chunk, pixels)
    try:
        blosc2().decompress2(chunk, target, nthreads=1)
    except (ValueError, RuntimeError):
        raise ValueError("its blosc2 chunk cannot be decompressed") from None
    return seed, exceptions


def exceptions(payload: bytes | memoryview) -> np.ndarray:
    """`at` and `value` of the exceptions of a whole payload."""
    return np.frombuffer(payload, EXCEPTION, HEADER.unpack_from(payload)[2], HEADER.size)


def decode(payload: bytes | memoryview, shape: tuple[int, ...], steps: ArrayLike) -> np.ndarray:
    """float32 [C,...]. Raises ValueError for a damaged payload."""
    levels: np.ndarray = np.empty(shape, np.int16)
    seed, exceptions = unpack(payload, levels)
    image = restore(levels[None], np.array([seed], np.uint32), steps)[0]
    image.reshape(-1)[exceptions["at"]] = exceptions["value"]
    return image


def room(most: int, pixels: int) -> int:
    """For how many exceptions a sample of a batch has room, where one of them has `most`: few different sizes, as each
    is compiled for."""
    width = FEWEST
    while width < most:
        width *= FEWEST
    return min(width, pixels)
