"""Which column of a catalogue is which column of the dataset, in which unit, and its values as clean arrays."""

import fnmatch
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from astropy import units as u

from data_tools.catalogs.aliases import matching
from data_tools.catalogs.opened import Opened
from data_tools.catalogs.spec import TEXTS, CatalogColumns
from jaxz.errors import InputError, suggest

T = TypeVar("T", str, int)
HUGE = 1e19  # from here on (1e20, 3.4e38 ...) a number stands for "missing", whatever it is
BELOW_0 = np.nextafter(0, -1)
VALID = {  # (from, to), both excluded: any other number stands for "missing" (-99, 99 ...)
    "ra": (np.nextafter(-360, -361), np.nextafter(360, 361)),
    "dec": (np.nextafter(-90, -91), np.nextafter(90, 91)),
    "z": (-0.01, 20),
    "z_err": (0, 10),
    "z_spec": (-0.01, 20),
    "z_spec_err": (0, 10),
    "z_grism": (-0.01, 20),
    "z_phot": (-0.01, 20),
    "z_phot_l68": (-0.01, 20),
    "z_phot_u68": (-0.01, 20),
    "ebv": (BELOW_0, 20),
    "mag_ref": (-30, 50),
    "weight": (BELOW_0, HUGE),
    "mag": (-30, 50),
    "magerr": (0, 99),
    "fluxerr": (0, HUGE),
    "ivar": (0, HUGE),
    "psf_fwhm": (0, 3600),
}
FLUX_SENTINELS = (-99.0, -999.0, -9999.0)  # a flux may take any value in between
GO_WITH = {  # an alias of the first, such as "flag", is looked for beside one of the second only
    **dict.fromkeys(("z_spec_err", "z_quality", "z_source"), ("z_spec", "z_grism")),
    **dict.fromkeys(("z_phot_l68", "z_phot_u68"), ("z_phot",)),
}
UNITS = {  # spellings that astropy does not know
    "degrees": "deg", "degree": "deg", "hours": "hourangle", "hour": "hourangle", "h": "hourangle",
    "nanomaggies": "nmgy", "maggies": "mgy", "microjanskys": "uJy", "mujy": "uJy", "microjy": "uJy", "abmag": "mag",
    "ab mag": "mag", "mag_ab": "mag", "mag(ab)": "mag", "magnitude": "mag", "counts": "ct", "adu": "ct", "dn": "ct",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The column of the file (several, of a joined id), its unit as text ("" for none) and why it was chosen."""

    columns: list[str]
    unit: str
    why: str

    def __str__(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{' and '.join(map(repr, self.columns))}{unit}, {self.why}"


def choose(
    table: Opened, spec: CatalogColumns, names: tuple[str, ...], needed: tuple[str, ...], where: str
) -> dict[str, Choice]:
    """{column of the dataset: Choice}, for `names`: what the survey file names, else what an alias fits.

    Raises InputError for columns that are not there, hold no scalars, or where two aliases fit.
    """
    choices = {}
    for name in sorted(names, key=lambda name: name in GO_WITH):
        column, why = getattr(spec, name), "named by the survey file"
        alone = name in GO_WITH and not any(other in choices for other in GO_WITH[name])
        if not column and name not in spec.ignore and not alone:
            column, why = by_alias(table, name, f"{where}.{name}"), "by its name"
        if column:
            columns = column if isinstance(column, list) else [column]
            for part in columns:
                check_column(table, part, "text" if name in TEXTS else "number", f"{where}.{name}")
            choices[name] = Choice(columns, spec.units.get(name) or table.units.get(columns[0], ""), why)
        elif name in needed:
            problem = f"none is named, and no column of {str(table.files[0])!r} has a name that is known to be one"
            raise InputError(f"{where}.{name}: {problem}; name the column.{suggest(name, table.kinds)}")
    return choices


def by_alias(table: Opened, name: str, where: str) -> str:
    """The column that an alias of `name` fits, "" for none. Raises InputError for several."""
    found = matching(name, table.kinds)
    if len(found) > 1:
        fix = f"name one as {name}, or list {name!r} under ignore"
        raise InputError(f"{where}: {' and '.join(map(repr, found))} are both there; {fix}")
    return found[0] if found else ""


def check_column(table: Opened, column: str, kind: str, where: str) -> None:
    """Raises InputError where `column` is not there or does not hold `kind`, text (or numbers) or numbers."""
    path = str(table.files[0])
    if column not in table.kinds:
        raise InputError(f"{where}: {column!r} is not a column of {path!r}.{suggest(column, table.kinds)}")
    held = table.kinds[column]
    if held == "array":
        raise InputError(f"{where}: {column!r} of {path!r} holds several values a row; name a scalar column")
    if held == "object":
        raise InputError(f"{where}: {column!r} of {path!r} holds objects, which are not read; name another column")
    if kind == "number" and held == "text":
        raise InputError(
            f"{where}: {column!r} of {path!r} holds text, not numbers; name a numeric column, or "
            "make numbers of it (docs/catalogs.md)"
        )


def parse_unit(text: str, where: str, field: str = "units") -> u.UnitBase:
    """A unit by FITS, VOTable or everyday spelling. field: by which another can be given. Raises InputError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        try:
            return u.Unit(UNITS.get(text.strip().lower(), text.strip()))
        except (ValueError, TypeError):
            raise InputError(f"{where}: unit {text!r} is not known; give another by {field}") from None


def degrees_per_unit(choice: Choice, where: str, say: Callable[[str], None]) -> float:
    """Of a position's column. Without a unit it is taken to be in degrees. Raises InputError."""
    if not choice.unit:
        say(f"{where}: {choice.columns[0]!r} has no unit, taken as degrees")
        return 1.0
    unit = parse_unit(choice.unit, where)
    if unit.physical_type != "angle":
        raise InputError(f"{where}: {choice.columns[0]!r} is in {choice.unit!r}, no angle; correct units or the column")
    return float(unit.to(u.deg))


def to_float(values: np.ndarray) -> np.ndarray:
    """float64 [N]; masked values become NaN."""
    return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)


