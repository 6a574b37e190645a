"""What a dataset is: the types behind dataset.json (docs/dataset_format.md)."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxz.errors import InputError, suggest

SCHEMA_VERSION = 1
KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a USTAR header holds 100 characters of key plus member name
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
INDEX_ARRAY_LIMIT = 1024  # bytes: a larger array belongs in the tar
ZERO_POINT_UJY = 23.9  # AB magnitude of one microjansky


@dataclass(frozen=True)
class Array:
    """One named array of a sample. `shape` may hold one None, a variable axis of at most `max` entries.

    encoding: "raw" (a .npy member of the tar) or "index" (a list column of the index, under 1 KiB).
    bits: for masks, the name and value of every bit; a pixel is good where all bits are 0.
    """

    kind: str  # image, mask, frames, vector, tokens, spectrum ...: for people; the loader looks at shape and dtype
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "raw"
    unit: str = ""
    max: int | None = None
    bits: dict[str, int] | None = None

    @property
    def variable(self) -> bool:
        return None in self.shape

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape with the variable axis at its largest."""
        return tuple(self.max if n is None else n for n in self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the largest sample."""
        return math.prod(self.full_shape) * np.dtype(self.dtype).itemsize

    def shape_of(self, nbytes: int) -> tuple[int, ...]:
        """The shape of a stored payload of `nbytes` bytes.

        Raises ValueError when no allowed shape has that size.
        """
        if not self.variable:
            if nbytes != self.nbytes:
                raise ValueError(f"{nbytes} bytes where shape {self.shape} of {self.dtype} takes {self.nbytes}")
            return self.full_shape
        step = self.nbytes // self.max
        if nbytes % step or not 0 <= nbytes // step <= self.max:
            raise ValueError(f"{nbytes} bytes is no multiple of {step} up to {self.nbytes}")
        return tuple(nbytes // step if n is None else n for n in self.shape)


@dataclass(frozen=True)
class Band:
    """One filter. m_AB = zero_point_ab - 2.5 log10(stored); sky_sigma per pixel, in stored units."""

    name: str
    wavelength_nm: float
    width_nm: float
    zero_point_ab: float
    pixel_scale_arcsec: float
    a_over_ebv: float
    sky_sigma: float
    psf_fwhm_arcsec: float

    @property
    def ujy_per_unit(self) -> float:
        """Microjansky of one stored unit."""
        return 10 ** (-0.4 * (self.zero_point_ab - ZERO_POINT_UJY))


@dataclass(frozen=True)
class Column:
    """One scalar column of the index. dtype: a numpy name, or "string"."""

    dtype: str
    unit: str = ""
    description: str = ""


@dataclass(frozen=True)
class Shard:
    name: str  # "00000": shards/00000.tar and index/00000.parquet
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    arrays: dict[str, Array]
    bands: tuple[Band, ...]
    columns: dict[str, Column]
    shards: tuple[Shard, ...] = ()
    splits: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        for name, array in self.arrays.items():
            where = f"arrays.{name}"
            if not NAME.fullmatch(name):
                raise InputError(f"{where}: use only letters, digits, '_' and '-' (at most 32) in an array's name")
            if array.encoding not in ("raw", "index"):
                raise InputError(f"{where}.encoding: {array.encoding!r} is not known; use 'raw' or 'index'")
            try:
                np.dtype(array.dtype)
            except TypeError:
                raise InputError(f"{where}.dtype: {array.dtype!r} is no numpy dtype; use float16, int16 ...") from None
            if np.dtype(array.dtype).kind not in "fiub":
                raise InputError(f"{where}.dtype: {array.dtype!r} is not a plain number; use float16, int16 ...")
            if any(n is not None and (not isinstance(n, int) or n < 1) for n in array.shape):
                raise InputError(f"{where}.shape: {array.shape} must hold positive integers or null")
            if array.shape.count(None) > 1:
                raise InputError(f"{where}.shape: {array.shape} has two variable axes; one is allowed")
            if array.variable and not (isinstance(array.max, int) and array.max > 0):
                raise InputError(f"{where}.max: {array.max} must be a positive integer, since the shape has a null")
            if array.variable and f"{name}_mask" in self.arrays:
                raise InputError(f"{where}: a variable array makes its own {name}_mask; rename the stored one")
            if array.encoding == "index" and (array.nbytes > INDEX_ARRAY_LIMIT or array.variable):
                raise InputError(
                    f"{where}.encoding: 'index' is for fixed shapes under {INDEX_ARRAY_LIMIT} bytes; use 'raw'"
                )
        if len({band.name for band in self.bands}) != len(self.bands):
            raise InputError(f"bands: names {[band.name for band in self.bands]} must be unique")

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "dataset.json") -> "Manifest":
        """Raises InputError for anything that does not fit the schema."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise InputError(f"{source} is not JSON ({error}); rebuild the dataset or restore the file") from None
        if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            raise InputError(f"{source}: schema_version {version!r} is not {SCHEMA_VERSION}; convert the dataset again")

        def build(kind, values, where):
            names = {f.name for f in dataclasses.fields(kind)}
            if not isinstance(values, dict):
                raise InputError(f"{source}: {where} must be an object, not {type(values).__name__}")
            for name in values.keys() - names:
                raise InputError(f"{source}: {where}.{name} is not a known field.{suggest(name, names)}")
            try:
                return kind(**values)
            except TypeError as error:
                raise InputError(f"{source}: {where} is incomplete ({error})") from None

        try:
            raw["arrays"] = {
                name: build(Array, {**a, "shape": tuple(a.get("shape", ()))}, f"arrays.{name}")
                for name, a in raw["arrays"].items()
            }
            raw["bands"] = tuple(build(Band, band, "bands") for band in raw["bands"])
            raw["columns"] = {name: build(Column, c, f"columns.{name}") for name, c in raw["columns"].items()}
            raw["shards"] = tuple(build(Shard, shard, "shards") for shard in raw["shards"])
        except (KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{source}: a required part is missing or of the wrong type ({error})") from None
        for shard in raw["shards"]:
            if not NAME.fullmatch(shard.name):  # a name is joined to a path: it must not leave the dataset
                raise InputError(f"{source}: shards: name {shard.name!r} may only hold letters, digits, '_' and '-'")
        return build(cls, raw, "manifest")

    @classmethod
    def load(cls, dataset: Path | str) -> "Manifest":
        path = Path(dataset) / "dataset.json"
        try:
            text = path.read_text()
        except OSError as error:
            hint = "make one with `python -m data_tools.simulate` or `data_tools.convert`"
            raise InputError(
                f"dataset {str(dataset)!r} has no readable dataset.json ({error.strerror}); {hint}"
            ) from None
        return cls.from_json(text, str(path))
