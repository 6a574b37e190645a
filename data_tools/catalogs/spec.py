"""What a survey file says of its catalogue: the sections [catalog], [catalog.photometry] and [match]."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from jaxz.errors import InputError, suggest

QUALITIES = (0, 1, 2, 3, 4)
KINDS_OF_Z = ("spec", "grism", "phot")
TEXTS = ("object_id", "tile", "image", "z_quality", "z_kind", "z_source", "obj_class")
NUMBERS = (
    "ra", "dec", "x", "y", "z_spec", "z_spec_err", "z_grism", "z_phot", "z_phot_l68", "z_phot_u68", "ebv", "mag_ref",
    "flags", "weight",
)  # fmt: skip
FLUX_COLUMNS, MAGNITUDE_COLUMNS = ("flux", "fluxerr", "ivar"), ("mag", "magerr")


@dataclass(frozen=True)
class CatalogPhotometry:
    """Fluxes or magnitudes of the bands. A column is a pattern, "{band}_FLUX", or a table {band: column}.

    kind: what is measured (model, aperture, cmodel ...), for the description. names: {band: what "{band}" stands for};
    without it the survey's bands stand for themselves. ivar: instead of fluxerr, in 1 / unit**2. unit: of the fluxes or
    magnitudes, where the file has none or a wrong one. zero_point_ab: of unit "count". offsets: {band: magnitudes to
    add}. extinction: A_band in magnitudes that the catalogue has taken off already, to be put back.
    psf_fwhm: arcsec.
    """

    kind: str
    flux: str | dict = ""
    fluxerr: str | dict = ""
    ivar: str | dict = ""
    mag: str | dict = ""
    magerr: str | dict = ""
    extinction: str | dict = ""
    psf_fwhm: str | dict = ""
    names: dict = field(default_factory=dict)
    unit: str = ""
    zero_point_ab: float | None = None
    offsets: dict = field(default_factory=dict)

    def columns(self, quantity: str) -> dict[str, str]:
        """{band: column} of flux, fluxerr, ivar, mag, magerr, extinction or psf_fwhm; empty where there are none."""
        columns = getattr(self, quantity)
        if isinstance(columns, dict):
            return columns
        return {band: columns.replace("{band}", name) for band, name in self.names.items()} if columns else {}


@dataclass(frozen=True)
class CatalogColumns:
    """The catalogue's own name of each column; one that is not named is looked up in data_tools.catalogs.aliases.

    Positions are ra and dec (ICRS) or x and y (pixels; pixel_origin is the number of the first one, 0 for NumPy, 1 for
    FITS and SExtractor). object_id, tile and image may be lists of
    columns, joined by "-". hdu: number or name of a FITS
    table; group: of an HDF5 file. ignore: columns of the dataset not to be looked up by alias. label_from: what z is
    taken from, best first. ebv_map: of which map, and scale, ebv is.

    The maps go from the catalogue's text (a whole number has no decimals) or a pattern with * ? [..] to the dataset's:
    z_quality_map to 0..4, z_kind_map to spec, grism or phot, obj_class_map to any text; the exact text goes before the
    patterns, these in their order. units: {column of the dataset: unit}, where the file has none or a wrong one.
    sentinels: {column of the dataset, or a quantity of the photometry: [numbers that stand for "missing"]}.
    """

    object_id: str | list = ""
    ra: str = ""
    dec: str = ""
    x: str = ""
    y: str = ""
    pixel_origin: int = 0
    tile: str | list = ""
    image: str | list = ""
    z_spec: str = ""
    z_spec_err: str = ""
    z_quality: str = ""
    z_quality_map: dict = field(default_factory=dict)
    z_kind: str = ""
    z_kind_map: dict = field(default_factory=dict)
    z_source: str = ""
    z_grism: str = ""
    z_phot: str = ""
    z_phot_l68: str = ""
    z_phot_u68: str = ""
    ebv: str = ""
    ebv_map: str = ""
    mag_ref: str = ""
    obj_class: str = ""
    obj_class_map: dict = field(default_factory=dict)
    flags: str = ""
    weight: str = ""
    label_from: list = field(default_factory=lambda: ["spec"])
    hdu: int | str = ""
    group: str = ""
    units: dict = field(default_factory=dict)
    sentinels: dict = field(default_factory=dict)
    ignore: list = field(default_factory=list)
    photometry: CatalogPhotometry | None = None
    uncertain: str = ""

    @property
    def sky(self) -> bool:
        """Whether positions are ra and dec."""
        return not self.x

    def with_bands(self, bands: list[str]) -> "CatalogColumns":
        """The same, the photometry's `names` filled from the survey's bands where it has none."""
        if self.photometry is None or self.photometry.names:
            return self
        names = {band: band for band in bands}
        return dataclasses.replace(self, photometry=dataclasses.replace(self.photometry, names=names))


@dataclass(frozen=True)
class Match:
    """A second catalogue, of redshifts, matched by position within radius_arcsec (data_tools.catalogs.match)."""

    file: str = ""
    radius_arcsec: float = 1.0
    catalog: CatalogColumns = CatalogColumns()


def check_catalog(columns: CatalogColumns, bands: list[str], where: str = "catalog") -> None:
    """What one field alone does not tell. Raises InputError."""
    given = {name for name in ("ra", "dec", "x", "y") if getattr(columns, name)}
    if given & {"x", "y"} and given != {"x", "y"}:
        raise InputError(f"{where}: {sorted(given)} are named as position columns; name ra and dec, or x and y")
    if columns.pixel_origin not in (0, 1):
        raise InputError(f"{where}.pixel_origin: {columns.pixel_origin} must be 0 (NumPy) or 1 (FITS)")
    if not all(type(value) is int and value in QUALITIES for value in columns.z_quality_map.values()):
        raise InputError(f"{where}.z_quality_map: {columns.z_quality_map} must map flags to 0, 1, 2, 3 or 4")
    if not all(value in KINDS_OF_Z for value in columns.z_kind_map.values()):
        raise InputError(f"{where}.z_kind_map: {columns.z_kind_map} must map to spec, grism or phot")
    if not all(isinstance(value, str) for value in columns.obj_class_map.values()):
        raise InputError(f"{where}.obj_class_map: {columns.obj_class_map} must map to text")
    if not columns.label_from or not all(kind in KINDS_OF_Z for kind in columns.label_from):
        raise InputError(f"{where}.label_from: {columns.label_from} must list some of spec, grism and phot")
    for name in ("object_id", "tile", "image"):
        parts = getattr(columns, name)
        if isinstance(parts, list) and not (parts and all(isinstance(part, str) and part for part in parts)):
            raise InputError(f"{where}.{name}: {parts!r} must name columns")
    quantities = {*NUMBERS, *FLUX_COLUMNS, *MAGNITUDE_COLUMNS, "extinction", "psf_fwhm"}
    known(columns.units, NUMBERS, f"{where}.units")
    known(columns.sentinels, quantities, f"{where}.sentinels")
    known(columns.ignore, {*TEXTS, *NUMBERS}, f"{where}.ignore")
    for name, values in columns.sentinels.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise InputError(f"{where}.sentinels.{name}: {values!r} must be a list of numbers")
    for name, unit in columns.units.items():
        if not isinstance(unit, str):
            raise InputError(f"{where}.units.{name}: {unit!r} must be text, such as 'deg'")
    if columns.photometry is not None:
        check_photometry(columns.photometry, bands, f"{where}.photometry")


def check_photometry(photometry: CatalogPhotometry, bands: list[str], where: str) -> None:
    """Raises InputError for unknown bands and for columns that do not go together."""
    given = [name for name in (*FLUX_COLUMNS, *MAGNITUDE_COLUMNS) if getattr(photometry, name)]
    if given not in (["flux"], ["flux", "fluxerr"], ["flux", "ivar"], ["mag"], ["mag", "magerr"]):
        raise InputError(f"{where}: {given} do not go together; name flux with fluxerr or ivar, or mag with magerr")
    for quantity in (*given, "extinction", "psf_fwhm", "names", "offsets"):
        value = getattr(photometry, quantity)
        if isinstance(value, str):
            if value and "{band}" not in value:
                raise InputError(f"{where}.{quantity}: {value!r} must hold {{band}}, or be a table by band")
            continue
        known(value, bands, f"{where}.{quantity}")
        holds, wanted = (is_finite, "finite numbers") if quantity == "offsets" else (is_text, "text")
        if not all(map(holds, value.values())):
            raise InputError(f"{where}.{quantity}: {value!r} must map bands to {wanted}")
    first = photometry.columns(given[0])
    if not first:
        raise InputError(f"{where}.{given[0]}: no bands are named; write a pattern with {{band}} or a table by band")
    for quantity in given[1:]:
        if set(photometry.columns(quantity)) != set(first):
            raise InputError(f"{where}.{quantity}: its bands must be those of {given[0]}, {sorted(first)}")


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def known(names: Iterable[object], allowed: Collection[str], where: str) -> None:
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise InputError(f"{where}: {name!r} is not known here.{suggest(str(name), allowed)}")