def cleaned(values: np.ndarray, quantity: str, sentinels: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """`scale` * values float64 [N]; NaN where one is a sentinel, infinite, huge or, once scaled, outside of VALID."""
    numbers = to_float(values)
    marks = np.array([*sentinels, *(FLUX_SENTINELS if quantity == "flux" else ())], np.float64)
    if np.ma.getdata(values).dtype == np.float32:  # -9.9 is another number there
        marks = marks.astype(np.float32).astype(np.float64)
    missing = np.isin(numbers, marks) | (np.abs(numbers) >= HUGE)
    numbers = numbers * scale
    low, high = VALID.get(quantity, (-HUGE, HUGE))
    return np.where(missing | ~((numbers > low) & (numbers < high)), np.nan, numbers)


def to_text(values: np.ndarray) -> np.ndarray:
    """str [N], stripped; whole numbers without decimals; masked values and NaN become empty."""
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values)
    if data.dtype.kind == "f":
        mask = mask | np.isnan(data)
        unique, inverse = np.unique(np.where(mask, 0, data), return_inverse=True)
        data = np.array([str(int(v)) if float(v).is_integer() else str(v) for v in unique], str)[inverse]
    elif data.dtype.kind != "U":
        data = data.astype(str)
    return np.where(mask, "", np.char.strip(data))


def to_ids(values: np.ndarray, where: str) -> np.ndarray:
    """int64 or str [N]. Raises InputError for missing ids and for numbers that are not whole."""
    data = np.ma.getdata(values)
    if np.ma.is_masked(values) or (data.dtype.kind == "f" and np.isnan(data).any()):
        raise InputError(f"{where} has rows without a value; name a complete column")
    if data.dtype.kind == "U":
        texts = np.char.strip(data)
        if (texts == "").any():
            raise InputError(f"{where} has rows without a value; name a complete column")
        return texts
    whole = data.dtype.kind in "iu" or (
        data.dtype.kind == "f" and (np.abs(data) < 2**53).all() and (data % 1 == 0).all()
    )
    if not whole or (len(data) and data.dtype.kind == "u" and data.max() >= 1 << 63):
        raise InputError(f"{where} does not hold whole numbers below 2^63, nor text; name another column")
    return data.astype(np.int64)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """str [N] of several columns of text [N], joined by "-"; empty where one is."""
    missing = np.any([part == "" for part in parts], axis=0)
    text = functools.reduce(lambda a, b: np.char.add(np.char.add(a, "-"), b), parts)
    return np.where(missing, "", text)


def mapped(texts: np.ndarray, mapping: Mapping[str, T], other: T) -> np.ndarray:
    """What `mapping` makes of texts [N]: exact keys first, then patterns (* ? [..]) in their order, else `other`."""
    unique, inverse = np.unique(texts, return_inverse=True)
    found = [map_one(number_text(text), mapping, other) for text in unique.tolist()]
    return (
        np.array(found, dtype=str if isinstance(other, str) else None)[inverse]
        if len(texts)
        else np.array([], type(other))
    )


def map_one(text: str, mapping: Mapping[str, T], other: T) -> T:
    if text in mapping:
        return mapping[text]
    return next((value for pattern, value in mapping.items() if fnmatch.fnmatchcase(text, pattern)), other)


def number_text(text: str) -> str:
    """4.0 and 4 are the same flag."""
    whole, dot, decimals = text.partition(".")
    return whole if dot and whole.lstrip("+-").isdigit() and not decimals.strip("0") else text
