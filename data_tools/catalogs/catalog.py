"""A survey's catalogue as the dataset's own columns, chunk by chunk (docs/catalogs.md)."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.catalogs import labels, photometry
from data_tools.catalogs.columns import (
    Choice,
    choose,
    cleaned,
    degrees_per_unit,
    joined,
    mapped,
    to_float,
    to_ids,
    to_text,
)
from data_tools.catalogs.match import Matched, match_positions
from data_tools.catalogs.opened import Opened, WantedColumns
from data_tools.catalogs.photometry import BandColumns
from data_tools.catalogs.spec import NUMBERS, TEXTS, CatalogColumns, Match
from data_tools.catalogs.tables import open_table
from jaxz.data.manifest import Column
from jaxz.errors import InputError
from jaxz.progress import progress

MATCH_ROWS = 500_000
REDSHIFTS = ("ra", "dec", "z_spec", "z_spec_err", "z_quality", "z_kind", "z_source", "z_grism")  # of a compilation
COLUMNS = {
    "object_id": Column("string", "", "the object's own"),  # or int64
    "ra": Column("float64", "deg", "right ascension, ICRS; NaN where not known"),
    "dec": Column("float64", "deg", "declination, ICRS; NaN where not known"),
    "x": Column("float64", "pixel", "exact centre on the tile, 0-based; NaN where not known"),
    "y": Column("float64", "pixel", "exact centre on the tile, 0-based; NaN where not known"),
    "tile": Column("string", "", "the tile that the catalogue names"),
    "image": Column("string", "", "the object's own image, as the catalogue names it"),
    "z_spec": Column("float32", "", "spectroscopic redshift; NaN where there is none"),
    "z_spec_err": Column("float32", "", "error of z_spec (or z_grism); NaN where not known"),
    "z_grism": Column("float32", "", "redshift of a slitless spectrum; NaN where there is none"),
    "z_quality": Column("int32", "", "of z_spec or z_grism: 4 at least 99 % sure, 3 95 %, 2 75 %, 1 below, 0 unknown"),
    "z_flag_orig": Column("string", "", "the catalogue's own quality flag"),
    "z_source": Column("string", "", "where z_spec or z_grism was published"),
    "z_match_arcsec": Column("float32", "arcsec", "from the matched redshift's position; NaN where none was taken"),
    "z_phot": Column("float32", "", "photometric redshift; NaN where there is none"),
    "z_phot_l68": Column("float32", "", "lower end of the 68 % interval of z_phot"),
    "z_phot_u68": Column("float32", "", "upper end of the 68 % interval of z_phot"),
    "ebv": Column("float32", "mag", "Galactic E(B-V); NaN where there is none"),
    "mag_ref": Column("float32", "AB mag", "reference magnitude; NaN where there is none"),
    "obj_class": Column("string", "", "object class"),
    "flags": Column("int64", "", "the catalogue's own flags; -1 where they are missing"),
    "weight": Column("float32", "", "the catalogue's own weight; NaN where it has none"),
    "z": Column("float32", "", "the label; NaN where there is none"),
    "z_err": Column("float32", "", "error of z; NaN where not known"),
    "z_kind": Column("string", "", "where z comes from: spec, grism, phot or none"),
}


@dataclass(frozen=True)
class Source:
    """A table whose columns are chosen. degrees: {ra, dec: degrees per unit}."""

    table: Opened
    spec: CatalogColumns
    where: str
    choices: dict[str, Choice]
    degrees: dict[str, float]

    @classmethod
    def choose(
        cls,
        path: Path,
        spec: CatalogColumns,
        names: tuple[str, ...],
        needed: tuple[str, ...],
        where: str,
        say: Callable[[str], None],
    ) -> "Source":
        """Open a table and choose its columns, saying which. Raises InputError."""
        table = open_table(path, spec.hdu, spec.group, say)
        if table.rows == 0:
            raise InputError(f"{where}: {str(path)!r} has no rows; give a catalogue of the field")
        choices = choose(table, spec, names, needed, where)
        for name, choice in choices.items():
            say(f"{where}: {name} is {choice}")
        places = [name for name in choices if name in ("ra", "dec")]
        degrees = {name: degrees_per_unit(choices[name], f"{where}.{name}", say) for name in places}
        if "mag_ref" in choices:
            photometry.check_magnitude(choices["mag_ref"].unit, f"{where}.mag_ref")
        return cls(table, spec, where, choices, degrees)

    def wanted(self, *names: str) -> WantedColumns:
        """What to read of the chosen columns, or of `names`. The parts of a joined one are NAME.0, NAME.1 ..."""
        kinds = {**dict.fromkeys(TEXTS, "text"), **dict.fromkeys(NUMBERS, "number"), "object_id": "id", "flags": "id"}
        wanted = {}
        for name in names or self.choices:
            columns = self.choices[name].columns
            if len(columns) == 1:
                wanted[name] = columns[0], kinds[name]
            else:
                wanted |= {f"{name}.{n}": (column, "text") for n, column in enumerate(columns)}
        return wanted

    def read(self, wanted: WantedColumns, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of the table. Raises InputError for a file that breaks off or holds other than it began with."""
        try:
            for raw in self.table.chunks(wanted, rows):
                yield self.join(raw)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # of many kinds: whatever a damaged file makes its library raise
            problem = f"{str(self.table.files[0])!r} cannot be read to its end ({type(error).__name__}: {error})"
            raise InputError(f"{self.where}: {problem}; restore the file") from None

    def join(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`raw` with the parts of joined columns in one."""
        for name, choice in self.choices.items():
            parts = [raw.pop(f"{name}.{n}") for n in range(len(choice.columns)) if f"{name}.{n}" in raw]
            if parts:
                raw[name] = joined([to_text(part) for part in parts])
        return raw

    def numbers(self, raw: dict[str, np.ndarray], name: str) -> np.ndarray:
        """float64 [N], cleaned."""
        return cleaned(raw[name], name, self.spec.sentinels.get(name, []), self.degrees.get(name, 1.0))

    def positions(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """ra in 0..360 and dec, or x and y, 0-based; NaN in both where one is missing."""
        first, second = ("ra", "dec") if self.spec.sky else ("x", "y")
        a, b = self.numbers(raw, first), self.numbers(raw, second)
        known = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(known, a, np.nan), np.where(known, b, np.nan)
        if self.spec.sky:
            return {"ra": a % 360, "dec": b}
        return {"x": a - self.spec.pixel_origin, "y": b - self.spec.pixel_origin}

    def columns(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of the dataset [N] but for photometry and label: numbers float64, cleaned, text stripped."""
        found = self.positions(raw)
        if "object_id" in raw:
            found["object_id"] = to_ids(
                raw["object_id"], f"{self.where}.object_id: {self.choices['object_id'].columns[0]!r}"
            )
        found |= {name: self.numbers(raw, name) for name in NUMBERS if name in raw and name not in (*found, "flags")}
        if "flags" in raw:
            found["flags"] = np.ma.filled(np.ma.asarray(raw["flags"]).astype(np.int64), -1)
        texts = {name: to_text(raw[name]) for name in TEXTS if name in raw and name != "object_id"}
        found |= {name: texts[name] for name in ("tile", "image", "z_source") if name in texts}
        if "obj_class" in texts:
            classes = mapped(texts["obj_class"], self.spec.obj_class_map, "")
            found["obj_class"] = np.where(classes == "", texts["obj_class"], classes)
        if "z_quality" in texts:
            found["z_flag_orig"] = texts["z_quality"]
            found["z_quality"] = labels.quality(texts["z_quality"], self.spec.z_quality_map, self.where)
        return labels.sort_kinds(found, texts.get("z_kind"), self.spec)


@dataclass(frozen=True)
class Compilation:
    """The redshifts of a second catalogue, {name: [K]} with their rank, and which of them go to which row."""

    redshifts: dict[str, np.ndarray]
    matched: Matched

    def join(self, found: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """The columns of the catalogue's rows start .. stop, with these redshifts where they are better."""
        number, part = stop - start, self.matched.within(start, stop)
        found = {**{name: np.full(number, none) for name, none in labels.MEASURED.items()}, **found}
        apart = np.full(number, np.nan)
        rows, others = self.matched.rows[part] - start, self.matched.found[part]
        given = {name: values[others] for name, values in self.redshifts.items()}
        better = given["rank"] > labels.rank(found)[rows]
        rows = rows[better]
        apart[rows] = self.matched.arcsec[part][better]
        for name in labels.MEASURED:
            values = found[name].astype(np.result_type(found[name], given[name]))  # text of the longer kind
            values[rows] = given[name][better]
            found[name] = values
        return {**found, "z_match_arcsec": apart}


@dataclass
class Catalog:
    """An open catalogue. Its columns are chosen, its rows are still to be read.

    columns: what each column of a chunk is. rows: None where only reading tells. invalid: {column: numbers that became
    missing}, of the last reading. files: what was read. choices: {column: which column of the file, and why}.
    """

    source: Source
    bands: list[BandColumns]
    compilation: Compilation | None
    columns: dict[str, Column]
    files: list[Path]
    choices: dict[str, str]
    invalid: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        return self.source.table.rows

    def chunks(self, rows: int = 500_000) -> Iterator[dict[str, np.ndarray]]:
        """The dataset's columns [n], n up to `rows`, in the file's order and whatever `rows` is.

        Raises InputError for rows without an id, unmapped quality flags, text among numbers and files that break off.
        """
        wanted = {**self.source.wanted(), **photometry.wanted(self.bands)}
        self.invalid, start = {}, 0
        for raw in self.source.read(wanted, rows):
            found = self.source.columns(raw)
            self.count(raw, found)
            number = len(found["object_id"])
            if self.compilation is not None:
                found = self.compilation.join(found, start, start + number)
            found |= labels.label(found, self.source.spec.label_from)
            for band in self.bands:
                fluxes = photometry.fluxes(raw, band, self.source.spec.sentinels)
                self.add(f"flux_{band.band}", photometry.lost(raw, band, fluxes))
                found |= fluxes
            start += number
            yield {name: as_stored(found[name], column) for name, column in self.columns.items()}
        if start == 0:
            raise InputError(f"{self.source.where}: {str(self.files[0])!r} has no rows; give a catalogue of the field")

    def count(self, raw: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
        """Add to `invalid` the numbers of a chunk that did not stay."""
        for name in NUMBERS:
            if name in raw and name != "flags":
                kept = np.isfinite(found[name]) | np.isfinite(found.get("z_grism", np.nan)) * (name == "z_spec")
                self.add(name, int((~np.isnan(to_float(raw[name])) & ~kept).sum()))

    def add(self, name: str, number: int) -> None:
        self.invalid[name] = self.invalid.get(name, 0) + number


def open_catalog(
    path: Path | str, spec: CatalogColumns, *, match: Match | None = None, say: Callable[[str], None] = print
) -> Catalog:
    """Choose the columns of a catalogue (and say which, and why) and match it with the redshifts of another.

    Reads the match's catalogue whole, and the positions of this one once; a match without a file is none. Raises
    InputError that names the field.
    """
    needed = ("object_id", *(("ra", "dec") if spec.sky else ("x", "y")))
    left_out = ("x", "y") if spec.sky else ("ra", "dec")
    names = tuple(name for name in (*TEXTS, *NUMBERS) if name not in left_out)
    source = Source.choose(Path(path), spec, names, needed, "catalog", say)
    bands = photometry.choose_photometry(source.table, spec, "catalog", say)
    choices = {name: str(choice) for name, choice in source.choices.items()}
    files, compilation = list(source.table.files), None
    if match is not None and not match.file:
        say("match: no file is named; redshifts are the catalogue's own")
    elif match is not None:
        other, redshifts = read_redshifts(match, say)
        compilation = Compilation(redshifts, match_catalog(source, redshifts, match.radius_arcsec, say))
        files += other.table.files
        choices |= {f"match.{name}": str(choice) for name, choice in other.choices.items()}
    columns = columns_of(source, bands, compilation is not None)
    return Catalog(source, bands, compilation, columns, files, choices)


def read_redshifts(match: Match, say: Callable[[str], None]) -> tuple[Source, dict[str, np.ndarray]]:
    """The compilation: ra, dec, all of labels.MEASURED and rank [K], of its rows with a redshift. Raises InputError."""
    source = Source.choose(Path(match.file), match.catalog, REDSHIFTS, ("ra", "dec", "z_spec"), "match.catalog", say)
    parts = []
    for raw in source.read(source.wanted(), MATCH_ROWS):
        found = source.columns(raw)
        number = len(found["ra"])
        own_name = np.full(number, Path(match.file).name.partition(".")[0])
        found = {
            **{name: np.full(number, none) for name, none in labels.MEASURED.items()},
            "z_source": own_name,
            **found,
        }
        found["rank"] = labels.rank(found)
        parts.append({name: values[found["rank"] >= 0] for name, values in found.items()})
    redshifts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if not redshifts or not len(redshifts["ra"]):
        raise InputError(f"match.file: {match.file!r} has no redshift; check match.catalog.z_spec")
    return source, redshifts


def match_catalog(
    source: Source, redshifts: dict[str, np.ndarray], radius_arcsec: float, say: Callable[[str], None]
) -> Matched:
    """Which redshift goes to which row. Reads all positions of the catalogue. Raises InputError without positions."""
    if not source.spec.sky:
        raise InputError("match: the catalogue's positions are x and y; name ra and dec to match it")
    chunks = source.read(source.wanted("ra", "dec"), MATCH_ROWS)
    if source.table.rows is not None:
        chunks = progress(chunks, math.ceil(source.table.rows / MATCH_ROWS), "matching positions")
    positions = ((at["ra"], at["dec"]) for at in map(source.positions, chunks))
    matched = match_positions(positions, redshifts["ra"], redshifts["dec"], redshifts["rank"], radius_arcsec)
    say(f"match: {len(matched.rows)} objects of {len(redshifts['ra'])} redshifts within {radius_arcsec:g} arcsec")
    return matched


def columns_of(source: Source, bands: list[BandColumns], matched: bool) -> dict[str, Column]:
    """What the columns of the chunks are, in their order."""
    names = {*source.choices, "z", "z_err", "z_kind"}
    names |= {"z_flag_orig"} if "z_quality" in names else set()
    names |= {"z_grism"} if {"z_kind", "z_spec"} <= names and "z_kind" in source.choices else set()
    names |= {*labels.MEASURED, "z_match_arcsec"} if matched else set()
    columns = {name: column for name, column in COLUMNS.items() if name in names}
    for name, choice in source.choices.items():
        if name != "z_kind" and not (matched and name in labels.MEASURED):
            description = f"{columns[name].description}; column {' and '.join(choice.columns)} of the catalogue"
            columns[name] = dataclasses.replace(columns[name], description=description)
    ids = source.choices["object_id"].columns
    if len(ids) == 1 and source.table.kinds[ids[0]] == "number":
        columns["object_id"] = dataclasses.replace(columns["object_id"], dtype="int64")
    if "ebv" in columns and source.spec.ebv_map:
        of_map = f"Galactic E(B-V), {source.spec.ebv_map}; NaN where the catalogue has none"
        columns["ebv"] = dataclasses.replace(columns["ebv"], description=of_map)
    spec = source.spec.photometry
    return columns | photometry.describe(bands, spec.kind if spec else "")


def as_stored(values: np.ndarray, column: Column) -> np.ndarray:
    return values if column.dtype == "string" else values.astype(column.dtype)
