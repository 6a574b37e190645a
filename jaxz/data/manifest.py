"""What a dataset is: the types behind dataset.json (docs/dataset_format.md)."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxz.data import compact
from jaxz.data.rules import TEXT, Rule, is_bits, is_dtype, is_shape, is_steps, number, whole
from jaxz.errors import InputError, suggest

SCHEMA_VERSION = 1
KEY = re.compile(r"[A-Za-z0-9_-]{1,63}")  # a USTAR header holds 100 characters of KEY.NAME.npy
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
INDEX_ARRAY_LIMIT = 1024  # bytes: a larger array belongs in the tar
SAMPLE_LIMIT = 1 << 30  # bytes of one array of one sample: more is a slip, and would be allocated a batch at a time
SAMPLES_LIMIT = 1 << 40  # of a dataset: more is a slip, and row numbers would be allocated for all
HEADER = 512  # bytes of a tar before each member
ZERO_POINT_UJY = 23.9  # AB magnitude of one microjansky
EBV = (-0.1, 10)  # mag; beyond it there is no such sight line to a galaxy, and float32 ends

T = TypeVar("T")


def hold(item: object) -> None:
    """Raises InputError for the first field of a dataclass that breaks its rule in RULES."""
    for name, (test, rule) in RULES[type(item)].items():
        if not test(value := getattr(item, name)):
            raise InputError(f"{name}: {value!r:.80} must be {rule}")


@dataclass(frozen=True)
class Compact:
    """How a compact array is quantised: steps per entry of its first axis, in stored units, and the dataset's seed."""

    version: int
    steps: tuple[float, ...]
    seed: int

    def __post_init__(self):
        hold(self)


@dataclass(frozen=True)
class Array:
    """One named array of a sample. `shape` may hold one None, a variable axis of at most `max` entries.

    encoding: "raw" (a .npy member of the tar), "compact" (a .b2 member: floats quantised as `compact` says) or "index"
    (a list column of the index, under 1 KiB). dtype is what the values were measured in, whatever the encoding.
    bits: for masks, the name and value of every bit; a pixel is good where all bits are 0.
    """

    kind: str  # image, mask, frames, vector, tokens, spectrum ...: for people; the loader looks at shape and dtype
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "raw"
    unit: str = ""
    max: int | None = None
    bits: dict[str, int] | None = None
    compact: Compact | None = None

    def __post_init__(self):
        hold(self)
        if self.variable != (self.max is not None):
            raise InputError(f"max: {self.max} must be a positive integer where the shape has a null, and only there")
        self.check_compact()
        if max(self.nbytes, self.stored_bounds[1]) > SAMPLE_LIMIT:
            raise InputError(
                f"shape: {self.full_shape} of {self.dtype} is {self.nbytes} bytes; use at most {SAMPLE_LIMIT}"
            )
        if self.encoding == "index" and (self.nbytes > INDEX_ARRAY_LIMIT or self.variable):
            raise InputError(f"encoding: 'index' is for fixed shapes under {INDEX_ARRAY_LIMIT} bytes; use 'raw'")

    def check_compact(self) -> None:
        """Raises InputError where `compact` fits neither encoding, dtype nor shape."""
        if (self.compact is not None) != (self.encoding == "compact"):
            raise InputError(
                f"compact: must be there where encoding is 'compact', and only there; it is {self.encoding!r}"
            )
        if self.compact is None:
            return
        if np.dtype(self.dtype) not in (np.float16, np.float32) or self.variable or not self.shape:
            raise InputError(
                f"encoding: 'compact' is for float16 and float32 of fixed shape, not {self.dtype}; use 'raw'"
            )
        if len(self.compact.steps) != self.shape[0]:
            raise InputError(f"compact.steps: {len(self.compact.steps)} values must be {self.shape[0]}, one a band")

    @property
    def variable(self) -> bool:
        return None in self.shape

    @property
    def in_tar(self) -> bool:
        return self.encoding != "index"

    @property
    def suffix(self) -> str:
        """Of its member of the tar."""
        return "b2" if self.compact else "npy"

    def entries(self, name: str) -> tuple[str, ...]:
        """What a batch carries of the array `name`: itself, and what is made beside it."""
        mask = (f"{name}_mask",) if self.variable else ()
        return name, *mask, *(f"{name}_{entry}" for entry in compact.ENTRIES if self.compact)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape with the variable axis at its largest."""
        return tuple(n or self.max or 0 for n in self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the largest sample."""
        return math.prod(self.full_shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_bounds(self) -> tuple[int, int]:
        """Bytes of the smallest and of the largest payload in a tar."""
        if self.compact:
            return compact.bounds(math.prod(self.full_shape))
        return (0 if self.variable else self.nbytes), self.nbytes

    def shape_of(self, nbytes: int) -> tuple[int, ...]:
        """The shape of a stored payload of `nbytes` bytes.

        Raises ValueError when no allowed shape has that size.
        """
        if self.compact:
            least, most = self.stored_bounds
            if not least <= nbytes <= most:
                raise ValueError(f"{nbytes} bytes where shape {self.shape}, compact, takes {least} to {most}")
            return self.full_shape
        if self.max is None:
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

    def __post_init__(self):
        hold(self)

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

    def __post_init__(self):
        hold(self)


@dataclass(frozen=True)
class Shard:
    """A tar and its index, by their sizes and the tar's digest."""

    name: str  # "00000": shards/00000.tar and index/00000.parquet
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self):
        hold(self)


@dataclass(frozen=True)
class Manifest:
    """A whole dataset.json. Raises InputError for parts that do not fit together, as its parts do for themselves."""

    arrays: dict[str, Array]
    bands: tuple[Band, ...]
    columns: dict[str, Column]
    shards: tuple[Shard, ...] = ()
    splits: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        hold(self)
        for name in self.arrays:
            if not NAME.fullmatch(name):
                raise InputError(f"arrays.{name}: use only letters, digits, '_' and '-' (at most 32) in a name")
            self.check_axes(name)
        for what, names in (("bands", [b.name for b in self.bands]), ("shards", [s.name for s in self.shards])):
            if len(set(names)) != len(names):
                raise InputError(f"{what}: names {names!r:.80} must be unique")
        if self.samples > SAMPLES_LIMIT:
            raise InputError(f"shards: {self.samples} samples in all must be at most {SAMPLES_LIMIT}; mend samples")
        inside = [array.stored_bounds[0] for array in self.arrays.values() if array.in_tar]
        least = sum(inside) + HEADER * (len(inside) + 1)  # and that of meta.json
        for shard in self.shards:
            if shard.samples * least > shard.bytes:
                raise InputError(
                    f"shards.{shard.name}: {shard.samples} samples of at least {least} bytes do not fit into its "
                    f"{shard.bytes} bytes; mend shape, dtype or samples"
                )

    def check_axes(self, name: str) -> None:
        """What the name and the kind of an array say about its axes. Raises InputError."""
        array, bands = self.arrays[name], len(self.bands)
        for made in array.entries(name)[1:]:
            if made in self.arrays or made in self.columns:
                what = "variable" if array.variable else "compact"
                raise InputError(f"arrays.{name}: a {what} array makes its own {made}; rename the stored one")
        image = self.arrays.get(name.removesuffix("_mask"), array)
        if image.kind != "image":
            return
        if len(array.shape) < 3 and image is array:
            raise InputError(f"arrays.{name}.shape: {array.shape} of an image must be (bands, height, width)")
        if bands and len(array.shape) == 3 and array.shape[0] != bands:
            raise InputError(f"arrays.{name}.shape: {array.shape} must begin with the number of bands, {bands}")

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "dataset.json") -> "Manifest":
        """Raises InputError for anything that does not fit the schema."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8
            raise InputError(f"{source} is not JSON ({error}); rebuild the dataset or restore the file") from None
        if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            raise InputError(f"{source}: schema_version {version!r} is not {SCHEMA_VERSION}; convert the dataset again")
        arrays, columns = (part(raw, name, dict, source) for name in ("arrays", "columns"))
        bands, shards = (part(raw, name, list, source) for name in ("bands", "shards"))
        parts = {
            "arrays": {name: array_of(values, f"{source}: arrays.{name}") for name, values in arrays.items()},
            "columns": {name: build(Column, values, f"{source}: columns.{name}") for name, values in columns.items()},
            "bands": tuple(build(Band, values, f"{source}: bands[{n}]") for n, values in enumerate(bands)),
            "shards": tuple(build(Shard, values, f"{source}: shards[{n}]") for n, values in enumerate(shards)),
        }
        return build(cls, {**raw, **parts}, source)

    @classmethod
    def load(cls, dataset: Path | str) -> "Manifest":
        """The manifest of a dataset that is there. Raises InputError where there is none, or one without shards."""
        path = Path(dataset) / "dataset.json"
        try:
            text = path.read_bytes()
        except OSError as error:
            what = f"dataset {str(dataset)!r} has no readable dataset.json ({error.strerror})"
            if (path.parent / "writing.json").exists():
                raise InputError(f"{what}: it is not complete; give the command that began it again") from None
            raise InputError(f"{what}; make one with `python -m data_tools.simulate` or `data_tools.convert`") from None
        manifest = cls.from_json(text, str(path))
        if not manifest.shards:
            raise InputError(f"dataset {str(dataset)!r} has no shards; convert it again")
        return manifest


RULES: dict[type, dict[str, Rule]] = {
    Array: {
        "kind": TEXT,
        "dtype": (is_dtype, "a numpy dtype of plain numbers, such as float16 or int16"),
        "shape": (is_shape, "at most 8 positive integers, of which one may be null"),
        "encoding": (lambda v: v in ("raw", "compact", "index"), "'raw', 'compact' or 'index'"),
        "unit": TEXT,
        "max": (lambda v: v is None or (type(v) is int and v > 0), "a positive integer, or absent"),
        "bits": (lambda v: v is None or is_bits(v), "names with positive integers, or absent"),
        "compact": (lambda v: v is None or isinstance(v, Compact), "an object of version, steps and seed, or absent"),
    },
    Compact: {
        "version": (lambda v: v is not True and v == compact.VERSION, f"{compact.VERSION}; a newer jaxz may read it"),
        "steps": (is_steps, "positive numbers, one a band"),
        "seed": (lambda v: type(v) is int and 0 <= v < 2**32, "an integer from 0 to 2^32 - 1"),
    },
    Band: {
        "name": (lambda v: isinstance(v, str) and v != "", "text"),
        "wavelength_nm": number(100, 30_000),  # what a model can tell apart: far ultraviolet to mid infrared
        "width_nm": number(1e-3, 30_000),
        "zero_point_ab": number(-100, 100),
        "pixel_scale_arcsec": number(1e-6, 3600),
        "a_over_ebv": number(0, 100),
        "sky_sigma": number(0, 1e30),
        "psf_fwhm_arcsec": number(0, 3600),
    },
    Column: {
        "dtype": (lambda v: v == "string" or is_dtype(v), "'string' or a numpy dtype of plain numbers"),
        "unit": TEXT,
        "description": TEXT,
    },
    Shard: {
        # A name is joined to a path: it must not leave the dataset.
        "name": (lambda v: isinstance(v, str) and NAME.fullmatch(v), "at most 32 letters, digits, '_' and '-'"),
        "samples": whole(0),
        "bytes": whole(0),
        "sha256": (lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v), "64 hexadecimal digits"),
    },
    Manifest: {
        "arrays": (lambda v: isinstance(v, dict), "an object"),
        "bands": (lambda v: isinstance(v, tuple), "a tuple"),
        "columns": (lambda v: isinstance(v, dict), "an object"),
        "shards": (lambda v: isinstance(v, tuple), "a tuple"),
        "splits": (lambda v: isinstance(v, dict), "an object"),
        "provenance": (lambda v: isinstance(v, dict), "an object"),
    },
}


def part(raw: dict, name: str, kind: type[T], source: str) -> T:
    """The list or the object (dict) that a manifest must hold under `name`. Raises InputError."""
    if not isinstance(found := raw.get(name), kind):
        what = "an object" if kind is dict else "a list"
        raise InputError(f"{source}: {name}: must be {what}; convert the dataset again")
    return found


def array_of(values: object, where: str) -> Array:
    """An array of JSON. Raises InputError."""
    if isinstance(values, dict):
        values = {**values, "shape": as_tuple(values.get("shape"))}
        if isinstance(how := values.get("compact"), dict):
            values["compact"] = build(Compact, {**how, "steps": as_tuple(how.get("steps"))}, f"{where}.compact")
    return build(Array, values, where)


def as_tuple(value: object) -> object:
    """A JSON array as a tuple, all else as it is."""
    return tuple(value) if isinstance(value, list) else value


def build(kind: type[T], values: object, where: str) -> T:
    """A dataclass of JSON. Raises InputError for unknown or missing fields and for values that break its rules."""
    known = set(kind.__annotations__)
    if not isinstance(values, dict):
        raise InputError(f"{where} must be an object, not {type(values).__name__}")
    for name in values.keys() - known:
        raise InputError(f"{where}.{name} is not a known field.{suggest(name, known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where} is incomplete ({error}); convert the dataset again") from None
    except InputError as error:
        raise InputError(f"{where}{': ' if kind is Manifest else '.'}{error}") from None
